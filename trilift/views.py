"""One photo in, views of its object out: `PhotoToViews`, the first half of a lift by itself.

::

    photo ──► Cutout ──► elevation ──► ViewGenerator ──► GeneratedViews ──► folder
         load      framed as    given, or       its own cameras,      000.png ..., views.png,
                   trained      estimated       in its own world      cameras.json, transforms.json, views.json
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from multiview.camerafile import CAMERAS_FILE, NERF_FILE, write_transforms, write_views
from multiview.cameras import Cameras, orbit_angles
from multiview.devices import describe_device
from multiview.errors import SettingsError
from multiview.generator import ViewGenerator
from multiview.views import Views

from .asset import cutout_record, file_record, plain_json, staged, view_sheet, write_png
from .batch import VIEWS_RECORD_FILE, asset_name
from .elevation import estimate_elevations
from .foreground import Cutout, cut_out
from .loading import WeightsRecord
from .photo import load_photo
from .progress import OnStage, OnStep, Stopwatch, note_on_stderr
from .provenance import PACKAGES, VIEW_PACKAGES, naming, own_version, package_versions, photo_record
from .settings import ViewSettings, parse_memory, ring_count

if TYPE_CHECKING:
    from PIL.Image import Image

    from multiview.zero123 import Targets

    PhotoSource = str | Path | Image | np.ndarray

RECORD_FORMAT = 1
# Cut-outs are kept at this side or the generator's, whichever is larger.
_CUTOUT_SIZE = 512
_REPEATED = "repeated in fp32"


@dataclass(frozen=True, eq=False)
class MadeViews:
    """What a generator made of a cut-out.

    Attributes:
        image: (4, S, S) straight RGBA, what it was given.
        views: in its own world, input's camera at azimuth 0.
        elevation_deg: of the input's camera.
        elevation_estimated: whether nobody said so.
        steps: denoising steps that were run; 0 for a generator that has none.
        repeated: what overflowed in half precision and was repeated in fp32, in words.
        warnings: what else the generator had to say.
        photo_fov_deg: full field of view under which the generator took the image, where it says so.
    """

    image: Tensor
    views: Views
    elevation_deg: float
    elevation_estimated: bool
    steps: int
    repeated: tuple[str, ...]
    warnings: tuple[str, ...]
    photo_fov_deg: float | None = None


@dataclass(frozen=True, eq=False)
class GeneratedViews:
    """Views of one photo's object and how they were made.

    Attributes:
        name: the photo's name without folder and suffix.
        cutout: what was cut out of the photo.
        views: pictures, mattes and cameras, in the generator's own world; the photo's camera is at azimuth 0.
        record: how they were made, JSON values; only what is under ``seconds`` differs between equal runs.
    """

    name: str
    cutout: Cutout
    views: Views
    record: dict[str, Any]

    def save(self, folder: str | Path) -> list[Path]:
        """Write the views' folder: all of it, or nothing.

        ``000.png``, ``001.png``, ... (RGBA), ``input.png`` (the cut-out), ``views.png`` (all of them on one sheet),
        ``transforms.json`` (NeRF's form), ``cameras.json`` (ours, see `multiview.camerafile`) and ``views.json`` (the
        record). `multiview.camerafile.read_views` and ``--views-dir`` read the folder back. Files of an earlier save
        are replaced or removed, all others are left alone; ``views.json`` leaves first and comes last.

        Args:
            folder: made when missing.

        Returns:
            The files written, ``views.json`` last.

        Raises:
            OutputError: something could not be written; an earlier result in the folder is kept.
        """
        folder = Path(folder)
        fixed = ("input.png", "views.png", NERF_FILE, CAMERAS_FILE, VIEWS_RECORD_FILE)
        pictures = [f"{index:03d}.png" for index in range(len(self.views))]
        owned = [*sorted({*pictures, *_earlier_pictures(folder)}), *fixed]
        with staged(folder, owned) as stage:
            write_views(stage, self.views)
            write_transforms(stage, self.views)
            write_png(self.cutout.image, stage / "input.png")
            write_png(view_sheet(self.views), stage / "views.png")
            files = sorted(stage.iterdir(), key=lambda file: owned.index(file.name))
            record = {"format": RECORD_FORMAT, "name": self.name, **self.record, "cutout": cutout_record(self.cutout)}
            seconds = record.pop("seconds", {})
            record |= {"files": [file_record(file) for file in files], "seconds": seconds}
            (stage / VIEWS_RECORD_FILE).write_text(
                json.dumps(plain_json(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
            )
        return [folder / file.name for file in files] + [folder / VIEWS_RECORD_FILE]


class PhotoToViews:
    """A loaded generator that makes views of photos.

    Args:
        model: the generator.
        weights: which weights it runs.
        dtype: number format of its networks.
        dtype_reason: why it is that one.
        max_memory: bytes that it was asked to keep within, None for no limit.

    Attributes:
        family: of the generator, as `trilift.chain` knows it.
    """

    def __init__(
        self,
        model: ViewGenerator,
        *,
        weights: WeightsRecord | None = None,
        dtype: torch.dtype = torch.float32,
        dtype_reason: str = "given",
        max_memory: int | None = None,
    ) -> None:
        self.model = model
        self.weights = weights or WeightsRecord(model.name, architecture=getattr(model, "architecture", model.name))
        self.family = self.weights.architecture or model.name
        self.device = torch.device(getattr(model, "device", "cpu"))
        self.dtype = str(dtype).removeprefix("torch.")
        self.dtype_reason = dtype_reason
        self.max_memory = max_memory

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        commercial_ok: bool = False,
        max_memory: int | str | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> PhotoToViews:
        """Load a view generator by name, from a folder or file of weights, or from the hub.

        Args:
            name_or_folder: see `trilift.generators.load_generator`.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
            revision: commit, branch or tag on the hub.
            commercial_ok: take only weights whose licence plainly allows commercial use.
            max_memory: bytes, or words such as ``6GB``, that a run may take on the device; None for no limit.
            on_note: told one line for people, on what is fetched and on licences; by default such lines go to stderr.

        Raises:
            WeightsError, SettingsError: see `trilift.generators.load_generator`.
        """
        limit = None if max_memory is None else parse_memory(max_memory)
        from .generators import load_generator

        loaded = load_generator(
            name_or_folder, device=device, dtype=dtype, revision=revision, commercial_ok=commercial_ok,
            max_memory=limit, on_note=on_note or note_on_stderr,
        )  # fmt: skip
        return cls(
            loaded.model, weights=loaded.weights, dtype=loaded.dtype, dtype_reason=loaded.dtype_reason, max_memory=limit
        )

    @property
    def looks_anywhere(self) -> bool:
        """Whether the generator can be told from where to look, as Zero123 can; others have cameras of their own."""
        return hasattr(self.model, "targets")

    def check(self, settings: ViewSettings) -> None:
        """Raise when ``settings`` ask for what this generator cannot do.

        Raises:
            SettingsError: cameras for a generator that has its own.
        """
        if settings.asks_for_cameras and not self.looks_anywhere:
            raise SettingsError(
                f"{self.weights.name} makes views from cameras of its own, and cannot be asked for others. Leave "
                "--cameras, --azimuths and --elevations out, or take Zero123."
            )
        if settings.scheduler is not None and not hasattr(self.model, "set_scheduler"):
            raise SettingsError(
                f"scheduler={settings.scheduler}: {self.weights.name} has no choice of schedulers. Leave it out."
            )
        if (settings.reuse_steps > 1 or settings.compile) and not getattr(self.model, "has_run_options", False):
            raise SettingsError(
                f"{self.weights.name} runs its networks in one way only. Leave --reuse-steps and --compile out, or "
                "take Zero123 or SyncDreamer."
            )
        if settings.parity and self.family == "tiny-views":
            raise SettingsError(
                f"parity: {self.weights.name} is this project's own, there is no other program to agree with."
            )

    @overload
    def __call__(
        self,
        photo: PhotoSource,
        settings: ViewSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> GeneratedViews: ...

    @overload
    def __call__(
        self,
        photo: list[Any] | tuple[Any, ...],
        settings: ViewSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> list[GeneratedViews]: ...

    def __call__(
        self,
        photo: Any,
        settings: ViewSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> GeneratedViews | list[GeneratedViews]:
        """Make views of one photo, or of each of a list.

        Args:
            photo: a path, a PIL image, an array (H, W, 1|3|4) of uint8 or of floats in [0, 1]; or a list of these.
            settings: see `ViewSettings`; the defaults when left out.
            on_stage: called with the name of each stage when it begins.
            on_step: called after every denoising step with how many are done and how many there are; what it raises
                ends the run.
            changes: single settings by name, such as ``view_steps=20``.

        Returns:
            `GeneratedViews` for one photo, a list of them for a list. Nothing is written; call ``views.save(folder)``.

        Raises:
            SettingsError: an unknown setting, a value out of range, or cameras that this generator cannot take.
            TriliftError: of the stage that failed; its message names the photo.
        """
        settings = (settings or ViewSettings()).replaced(**changes)
        self.check(settings)
        if isinstance(photo, list | tuple):
            return [self._make(each, settings, on_stage, on_step) for each in photo]
        return self._make(photo, settings, on_stage, on_step)

    def _make(
        self, source: PhotoSource, settings: ViewSettings, on_stage: OnStage | None, on_step: OnStep | None
    ) -> GeneratedViews:
        watch = Stopwatch(on_stage)
        with watch.stage("load"):
            photo = load_photo(source)
        with naming(photo.name):
            with watch.stage("cutout"):
                cutout = cut_out(photo, **self.framing(settings))
            with watch.stage("views"):
                made = self.generate(cutout, settings, on_step=on_step)
        record = {
            "trilift": own_version(),
            "photo": photo_record(photo),
            **self.record_of(made),
            "seed": settings.seed,
            "settings": settings.as_record(),
            "device": describe_device(self.device),
            "versions": package_versions((*PACKAGES, *VIEW_PACKAGES)),
            "warnings": [*photo.notes, *cutout.warnings, *made.warnings],
            "seconds": {**watch.seconds, "views_total": watch.total},
        }
        return GeneratedViews(asset_name(photo.name), cutout, made.views, record)

    def framing(self, settings: ViewSettings) -> dict[str, Any]:
        """How a photo is cut out for this generator: what `cut_out` takes beside it."""
        return {
            "background": settings.background,
            "foreground_ratio": settings.foreground_ratio or self.model.foreground_ratio,
            "size": max(_CUTOUT_SIZE, self.model.image_size),
        }

    def generate(
        self, cutout: Cutout, settings: ViewSettings, *, targets: Targets | None = None, on_step: OnStep | None = None
    ) -> MadeViews:
        """Run the generator on a cut-out that was framed as `framing` says.

        Args:
            cutout: see `framing`.
            settings: how; what they say of cameras is used where ``targets`` is None.
            targets: views to ask for, of generators that `looks_anywhere`.
            on_step: see `__call__`.

        Raises:
            SettingsError, WeightsError: see `ViewGenerator.generate`.
        """
        image = cutout.to_tensor(self.model.image_size)
        elevation = settings.elevation
        if elevation is None:
            elevation = round(estimate_elevations(image[None])[0], 2)
        wanted = targets if targets is not None else targets_of(settings, elevation)
        asked: dict[str, Any] = {} if wanted is None else {"targets": wanted}
        counted = [0]

        def count(done: int, total: int) -> None:
            counted[0] = total
            if on_step is not None:
                on_step(done, total)

        with _scheduled(self.model, settings.scheduler), _running(self.model, settings), _heard() as said:
            views = self.model.generate(
                image, elevation_deg=elevation, generator=torch.Generator().manual_seed(settings.seed),
                num_inference_steps=settings.view_steps, guidance_scale=settings.guidance,
                view_batch_size=settings.view_batch, parity=settings.parity, on_step=count, **asked,
            )  # fmt: skip
        repeated = tuple(text for text in said if _REPEATED in text)
        others = tuple(text for text in said if _REPEATED not in text)
        fov_deg = getattr(self.model, "photo_fov_deg", None)
        return MadeViews(image, views, elevation, settings.elevation is None, counted[0], repeated, others, fov_deg)

    def record_of(self, made: MadeViews) -> dict[str, Any]:
        """How views were made, in values that JSON has."""
        return {
            "generator": asdict(self.weights),
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "max_memory_bytes": self.max_memory,
            "elevation_deg": made.elevation_deg,
            "elevation_estimated": made.elevation_estimated,
            "steps": made.steps,
            "repeated_in_fp32": list(made.repeated),
            "image_size": list(made.views.image_size),
            "cameras": camera_rows(made.views.cameras),
        }

    def identity(self) -> dict[str, Any]:
        """What of the generator decides its views, for fingerprints."""
        from . import registry

        return {
            "weights": asdict(self.weights),
            "dtype": self.dtype,
            # The embedded model estimates the elevation where it is not given.
            "elevation_by": registry.find("tiny").sha256,
        }


def targets_of(settings: ViewSettings, elevation_deg: float) -> Targets | None:
    """The cameras that settings ask for, None where they leave them to the generator.

    Args:
        settings: see `ViewSettings`.
        elevation_deg: of the photo's camera, for views whose elevation is not said.
    """
    if not settings.asks_for_cameras:
        return None
    from multiview.zero123 import INSTANTMESH_TARGETS, Targets, ring

    if settings.cameras == "instantmesh":
        return INSTANTMESH_TARGETS
    elevations = settings.elevations or (elevation_deg,)
    if settings.azimuths is None:
        around = ring(ring_count(settings.cameras or ""), elevations[0])
        return around if len(elevations) == 1 else Targets(around.azimuth_rel_deg, elevations)
    count = len(settings.azimuths)
    return Targets(settings.azimuths, elevations * count if len(elevations) == 1 else elevations)


def camera_rows(cameras: Cameras) -> list[dict[str, float]]:
    """Where cameras are, one row each, rounded for people; ``cameras.json`` has them exactly."""
    azimuths, elevations, distances = orbit_angles(cameras)
    return [
        {
            "azimuth_deg": round(float(azimuth), 3),
            "elevation_deg": round(float(elevation), 3),
            "distance": round(float(distance), 5),
            "fov_y_deg": round(float(fov), 3),
        }
        for azimuth, elevation, distance, fov in zip(azimuths, elevations, distances, cameras.fov_y_deg, strict=True)
    ]


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record that `GeneratedViews.save` wrote into a folder, None where there is none."""
    path = Path(folder) / VIEWS_RECORD_FILE
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == RECORD_FORMAT else None


