"""The learned background remover: where rembg keeps its weights, how they are fetched once, what it answers.

Nothing that goes wrong here costs the lift: there is a matte, or a sentence on why there is none.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multiview.errors import ImageError, SettingsError

logger = logging.getLogger("trilift")

_RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"
REMBG_MODELS = {  # what rembg can be asked for here, with the MD5 of its published file
    "u2net": "60024c5c889badc19c04ad937298a77b",
    "u2netp": "8e83ca70e441ab06c318d82300c84806",
    "u2net_human_seg": "c09ddc2e0104f800e3e1bb4652583d1f",
    "silueta": "55e59e0d8062d2f5d013f4725ee84782",
    "isnet-general-use": "fc16ebd8b0c10d971d3513d564d01e29",
}
_CONNECT_SECONDS = 6.0
_LOWEST_BYTES_PER_SECOND = 200_000
_fetch_lock = threading.Lock()


def learned_alpha(rgb: np.ndarray, model: str) -> tuple[np.ndarray | None, str]:
    """Ask rembg which pixels are the object; fetch its weights first when they are not on this machine.

    The weights are asked for once in a process, and not at all where ``TRILIFT_OFFLINE`` or ``HF_HUB_OFFLINE`` is set.

    Args:
        rgb: (H, W, 3) float, sRGB in [0, 1].
        model: name of the weights, one of ``REMBG_MODELS``.

    Returns:
        (H, W) float32 alpha in [0, 1] and an empty string; or None and the reason why there is none: no weights, no
        network, rembg missing or broken.

    Raises:
        SettingsError: ``model`` is none of ``REMBG_MODELS``.
    """
    if model not in REMBG_MODELS:
        raise SettingsError(f"rembg_model={model!r}: expected one of {', '.join(REMBG_MODELS)}.")
    if find_rembg_model(model) is None:
        with _fetch_lock:
            reason = _fetch_rembg_model(model)
        if reason:
            return None, reason
    try:
        session = _rembg_session(model)
        matte = session.predict(Image.fromarray(np.round(rgb * 255).astype(np.uint8)))[0]
    except Exception as error:  # onnxruntime and rembg raise many kinds; none of them may cost the lift
        return None, f"rembg failed: {error}"
    return np.asarray(matte, np.float32) / 255, ""


def find_rembg_model(model: str) -> Path | None:
    """Look for the weights of rembg's ``model`` on this machine, where rembg 2 looks, without importing it.

    Args:
        model: name of the weights, as in ``REMBG_MODELS``; any other name is simply not found.

    Returns:
        The .onnx file, or None when it is not here. Whether it is whole is not looked at.
    """
    for folder in _rembg_folders(model):
        if (folder / f"{model}.onnx").is_file():
            return folder / f"{model}.onnx"
    return None


def _rembg_folders(model: str) -> list[Path]:
    """Where rembg keeps ``model``, the place for a new file first (rembg/sessions/base.py, 2.0.86)."""
    xdg, legacy = os.environ.get("XDG_DATA_HOME"), os.environ.get("U2NET_HOME")
    flat = Path(legacy or Path(xdg or "~") / ".u2net").expanduser()
    home = (
        flat
        if legacy
        else Path(os.environ.get("REMBG_HOME") or (Path(xdg) / "rembg" if xdg else "~/.rembg")).expanduser()
    )
    return [home / "models" / model, flat]


@functools.lru_cache(maxsize=1)
def _rembg_session(model: str) -> Any:
    try:
        from rembg import new_session
    except ImportError as error:
        raise ImageError(f"the package rembg is not installed ({error})") from error
    return new_session(model)


@functools.cache  # one try in a process: a folder of a thousand photos must not wait a thousand times
def _fetch_rembg_model(model: str) -> str:
    """Fetch the weights into rembg's folder; an empty string, or the reason why that did not work."""
    for switch in ("TRILIFT_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(switch, "").lower() in ("1", "true", "yes", "on"):
            return f"{model}.onnx is not on this machine and {switch} is set"
    fetch = _Fetch(_RELEASE + f"{model}.onnx", _rembg_folders(model)[0] / f"{model}.onnx", REMBG_MODELS[model])
    problem = fetch.run()
    return f"{model}.onnx could not be fetched: {problem}" if problem else ""


class _Fetch:
    """One download in a thread of its own, since a name look-up cannot be given a time limit.

    Args:
        url: what to fetch.
        path: where it shall appear, whole and with the right sum, or not at all.
        md5: the hexadecimal sum that the file must have.
    """

    def __init__(self, url: str, path: Path, md5: str) -> None:
        self.url, self.path, self.md5 = url, path, md5
        self.connected, self.given_up = threading.Event(), threading.Event()
        self.problem = ""

    def run(self) -> str:
        """Fetch, and give an empty string or what went wrong; without a network it takes a few seconds at most."""
        thread = threading.Thread(target=self._guarded, daemon=True)
        thread.start()
        try:
            if not self.connected.wait(_CONNECT_SECONDS):
                self.given_up.set()
                return f"no answer within {_CONNECT_SECONDS:g} s"
            thread.join()
        except BaseException:  # Ctrl-C: let the thread clear its unfinished file away
            self.given_up.set()
            thread.join(2)
            raise
        return self.problem

    def _guarded(self) -> None:
        try:
            self._download()
        except Exception as error:  # whatever it is, the lift goes on without the learned remover
            self.problem = str(error) or type(error).__name__
        finally:
            self.connected.set()

    def _download(self) -> None:
        import hashlib
        import time
        import urllib.request

        from multiview.files import written_whole

        with urllib.request.urlopen(self.url, timeout=_CONNECT_SECONDS) as response:
            if self.given_up.is_set():
                return
            self.connected.set()
            logger.warning("fetching %s once (%s bytes)", self.url, response.headers.get("Content-Length", "unknown"))
            digest, start, done = hashlib.md5(usedforsecurity=False), time.monotonic(), 0
            with written_whole(self.path) as aside, open(aside, "wb") as file:
                while piece := response.read(1 << 18):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    seconds = time.monotonic() - start
                    if self.given_up.is_set() or (seconds > 10 and done < seconds * _LOWEST_BYTES_PER_SECOND):
                        raise OSError(f"too slow ({done} bytes in {seconds:.0f} s)")
                if digest.hexdigest() != self.md5:
                    raise OSError(f"damaged on the way ({done} bytes, MD5 {digest.hexdigest()}, expected {self.md5})")
