"""``trilift eval DATA -o OUT``: score a model, and trivial answers beside it, against meshes that it has not seen.

One input picture per object, drawn as docs/evaluation.md says; what comes back is compared with the truth by volume,
surface and novel views. OUT gets ``metrics.json``, the meshes, the input pictures and contact sheets. Another program's
meshes are scored in the model's place with ``--predictions``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lrm.lpips import load_lpips
from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from lrm.metrics import TrueShape
from multiview.camerafile import write_views
from multiview.errors import MeshError, SettingsError, TriliftError

from .baselines import TRIVIAL_ANSWERS, Bytes
from .datasets import find_objects, told_datasets
from .frames import FRAMES, Frame
from .predictions import INPUTS_FILE, Predictions, write_inputs
from .protocol import (
    EvalObject,
    EvalProtocol,
    Trivial,
    check_numbers,
    is_watertight,
    mapped,
    prepare_trivial,
    seed_of,
    spread,
    true_mesh,
)
from .protocols import PROTOCOLS, protocol_named
from .scorecard import (
    MAIN_ANSWERS,
    OURS,
    PREDICTIONS,
    Lifted,
    Marked,
    Scored,
    add_shuffled,
    input_psnr,
    main_answer,
    own_scores,
    score_answer,
    score_failure,
    table,
    white_psnr,
    write_metrics,
)
from .sheets import thumbs, write_chosen_sheets, write_picture, write_sheets
from .trueviews import true_views

if TYPE_CHECKING:
    from trilift.pipeline import ImageTo3D

TRUE_VIEWS = "true"


Lifter = Callable[..., Lifted]
"""A model as the instrument sees it: called with an input picture (S, S, 4) uint8; and with a folder of views as its
second argument where it has an attribute ``wants_true_views`` that is true."""

# One object.


@dataclass(frozen=True)
class Asked:
    """Who is asked about each object.

    Attributes:
        lifter: the model; None leaves it out.
        predictions: another program's meshes; None where there are none.
        trivial: the trivial answers.
    """

    lifter: Lifter | None
    predictions: Predictions | None
    trivial: Trivial

    @property
    def names(self) -> list[str]:
        """Of the answers, in the order of the report."""
        mains = ((OURS, self.lifter), (PREDICTIONS, self.predictions))
        return [name for name, who in mains if who is not None] + list(self.trivial.names)

    def ask(self, name: str, picture: Bytes, object_id: str, elevation_deg: float, views_dir: Path | None) -> Answer:
        """One answer to a picture; predictions are looked up by the object's id, frames that are pitched stood up."""
        if name == OURS and self.lifter is not None:
            return _ask_model(self.lifter, picture, views_dir)
        if name == PREDICTIONS and self.predictions is not None:
            return self.predictions.answer(object_id, elevation_deg), {}
        return self.trivial.answer(name, picture), {}


def score_object(item: EvalObject, asked: Asked, out: Path, protocol: EvalProtocol) -> Scored:
    """Draw the input, ask for every answer, compare each with the truth; writes the input and the meshes.

    An answer that fails in any way counts as nothing at all: IoU 0, no hits, white pictures.

    Raises:
        MeshError: the truth itself cannot be compared (no area).
        OutputError: a file cannot be written.
    """
    azimuth, elevation = protocol.viewpoint(item.id)
    picture = protocol.look(item.mesh, azimuth, elevation)
    write_picture(picture, out / "inputs" / f"{item.id}.png")
    turned_mesh = true_mesh(item.mesh, azimuth)
    truth = protocol.true_shape(turned_mesh, seed_of(item.id))
    _save_mesh(truth.mesh, out, "truth", item.id)
    truth_views = protocol.novel_views(truth.mesh)
    views_dir = None
    if getattr(asked.lifter, "wants_true_views", False):
        views_dir = out / "views" / item.id
        write_views(views_dir, true_views(turned_mesh, elevation, protocol))
    row, marked, failures = _row_of(item, azimuth, elevation), {}, []
    for name in asked.names:
        ask = partial(asked.ask, name, picture, item.id, elevation, views_dir)
        mesh, problem, marked[name] = _mark_answer(name, ask, picture, truth, truth_views, protocol)
        row[name] = marked[name].scores
        if mesh is None:
            failures.append({"id": item.id, "answer": name, "error": problem})
        else:
            _save_mesh(mesh, out, name, item.id)
    if failures:
        row["failed"] = [failure["answer"] for failure in failures]
    main = marked.get(main_answer(asked.names) or "")
    return Scored(
        row,
        thumbs(picture, main.views if main else None, truth_views),
        np.packbits(truth.occupied),
        np.packbits(main.volume) if main else None,
        failures,
    )


