"""The command line: ``trilift lift | batch | views | models | convert | doctor | eval | demo``.

Nothing heavy is imported until a command needs it, so that ``--help`` is quick. Exit status 0: all lifted; 1: some
inputs failed, each named on stderr; 2: wrong usage; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import SettingsError, TriliftError

from . import __version__
from .batchcommand import add_parser as add_batch
from .batchcommand import run as run_batch
from .examplecheck import add_parser as add_examples
from .fit import add_parser as add_fit
from .profiles import PROFILE_SETTINGS, PROFILES
from .progress import Narrator
from .reproduce import add_parser as add_reproduce
from .settings import (
    BACKGROUNDS,
    LIFT_FORMATS,
    PROJECTIONS,
    REMESH_WAYS,
    SCHEDULERS,
    TEXTURES,
    THRESHOLD_WORDS,
    TURNTABLE_FORMATS,
    LiftSettings,
    ViewSettings,
    parse_keep,
    parse_length,
    parse_memory,
)

if TYPE_CHECKING:
    from .batch import LiftResult
    from .pipeline import ImageTo3D
    from .views import PhotoToViews

_DTYPES = ("auto", "fp32", "bf16", "fp16")
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (``--help`` and wrong usage leave through SystemExit 0 and 2)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # The options of eval live with it in train, so that --help stays quick.
    args = (
        argparse.Namespace(command=_eval, words=words[1:])
        if words[:1] == ["eval"]
        else build_parser().parse_args(words)
    )
    try:
        status: int = args.command(args)
        sys.stdout.flush()
        return status
    except SettingsError as error:
        print(f"trilift: {error}", file=sys.stderr)
        return USAGE
    except TriliftError as error:
        print(f"trilift: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # after the terminal's own ^C
        print(f"{start}trilift: interrupted; what was finished is whole.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, as in "trilift models | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every default is that of `LiftSettings` or `ViewSettings`."""
    parser = argparse.ArgumentParser(prog="trilift", description="Turn a photo into a textured 3D object.")
    parser.add_argument("--version", action="version", version=f"trilift {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    lift = commands.add_parser("lift", help="lift one photo or several", description=_LIFT_TEXT)
    lift.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="any picture that Pillow reads")
    _add_lift_options(lift)
    views_help = "pictures with cameras.json or transforms.json, for models that take views; one PHOTO"
    lift.add_argument("--views-dir", metavar="DIR", help=views_help)
    side_help = "another photo of the object: SIDE is front, right, back, left or degrees; repeat for more; one PHOTO"
    lift.add_argument("--photo", dest="side_photos", action="append", metavar="SIDE=FILE", help=side_help)
    trace_help = "write a trace of the stages and their operations, for Perfetto or chrome://tracing"
    lift.add_argument("--profile", dest="trace", type=Path, metavar="TRACE.json", help=trace_help)
    lift.set_defaults(command=_lift)

    add_batch(commands, _add_lift_options, _batch)

    views = commands.add_parser("views", help="make views of one photo or several", description=_VIEWS_TEXT)
    views.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="any picture that Pillow reads")
    _add_view_options(views)
    views.set_defaults(command=_views)

    add_fit(commands)
    add_reproduce(commands)

    models = commands.add_parser("models", help="list the known weights, their licences and whether they are here")
    models.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    models.set_defaults(command=_models)

    convert = commands.add_parser("convert", help="write weights as our own folder form", description=_CONVERT_TEXT)
    convert.add_argument("source", metavar="SRC", help=_MODEL_HELP)
    convert.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="made when missing")
    convert.add_argument("--dtype", choices=_DTYPES[1:], default="fp32", help="in the file (default %(default)s)")
    convert.add_argument("--revision", metavar="R", help="commit, branch or tag on the hub")
    convert.set_defaults(command=_convert)

    doctor = commands.add_parser("doctor", help="check this installation")
    doctor.add_argument("--json", action="store_true", help="one JSON object on stdout")
    doctor.set_defaults(command=_doctor)

    score = commands.add_parser("eval", help="score a model against true meshes (extra train)", add_help=False)
    score.set_defaults(command=_eval)

    add_examples(commands)

    demo = commands.add_parser("demo", help="a page in the browser")
    demo.add_argument("--host", default="127.0.0.1", help="listen here (default %(default)s: this machine only)")
    demo.add_argument("--port", type=_port, default=7860, help="port, 0 for any free one (default %(default)s)")
    demo.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    demo.add_argument("--auth", metavar="NAME:PASSWORD", help="ask visitors for these")
    demo.add_argument("--model", default="tiny", help="a name of trilift models, or a folder (default %(default)s)")
    demo.add_argument("--models-dir", metavar="DIR", help="offer the models of training runs below DIR, too")
    demo.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    demo.set_defaults(command=_demo)
    return parser


