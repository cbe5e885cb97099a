"""One photo in, one object out: `ImageTo3D`.

::

    photo ──► Cutout ──────────► Reconstruction ──► Mesh ──► Asset
         load    │ cutout    ▲          network    mesh
                 └► Views ───┘
              views (of a generator, `trilift.views`; by what rule: `trilift.chain`)

Each stage is one call; this file only joins them, times them and writes down what was done.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from lrm.field import Field
from lrm.mesh import Mesh, extract_mesh_with_report
from lrm.models import Reconstruction, ReconstructionModel, ViewsModel
from lrm.normalmap import bake_normal_map
from lrm.volume import render
from lrm.worth import expected_overlap
from multiview.cameras import Cameras
from multiview.devices import describe_device, pick_device, synchronize
from multiview.errors import SettingsError
from multiview.views import Views
from multiview.weights import file_sha256

from . import chain, registry
from .asset import Asset
from .batch import LiftResult, asset_name, save_asset
from .elevation import estimate_cameras
from .foreground import Cutout, cut_out
from .loading import WeightsRecord, build, check_commercial, fetch, weights_record
from .memory import CHUNKS, Memory, dtype_within, memory_of
from .photo import Photo, load_photo
from .progress import OnStage, OnStep, Stopwatch, note_on_stderr
from .provenance import PACKAGES, VIEW_PACKAGES, naming, own_version, package_versions, photo_record
from .recipe import PipeRecipe
from .settings import LiftSettings, parse_memory
from .shape import shaped
from .sidephotos import parse_side
from .texture import Pictures, TextureOptions, finished, photo_view
from .turns import Turns, load_beside
from .views import PhotoToViews, camera_rows, read_record

if TYPE_CHECKING:
    from PIL.Image import Image

    from .runner import RunOptions

    PhotoSource = str | Path | Image | np.ndarray

# Cut-outs are kept at this side or the network's, whichever is larger, so that input.png is worth looking at.
_CUTOUT_SIZE = 512
_COLOR_CHUNK = 1 << 16
_CHECK_SIZE = 128
_PSNR_SIZE = 48
_MEDIAN_SIZE = 64
_LOW_IOU = 0.5
_OFFSETS_DEG = (0.0, 8.0, -8.0, 16.0, -16.0)  # about an estimated elevation, which is off by 8 degrees in the mean
_EMPTY = 1e-6  # a median density this far below the highest says nothing about a surface


@dataclass(frozen=True)
class _Seen:
    """The views that a model is given in place of the photo.

    Attributes:
        views: in the model's world.
        generated: those of a generator among them, all that it made, in the model's world; None for a folder's.
        elevation_deg: of the photo's camera, as the generator was told; None where nobody knows.
        estimated: whether that was estimated.
        record: how they were made, for ``asset.json``.
        warnings: sentences for people.
        photo_camera: of the cut-out as it is kept, in the model's world; None where nobody knows.
    """

    views: Views
    generated: Views | None = None
    elevation_deg: float | None = None
    estimated: bool = False
    record: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    photo_camera: Cameras | None = None


@dataclass(frozen=True, eq=False)
class _Try:
    """One of the lifts that ``best_of`` chooses from.

    Attributes:
        seed: of the view generator.
        seen: the views that the model was given, None for the photo alone.
        made: what it made of them.
        score: higher is better.
        by: what the score is.
    """

    seed: int
    seen: _Seen | None
    made: Reconstruction
    score: float
    by: str

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        elevation = round(float(self.made.elevation_deg), 2)
        return {"seed": self.seed, "elevation_deg": elevation, "score": round(self.score, 4)}


class ImageTo3D:
    """A loaded model that lifts photos.

    Attributes:
        model: the reconstruction model.
        generator: what makes views for it, None where it lifts the photo itself or views of a folder.
        weights: which weights it runs.
        device: where it runs.
        dtype: number format of the network, such as ``float32``.
        dtype_reason: why it is that one.
        recipe: how it was loaded, for other processes to do the same; None for one that was put together by hand.
        memory: what lifts may take, and what becomes smaller where it runs out.
        turns: has generator and model in memory one after the other; None where there is room for both.
    """

    recipe: PipeRecipe | None = None
    turns: Turns | None = None

    def __init__(
        self,
        model: ReconstructionModel,
        *,
        generator: PhotoToViews | None = None,
        weights: WeightsRecord | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        dtype_reason: str = "given",
    ) -> None:
        self.model = model
        self.generator = generator
        self.weights = weights or WeightsRecord(model.name)
        self.device = torch.device(device)
        self.dtype = str(dtype).removeprefix("torch.")
        self.dtype_reason = dtype_reason
        self.memory = Memory(device=self.device)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "tiny",
        *,
        views: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        commercial_ok: bool = False,
        max_memory: int | str | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> ImageTo3D:
        """Load a model by name, from a folder or file of weights, or from the hub.

        Args:
            name_or_folder: a name of `trilift.models()`; a folder of config.json and model.safetensors, or one as
                TripoSR, OpenLRM or InstantMesh publish it; a single file of weights; or ``owner/name`` on the hub. A
                name wins over a folder of that name in the working directory (write ``./tiny`` for the folder).
            views: a view generator to run first, for models that take views; see `PhotoToViews.from_pretrained`.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``, for the networks; fields and meshing are always fp32.
            revision: commit, branch or tag of the model's hub repository; embedded weights, folders and files have
                none.
            commercial_ok: take only weights whose licence plainly allows commercial use.
            max_memory: bytes, or words such as ``6GB``, that lifts may take: on the CPU of the process's own memory,
                else on the device. Chooses number format, points and views per pass, and what stays on the device; see
                `trilift.memory`.
            on_note: told one line for people when something is fetched, or when the licence is not a plain yes to
                commercial use; by default such lines go to stderr.

        Raises:
            WeightsError: unknown or planned name, or weights that are missing, cannot be fetched, are damaged or do not
                fit.
            SettingsError: ``views`` for a model that lifts the photo alone, ``revision`` given where there is none,
                ``max_memory`` is not enough, unknown device or dtype, or ``commercial_ok`` and a licence is not a plain
                yes.
        """
        limit = None if max_memory is None else parse_memory(max_memory)
        note = on_note or note_on_stderr
        source = registry.resolve(name_or_folder)
        if views is not None:
            from .generators import refuse_reconstruction

            wanted = registry.resolve(views)
            chain.check_sources(source, wanted)
            refuse_reconstruction(wanted)  # both before anything large is read
        if commercial_ok and source.row is not None:
            check_commercial(source.row)  # before anything is fetched
        torch_device = pick_device(device)
        files = fetch(source, revision, note)
        if commercial_ok:
            check_commercial(weights_record(files, None))
        asked = dtype_within(dtype, torch_device, files.weights.stat().st_size, limit)
        model, torch_dtype, reason = build(files, torch_device, asked)
        if asked != dtype:
            reason = f"{dtype}: a copy in bf16 would not fit within --max-memory"
        record = weights_record(files, getattr(model, "architecture", "tiny"))
        if views is not None and not isinstance(model, ViewsModel):
            raise chain.refuse(str(views), record.name)
        if (notice := record.notice()) is not None:
            note(notice)
        generator, turns, held = None, None, None
        if views is not None:
            load_views = partial(
                PhotoToViews.from_pretrained, views, device=device, dtype=dtype, commercial_ok=commercial_ok,
                on_note=note,
            )  # fmt: skip
            generator, turns, held = load_beside(
                model, lambda: build(files, torch_device, asked)[0], load_views, limit, torch_device
            )
        pipe = cls(
            model, generator=generator, weights=record, device=torch_device, dtype=torch_dtype, dtype_reason=reason
        )
        pipe.memory, pipe.turns = memory_of(limit, model, generator, torch_device, held), turns
        pipe.recipe = PipeRecipe(
            str(name_or_folder), None if views is None else str(views), device, dtype, revision, commercial_ok,
            max_memory,
        )  # fmt: skip
        return pipe

    @overload
    def __call__(
        self,
        photo: PhotoSource,
        settings: LiftSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> Asset: ...

    @overload
    def __call__(
        self,
        photo: list[Any] | tuple[Any, ...],
        settings: LiftSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> list[Asset]: ...

    def __call__(
        self,
        photo: Any,
        settings: LiftSettings | None = None,
        *,
        on_stage: OnStage | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> Asset | list[Asset]:
        """Lift one photo, or each of a list.

        Args:
            photo: a path, a PIL image, an array (H, W, 1|3|4) of uint8 or of floats in [0, 1]; or a list of these.
            settings: see `LiftSettings`; the defaults when left out.
            on_stage: called with the name of each stage when it begins.
            on_step: called after every step of the view generator with how many are done and how many there are.
            changes: single settings by name, such as ``resolution=128``.

        Returns:
            An `Asset` for one photo, a list of them for a list. Nothing is written; call ``asset.save(folder)``.

        Raises:
            SettingsError: an unknown setting or a value out of range.
            TriliftError: of the stage that failed; its message names the photo.
        """
        settings = (settings or LiftSettings()).replaced(**changes)
        if isinstance(photo, list | tuple):
            return [self._lift(each, settings, on_stage, on_step) for each in photo]
        return self._lift(photo, settings, on_stage, on_step)

    def lift_folder(
        self,
        folder: str | Path,
        out: str | Path,
        settings: LiftSettings | None = None,
        *,
        options: RunOptions | None = None,
        **changes: Any,
    ) -> Iterator[LiftResult]:
        """Lift every photo below ``folder`` into ``out``; see `trilift.runner.lift_folder`."""
        from .runner import lift_folder

        settings = (settings or LiftSettings()).replaced(**changes)
        self.check(settings)
        return lift_folder(self, folder, out, settings, options)

    @property
    def takes_views(self) -> bool:
        """Whether the model can lift several views with cameras, in place of the photo."""
        return isinstance(self.model, ViewsModel)

    def check(self, settings: LiftSettings) -> None:
        """Raise when ``settings`` ask for what this model cannot do.

        Raises:
            SettingsError: views for a model that takes the photo alone, or none for one that takes views; views of two
                kinds; how views are to be generated where none are; or a resolution that ``max_memory`` is not enough
                for.
        """
        if self.memory.limit is not None:
            self.memory.plan(settings.resolution, texels=settings.texels)
        if self.generator is not None:
            if not self.takes_views:
                raise chain.refuse(self.generator.weights.name, self.weights.name)
            if settings.views_dir is not None:
                raise SettingsError(
                    f"--views {self.generator.weights.name} and --views-dir {settings.views_dir} exclude each other. "
                    "Give one."
                )
            if settings.photos:
                raise SettingsError(
                    f"--views {self.generator.weights.name} and --photo {settings.photos[0]} exclude each other: what "
                    "was photographed need not be generated. Give one."
                )
            self._check_upright(settings, f"--views {self.generator.weights.name}")
            self.generator.check(settings.view_settings())
            return
        if told := settings.generating():
            raise SettingsError(
                f"{', '.join(told)}: of generated views, and there are none without --views NAME. Leave it out, or "
                "name a view generator."
            )
        if settings.views_dir is not None and not self.takes_views:
            raise SettingsError(
                f"--views-dir {settings.views_dir}: {self.weights.name} lifts the photo alone and would not look at "
                "views. Leave --views-dir out, or take a model for views, such as instantmesh-base."
            )
        if settings.views_dir is not None or settings.photos:
            self._check_upright(settings, "--photo" if settings.photos else "--views-dir")
            if settings.best_of > 1:
                raise SettingsError(
                    f"--best-of {settings.best_of}: lifts of given views all come out alike. Leave --best-of out."
                )
        for text in settings.photos:
            parse_side(text)
        if settings.photos and not self.takes_views:
            raise SettingsError(
                f"--photo {settings.photos[0]}: {self.weights.name} lifts one photo and would not look at others. "
                "Leave --photo out, or take a model for views, such as tiny."
            )
        if settings.views_dir is None and not settings.photos and not self.model.lifts_photos:
            raise SettingsError(
                f"{self.weights.name} lifts several views with cameras, and has none. Give --views-dir DIR with "
                "pictures and cameras.json or transforms.json, or a Zero123++ sheet; --views NAME to have views "
                "generated; or take a model for one photo, such as triposr."
            )

    @staticmethod
    def _check_upright(settings: LiftSettings, given: str) -> None:
        if settings.upright == "off":
            raise SettingsError(f"--upright off is for a photo alone: with {given} the cameras say what is up.")

    def _lift(
        self, source: PhotoSource, settings: LiftSettings, on_stage: OnStage | None, on_step: OnStep | None
    ) -> Asset:
        self.check(settings)
        memory = self.memory.begun(settings.resolution, settings.texels)
        watch = Stopwatch(on_stage)
        with watch.stage("load"):
            photo = load_photo(source)
        with naming(photo.name), torch.no_grad():
            with watch.stage("cutout"):
                cutout = self._cut_out(photo, settings)
                given = self._side_views(cutout, settings) if settings.photos else self._read_views(settings)
            tries = self._tries(cutout, given, settings, watch, on_step, memory)
            best = max(tries, key=lambda each: each.score)
            seen, reconstruction = best.seen, best.made
            with watch.stage("mesh"):
                threshold = _threshold(settings, reconstruction.field)
                mesh, report = memory.by_points(
                    "taking the surface",
                    lambda chunk_size: extract_mesh_with_report(
                        reconstruction.field, mesh_resolution=settings.resolution, threshold=threshold,
                        keep_pieces=settings.keep, chunk_size=chunk_size,
                    ),
                )  # fmt: skip
            fine = mesh
            mesh, mended = shaped(mesh, reconstruction.field, settings, stage=watch.stage)
            textured, normal_map = None, None
            if settings.projects or settings.texture == "baked":
                with watch.stage("texture"):
                    mesh, textured = finished(
                        mesh, reconstruction.field, _pictures(cutout, seen, reconstruction),
                        _texture_options(settings), threshold=report.threshold,
                    )  # fmt: skip
                    if settings.normal_map:
                        normal_map = bake_normal_map(mesh, fine, settings.texture_size)
            with watch.stage("check"):
                views = None if seen is None else seen.views
                checks = memory.by_points(
                    "comparing with the photo",
                    lambda chunk_size: quality_checks(mesh, reconstruction, cutout, views, chunk_size=chunk_size),
                )
                if seen is not None and seen.photo_camera is None:
                    del checks["input_psnr"]  # from where the photo was taken is not known
        record = self._record(photo, settings, reconstruction, watch)
        record["extraction"] = {k: v for k, v in asdict(report).items() if k not in ("seconds", "warnings")}
        if textured is not None:
            record["texture"] = textured
            if settings.projects:
                checks["seen_fraction"] = textured["seen_fraction"]
        record["checks"] = checks
        said = () if seen is None else seen.warnings
        if settings.best_of > 1:
            record["best_of"] = {"by": best.by, "kept": tries.index(best), "tries": [each.told() for each in tries]}
        record["warnings"] = [*photo.notes, *cutout.warnings, *said, *report.warnings, *mended, *_warnings(checks)]
        record["warnings"] += memory.warnings
        if memory.limit is not None:
            record["memory"] = {**memory.as_record(), "generator_in_turn": self.turns is not None}
        if seen is not None and seen.record is not None:
            record["views"] = seen.record
        views = None if seen is None else seen.generated or seen.views
        return Asset(
            name=asset_name(photo.name), cutout=cutout, views=views, field=reconstruction.field, mesh=mesh,
            camera=reconstruction.camera, record=record, normal_map=normal_map,
        )  # fmt: skip

    def _tries(
        self, cutout: Cutout, given: _Seen | None, settings: LiftSettings, watch: Stopwatch, on_step: OnStep | None,
        memory: Memory,
    ) -> list[_Try]:  # fmt: skip
        """One lift, or ``best_of`` of them with other seeds and elevations, the plain one first."""
        began = time.monotonic()
        tries: list[_Try] = []
        for changed in self._variants(settings, given):
            if tries and time.monotonic() - began > settings.best_of_seconds:
                break
            if tries and settings.elevation is None:
                near = tries[0].made.elevation_deg + (changed.elevation or 0.0)
                changed = changed.replaced(elevation=float(np.clip(round(near, 2), -60, 85)))
            guessed = bool(tries) and settings.elevation is None  # told to the networks, but by nobody to us
            seen = given
            if self.generator is not None:
                with watch.stage("views"):
                    if self.turns is not None:
                        self.turns.for_views()
                    seen = self._make_views(self.generator, cutout, changed, on_step, memory)
                if guessed:
                    seen = replace(seen, estimated=True, record={**(seen.record or {}), "elevation_estimated": True})
            with watch.stage("network"):
                if self.turns is not None:
                    self.turns.for_lifting()
                made = memory.whole("the network", partial(self._reconstruct, cutout, seen, changed))
            if guessed and "elevation" not in made.estimated:
                made = replace(made, estimated=("elevation", *made.estimated))
            tries.append(_Try(changed.seed, seen, made, *_score(made, cutout, settings)))
        return tries

    def _variants(self, settings: LiftSettings, given: _Seen | None) -> Iterator[LiftSettings]:
        """The settings of each try; an ``elevation`` in those after the first is an offset, where none was given."""
        yield settings
        draws = self.generator is not None and not getattr(self.generator.model, "mean", False)
        tilts = settings.elevation is None and given is None
        if not (draws or tilts):
            return  # nothing could come out differently
        for number in range(1, settings.best_of):
            offset = _OFFSETS_DEG[number % len(_OFFSETS_DEG)] if tilts else settings.elevation
            seed = (settings.seed + number) % 2**63 if draws else settings.seed
            if not draws and number >= len(_OFFSETS_DEG):
                return
            yield settings.replaced(seed=seed, elevation=offset)

    def _side_views(self, cutout: Cutout, settings: LiftSettings) -> _Seen:
        """The photo and those of ``--photo`` as views, in the model's world."""
        from .sidephotos import photo_views

        sides = [parse_side(text) for text in settings.photos]
        size = 2 * self.model.image_size
        images, warnings = [cutout.to_tensor(size)], []
        for side in sides:
            with naming(str(side.path)):
                other = self._cut_out(load_photo(side.path), settings)
            images.append(other.to_tensor(size))
            warnings += [f"{side.path}: {text}" for text in other.warnings]
        elevations, focals = estimate_cameras(torch.stack(images))
        # They are for pictures framed as the embedded model wants them.
        focals = [focal * cutout.foreground_ratio / registry.EMBEDDED_RATIO for focal in focals]
        if settings.elevation is not None:
            elevations[0] = settings.elevation
        if settings.fov is not None:
            focals[0] = 1 / math.tan(math.radians(cutout.crop_fov_deg(settings.fov)) / 2)
        views = photo_views(images, [0.0, *(side.azimuth_deg for side in sides)], elevations, focals)
        views = chain.in_model_world(chain.find_pair("tiny-views", self._family), views)
        record = {
            "photos": [{"azimuth_deg": side.azimuth_deg, "sha256": file_sha256(side.path)} for side in sides],
            "model_cameras": camera_rows(views.cameras),
        }
        own = views.cameras.select([0])
        return _Seen(views, None, elevations[0], settings.elevation is None, record, tuple(warnings), own)

    def _cut_out(self, photo: Photo, settings: LiftSettings) -> Cutout:
        if self.generator is not None:
            return cut_out(photo, **self.generator.framing(settings.view_settings()))
        ratio = settings.foreground_ratio or self.model.foreground_ratio
        size = max(_CUTOUT_SIZE, self.model.image_size)
        framing = self.model.framing
        if framing == "given" and settings.foreground_ratio is not None:
            framing = "resampled"  # a prepared picture would keep the ratio that it has
        return cut_out(photo, background=settings.background, foreground_ratio=ratio, size=size, framing=framing)

    @property
    def pair(self) -> chain.Pair | None:
        """By which rule generated views are handed to the model; None without a generator."""
        return None if self.generator is None else chain.find_pair(self.generator.family, self._family)

    @property
    def _family(self) -> str:
        """Of the model, as `trilift.chain` knows it."""
        return self.weights.architecture or str(getattr(self.model, "architecture", self.weights.name))

    def _read_views(self, settings: LiftSettings) -> _Seen | None:
        """The views of ``--views-dir``, None without it.

        What ``trilift views`` wrote is put into the model's world; of anything else the world is taken as it is.
        """
        if settings.views_dir is None:
            return None
        from multiview.camerafile import read_views

        views, written = read_views(settings.views_dir), read_record(settings.views_dir)
        family = written and (written.get("generator") or {}).get("architecture")
        if not family:
            return _Seen(views)
        pair = chain.find_pair(str(family), self._family)
        # The photo itself is not put in front: of what is lifted later, the views alone are known to belong together.
        pair = replace(pair, photo_first=False)
        if pair.select and len(views) <= max(pair.select):
            pair = replace(pair, select=())
        return _Seen(chain.handed_on(pair, views), record={"written_by": written, "chain": pair.as_record()})

    def _make_views(
        self, generator: PhotoToViews, cutout: Cutout, settings: LiftSettings, on_step: OnStep | None, memory: Memory
    ) -> _Seen:
        """Generated views, as the model is given them."""
        pair = chain.find_pair(generator.family, self._family)
        targets = None
        if pair.azimuths_deg and generator.looks_anywhere:
            from multiview.zero123 import Targets

            targets = Targets(pair.azimuths_deg, pair.elevations_deg)
        wanted = settings.view_settings()
        made = memory.by_views(
            "making views",
            lambda batch: generator.generate(
                cutout, wanted.replaced(view_batch=batch), targets=targets, on_step=on_step
            ),
            wanted.view_batch or getattr(generator.model, "view_batch_size", None),
        )
        photo = None
        fov_deg = made.photo_fov_deg if settings.fov is None else cutout.crop_fov_deg(settings.fov)
        camera = chain.photo_camera(generator.family, made.views.cameras, made.elevation_deg, fov_deg)
        if pair.photo_first:
            # Twice the network's size, since it crops, and never less than what the generator draws.
            image = cutout.to_tensor(max(*made.views.image_size, 2 * self.model.image_size))
            photo = chain.photo_view(image, camera)
        drawn, warnings = made.views, made.warnings
        if photo is not None and not pair.select:
            drawn, empty = chain.shown(made.views)
            warnings += tuple(f"Generated view {i} shows nothing and was left out." for i in empty)
        views = chain.handed_on(pair, drawn, photo)
        record = {**generator.record_of(made), "chain": pair.as_record(), "model_cameras": camera_rows(views.cameras)}
        generated = chain.in_model_world(pair, made.views)
        own = camera.scaled(pair.world_scale)
        return _Seen(views, generated, made.elevation_deg, made.elevation_estimated, record, warnings, own)

    def _reconstruct(self, cutout: Cutout, seen: _Seen | None, settings: LiftSettings) -> Reconstruction:
        fov_deg = None if settings.fov is None else cutout.crop_fov_deg(settings.fov)
        if seen is not None:
            assert isinstance(self.model, ViewsModel)  # `check` has seen to it
            elevation = settings.elevation if seen.elevation_deg is None else seen.elevation_deg
            made = self.model.reconstruct_views(seen.views.to(self.device), elevation_deg=elevation, fov_deg=fov_deg)
            synchronize(self.device)
            if seen.photo_camera is not None:  # models give that of their own crop of the first view
                camera = seen.photo_camera.to(made.camera.c2w.device)
                known = made.elevation_deg if seen.elevation_deg is None else seen.elevation_deg
                made = replace(made, camera=camera, elevation_deg=known)
            if seen.estimated and "elevation" not in made.estimated:
                made = replace(made, estimated=("elevation", *made.estimated))
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

    def _record(self, photo: Photo, settings: LiftSettings, made: Reconstruction, watch: Stopwatch) -> dict[str, Any]:
        """How the asset was made, in values that JSON has; only ``seconds`` differs between equal runs."""
        source = photo_record(photo)
        return {
            "trilift": own_version(),
            "photo": source,
            "model": asdict(self.weights),
            "fingerprint": self.fingerprint(photo.sha256, source["mask_sha256"], settings),
            "seed": settings.seed,
            "settings": settings.as_record(),
            "device": describe_device(self.device),
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "versions": package_versions(PACKAGES if self.generator is None else (*PACKAGES, *VIEW_PACKAGES)),
            "assumed": {
                "elevation_deg": round(float(made.elevation_deg), 4),
                "cond_image_fov_y_deg": round(float(made.camera.fov_y_deg[0]), 4),
                "camera_distance": round(float(made.camera.positions[0].norm()), 6),
                "estimated": list(made.estimated),
            },
            "seconds": {**watch.seconds, "lift": watch.total},
        }

    def fingerprint(self, photo_sha256: str, mask_sha256: str | None, settings: LiftSettings) -> str:
        """SHA-256 of all that decides a result: photo, mask, settings, weights, number format, and the view generator.

        Folder runs compare it with the one in asset.json to know what is already done.
        """
        told = {key: value for key, value in settings.as_record().items() if key != "view_batch"}  # memory alone
        parts: list[Any] = [photo_sha256, mask_sha256, told, asdict(self.weights), self.dtype]
        if settings.photos:
            parts += [file_sha256(parse_side(text).path) for text in settings.photos]
        if self.generator is not None and self.pair is not None:
            parts += [self.generator.identity(), self.pair.as_record()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def lift(
    photo: PhotoSource,
    out: str | Path | None = None,
    *,
    model: str | Path = "tiny",
    views: str | Path | None = None,
    device: str = "auto",
    **changes: Any,
) -> Asset:
    """Lift one photo in one call; for several, load an `ImageTo3D` once.

    Args:
        photo: see `ImageTo3D.__call__`.
        out: folder to save the asset in; nothing is written when left out.
        model: see `ImageTo3D.from_pretrained`.
        views, device: likewise.
        changes: fields of `LiftSettings`.

    Raises:
        TriliftError: of the stage that failed.
    """
    settings = LiftSettings().replaced(**changes)
    asset = ImageTo3D.from_pretrained(model, views=views, device=device)(photo, settings)
    if out is not None:
        save_asset(asset, out, settings)
    return asset


def lift_folder(
    folder: str | Path,
    out: str | Path,
    *,
    model: str | Path = "tiny",
    views: str | Path | None = None,
    device: str = "auto",
    options: RunOptions | None = None,
    **changes: Any,
) -> Iterator[LiftResult]:
    """Lift every photo below ``folder`` into ``out`` in one call; see `trilift.runner.lift_folder`.

    The model is loaded with the first photo that needs it, and not at all when every photo is finished.
    """
    from .runner import lift_folder as run

    settings = LiftSettings().replaced(**changes)
    if settings.views_dir is not None:
        raise SettingsError(f"--views-dir {settings.views_dir} belongs to one photo, not to a folder of them.")
    if settings.photos:
        raise SettingsError(f"--photo {settings.photos[0]} belongs to one photo, not to a folder of them.")
    recipe = PipeRecipe(str(model), None if views is None else str(views), device)
    return run(recipe, folder, out, settings, options)


def _pictures(cutout: Cutout, seen: _Seen | None, made: Reconstruction) -> Pictures:
    """What a lift has to paint on its surface, in the model's world."""
    photo = None
    if seen is None or seen.photo_camera is not None:
        camera = made.camera if seen is None or seen.photo_camera is None else seen.photo_camera
        photo = photo_view(cutout.to_tensor(len(cutout.image)), camera)
    if seen is None:
        return Pictures(photo)
    if seen.generated is not None or (seen.record or {}).get("written_by"):
        return Pictures(photo, generated=(seen.generated or seen.views).to("cpu"))
    others = seen.views if photo is None else seen.views.select(range(1, len(seen.views)))
    return Pictures(photo, photos=others.to("cpu"))


def _texture_options(settings: LiftSettings) -> TextureOptions:
    return TextureOptions(settings.texture, settings.texture_size, settings.projects, mirror=settings.upright == "auto")


@torch.no_grad()
def _threshold(settings: LiftSettings, field: Field) -> float | Literal["auto"]:
    """The threshold as meshing wants it; ``median`` is worked out on a grid of 64 samples per axis.

    A trained field is empty in more than half of its cube: then its own level is taken.
    """
    if settings.threshold != "median":
        return settings.threshold
    axis = torch.linspace(-field.scene_radius, field.scene_radius, _MEDIAN_SIZE, device=field.device)
    points = torch.cartesian_prod(axis, axis, axis)
    density = field.density_function()
    densities = torch.cat([density(chunk) for chunk in points.split(_COLOR_CHUNK)])
    median = float(densities.median())
    return "auto" if median < _EMPTY * float(densities.max()) else median


def _score(made: Reconstruction, cutout: Cutout, settings: LiftSettings) -> tuple[float, str]:
    """What a lift is worth by itself, and what that number is; nothing is worked out for a single lift."""
    if settings.best_of == 1:
        return 0.0, "nothing"
    expected = expected_overlap(made.field)
    return (seen_psnr(made, cutout), "input_psnr") if expected is None else (expected, "expected_iou")


def quality_checks(
    mesh: Mesh, made: Reconstruction, cutout: Cutout, views: Views | None = None, *, chunk_size: int = CHUNKS[0]
) -> dict[str, float | bool]:
    """What can be said about a result without knowing the object.

    Args:
        mesh: the result, world frame.
        made: what it was taken from.
        cutout: of the photo.
        views: what the model saw in place of the photo, None when it saw that.
        chunk_size: points per pass through the field; changes memory, never results.

    Returns:
        ``silhouette_iou``: overlap over union, 0 to 1, of the mesh seen by the source camera and the cut-out (in the
        mean over the views where the model saw those); ``input_psnr``: in dB, of the field rendered by the source
        camera against the cut-out, over white; ``expected_iou``: `lrm.worth.expected_overlap`, where the field has
        chances; ``watertight``: whether the mesh is closed.
    """
    if views is None:
        overlaps = [_overlap(mesh, made.camera.to("cpu"), cutout.to_tensor(_CHECK_SIZE)[3])]
    else:
        small = torch.nn.functional.interpolate(views.alpha.cpu(), (_CHECK_SIZE, _CHECK_SIZE), mode="area")[:, 0]
        cameras = views.cameras.to("cpu")
        overlaps = [_overlap(mesh, cameras.select([i]), alpha) for i, alpha in enumerate(small)]
    checks: dict[str, float | bool] = {"silhouette_iou": round(sum(overlaps) / len(overlaps), 4)}
    checks["input_psnr"] = round(seen_psnr(made, cutout, chunk_size=chunk_size), 2)
    if (expected := expected_overlap(made.field)) is not None:
        checks["expected_iou"] = round(expected, 4)
    return {**checks, "watertight": mesh.is_watertight}


@torch.no_grad()
def seen_psnr(made: Reconstruction, cutout: Cutout, *, chunk_size: int = CHUNKS[0]) -> float:
    """PSNR in dB of a field rendered by its source camera against the cut-out, both over white, 48 px; 60 at most."""
    rgba = cutout.to_tensor(_PSNR_SIZE)
    drawn = render(
        made.field, made.camera, _PSNR_SIZE, _PSNR_SIZE, samples_per_ray=_PSNR_SIZE,
        chunk_size=max(chunk_size // _PSNR_SIZE, 1),
    )  # fmt: skip
    seen = drawn.images[0].float().cpu()
    error = (seen.clamp(0, 1) - (rgba[:3] * rgba[3:] + 1 - rgba[3:])).square().mean()
    return float(-10 * error.clamp(min=1e-6).log10())


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