def _row_of(item: EvalObject, azimuth: float, elevation: float) -> dict[str, Any]:
    """What metrics.json says about an object, before the answers."""
    return {
        "id": item.id, "file": str(item.path), "seed": seed_of(item.id), "azimuth_deg": round(azimuth, 4),
        "elevation_deg": round(elevation, 4), "watertight": is_watertight(item.mesh), "faces": len(item.mesh.faces),
    }  # fmt: skip


Answer = tuple[Mesh, dict[str, float]]  # the mesh, and what else is to be written into its row


def _ask_model(lifter: Lifter, picture: Bytes, views_dir: Path | None = None) -> Answer:
    began = time.perf_counter()
    lifted = lifter(picture) if views_dir is None else lifter(picture, views_dir)
    seconds = time.perf_counter() - began
    return lifted.mesh, {"input_psnr": input_psnr(lifted), "seconds": round(seconds, 3)} | own_scores(lifted)


def _mark_answer(
    name: str,
    ask: Callable[[], Answer],
    picture: Bytes,
    truth: TrueShape,
    truth_views: Tensor,
    protocol: EvalProtocol,
) -> tuple[Mesh | None, str, Marked]:
    """Ask for one answer and mark it; gives its mesh, or None and the reason when it failed, and the marks."""
    try:
        mesh, extra = ask()
        marked = score_answer(mesh, truth, truth_views, protocol)
    except Exception as error:  # whatever a model stumbles over, the other objects are still to be scored
        marked = score_failure(truth, truth_views, protocol)
        extra = {"input_psnr": white_psnr(picture), "seconds": 0.0} if name == OURS else {}
        marked.scores.update(extra)
        return None, f"{type(error).__name__}: {error}", marked
    marked.scores.update(extra)
    return mesh, "", marked


def _save_mesh(mesh: Mesh, out: Path, answer: str, object_id: str) -> None:
    write_mesh(mesh, out / "meshes" / answer / f"{object_id}.glb")


# All objects.