_MODEL_HELP = "a name of trilift models, a folder or file of weights, NAME=PATH, or owner/name on the hub"
_GENERATOR_HELP = "a view generator: a name of trilift models, a folder or file, NAME=PATH, or owner/name on the hub"
_CONVERT_TEXT = (
    "Read weights strictly and write FOLDER/config.json and FOLDER/model.safetensors, with where they come from and "
    "their licence; view generators get a sub-folder per part. What is written loads without a network and without "
    "their publisher's files."
)
_LIFT_TEXT = (
    "Lift photos. Each gets OUT/<name>/ with mesh.glb, input.png and asset.json; <name> is the file's stem, or its "
    "full name where two photos share the stem."
)
_VIEWS_TEXT = (
    "Make views of photos. Each gets OUT/<name>/ with 000.png, 001.png, ... (RGBA), views.png, cameras.json, NeRF's "
    "transforms.json and views.json; trilift lift --views-dir OUT/<name> reads it back."
)


def _add_lift_options(parser: argparse.ArgumentParser) -> None:
    d = LiftSettings()
    add = parser.add_argument
    add("-o", "--out", type=Path, default=Path("out"), metavar="OUT", help="output folder (default %(default)s)")
    add("--model", default="tiny", help=f"{_MODEL_HELP} (default %(default)s)")
    add("--revision", metavar="R", help="commit, branch or tag of a model on the hub")
    add("--commercial-ok", action="store_true", help="take only weights that may plainly be used commercially")
    add("--views", metavar="NAME", help="have views generated first, for models that take views; " + _GENERATOR_HELP)
    mesh = parser.add_argument_group("mesh")
    add = mesh.add_argument
    add("--resolution", type=int, default=d.resolution, metavar="N", help="samples per axis (default %(default)s)")
    add("--threshold", type=_threshold, default=d.threshold, metavar="auto|median|X", help="density of the surface")
    # Without a default, these four tell what was said from what was not: a profile (--for) stands in for the latter.
    add("--keep", type=_keep, metavar="largest|all|X%", help="smallest piece that stays (default 1%%)")
    add("--smooth", type=int, nargs="?", const=10, default=d.smooth, metavar="N", help="N passes that keep the volume")
    add("--remesh", choices=REMESH_WAYS, default=d.remesh, help="even triangles, or quads (extra quads)")
    add("--faces", type=int, metavar="N", help="reduce to at most N triangles")
    add("--watertight", action="store_true", default=None, help="make sure of a closed, manifold, outward mesh")
    texture_help = f"where colours sit: at the vertices, or in a picture on the surface (default {d.texture})"
    add("--texture", choices=TEXTURES, help=texture_help)
    size_help = "texels per side of a baked texture (default %(default)s)"
    add("--texture-size", type=int, default=d.texture_size, metavar="N", help=size_help)
    add("--normal-map", action="store_true", help="with a baked texture: the fine mesh's normals, too")
    project_help = "paint the photo itself on what it sees; auto: on, but for --threshold median (default %(default)s)"
    add("--project", choices=PROJECTIONS, default=d.project, help=project_help)
    _add_export_options(parser)
    add = _add_photo_options(parser)
    add("--fov", type=float, metavar="DEG", help="vertical field of view of the photo (default: assumed)")
    best_help = "try N seeds and elevations and keep the best by its own expectation (default %(default)s)"
    add("--best-of", type=int, default=d.best_of, metavar="N", help=best_help)
    seconds_help = "begin no further one after so long (default %(default)s)"
    add("--best-of-seconds", type=float, default=d.best_of_seconds, metavar="S", help=seconds_help)
    add("--upright", choices=("auto", "off"), default=d.upright, help="off: leave the object in the camera's pitch")
    _add_generating_options(parser, "generated views (--views)")
    _add_running_options(parser)


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    """Which files are written, and how."""
    d = LiftSettings()
    add = parser.add_argument_group("files").add_argument
    add("--for", dest="profile", choices=tuple(PROFILES), help="what a program wants; every file is read back, checked")
    formats_help = f"of {','.join(LIFT_FORMATS)} (default {','.join(d.formats)})"
    add("--format", dest="formats", type=_formats, default=d.formats, metavar="F,F", help=formats_help)
    add(
        "--height",
        type=_length,
        metavar="30cm",
        help="of the object, in m, cm, mm, in or ft (default: longest side 1 m)",
    )
    add("--scale", type=float, metavar="S", help="metres for each world unit, in place of --height")
    add("--lods", type=int, default=d.lods, metavar="N", help="N more meshes, each with half the triangles")
    add("--roughness", type=float, default=d.roughness, metavar="R", help="of the material (default %(default)s)")
    add("--splats", type=int, default=d.splats, metavar="N", help="Gaussians of --format splats (default %(default)s)")
    add("--sheet", action="store_true", help="also write sheet.png: front, side, behind, top")
    add = parser.add_argument_group("turntable").add_argument
    add("--turntable", action="store_true", help="also write a turntable")
    turntable_help = f"of {','.join(TURNTABLE_FORMATS)} (default: gif, and mp4 where its extra is installed)"
    add("--turntable-format", dest="turntable_formats", type=_formats, metavar="F,F", help=turntable_help)
    add("--turntable-frames", type=int, default=d.turntable_frames, metavar="N", help="of a turn (default %(default)s)")
    add("--turntable-size", type=int, default=d.turntable_size, metavar="PX", help="per side (default %(default)s)")
    elevation_help = "of the cameras (default %(default)s)"
    add("--turntable-elevation", type=float, default=d.turntable_elevation, metavar="DEG", help=elevation_help)
    add("--turntable-of", choices=("mesh", "field"), default=d.turntable_of, help="field: as the model sees it, slower")
    add("--turntable-transparent", action="store_true", help="alpha in place of white (gif, webp, png)")


