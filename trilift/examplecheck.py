"""``trilift examples --verify``: lift the pictures that come with the package and compare with what should come out.

Who is told "worse than in the demo" can so tell a broken installation from a difficult photo. What should come out is
in ``examples/expected.json``; tolerances are far above what other processors and versions of torch change, and far
below what a wrong model, a wrong cut-out or a swapped axis would.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError

from .progress import Narrator

if TYPE_CHECKING:
    from .asset import Asset

EXAMPLES = Path(__file__).parent / "examples"
EXPECTED_FILE = EXAMPLES / "expected.json"
RESOLUTION = 96
FORMAT = 1
# How far each number may be off: absolute, but for the volume, of which it is a share.
TOLERANCES = {
    "silhouette_iou": 0.03,
    "expected_iou": 0.04,
    "extents": 0.04,
    "volume": 0.10,
    "color": 0.05,
    "elevation_deg": 3.0,
}
_OTHER_CUTOUT = 4.0  # a learned remover cuts out a little differently from the colours alone


@dataclass(frozen=True)
class Verdict:
    """What became of one example.

    Attributes:
        name: of the picture.
        differences: sentences; empty when it is as expected.
        found: the numbers, as in ``expected.json``.
        seconds: that the lift took.
    """

    name: str
    differences: tuple[str, ...]
    found: dict[str, Any]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all is as expected."""
        return not self.differences


def example_files(folder: Path = EXAMPLES) -> list[Path]:
    """The pictures that come with the package, by name."""
    return sorted(folder.glob("*.png"))


def read_expected(path: Path = EXPECTED_FILE) -> dict[str, dict[str, Any]]:
    """{name: numbers} of a file that ``--record`` wrote.

    Raises:
        ImageError: it is missing or of another format.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']}")
        return dict(said["examples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{path}: expected what the examples should give, format {FORMAT}; {error}. Install trilift again."
        ) from error


def numbers_of(asset: Asset) -> dict[str, Any]:
    """What is compared of a lift.

    Returns:
        ``method`` of the cut-out; ``silhouette_iou`` and ``expected_iou``; ``extents``: width, height and depth of the
        mesh over the largest of them; ``volume`` in world units; ``color``: mean sRGB colour of the vertices in [0, 1];
        ``elevation_deg`` of the camera; ``watertight``.
    """
    mesh = asset.mesh
    low, high = mesh.bounds
    size = high - low
    # World axes are depth, width, height.
    extents = [round(float(size[axis] / size.max()), 4) for axis in (1, 2, 0)]
    checks = asset.record["checks"]
    return {
        "method": asset.cutout.method,
        "silhouette_iou": checks["silhouette_iou"],
        "expected_iou": checks.get("expected_iou"),
        "extents": extents,
        "volume": round(float(mesh.volume), 5),
        "color": [round(float(value), 4) for value in mesh.colors.mean(0)],
        "elevation_deg": asset.record["assumed"]["elevation_deg"],
        "watertight": bool(mesh.is_watertight),
    }


def compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences on what differs by more than it may, the largest differences first."""
    slack = 1.0 if found["method"] == expected["method"] else _OTHER_CUTOUT
    told: list[tuple[float, str]] = []
    for name, tolerance in TOLERANCES.items():
        wanted, got = expected.get(name), found.get(name)
        if wanted is None or got is None:
            if wanted is not got:
                told.append((1.0, f"{name}: found {got}, expected {wanted}"))
            continue
        pairs = list(zip(got, wanted, strict=True)) if isinstance(wanted, list) else [(got, wanted)]
        off = max(abs(a - b) for a, b in pairs)
        allowed = slack * tolerance * (abs(wanted) if name == "volume" else 1.0)
        if not off <= allowed:
            told.append((off / allowed, f"{name}: found {got}, expected {wanted} (within {allowed:.3g})"))
    if expected.get("watertight") and not found["watertight"]:
        told.append((1.0, "the mesh is not closed"))
    return tuple(text for _, text in sorted(told, key=lambda row: -row[0]))


def lift_example(pipe: Any, picture: Path, expected: Mapping[str, Any] | None) -> Verdict:
    """Lift a picture and compare; a picture that nobody has recorded differs in that."""
    asset = pipe(picture, resolution=RESOLUTION)
    found, seconds = numbers_of(asset), float(asset.record["seconds"]["lift"])
    differences = ("nobody has recorded what it should give",) if expected is None else compare(found, expected)
    return Verdict(picture.stem, differences, found, seconds)


# The command line.

_TEXT = (
    "List the pictures that come with trilift. With --verify, lift each with the embedded model and compare the object "
    "with what it should be; exit status 1 when one differs."
)


def add_parser(commands: Any) -> None:
    """Add ``examples`` to the command line's sub-commands; ``command`` is set to `run`."""
    parser = commands.add_parser("examples", help="the pictures that come with trilift, and whether they lift well",
                                 description=_TEXT)  # fmt: skip
    add = parser.add_argument
    add("--verify", action="store_true", help="lift them and compare with what should come out")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--json", action="store_true", help="one JSON object per picture on stdout, nothing else there")
    add("--record", type=Path, metavar="FILE", help="write what comes out as what should; for new embedded weights")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 when all is as expected, 1 when something differs. Errors leave as `TriliftError`."""
    pictures = example_files()
    if not (args.verify or args.record):
        for picture in pictures:
            print(json.dumps({"name": picture.stem, "path": str(picture)}) if args.json else picture)
        return 0
    from .pipeline import ImageTo3D

    narrator = Narrator(sys.stderr)
    expected = {} if args.record else read_expected()
    pipe = ImageTo3D.from_pretrained("tiny", device=args.device)
    verdicts = []
    for picture in pictures:
        verdicts.append(lift_example(pipe, picture, expected.get(picture.stem)))
        _tell(verdicts[-1], narrator, args)
    if args.record:
        _write(args.record, verdicts, pipe)
        return 0
    wrong = sum(not verdict.ok for verdict in verdicts)
    narrator.say(
        f"{wrong} of {len(verdicts)} examples differ: this installation does not work as it should. See trilift doctor."
        if wrong
        else f"all {len(verdicts)} examples are as expected: what comes out of other photos is up to them."
    )
    return 1 if wrong else 0


def _tell(verdict: Verdict, narrator: Narrator, args: argparse.Namespace) -> None:
    if args.json:
        row = {"name": verdict.name, "ok": verdict.ok, "differences": list(verdict.differences)}
        print(json.dumps({**row, "found": verdict.found, "seconds": verdict.seconds}), flush=True)
    if args.record:
        return
    narrator.say(f"{verdict.name}: {'as expected' if verdict.ok else 'differs'}, {verdict.seconds:.1f} s")
    for text in verdict.differences:
        narrator.say(f"  {text}")


def _write(path: Path, verdicts: list[Verdict], pipe: Any) -> None:
    from multiview.files import write_json_whole

    rows = {verdict.name: verdict.found for verdict in verdicts}
    about = {"format": FORMAT, "resolution": RESOLUTION, "model": pipe.weights.name, "sha256": pipe.weights.sha256}
    write_json_whole(path, {**about, "examples": rows})
