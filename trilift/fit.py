"""``trilift fit``: one object from posed views of it, without a network.

::

    folder ──► Views ──► masks ──► FittedViews ──► Mesh ──► FittedAsset ──► OUT/mesh.glb, views.png, asset.json
       read_views   where none   lrm.fitviews   extract_mesh   scores against the views

Nothing heavy is imported until a fit runs, as the command line reads its options from here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, SettingsError

from .progress import Narrator, OnStage, Stopwatch
from .settings import FORMATS, MAX_RESOLUTION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from lrm.fitviews import FittedViews, LatticeField
    from lrm.mesh import Mesh
    from multiview.views import Views

BACKGROUNDS = ("auto", "keep")
_FLAT = 4.0 / 255  # how far colours of a plain background lie from its own
_EXACT = 1.0 / 255  # the same inside the object's outline, where an object of that colour is likelier
_OPAQUE = 0.99  # a picture whose alpha is nowhere below has no cut-out yet


@dataclass(frozen=True)
class FitOptions:
    """The choices of a fit.

    Attributes:
        samples: of the field's lattice, along the longest side of the object's box, 16 to 512.
        steps: of the optimisation against coarse and against fine pictures, >= 0.
        resolution: samples per axis when the surface is taken.
        background: ``auto`` cuts the object out of pictures without alpha and mask, ``keep`` takes them as they are.
        hold_out: every ``hold_out``-th view is kept from the fit and only scored; 0 for none.
        formats: of the mesh, of `FORMATS`.
        turntable: whether to draw the mesh from all around, too.
        height, scale: of the exported object, see `trilift.asset.Asset.save`.
        seed: of all random numbers.

    Raises:
        SettingsError: a value out of range.
    """

    samples: int = 192
    steps: tuple[int, int] = (80, 160)
    resolution: int = 192
    background: str = "auto"
    hold_out: int = 0
    formats: tuple[str, ...] = ("glb",)
    turntable: bool = False
    height: float | None = None
    scale: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("samples", 16, 512), ("resolution", 16, MAX_RESOLUTION), ("seed", 0, 2**63 - 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise SettingsError(f"{name}={value!r}: expected a whole number from {low} to {high}.")
        if len(self.steps) != 2 or min(self.steps) < 0:
            raise SettingsError(f"steps={self.steps!r}: expected two whole numbers from 0 on, as in 80,160.")
        if self.background not in BACKGROUNDS:
            raise SettingsError(f"background={self.background!r}: expected {' or '.join(BACKGROUNDS)}.")
        if self.hold_out < 0 or self.hold_out == 1:
            raise SettingsError(f"hold_out={self.hold_out}: expected 0 for none, or every 2nd, 3rd ... view.")
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise SettingsError(f"formats={','.join(self.formats)}: expected one or more of {', '.join(FORMATS)}.")
        for name in ("height", "scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SettingsError(f"{name}={value!r}: expected a number above 0.")
        if self.height is not None and self.scale is not None:
            raise SettingsError(f"height={self.height:g} and scale={self.scale:g} exclude each other. Give one.")


@dataclass(frozen=True, eq=False)
class FittedAsset:
    """An object fitted to views.

    Attributes:
        name: of the views' folder.
        views: all views with their masks, those held out among them.
        fitted: the field and the hull that it started from.
        mesh: its surface, world frame of the cameras.
        record: how it was made, JSON values; times stand under ``seconds`` alone.
    """

    name: str
    views: Views
    fitted: FittedViews
    mesh: Mesh
    record: dict[str, Any]

    @property
    def field(self) -> LatticeField:
        """The fitted radiance field."""
        return self.fitted.field

    def save(self, folder: str | Path, options: FitOptions | None = None) -> list[Path]:
        """Write ``mesh.<format>``, ``views.png`` (each view, its rendering below it), a turntable when asked for, and
        ``asset.json``: all of it, or nothing.

        Raises:
            SettingsError: a format whose extra is not installed.
            OutputError: something could not be written; an earlier result in the folder is kept.
        """
        from lrm.meshfile import file_matrix, write_mesh
        from multiview.files import write_json_whole

        from .asset import OWNED, RECORD_FILE, file_record, plain_json, staged, write_png
        from .turntable import turntable, write_gif

        options = options or FitOptions()
        matrix = file_matrix(self.mesh, height=options.height, scale=options.scale)
        generator = f"trilift {self.record['trilift']}"
        with staged(Path(folder), OWNED) as stage:
            for name in dict.fromkeys(options.formats):
                extras = {"name": self.name, "model": "fit"}
                write_mesh(self.mesh, stage / f"mesh.{name}", matrix=matrix, generator=generator, extras=extras)
            write_png(comparison_sheet(self.views, self.mesh), stage / "views.png")
            if options.turntable:
                write_gif(turntable(self.mesh, frames=36, size=320), stage / "turntable.gif", 18.0)
            files = sorted(stage.iterdir(), key=lambda file: OWNED.index(file.name))
            written = {"files": [file_record(file) for file in files], "export": {"file_from_world": matrix}}
            seconds = {"seconds": self.record["seconds"]}
            rest = {key: value for key, value in self.record.items() if key != "seconds"}
            write_json_whole(stage / RECORD_FILE, plain_json(rest | written | seconds))
            names = [file.name for file in files] + [RECORD_FILE]
        return [Path(folder) / name for name in names]


def fit_folder(
    views_folder: str | Path,
    out: str | Path | None = None,
    options: FitOptions | None = None,
    *,
    device: str = "auto",
    on_stage: OnStage | None = None,
) -> FittedAsset:
    """Fit one object to the views of a folder, and save it when ``out`` is given.

    Args:
        views_folder: what `multiview.camerafile.read_views` reads: pictures with ``cameras.json`` or
            ``transforms.json``, or one of these files.
        out: folder of the result, or None.
        options: how.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        on_stage: told the name of each stage when it begins.

    Raises:
        CameraError, ImageError: the views cannot be read, are too few, are empty, or do not see one object.
        MeshError: no surface came of them.
        SettingsError: an option out of range.
        OutputError: something could not be written.
    """
    from multiview.camerafile import read_views
    from multiview.devices import pick_device

    from .provenance import naming

    options, path = options or FitOptions(), Path(views_folder)
    place, watch = pick_device(device), Stopwatch(on_stage)
    with naming(str(path)):
        with watch.stage("load"):
            views = with_masks(read_views(path)) if options.background == "auto" else read_views(path)
        name = path.resolve().stem if path.is_file() else path.resolve().name
        asset = fit_object(views.to(place), options, name=name, watch=watch)
    if out is not None:
        with watch.stage("write"):
            asset.save(out, options)
    return asset


def fit_object(
    views: Views, options: FitOptions | None = None, *, name: str = "object", watch: Stopwatch | None = None
) -> FittedAsset:
    """Fit one object to views with alpha; see `fit_folder`, whose errors it shares."""
    from lrm.fitviews import FitViewsSettings, fit_views
    from lrm.mesh import extract_mesh_with_report
    from multiview.devices import describe_device

    from .provenance import own_version, package_versions
    from .views import camera_rows

    options, watch = options or FitOptions(), watch or Stopwatch()
    kept, held = split_views(len(views), options.hold_out)
    settings = FitViewsSettings(samples=options.samples, steps=options.steps, seed=options.seed)
    with watch.stage("fit"):
        fitted = fit_views(views.select(kept), settings)
    with watch.stage("mesh"):
        mesh, report = extract_mesh_with_report(fitted.field, mesh_resolution=options.resolution)
    with watch.stage("check"):
        scores = {"input": view_scores(mesh, views.select(kept).to("cpu"))}
        if held:
            scores["held_out"] = view_scores(mesh, views.select(held).to("cpu"))
    record = {
        "format": 1,
        "name": name,
        "trilift": own_version(),
        "packages": package_versions(),
        "device": describe_device(fitted.field.device),
        "method": "visual hull, flat ends, lattice field fitted by mask and colour loss",
        "prior": "undersides and lids that no view tells are flat, as far as the silhouettes allow; z is up",
        "settings": asdict(options),
        "fit": asdict(settings),
        "dissent": fitted.dissent,
        "views": {"count": len(views), "size_px": views.image_size[::-1], "held_out": held},
        "cameras": camera_rows(views.cameras.to("cpu")),
        "scores": scores,
        "mesh": mesh_record(mesh, report.threshold),
        "warnings": [*report.warnings, *_doubts(scores, fitted)],
        "seconds": watch.seconds,
    }
    return FittedAsset(name, views.to("cpu"), fitted, mesh, record)


def split_views(count: int, hold_out: int) -> tuple[list[int], list[int]]:
    """Indices of the views that are fitted and of those held out: every ``hold_out``-th, none for 0."""
    held = [index for index in range(count) if hold_out and index % hold_out == hold_out - 1]
    return [index for index in range(count) if index not in held], held


def mesh_record(mesh: Mesh, threshold: float) -> dict[str, Any]:
    """What asset.json says of the mesh."""
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "watertight": mesh.is_watertight,
        "volume_world": mesh.volume,
        "bounds_world": mesh.bounds,
        "threshold": threshold,
    }


def _doubts(scores: dict[str, dict[str, Any]], fitted: FittedViews) -> list[str]:
    """Sentences for people when the views and the result do not go together."""
    doubts = []
    iou = scores["input"]["silhouette_iou"]
    if iou < 0.85:
        doubts.append(
            f"the result's silhouettes cover only {iou:.2f} (IoU) of the views': the views may not agree with each "
            "other, or the poses may be off."
        )
    if fitted.dissent:
        doubts.append(
            f"the masks do not agree exactly: up to {fitted.dissent} of the views were overruled at any one point."
        )
    return doubts


# Pictures.


def with_masks(views: Views) -> Views:
    """Cut the object out of the pictures that have no alpha; the others stay as they are.

    A plain background, white or any other colour, is told by the picture's border; for any other the remover by colours
    finds the object.

    Raises:
        ImageError: no object is found in a picture.
    """
    import torch

    from multiview.views import Views as ViewsOf

    alpha = views.alpha.clone()
    for index in range(len(views)):
        if float(alpha[index].min()) > _OPAQUE:
            alpha[index, 0] = torch.from_numpy(_matte(views.images[index], index)).to(alpha)
    return ViewsOf(views.images, alpha, views.cameras)


def _matte(image: Tensor, index: int) -> NDArray[np.floating[Any]]:
    """The alpha (H, W) of an object in a picture (3, H, W)."""
    import numpy as np

    from .classical import alpha_by_colors

    rgb = image.permute(1, 2, 0).double().cpu().numpy()
    alpha = plain_background_alpha(rgb)
    if alpha is None:
        alpha = alpha_by_colors(rgb)
    if not (alpha > 0.5).any():
        raise ImageError(
            f"view {index} has no alpha, and no object is found in it. Give RGBA pictures or a mask for each view."
        )
    return np.asarray(alpha)


def plain_background_alpha(rgb: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]] | None:
    """The alpha of an object before a background of one colour, or None for any other background.

    Args:
        rgb: (H, W, 3) float, sRGB in [0, 1].

    Returns:
        (H, W) of 0 and 1: 0 where a pixel has the border's colour and hangs together with the border, or has exactly
        that colour.
    """
    import numpy as np
    from scipy import ndimage

    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    ground = np.median(border, axis=0)
    # An object that is cropped by the frame may hold up to half of the border.
    if (np.abs(border - ground).max(-1) <= _FLAT).mean() < 0.5:
        return None
    distance = np.abs(rgb - ground).max(-1)
    labels, _ = ndimage.label(distance <= _FLAT)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside = np.isin(labels, rim[rim > 0]) | (distance <= _EXACT)
    return (~outside).astype(np.float64)


def view_scores(mesh: Mesh, views: Views) -> dict[str, Any]:
    """Compare a mesh's pictures with views: mean IoU of the silhouettes, and PSNR over white in dB.

    Returns:
        ``silhouette_iou`` and ``psnr_db``, means over the views, and ``worst_iou``, of the worst view.
    """
    from lrm.metrics import psnr
    from lrm.raster import render_mesh

    shown = render_mesh(mesh, views.cameras, views.image_size)
    a, b = shown.alpha > 0.5, views.alpha > 0.5
    union = (a | b).flatten(1).sum(1).clamp(min=1)
    iou = (a & b).flatten(1).sum(1) / union
    quality = psnr(shown.composite(1.0), views.composite(1.0))
    return {
        "silhouette_iou": round(float(iou.mean()), 6),
        "worst_iou": round(float(iou.min()), 6),
        "psnr_db": round(float(quality.mean()), 4),
    }


def comparison_sheet(views: Views, mesh: Mesh, columns: int = 8) -> NDArray[np.uint8]:
    """Views over white with the mesh's pictures below them, ``columns`` in a row: (H, W, 3) uint8."""
    import numpy as np

    from lrm.raster import render_mesh

    from .turntable import sheet, view_bytes

    columns = min(columns, len(views))
    true, shown = view_bytes(views, 1.0), view_bytes(render_mesh(mesh, views.cameras, views.image_size), 1.0)
    blank = np.full_like(true[0], 255)
    pictures = []
    for first in range(0, len(views), columns):
        for row in (true, shown):
            part = list(row[first : first + columns])
            pictures += part + [blank] * (columns - len(part))
    return sheet(pictures, columns)