def _add_view_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--out", type=Path, default=Path("views"), metavar="OUT", help="output folder (default %(default)s)")
    add("--views", default="tiny-views", metavar="NAME", help=f"{_GENERATOR_HELP} (default %(default)s)")
    add("--revision", metavar="R", help="commit, branch or tag of a generator on the hub")
    add("--commercial-ok", action="store_true", help="take only weights that may plainly be used commercially")
    _add_photo_options(parser)
    add = _add_generating_options(parser, "views")
    add("--cameras", metavar="ring:N|instantmesh", help="N views around, or InstantMesh's six (Zero123 only)")
    azimuths_help = "one by one, relative to the photo's camera, toward its right (Zero123 only)"
    add("--azimuths", type=_degrees, metavar="DEG,DEG", help=azimuths_help)
    elevations_help = "above the horizon, one or one each, as in --elevations=-10,20 (default: the photo's)"
    add("--elevations", type=_degrees, metavar="DEG,DEG", help=elevations_help)
    reuse_help = "run deep layers in one of N steps only: faster, not quite the same views (default %(default)s: all)"
    add("--reuse-steps", type=int, default=1, metavar="N", help=reuse_help)
    add("--compile", action="store_true", help="through torch.compile: slow to start, faster afterwards (GPU)")
    _add_running_options(parser)