def evaluate(
    lifter: Lifter | None,
    data: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    answers: Sequence[str] = (OURS, *TRIVIAL_ANSWERS),
    limit: int | None = None,
    protocol: EvalProtocol | None = None,
    model: Mapping[str, Any] | None = None,
    predictions: str | Path | None = None,
    frame: Frame | str = "trilift",
    up: str | None = None,
    processes: int = 1,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score a model, another program's meshes and trivial answers on every object below a folder, and write OUT.

    Args:
        lifter: the model, picture (S, S, 4) uint8 → something like `trilift.Asset`; None leaves it out.
        data: folder of true meshes, as `train.datasets.find_objects` reads it.
        out: ``metrics.json``, ``constants.json``, ``sheet.png`` (and ``sheet-2.png`` ...), ``best.png``,
            ``median.png``, ``worst.png``, ``inputs/<id>.png``, ``meshes/<answer>/<id>.glb``; the truth is one of the
            answers there.
        train: folder of training objects for the trivial answers; None takes DATA/../train if that is another folder.
        answers: ``ours`` and names of `TRIVIAL_ANSWERS`; predictions are scored whenever they are given.
        limit: at most so many objects, evenly spaced.
        protocol: what is drawn and compared; `train.protocols` has them by name.
        model: what to write down about the model, JSON values.
        predictions: folder of another program's meshes, one for each id; those that are missing count as nothing.
        frame: how these lie: a `train.frames.Frame`, or what `Frame.parse` reads.
        up: the axis that is up in DATA's files; None for what is known of them.
        processes: that score objects side by side; more than one want a lifter that can be pickled, such as
            `ModelLifter`. The numbers do not depend on it but for ``seconds`` and the last bits of a network's sums.
        tell: called with a line about the progress now and then.

    Returns:
        What metrics.json holds.

    Raises:
        SettingsError: wrong answers, limit, frame, axis or processes, no meshes, predictions of which none belongs to
            an object, or libigl is missing.
        WeightsError: the weights for LPIPS cannot be used.
        MeshError: none of the true meshes can be used.
        OutputError: a file cannot be written.
    """
    data, out, protocol = Path(data), Path(out), protocol or EvalProtocol()
    _check_settings(answers, limit, processes, up)
    if protocol.lpips is not None:
        load_lpips(protocol.lpips)  # a wrong file is better told before the work than after it
    began = time.perf_counter()
    objects = spread(find_objects(data), limit)
    found = None
    if predictions is not None:
        found = Predictions.find(predictions, objects, Frame.parse(frame) if isinstance(frame, str) else frame)
    names = [name for name in TRIVIAL_ANSWERS if name in answers]
    tell = tell or (lambda line: None)
    trivial = prepare_trivial(names, _train_folder(train, data), out, objects, protocol, tell, processes)
    fitted = time.perf_counter()
    asked = Asked(lifter if OURS in answers else None, found, trivial)
    job = partial(_score_file, asked=asked, out=out, protocol=protocol, up=up)
    scored, skipped = _score_all(job, objects, min(processes, len(objects)), tell)
    if not scored:
        raise MeshError(f"{data}: none of {len(objects)} true meshes can be used, first: {skipped[0]['error']}")
    add_shuffled(scored)
    drawn = main_answer(asked.names) is not None
    sheets = [*write_sheets(scored, out), *write_chosen_sheets(scored, out, protocol)] if drawn else []
    return write_metrics(
        scored, skipped, trivial, protocol, out,
        data=_told_data(data, [one.row for one in scored], up), model=model or {},
        predictions=found.told() if found else None, sheets=sheets, began=began, fitted=fitted,
    )  # fmt: skip


def _told_data(data: Path, rows: Sequence[Mapping[str, Any]], up: str | None) -> dict[str, Any]:
    """What metrics.json says about the true objects; reports with one hash are about the same ones."""
    ids = json.dumps(sorted(row["id"] for row in rows))
    return {
        "data": str(data), "datasets": told_datasets([Path(row["file"]) for row in rows]), "up": up or "by dataset",
        "objects_sha256": hashlib.sha256(ids.encode()).hexdigest(),
    }  # fmt: skip


def _score_file(
    named: tuple[str, Path], asked: Asked, out: Path, protocol: EvalProtocol, up: str | None = None
) -> Scored | str:
    """`score_object` of a mesh file; why not, for a truth that cannot be used."""
    try:
        return score_object(EvalObject.read(*named, up=up), asked, out, protocol)
    except MeshError as error:
        return str(error)


def _score_all(
    job: Callable[[tuple[str, Path]], Scored | str],
    objects: Mapping[str, Path],
    processes: int,
    tell: Callable[[str], None],
) -> tuple[list[Scored], list[dict[str, str]]]:
    """`score_object` for each; and the truths that cannot be used, with the reason."""
    scored, skipped = [], []
    results = mapped(job, objects.items(), processes)
    for index, (object_id, result) in enumerate(zip(objects, results, strict=True), 1):
        if isinstance(result, str):
            skipped.append({"id": object_id, "error": result})
        else:
            scored.append(result)
            tell(f"[{index}/{len(objects)}] {_told(result.row)}")
    return scored, skipped


def _told(row: Mapping[str, Any]) -> str:
    """One line about one object."""
    name = next((name for name in (*MAIN_ANSWERS, *TRIVIAL_ANSWERS) if name in row), None)
    return f"{row['id']}: IoU {row[name]['iou']:.3f} ({name})" if name else f"{row['id']}: no answers"


# Settings.


def _check_settings(answers: Sequence[str], limit: int | None, processes: int, up: str | None = None) -> None:
    known = (OURS, *TRIVIAL_ANSWERS)
    wrong = [name for name in answers if name not in known]
    if wrong or not answers:
        raise SettingsError(f"answers={','.join(answers)}: expected some of {', '.join(known)}.")
    check_numbers(limit, processes, up)
    if importlib.util.find_spec("igl") is None:
        raise SettingsError("trilift eval wants libigl, which is not installed. Try: pip install 'trilift[train]'.")


def _train_folder(train: str | Path | None, data: Path) -> Path | None:
    """The folder given, else the sibling of DATA called train, if that is there and another one."""
    if train is not None:
        return Path(train)
    sibling = data.resolve().parent / "train"
    return sibling if sibling.is_dir() and sibling != data.resolve() else None


# The command.


def build_parser(prog: str = "trilift eval") -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score a model, or another program's meshes, against true meshes, with trivial answers beside it. "
        "OUT gets metrics.json, meshes, input pictures and contact sheets. docs/evaluation.md has the protocols.",
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of true meshes, searched with its sub-folders; Google Scanned "
        "Objects and OmniObject3D as downloaded")  # fmt: skip
    add("-o", "--out", type=Path, metavar="OUT", help="output folder")
    add("--protocol", choices=tuple(PROTOCOLS), default="ours", help="by whose rules (default %(default)s)")
    add("--up", metavar="AXIS", help="up axis of DATA's files: x, y, z, or --up=-z ... (default: by dataset, else y)")
    add("--lpips", metavar="PATH", help="weights for LPIPS, a file or a folder; without them it is left out")
    add("--limit", type=int, metavar="N", help="only N objects, evenly spaced")
    lights = parser.add_mutually_exclusive_group()
    lights.add_argument("--light", dest="light", action="store_const", const="soft", default="none",
                        help="light the input pictures softly; without it they show plain colours")  # fmt: skip
    lights.add_argument("--studio", dest="light", action="store_const", const="studio",
                        help="patterns, shadows, gloss and noise in the input pictures")  # fmt: skip
    _add_model_options(parser)
    _add_prediction_options(parser)
    add("--train", type=Path, metavar="DIR", help="objects to fit the trivial answers on (default: DATA/../train)")
    add(
        "--answers", type=lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        metavar="A,B", help=f"of {','.join((OURS, *TRIVIAL_ANSWERS))} (default: all; with --predictions all but ours)",
    )  # fmt: skip
    add(
        "--processes", type=int, metavar="N", help="that score side by side (default: 2 on a CPU that has them, else 1)"
    )
    add("--quiet", action="store_true", help="only the table, on stdout")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add("--model", default="tiny", help="a name of trilift models, or a folder (default %(default)s)")
    add("--views", metavar="NAME", help="a view generator in front of it, or true for the ring of true views")
    default = EvalProtocol().mesh_resolution
    add("--resolution", type=int, default=default, metavar="N", help="samples per axis (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the network")


def _add_prediction_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("another program").add_argument
    add(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="its meshes: DIR/ID.glb (or .obj, .ply, .stl ...) or DIR/ID/mesh.*",
    )
    add(
        "--frame", default="trilift", metavar="F",
        help=f"how they lie: {', '.join(FRAMES)}, or UP,FRONT[,pitched][,mirrored] such as z,-y (default %(default)s: "
        "y up, photographed side toward +z)",
    )  # fmt: skip
    add(
        "--write-inputs",
        type=Path,
        metavar="DIR",
        help="write the input pictures for it to DIR/ID.png, and score nothing",
    )


def main(argv: Sequence[str] | None = None, prog: str = "trilift eval") -> int:
    """Run the command; 0: every answer was scored, 1: some failed or were skipped, each named on stderr.

    Raises:
        TriliftError: as `evaluate`, or the model cannot be loaded.
    """
    args = build_parser(prog).parse_args(argv)
    if args.light == "studio" and importlib.util.find_spec("embreex") is None:
        raise SettingsError(
            "--studio wants embree. Try pip install 'trilift[train]', or --light, which needs nothing more."
        )
    protocol = replace(
        protocol_named(args.protocol), light=args.light, mesh_resolution=args.resolution, lpips=args.lpips
    )
    if args.write_inputs is not None:
        return _write_inputs(args, protocol)
    if args.out is None:
        raise SettingsError("trilift eval wants an output folder: -o OUT (or --write-inputs DIR for the inputs alone).")
    answers = args.answers or (*(() if args.predictions else (OURS,)), *TRIVIAL_ANSWERS)
    _check_settings(answers, args.limit, 1 if args.processes is None else args.processes, args.up)
    lifter: ModelLifter | None = None
    model: dict[str, Any] = {}
    if OURS in answers:
        lifter = ModelLifter(args.model, args.device, args.dtype, protocol.mesh_resolution, args.views)
        model = lifter.told()
    record = evaluate(
        lifter, args.data, args.out, train=args.train, answers=answers, limit=args.limit, protocol=protocol,
        model=model, predictions=args.predictions, frame=args.frame, up=args.up,
        processes=args.processes or _usual_processes(lifter), tell=None if args.quiet else _tell,
    )  # fmt: skip
    print(table(record))
    return _tell_problems(record)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell_problems(record: Mapping[str, Any]) -> int:
    """Name on stderr what was left out and what failed; the exit status."""
    for name, reason in record["left_out"].items():
        _tell(f"{name}: left out: {reason}")
    told = record.get("predictions", {})
    if unused := told.get("unused"):
        _tell(f"{told['folder']}: {len(unused)} meshes belong to no object, first {unused[0]}")
    problems = [*record["failures"], *record["skipped"]]
    for problem in problems:
        _tell(f"{problem['id']}: {problem.get('answer', 'truth')}: {problem['error']}")
    if missing := told.get("missing"):
        _tell(f"{told['folder']}: {len(missing)} of {record['count']} objects have no mesh and count as nothing")
    return 1 if problems else 0


def _write_inputs(args: argparse.Namespace, protocol: EvalProtocol) -> int:
    """``--write-inputs``: the pictures alone; the exit status."""
    if args.predictions is not None:
        raise SettingsError(
            "--write-inputs and --predictions exclude each other: first the inputs, then their answers."
        )
    processes = args.processes or _usual_processes(None)
    record = write_inputs(
        args.data, args.write_inputs, limit=args.limit, protocol=protocol, up=args.up, processes=processes
    )
    print(f"{args.write_inputs}: {len(record['inputs'])} input pictures and {INPUTS_FILE}; nothing was scored.")
    for problem in record["skipped"]:
        _tell(f"{problem['id']}: truth: {problem['error']}")
    return 1 if record["skipped"] else 0


def _usual_processes(lifter: ModelLifter | None) -> int:
    """Two where there are two processors; one for a model on an accelerator, which would be loaded twice."""
    on_cpu = lifter is None or lifter.pipe.device.type == "cpu"
    return min(2, os.cpu_count() or 1) if on_cpu else 1


@dataclass(frozen=True)
class ModelLifter:
    """A model by its name, as a function from pictures that each process loads for itself.

    Attributes:
        model, device, dtype: as `ImageTo3D.from_pretrained` takes them.
        mesh_resolution: samples per axis.
        views: a view generator's name, ``true`` for the ring of true views, None for the picture alone.
    """

    model: str
    device: str
    dtype: str
    mesh_resolution: int
    views: str | None = None

    @property
    def wants_true_views(self) -> bool:
        """See `Lifter`; the ring is then drawn for it."""
        return self.views == TRUE_VIEWS

    @cached_property
    def pipe(self) -> ImageTo3D:
        """The loaded model."""
        from trilift.pipeline import ImageTo3D

        generator = None if self.wants_true_views else self.views
        return ImageTo3D.from_pretrained(self.model, device=self.device, dtype=self.dtype, views=generator)

    def __call__(self, picture: Bytes, views_dir: Path | None = None) -> Lifted:
        return self.pipe(picture, resolution=self.mesh_resolution, views_dir=views_dir)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded model."""
        return {key: value for key, value in vars(self).items() if key != "pipe"}

    def told(self) -> dict[str, Any]:
        """What metrics.json says about it."""
        return asdict(self.pipe.weights) | {
            "views": self.views,
            "device": str(self.pipe.device),
            "dtype": self.pipe.dtype,
        }


if __name__ == "__main__":
    try:
        sys.exit(main(prog="python -m train.evaluate"))
    except TriliftError as problem:
        print(f"trilift eval: {problem}", file=sys.stderr)
        sys.exit(2 if isinstance(problem, SettingsError) else 1)
