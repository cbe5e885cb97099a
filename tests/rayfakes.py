"""A pipeline without a network for workers of a Ray cluster; a module of its own, so that they find it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from multiview.errors import ImageError, WeightsError
from multiview.weights import file_sha256


@dataclass(frozen=True)
class SlowLoader:
    """Loads a `SlowPipe`.

    Attributes:
        log: file that gets a line ``PID NAME`` when a photo is begun and ``PID NAME ok`` when it is saved.
        seconds: a lift takes.
        broken: there is nothing to load.
    """

    log: str
    seconds: float = 0.05
    broken: bool = False
    device: str = "cpu"

    def __call__(self) -> SlowPipe:
        if self.broken:
            raise WeightsError("model.safetensors: there is no such file.")
        return SlowPipe(self.log, self.seconds)


class SlowPipe:
    """Takes its time for each photo and writes two small files; ``bad`` ones fail, ``deadly`` ones end the process."""

    def __init__(self, log: str, seconds: float) -> None:
        self._log, self._seconds = log, seconds

    def fingerprint(self, photo_sha256: str, mask_sha256: str | None, settings: Any) -> str:
        return f"{photo_sha256} {mask_sha256} {settings.resolution}"

    def __call__(self, photo: Path, settings: Any, on_stage: Any = None, on_step: Any = None) -> Any:
        self._note(photo.name)
        time.sleep(self._seconds)
        if "bad" in photo.name:
            raise ImageError("is a bad picture (7 px). Take another.")
        if "deadly" in photo.name:
            os._exit(11)
        fingerprint = self.fingerprint(file_sha256(photo), None, settings)
        record = {
            "fingerprint": fingerprint, "seconds": {"network": self._seconds}, "warnings": [],
            "photo": {"name": str(photo), "sha256": file_sha256(photo), "mask": None},
        }  # fmt: skip
        return SimpleNamespace(record=record, save=self._saver(photo.name, record))

    def _saver(self, name: str, record: dict[str, Any]) -> Callable[..., list[Path]]:
        def save(folder: Path, *settings: Any, **changes: Any) -> list[Path]:
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), "teal").save(folder / "input.png")
            size, digest = (folder / "input.png").stat().st_size, file_sha256(folder / "input.png")
            files = [{"name": "input.png", "bytes": size, "sha256": digest}]
            (folder / "asset.json").write_text(json.dumps({**record, "files": files}))
            self._note(f"{name} ok")
            return [folder / "input.png", folder / "asset.json"]

        return save

    def _note(self, text: str) -> None:
        with open(self._log, "a") as file:
            file.write(f"{os.getpid()} {text}\n")
