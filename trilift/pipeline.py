"""One photo in, one object out: `ImageTo3D`.

::

    photo ──► Cutout ──► Reconstruction ──► Mesh ──► Asset
         load       cutout           network    mesh

Each stage is one call; this file only joins them, times them and writes down what was done.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from lrm.field import Field
from lrm.mesh import Mesh, extract_mesh_with_report
from lrm.models import Reconstruction, ReconstructionModel
from multiview.devices import describe_device, pick_device, pick_dtype, synchronize
from multiview.errors import MeshError, SettingsError, TriliftError
from multiview.weights import CONFIG_FILE, WEIGHTS_FILE, file_sha256, read_config_json

from . import registry
from .asset import Asset
from .batch import LiftResult, asset_name, save_asset
from .foreground import Cutout, cut_out
from .photo import Photo, load_photo
from .progress import OnStage, Stopwatch
from .settings import LiftSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    PhotoSource = str | Path | Image | np.ndarray

# Cut-outs are kept at this side or the network's, whichever is larger, so that input.png is worth looking at.
_CUTOUT_SIZE = 512
_COLOR_CHUNK = 1 << 16
_CHECK_SIZE = 128
_LOW_IOU = 0.5
_RECORDED_PACKAGES = ("torch", "numpy", "trimesh", "PyMCubes", "pillow")


@dataclass(frozen=True)
class WeightsRecord:
    """Which weights a pipeline runs, as asset.json states it.

    Attributes:
        name: as in the registry, or the folder's name.
        sha256: of the weights file; None for a model built in memory.
        config_sha256: of its config.json.
        licence: of the weights, None when not known.
        commercial: ``yes``, ``no``, ``conditions`` or ``unknown``.
    """

    name: str
    sha256: str | None = None
    config_sha256: str | None = None
    licence: str | None = None
    commercial: str = "unknown"


class ImageTo3D:
    """A loaded model that lifts photos.

    Attributes:
        model: the reconstruction model.
        weights: which weights it runs.
        device: where it runs.
        dtype: number format of the network, such as ``float32``.
    """

    def __init__(
        self,
        model: ReconstructionModel,
        *,
        weights: WeightsRecord | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.weights = weights or WeightsRecord(model.name)
        self.device = torch.device(device)
        self.dtype = str(dtype).removeprefix("torch.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "tiny",
        *,
        views: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> ImageTo3D:
        """Load a model by name or from a folder of config.json and model.safetensors.

        Args:
            name_or_folder: a name of `trilift.models()`, or a folder; a name wins over a folder of that name in the
                working directory (write ``./tiny`` for the folder).
            views: a view generator to run first; none is available yet.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the network; meshing is always fp32.
            revision: commit of the hub repository; embedded weights and folders have none.

        Raises:
            WeightsError: unknown or planned name, or weights that are missing, damaged or do not fit.
            SettingsError: ``views`` or ``revision`` given where there is none, unknown device or dtype.
        """
        if views is not None:
            raise SettingsError(f"views={views!r}: view generators are planned, not yet available. Leave views out.")
        folder, row = registry.resolve(name_or_folder)
        if revision is not None:
            raise SettingsError(f"revision={revision!r}: {name_or_folder} is not from a hub. Leave revision out.")
        torch_device = pick_device(device)
        torch_dtype = pick_dtype(dtype, torch_device)
        model = _load_model(folder, torch_device, torch_dtype)
        return cls(model, weights=_weights_record(folder, row), device=torch_device, dtype=torch_dtype)

    @overload
    def __call__(
        self,
        photo: PhotoSource,
        settings: LiftSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> Asset: ...

    @overload
    def __call__(
        self,
        photo: list[Any] | tuple[Any, ...],
        settings: LiftSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> list[Asset]: ...

    def __call__(
        self, photo: Any, settings: LiftSettings | None = None, *, on_stage: OnStage | None = None, **changes: Any
    ) -> Asset | list[Asset]:
        """Lift one photo, or each of a list.

        Args:
            photo: a path, a PIL image, an array (H, W, 1|3|4) of uint8 or of floats in [0, 1]; or a list of these.
            settings: see `LiftSettings`; the defaults when left out.
            on_stage: called with the name of each stage when it begins.
            changes: single settings by name, such as ``resolution=128``.

        Returns:
            An `Asset` for one photo, a list of them for a list. Nothing is written; call ``asset.save(folder)``.

        Raises:
            SettingsError: an unknown setting or a value out of range.
            TriliftError: of the stage that failed; its message names the photo.
        """
        settings = (settings or LiftSettings()).replaced(**changes)
        if isinstance(photo, list | tuple):
            return [self._lift(each, settings, on_stage) for each in photo]
        return self._lift(photo, settings, on_stage)

    def lift_folder(
        self, folder: str | Path, out: str | Path, settings: LiftSettings | None = None, **changes: Any
    ) -> Iterator[LiftResult]:
        """Lift every photo below ``folder`` into ``out``; see `trilift.batch.lift_folder`."""
        from .batch import lift_folder

        return lift_folder(self, folder, out, (settings or LiftSettings()).replaced(**changes))

    def _lift(self, source: PhotoSource, settings: LiftSettings, on_stage: OnStage | None) -> Asset:
        watch = Stopwatch(on_stage)
        with watch.stage("load"):
            photo = load_photo(source)
        with naming(photo.name), torch.no_grad():
            with watch.stage("cutout"):
                cutout = self._cut_out(photo, settings)
            with watch.stage("network"):
                reconstruction = self._reconstruct(cutout, settings)
            with watch.stage("mesh"):
                mesh, report = extract_mesh_with_report(
                    reconstruction.field, mesh_resolution=settings.resolution, threshold=settings.threshold
                )
            if settings.faces is not None and len(mesh.faces) > settings.faces:
                with watch.stage("simplify"):
                    mesh = simplify(mesh, reconstruction.field, settings.faces)
            with watch.stage("check"):
                checks = quality_checks(mesh, reconstruction, cutout)
        record = self._record(photo, cutout, settings, reconstruction, watch)
        record["extraction"] = {k: v for k, v in asdict(report).items() if k not in ("seconds", "warnings")}
        record["checks"] = checks
        record["warnings"] = [*photo.notes, *cutout.warnings, *report.warnings, *_warnings(checks)]
        return Asset(
            name=asset_name(photo.name), cutout=cutout, views=None, field=reconstruction.field, mesh=mesh,
            camera=reconstruction.camera, record=record,
        )  # fmt: skip

    def _cut_out(self, photo: Photo, settings: LiftSettings) -> Cutout:
        ratio = settings.foreground_ratio or self.model.foreground_ratio
        size = max(_CUTOUT_SIZE, self.model.image_size)
        return cut_out(photo, background=settings.background, foreground_ratio=ratio, size=size)

    def _reconstruct(self, cutout: Cutout, settings: LiftSettings) -> Reconstruction:
        image = cutout.to_tensor(self.model.image_size)[None].to(self.device)
        reconstruction = self.model.reconstruct(
            image,
            elevation_deg=settings.elevation,
            fov_deg=None if settings.fov is None else cutout.crop_fov_deg(settings.fov),
            upright=settings.upright == "auto",
        )[0]
        synchronize(self.device)
        return reconstruction

    def _record(
        self, photo: Photo, cutout: Cutout, settings: LiftSettings, made: Reconstruction, watch: Stopwatch
    ) -> dict[str, Any]:
        """How the asset was made, in values that JSON has; only ``seconds`` differs between equal runs."""
        mask_sha256 = None if photo.mask_path is None else file_sha256(photo.mask_path)
        return {
            "trilift": _own_version(),
            "photo": {
                "name": photo.name,
                "sha256": photo.sha256,
                "mask": photo.mask_path,
                "mask_sha256": mask_sha256,
                "notes": list(photo.notes),
            },
            "model": asdict(self.weights),
            "fingerprint": self.fingerprint(photo.sha256, mask_sha256, settings),
            "seed": settings.seed,
            "settings": settings.as_record(),
            "device": describe_device(self.device),
            "dtype": self.dtype,
            "versions": _versions(),
            "assumed": {
                "elevation_deg": round(float(made.elevation_deg), 4),
                "cond_image_fov_y_deg": round(float(made.camera.fov_y_deg[0]), 4),
                "camera_distance": round(float(made.camera.positions[0].norm()), 6),
                "estimated": list(made.estimated),
            },
            "seconds": {**watch.seconds, "lift": watch.total},
        }

    def fingerprint(self, photo_sha256: str, mask_sha256: str | None, settings: LiftSettings) -> str:
        """SHA-256 of all that decides a result: photo, mask, settings, weights and number format.

        Folder runs compare it with the one in asset.json to know what is already done.
        """
        parts = [photo_sha256, mask_sha256, settings.as_record(), asdict(self.weights), self.dtype]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def lift(
    photo: PhotoSource,
    out: str | Path | None = None,
    *,
    model: str | Path = "tiny",
    device: str = "auto",
    **changes: Any,
) -> Asset:
    """Lift one photo in one call; for several, load an `ImageTo3D` once.

    Args:
        photo: see `ImageTo3D.__call__`.
        out: folder to save the asset in; nothing is written when left out.
        model: see `ImageTo3D.from_pretrained`.
        device: likewise.
        changes: fields of `LiftSettings`.

    Raises:
        TriliftError: of the stage that failed.
    """
    settings = LiftSettings().replaced(**changes)
    asset = ImageTo3D.from_pretrained(model, device=device)(photo, settings)
    if out is not None:
        save_asset(asset, out, settings)
    return asset


def lift_folder(
    folder: str | Path, out: str | Path, *, model: str | Path = "tiny", device: str = "auto", **changes: Any
) -> Iterator[LiftResult]:
    """Lift every photo below ``folder`` into ``out`` in one call; see `trilift.batch.lift_folder`."""
    settings = LiftSettings().replaced(**changes)
    return ImageTo3D.from_pretrained(model, device=device).lift_folder(folder, out, settings)


def simplify(mesh: Mesh, field: Field, faces: int) -> Mesh:
    """Reduce ``mesh`` to at most ``faces`` triangles by quadric decimation; colours are asked of the field anew.

    Args:
        mesh: any closed mesh in the world frame.
        field: what it was taken from.
        faces: triangles wanted, at least 4.

    Raises:
        MeshError: nothing is left at so few triangles.
    """
    import fast_simplification

    if len(mesh.faces) <= faces:
        return mesh
    vertices, triangles = fast_simplification.simplify(
        np.ascontiguousarray(mesh.vertices, np.float32), np.ascontiguousarray(mesh.faces, np.int32), target_count=faces
    )
    if len(triangles) == 0:
        raise MeshError(f"faces={faces}: nothing is left of {len(mesh.faces)} triangles. Ask for more faces.")
    points = torch.as_tensor(vertices, dtype=torch.float32, device=field.device)
    with torch.no_grad():
        colors = torch.cat([field.color(chunk) for chunk in points.split(_COLOR_CHUNK)]).clamp(0, 1)
    return Mesh(
        vertices=np.asarray(vertices, np.float32), faces=np.asarray(triangles, np.int32),
        colors=colors.cpu().numpy().astype(np.float32),
    )  # fmt: skip


def quality_checks(mesh: Mesh, made: Reconstruction, cutout: Cutout) -> dict[str, float | bool]:
    """What can be said about a result without knowing the object.

    Returns:
        ``silhouette_iou``: overlap over union, 0 to 1, of the mesh seen by the source camera and the cut-out;
        ``watertight``: whether the mesh is closed.
    """
    from lrm.raster import rasterize

    seen = rasterize(mesh, made.camera.to("cpu"), _CHECK_SIZE, _CHECK_SIZE).face >= 0
    wanted = cutout.to_tensor(_CHECK_SIZE)[3].numpy() > 0.5
    union = int((seen | wanted).sum())
    return {
        "silhouette_iou": round(int((seen & wanted).sum()) / union, 4) if union else 0.0,
        "watertight": mesh.is_watertight,
    }


def _warnings(checks: dict[str, float | bool]) -> list[str]:
    """Sentences on those of `quality_checks` that look wrong."""
    found = []
    if checks["silhouette_iou"] < _LOW_IOU:
        found.append(
            f"Seen from the photo's side the object agrees with its outline in the photo by only "
            f"{checks['silhouette_iou']:.0%} (overlap over union). Look at input.png, or try another --threshold."
        )
    if not checks["watertight"]:
        found.append("The mesh is not closed.")
    return found


@contextmanager
def naming(photo: str) -> Iterator[None]:
    """Put ``photo`` in front of the message of any `TriliftError` that does not name it yet."""
    try:
        yield
    except TriliftError as error:
        if photo in str(error):
            raise
        raise type(error)(f"{photo}: {error}") from error


def _load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> ReconstructionModel:
    """Our own folders are of one family today; the file itself says whether it fits."""
    from lrm.tiny import TinyLRM

    return TinyLRM.from_folder(folder, device=device, dtype=dtype)


def _weights_record(folder: Path, row: registry.WeightSet | None) -> WeightsRecord:
    return WeightsRecord(
        name=row.name if row else folder.resolve().name,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        config_sha256=file_sha256(folder / CONFIG_FILE),
        licence=row.licence if row else _text_or_none(read_config_json(folder).get("licence")),
        commercial=row.commercial if row else "unknown",
    )


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _own_version() -> str:
    from . import __version__

    return __version__


def _versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers; None when one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            found[package.lower()] = None
    return found