def _add_photo_options(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """What the photo is and how it was taken; gives the way to add more to that group."""
    add = parser.add_argument_group("photo").add_argument
    add("--background", choices=BACKGROUNDS, default="auto", help="auto: mask file, alpha, else remove it")
    ratio_help = "object's share of the picture's side (default: the model's)"
    add("--foreground-ratio", type=float, metavar="R", help=ratio_help)
    add("--elevation", type=float, metavar="DEG", help="of the camera above the horizon (default: estimated)")
    return add


def _add_generating_options(parser: argparse.ArgumentParser, title: str) -> Callable[..., Any]:
    """How views are generated; gives the way to add more to that group."""
    add = parser.add_argument_group(title).add_argument
    add("--steps", dest="view_steps", type=int, metavar="N", help="denoising steps (default: the generator's)")
    add("--guidance", type=float, metavar="G", help="how strongly the photo is followed (default: the generator's)")
    add("--scheduler", choices=SCHEDULERS, help="of the denoising steps (default: the generator's)")
    add("--view-batch", type=int, metavar="N", help="views per pass: less memory, the same views (default: all)")
    add("--parity", action="store_true", help="sample exactly as the published program does, quirks and all")
    return add


def _add_running_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add("--seed", type=int, default=0, metavar="N", help="of all random numbers (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--dtype", choices=_DTYPES, default="auto", help="of the networks (default %(default)s)")
    memory_help = "the process's own on the CPU, else the device's; what does not fit is said (default: no limit)"
    add("--max-memory", type=_memory, metavar="6GB", help=memory_help)
    add("--json", action="store_true", help="one JSON object per photo on stdout, nothing else there")
    add("--quiet", action="store_true", help="only failures on stderr")


_VIEW_NAMES = ("view_steps", "guidance", "scheduler", "view_batch", "parity")
_PHOTO_NAMES = ("background", "foreground_ratio", "elevation", "seed")
_SETTING_NAMES = (
    "resolution", "threshold", "faces", "formats", "height", "scale", "turntable", "fov", "views_dir", "upright",
    "best_of", "best_of_seconds", "texture", "texture_size", "normal_map", "project", "profile", "keep", "smooth",
    "remesh", "watertight", "lods", "roughness", "splats", "sheet", "turntable_formats", "turntable_frames",
    "turntable_size", "turntable_elevation", "turntable_of", "turntable_transparent",
    *_PHOTO_NAMES, *_VIEW_NAMES,
)  # fmt: skip


def _settings(args: argparse.Namespace) -> LiftSettings:
    said = {name: getattr(args, name) for name in _SETTING_NAMES}
    unsaid = [name for name in PROFILE_SETTINGS if said[name] is None]
    given = tuple(name for name in PROFILE_SETTINGS if name not in unsaid)
    chosen = {name: value for name, value in said.items() if name not in unsaid}
    return LiftSettings(**chosen, photos=tuple(args.side_photos or ()), given=given)


def _view_settings(args: argparse.Namespace) -> ViewSettings:
    names = (*_PHOTO_NAMES, *_VIEW_NAMES, "cameras", "azimuths", "elevations", "reuse_steps", "compile")
    return ViewSettings(**{name: getattr(args, name) for name in names})


def _lift(args: argparse.Namespace) -> int:
    settings = _settings(args)
    narrator = Narrator(sys.stderr, args.quiet)
    from .batch import asset_folders, lift_to_folder

    places = asset_folders(args.photos)
    if settings.views_dir is not None and len(places) > 1:
        raise SettingsError(f"--views-dir {settings.views_dir} belongs to one photo, found {len(places)}. Give one.")
    if settings.photos and len(places) > 1:
        raise SettingsError(f"--photo {settings.photos[0]} belongs to one photo, found {len(places)}. Give one.")
    pipe = _load(args, narrator, settings)
    failed = 0
    from .trace import both, traced

    with traced(args.trace) as traced_stage:
        for photo, place in places.items():
            result = lift_to_folder(
                pipe, photo, args.out / place, settings, on_stage=both(narrator.stages_of(str(photo)), traced_stage),
                on_step=narrator.steps_of(str(photo)),
            )  # fmt: skip
            failed += result.status == "failed"
            _tell(result, narrator, args.json)
    return _outcome(failed, len(places), narrator)


def _outcome(failed: int, count: int, narrator: Narrator) -> int:
    """The exit status of a run over several photos, and a last line when some failed."""
    if failed and count > 1:
        narrator.say(f"{failed} of {count} photos failed.")
    return FAILED if failed else OK


def _views(args: argparse.Namespace) -> int:
    settings = _view_settings(args)
    narrator = Narrator(sys.stderr, args.quiet)
    from .batch import asset_folders, views_to_folder

    places = asset_folders(args.photos)
    pipe = _load_views(args, narrator, settings)
    failed = 0
    for photo, place in places.items():
        result = views_to_folder(
            pipe, photo, args.out / place, settings, on_stage=narrator.stages_of(str(photo)),
            on_step=narrator.steps_of(str(photo)),
        )  # fmt: skip
        failed += result.status == "failed"
        _tell(result, narrator, args.json, "views made")
    return _outcome(failed, len(places), narrator)


def _load_views(args: argparse.Namespace, narrator: Narrator, settings: ViewSettings) -> PhotoToViews:
    from . import registry

    registry.resolve(args.views)  # a wrong name fails before torch is loaded
    start = time.perf_counter()
    from .views import PhotoToViews

    pipe = PhotoToViews.from_pretrained(
        args.views, device=args.device, dtype=args.dtype, revision=args.revision, commercial_ok=args.commercial_ok,
        max_memory=args.max_memory, on_note=narrator.say,
    )  # fmt: skip
    pipe.check(settings)
    told = f"views by {pipe.weights.name} on {pipe.device} in {pipe.dtype}"
    narrator.say(f"{told}, loaded in {time.perf_counter() - start:.1f} s")
    return pipe


def _batch(args: argparse.Namespace) -> int:
    return run_batch(args, _settings(args))


def _load(args: argparse.Namespace, narrator: Narrator, settings: LiftSettings) -> ImageTo3D:
    from . import registry

    for named in (args.model, args.views):  # a wrong name fails before torch is loaded
        if named is not None:
            registry.resolve(named)
    if args.views is not None and settings.views_dir is not None:
        raise SettingsError(f"--views {args.views} and --views-dir {settings.views_dir} exclude each other. Give one.")
    start = time.perf_counter()
    from .pipeline import ImageTo3D

    pipe = ImageTo3D.from_pretrained(
        args.model, views=args.views, device=args.device, dtype=args.dtype, revision=args.revision,
        commercial_ok=args.commercial_ok, max_memory=args.max_memory, on_note=narrator.say,
    )  # fmt: skip
    pipe.check(settings)
    told = f"model {pipe.weights.name} on {pipe.device} in {pipe.dtype}"
    if pipe.generator is not None:
        told = f"views by {pipe.generator.weights.name} in {pipe.generator.dtype}, {told}"
    narrator.say(f"{told}, loaded in {time.perf_counter() - start:.1f} s")
    return pipe


def _convert(args: argparse.Namespace) -> int:
    from . import registry

    registry.resolve(args.source)
    narrator = Narrator(sys.stderr)
    from .convert import convert

    record = convert(args.source, args.out, dtype=args.dtype, revision=args.revision, on_note=narrator.say)
    narrator.say(f"{record.name} ({record.architecture}) written to {args.out}, sha256 {record.sha256}")
    return OK


def _tell(result: LiftResult, narrator: Narrator, as_json: bool, doing: str = "lifted") -> None:
    if as_json:
        print(json.dumps(result.as_json(), ensure_ascii=False), flush=True)
    if result.status == "failed":
        narrator.problem(result.error or f"{result.source}: failed")
        return
    for warning in result.warnings:
        narrator.say(f"{result.source}: warning: {warning}")
    for note in result.notes:
        narrator.say(f"{result.source}: {note}")
    done = "already there, skipped" if result.status == "skipped" else f"{doing} in {result.seconds:.1f} s"
    narrator.say(f"{result.source}: {done}: {result.folder}")


def _models(args: argparse.Namespace) -> int:
    from .registry import CELLS, models

    rows = models()
    if args.json:
        for row in rows:
            print(json.dumps(row.as_json()))
        return OK
    table = [CELLS, *(row.as_cells() for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(CELLS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps({f.name: {"state": f.state, "text": f.text} for f in findings}, ensure_ascii=False))
    else:
        for f in findings:
            print(f"{f.state:<5} {f.name}: {f.text}")
    return FAILED if any(f.state == "bad" for f in findings) else OK


def _eval(args: argparse.Namespace) -> int:
    instrument = _room("train", "evaluate", "pip install 'trilift[train]'")
    return int(instrument.main(args.words))


def _room(name: str, module: str, remedy: str) -> Any:
    """A module of a room that only the front door may reach; a wheel carries it under ``trilift_<name>``.

    Raises:
        TriliftError: it cannot be imported; says what to install.
    """
    import importlib
    import importlib.util

    home = f"trilift_{name}" if importlib.util.find_spec(f"trilift_{name}") else name
    try:
        return importlib.import_module(f"{home}.{module}")
    except ImportError as error:
        raise TriliftError(f"{name}.{module} cannot be loaded ({error}). Try: {remedy}.") from error


def _demo(args: argparse.Namespace) -> int:
    page = _room("demo", "app", "pip install gradio")
    argv = ["--host", args.host, "--port", str(args.port), "--model", args.model, "--device", args.device]
    argv += ["--share"] if args.share else []
    argv += [] if args.auth is None else ["--auth", args.auth]
    argv += [] if args.models_dir is None else ["--models-dir", args.models_dir]
    return int(page.main(argv) or OK)


def _threshold(text: str) -> Any:
    return text if text in THRESHOLD_WORDS else float(text)


def _formats(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _degrees(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


def _memory(text: str) -> int:
    try:
        return parse_memory(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _length(text: str) -> float:
    try:
        return parse_length(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _keep(text: str) -> float:
    try:
        return parse_keep(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, found {port}")
    return port