def _earlier_pictures(folder: Path) -> list[str]:
    """The pictures of views that an earlier save wrote into ``folder``, by its record."""
    files = (read_record(folder) or {}).get("files")
    names = [str(file.get("name")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    return [name for name in names if len(name) == 7 and name[:3].isdigit() and name.endswith(".png")]


@contextmanager
def _scheduled(model: ViewGenerator, name: str | None) -> Iterator[None]:
    """Have a generator use another scheduler inside the block; None leaves its own.

    Raises:
        SettingsError: it has no choice of schedulers.
    """
    if name is None:
        yield
        return
    choose: Callable[[str], None] | None = getattr(model, "set_scheduler", None)
    if choose is None:
        raise SettingsError(f"scheduler={name}: {model.name} has no choice of schedulers. Leave --scheduler out.")
    own = {key: value for key, value in vars(model).items() if key in ("scheduler", "scheduler_name")}
    try:
        choose(name)
        yield
    finally:
        vars(model).update(own)


@contextmanager
def _running(model: ViewGenerator, settings: ViewSettings) -> Iterator[None]:
    """Have a generator run its networks as asked inside the block; where nothing was asked, as it does."""
    if settings.reuse_steps == 1 and not settings.compile:
        yield
        return
    from multiview.networks import NetworkGenerator

    assert isinstance(model, NetworkGenerator), "checked with the settings"
    own = model.run_options
    try:
        model.use_run_options(replace(own, reuse_steps=settings.reuse_steps, compile=settings.compile))
        yield
    finally:
        model.use_run_options(own)


class _Listener(logging.Handler):
    """Keeps what is logged as a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.said.append(record.getMessage())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What generators say through the log inside the block: it belongs into the record of what they make."""
    listener, log = _Listener(), logging.getLogger("trilift")
    log.addHandler(listener)
    try:
        yield listener.said
    finally:
        log.removeHandler(listener)
