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
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from lrm.field import Field
from lrm.mesh import Mesh, extract_mesh_with_report
from lrm.models import Reconstruction, ReconstructionModel, ViewsModel
from multiview.cameras import Cameras
from multiview.devices import describe_device, pick_device, synchronize
from multiview.errors import MeshError, SettingsError, TriliftError
from multiview.views import Views
from multiview.weights import file_sha256

from . import registry
from .asset import Asset
from .batch import LiftResult, asset_name, save_asset
from .foreground import Cutout, cut_out
from .loading import WeightsRecord, build, check_commercial, fetch, weights_record
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
_MEDIAN_SIZE = 64
_LOW_IOU = 0.5
_RECORDED_PACKAGES = ("torch", "numpy", "trimesh", "PyMCubes", "pillow")


class ImageTo3D:
    """A loaded model that lifts photos.

    Attributes:
        model: the reconstruction model.
        weights: which weights it runs.
        device: where it runs.
        dtype: number format of the network, such as ``float32``.
        dtype_reason: why it is that one.
    """

    def __init__(
        self,
        model: ReconstructionModel,
        *,
        weights: WeightsRecord | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        dtype_reason: str = "given",
    ) -> None:
        self.model = model
        self.weights = weights or WeightsRecord(model.name)
        self.device = torch.device(device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.dtype_reason = dtype_reason

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "tiny",
        *,
        views: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        commercial_ok: bool = False,
        on_note: Callable[[str], None] | None = None,
    ) -> ImageTo3D:
        """Load a model by name, from a folder or file of weights, or from the hub.

        Args:
            name_or_folder: a name of `trilift.models()`; a folder of config.json and model.safetensors, or one as
                TripoSR, OpenLRM or InstantMesh publish it; a single file of weights; or ``owner/name`` on the hub. A
                name wins over a folder of that name in the working directory (write ``./tiny`` for the folder).
            views: a view generator to run first; none is available yet.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the network; its field and meshing are always fp32.
            revision: commit, branch or tag of the hub repository; embedded weights, folders and files have none.
            commercial_ok: take only weights whose licence plainly allows commercial use.
            on_note: told one line for people when something is fetched, or when the licence is not a plain yes to
                commercial use; by default such lines go to stderr.

        Raises:
            WeightsError: unknown or planned name, or weights that are missing, cannot be fetched, are damaged or do not
                fit.
            SettingsError: ``views`` or ``revision`` given where there is none, unknown device or dtype, or
                ``commercial_ok`` and the licence is not a plain yes.
        """
        if views is not None:
            raise SettingsError(f"views={views!r}: view generators are planned, not yet available. Leave views out.")
        note = on_note or _note_on_stderr
        source = registry.resolve(name_or_folder)
        if commercial_ok and source.row is not None:
            check_commercial(source.row)  # before anything is fetched
        torch_device = pick_device(device)
        files = fetch(source, revision, note)
        if commercial_ok:
            check_commercial(weights_record(files, None))
        model, torch_dtype, reason = build(files, torch_device, dtype)
        record = weights_record(files, getattr(model, "architecture", "tiny"))
        if (notice := record.notice()) is not None:
            note(notice)
        return cls(model, weights=record, device=torch_device, dtype=torch_dtype, dtype_reason=reason)

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

    @property
    def takes_views(self) -> bool:
        """Whether the model can lift several views with cameras, in place of the photo."""
        return isinstance(self.model, ViewsModel)

    def check(self, settings: LiftSettings) -> None:
        """Raise when ``settings`` ask for what this model cannot do.

        Raises:
            SettingsError: views for a model that takes the photo alone, or none for one that takes views.
        """
        if settings.views_dir is not None and not self.takes_views:
            raise SettingsError(
                f"--views-dir {settings.views_dir}: {self.weights.name} lifts the photo alone and would not look at "
                "views. Leave --views-dir out, or take a model for views, such as instantmesh-base."
            )
        if settings.views_dir is None and not self.model.lifts_photos:
            raise SettingsError(
                f"{self.weights.name} lifts several views with cameras, and has none. Give --views-dir DIR with "
                "pictures and cameras.json or transforms.json, or a Zero123++ sheet; or take a model for one photo, "
                "such as triposr."
            )

    def _lift(self, source: PhotoSource, settings: LiftSettings, on_stage: OnStage | None) -> Asset:
        self.check(settings)
        watch = Stopwatch(on_stage)
        with watch.stage("load"):
            photo = load_photo(source)
        with naming(photo.name), torch.no_grad():
            with watch.stage("cutout"):
                cutout = self._cut_out(photo, settings)
                views = _read_views(settings)
            with watch.stage("network"):
                reconstruction = self._reconstruct(cutout, views, settings)
            with watch.stage("mesh"):
                mesh, report = extract_mesh_with_report(
                    reconstruction.field,
                    mesh_resolution=settings.resolution,
                    threshold=_threshold(settings, reconstruction.field),
                )
            if settings.faces is not None and len(mesh.faces) > settings.faces:
                with watch.stage("simplify"):
                    mesh = simplify(mesh, reconstruction.field, settings.faces)
            with watch.stage("check"):
                checks = quality_checks(mesh, reconstruction, cutout, views)
        record = self._record(photo, cutout, settings, reconstruction, watch)
        record["extraction"] = {k: v for k, v in asdict(report).items() if k not in ("seconds", "warnings")}
        record["checks"] = checks
        record["warnings"] = [*photo.notes, *cutout.warnings, *report.warnings, *_warnings(checks)]
        return Asset(
            name=asset_name(photo.name), cutout=cutout, views=views, field=reconstruction.field, mesh=mesh,
            camera=reconstruction.camera, record=record,
        )  # fmt: skip

    def _cut_out(self, photo: Photo, settings: LiftSettings) -> Cutout:
        ratio = settings.foreground_ratio or self.model.foreground_ratio
        size = max(_CUTOUT_SIZE, self.model.image_size)
        framing = self.model.framing
        if framing == "given" and settings.foreground_ratio is not None:
            framing = "resampled"  # a prepared picture would keep the ratio that it has
        return cut_out(photo, background=settings.background, foreground_ratio=ratio, size=size, framing=framing)

    def _reconstruct(self, cutout: Cutout, views: Views | None, settings: LiftSettings) -> Reconstruction:
        fov_deg = None if settings.fov is None else cutout.crop_fov_deg(settings.fov)
        if views is not None:
            assert isinstance(self.model, ViewsModel)  # `check` has seen to it
            made = self.model.reconstruct_views(
                views.to(self.device), elevation_deg=settings.elevation, fov_deg=fov_deg
            )
            synchronize(self.device)
            return made
        image = cutout.conditioning(self.model.image_size)[None].to(self.device)
        reconstruction = self.model.reconstruct(
            image,
            elevation_deg=settings.elevation,
            fov_deg=fov_deg,
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
            "dtype_reason": self.dtype_reason,
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
    if settings.views_dir is not None:
        raise SettingsError(f"--views-dir {settings.views_dir} belongs to one photo, not to a folder of them.")
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


def _note_on_stderr(text: str) -> None:
    print(f"trilift: {text}", file=sys.stderr)


def _read_views(settings: LiftSettings) -> Views | None:
    """The views of ``--views-dir``, None without it."""
    if settings.views_dir is None:
        return None
    from multiview.camerafile import read_views

    return read_views(settings.views_dir)


@torch.no_grad()
def _threshold(settings: LiftSettings, field: Field) -> float | Literal["auto"]:
    """The threshold as meshing wants it; ``median`` is worked out on a grid of 64 samples per axis."""
    if settings.threshold != "median":
        return settings.threshold
    axis = torch.linspace(-field.scene_radius, field.scene_radius, _MEDIAN_SIZE, device=field.device)
    points = torch.cartesian_prod(axis, axis, axis)
    density = field.density_function()
    return float(torch.cat([density(chunk) for chunk in points.split(_COLOR_CHUNK)]).median())


def quality_checks(
    mesh: Mesh, made: Reconstruction, cutout: Cutout, views: Views | None = None
) -> dict[str, float | bool]:
    """What can be said about a result without knowing the object.

    Args:
        mesh: the result, world frame.
        made: what it was taken from.
        cutout: of the photo.
        views: what the model saw in place of the photo, None when it saw that.

    Returns:
        ``silhouette_iou``: overlap over union, 0 to 1, of the mesh seen by the source camera and the cut-out (in the
        mean over the views where the model saw those); ``watertight``: whether the mesh is closed.
    """
    if views is None:
        overlaps = [_overlap(mesh, made.camera.to("cpu"), cutout.to_tensor(_CHECK_SIZE)[3])]
    else:
        small = torch.nn.functional.interpolate(views.alpha.cpu(), (_CHECK_SIZE, _CHECK_SIZE), mode="area")[:, 0]
        cameras = views.cameras.to("cpu")
        overlaps = [_overlap(mesh, cameras.select([i]), alpha) for i, alpha in enumerate(small)]
    return {"silhouette_iou": round(sum(overlaps) / len(overlaps), 4), "watertight": mesh.is_watertight}


def _overlap(mesh: Mesh, camera: Cameras, alpha: torch.Tensor) -> float:
    """Overlap over union of the mesh's silhouette and a matte (S, S)."""
    from lrm.raster import rasterize

    seen = rasterize(mesh, camera, _CHECK_SIZE, _CHECK_SIZE).face >= 0
    wanted = alpha.numpy() > 0.5
    union = int((seen | wanted).sum())
    return int((seen & wanted).sum()) / union if union else 0.0


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