# The command line.

_TEXT = (
    "Reconstruct one object from pictures with cameras, without a network: OUT gets mesh.glb, views.png (each view, "
    "the result below it) and asset.json with scores. FOLDER holds pictures with cameras.json or transforms.json, as "
    "trilift views writes them. What no camera sees is decided by a prior: flat undersides and lids."
)


def add_parser(commands: Any) -> None:
    """Add ``fit`` to the command line's sub-commands; ``command`` is set to `run`."""
    d = FitOptions()
    parser = commands.add_parser("fit", help="reconstruct from posed views, without a network", description=_TEXT)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures with cameras.json or transforms.json")
    add = parser.add_argument
    add("-o", "--out", type=Path, default=Path("out"), metavar="OUT", help="output folder (default %(default)s)")
    add("--samples", type=int, default=d.samples, metavar="N", help="of the field, longest side (default %(default)s)")
    add("--steps", type=_pair, default=d.steps, metavar="A,B", help="with coarse, then fine pictures (default 80,160)")
    resolution_help = "samples per axis of the mesh (default %(default)s)"
    add("--resolution", type=int, default=d.resolution, metavar="N", help=resolution_help)
    add("--background", choices=BACKGROUNDS, default=d.background, help="auto: cut out pictures that have no alpha")
    add("--hold-out", type=int, default=0, metavar="K", help="keep every K-th view from the fit and score it")
    formats_help = f"of {','.join(FORMATS)} (default {','.join(d.formats)})"
    add("--format", dest="formats", type=_words, default=d.formats, metavar="F,F", help=formats_help)
    add("--height", type=float, metavar="H", help="height of the exported object (default: longest side 1)")
    add("--scale", type=float, metavar="S", help="file units for each world unit, in place of --height")
    add("--turntable", action="store_true", help="also write a turntable")
    add("--seed", type=int, default=d.seed, metavar="N", help="of all random numbers (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    add("--quiet", action="store_true", help="only failures on stderr")
    parser.set_defaults(command=run)


_OPTION_NAMES = (
    "samples", "steps", "resolution", "background", "hold_out", "formats", "turntable", "height", "scale", "seed",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 when the object was written. Errors leave as `TriliftError`."""
    options = FitOptions(**{name: getattr(args, name) for name in _OPTION_NAMES})
    narrator = Narrator(sys.stderr, args.quiet)
    asset = fit_folder(
        args.folder, args.out, options, device=args.device, on_stage=narrator.stages_of(str(args.folder))
    )
    scores = asset.record["scores"]
    for warning in asset.record["warnings"]:
        narrator.say(f"{args.folder}: warning: {warning}")
    told = ", ".join(
        f"{kind.replace('_', ' ')} views: silhouette IoU {row['silhouette_iou']:.3f}, PSNR {row['psnr_db']:.1f} dB"
        for kind, row in scores.items()
    )
    narrator.say(f"{args.folder}: fitted in {sum(asset.record['seconds'].values()):.1f} s: {args.out} ({told})")
    if args.json:
        row = {
            "source": str(args.folder),
            "folder": str(args.out),
            "scores": scores,
            "warnings": asset.record["warnings"],
        }
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return 0


def _pair(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


__all__: Sequence[str] = ("FitOptions", "FittedAsset", "add_parser", "fit_folder", "fit_object", "run")
