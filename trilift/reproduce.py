"""``trilift reproduce``: make a result again from its asset.json, and say whether it came out the same.

::

    asset.json ──► photo, model, settings ──► lift again ──► files' sums ──► same
                                                                  └────────► what differs, and by how much

Nothing heavy is imported until it runs, as the command line reads its options from here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, OutputError, SettingsError, TriliftError, WeightsError

from .progress import Narrator, OnStage
from .settings import LiftSettings

if TYPE_CHECKING:
    from lrm.mesh import Mesh

    from .pipeline import ImageTo3D

SAME, DIFFERENT = 0, 1
_MESH_FILES = ("mesh.glb", "mesh.gltf", "mesh.ply", "mesh.obj", "mesh.3mf", "mesh.stl")  # the most exact first
_CHAMFER_SAMPLES = 20_000
# What else a record holds that decides files: where it stands, and what it is.
_CAUSES = (
    (("photo", "mask_sha256"), "the photo's mask"),
    (("texture", "unwrap", "way"), "the way of unwrapping"),
    (("views", "photos"), "photos of other sides"),
    (("views", "generator", "sha256"), "the view generator's weights"),
    (("best_of", "kept"), "the lift that was kept of several"),
)


@dataclass(frozen=True)
class Reproduction:
    """What came of making a result again.

    Attributes:
        same: names of the files that have the same bytes.
        changed: names of those that have others.
        missing: names of those that were not written this time.
        extra: names of files that were not there the first time.
        causes: what of settings, weights, packages and machine is not as it was, one sentence each.
        apart: how far the meshes are from each other: ``chamfer`` (mean distance of each surface to the other, in
            longest sides), and numbers of vertices and faces before and now; empty when no mesh could be compared.
    """

    same: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    causes: tuple[str, ...]
    apart: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether every file has the bytes that it had."""
        return not (self.changed or self.missing or self.extra)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("same", "changed", "missing", "extra", "causes")}
        return {"equal": self.equal, **lists, "apart": self.apart}


def reproduce(
    record_file: str | Path,
    out: str | Path | None = None,
    *,
    photo: str | Path | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    on_stage: OnStage | None = None,
) -> Reproduction:
    """Make a result again and compare it with what its record says.

    Args:
        record_file: the asset.json, or its folder; the files beside it are only read, and may be gone.
        out: folder for the new result; a temporary one unless given, and not the record's own.
        photo: where the photo is now, when it is no longer where it was.
        model: name, folder or file of the weights, when they are not those of the recorded name.
        device: see `ImageTo3D.from_pretrained`.
        on_stage: told the name of each stage of the lift.

    Raises:
        OutputError: the record cannot be read, is not one of a lift, or ``out`` is the record's own folder.
        ImageError: no photo with the recorded sum was found.
        SettingsError: the record has a setting that this version does not know.
        WeightsError: the weights have another sum.
        TriliftError: of the lift.
    """
    record_file = Path(record_file)
    record_file = record_file / "asset.json" if record_file.is_dir() else record_file
    record = read_record(record_file)
    if out is not None and Path(out).resolve() == record_file.parent.resolve():
        raise OutputError(f"{out}: holds the result that is to be compared. Choose another folder with -o.")
    settings = recorded_settings(record_file, record)
    found = find_photo(record_file, record, photo)
    pipe = _load(record, model, device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "again" if out is None else Path(out)
        asset = pipe(found, settings, on_stage=on_stage)
        asset = replace(asset, name=str(record.get("name", asset.name)))  # the photo may have been renamed
        asset.save(folder, settings.saving())
        return compare(record_file.parent, record, folder)


def read_record(path: Path) -> dict[str, Any]:
    """The asset.json of a lift.

    Raises:
        OutputError: it is missing, no JSON, or no record of a lift; the message names it.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}). Give an asset.json.") from error
    except ValueError as error:
        raise OutputError(f"{path}: is no JSON ({error}). Give an asset.json that trilift wrote.") from error
    needed = ("photo", "model", "settings", "files")
    lacking = [name for name in needed if not isinstance(record, dict) or name not in record]
    if lacking:
        raise OutputError(f"{path}: expected the record of a lift, found none of its {', '.join(lacking)}.")
    kinds = {"photo": dict, "model": dict, "settings": dict, "files": list}
    wrong = [f"{name} ({type(record[name]).__name__})" for name, k in kinds.items() if not isinstance(record[name], k)]
    if wrong:
        raise OutputError(f"{path}: expected the record of a lift, found another kind of {', '.join(wrong)} in it.")
    return dict(record)


def recorded_settings(path: Path, record: Mapping[str, Any]) -> LiftSettings:
    """The settings of a record; those that it lacks, as an earlier version wrote it, are at their defaults.

    Raises:
        SettingsError: one that this version does not know, or a value out of range.
    """
    try:
        return LiftSettings().replaced(**record["settings"])
    except (SettingsError, TypeError) as error:
        version = record.get("trilift")
        raise SettingsError(f"{path}: written by trilift {version}; {error} Reproduce it with that version.") from error


def find_photo(path: Path, record: Mapping[str, Any], given: str | Path | None = None) -> Path:
    """The recorded photo, told by its sum: ``given``, where it was, or beside the record or its folder.

    Raises:
        ImageError: it is not there, or there is another photo.
    """
    from multiview.weights import file_sha256

    name, wanted = str(record["photo"].get("name", "")), record["photo"].get("sha256")
    near = [] if not Path(name).name else [path.parent / Path(name).name, path.parent.parent / Path(name).name]
    places = [Path(given)] if given is not None else [Path(name), *near]
    tried = []
    for place in places:
        if not place.is_file():
            tried.append(f"{place} is not there")
        elif file_sha256(place) != wanted:
            tried.append(f"{place} is another picture (sha256 {file_sha256(place)[:12]})")
        else:
            return place
    raise ImageError(
        f"{path}: its photo (sha256 {str(wanted)[:12]}) was not found: {'; '.join(tried) or 'it came from memory'}. "
        "Say where it is with --photo."
    )


def _load(record: Mapping[str, Any], model: str | Path | None, device: str) -> ImageTo3D:
    """The pipeline of a record.

    Raises:
        WeightsError: its weights have another sum.
    """
    from .pipeline import ImageTo3D

    known = record["model"]
    generator = (record.get("views") or {}).get("generator") or {}
    pipe = ImageTo3D.from_pretrained(
        model or known["name"], views=generator.get("name"), device=device,
        dtype={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(record.get("dtype")), "auto"),
        revision=known.get("revision") if known.get("repository") and model is None else None,
    )  # fmt: skip
    if known.get("sha256") not in (None, pipe.weights.sha256):
        raise WeightsError(
            f"weights {pipe.weights.name}: expected sha256 {known['sha256'][:12]}, found "
            f"{str(pipe.weights.sha256)[:12]}. Say where the recorded ones are with --model."
        )
    return pipe


def compare(before: Path, record: Mapping[str, Any], now: Path) -> Reproduction:
    """Compare a new result with a record.

    Args:
        before: folder of the record; its mesh is compared when it is there.
        record: its asset.json.
        now: folder of the new result, with its own asset.json.
    """
    again = read_record(now / "asset.json")
    old, new = ({row["name"]: row["sha256"] for row in each["files"]} for each in (record, again))
    same = tuple(name for name in old if new.get(name) == old[name])
    changed = tuple(name for name in old if name in new and new[name] != old[name])
    missing, extra = tuple(sorted(old.keys() - new.keys())), tuple(sorted(new.keys() - old.keys()))
    if not (changed or missing or extra):
        return Reproduction(same, (), (), (), (), {})
    return Reproduction(same, changed, missing, extra, differing(record, again), _apart(before, record, now, again))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What of two records may be why their files differ, one sentence each: version, settings, weights, packages ..."""
    told = []
    for name in ("trilift", "device", "dtype", "seed"):
        if before.get(name) != now.get(name):
            told.append(f"{name}: {before.get(name)} before, {now.get(name)} now")
    for name, what in (("settings", "setting"), ("versions", "version of"), ("model", "model's")):
        old, new = before.get(name) or {}, now.get(name) or {}
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        told += [f"{what} {key}: {old.get(key)} before, {new.get(key)} now" for key in keys]
    for path, what in _CAUSES:
        was, became = _dig(before, path), _dig(now, path)
        if was != became:
            told.append(f"{what}: {was} before, {became} now")
    return tuple(told)


def _dig(record: Any, keys: Sequence[str]) -> Any:
    """What a record says under one key in another, None where it says nothing."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _apart(before: Path, record: Mapping[str, Any], now: Path, again: Mapping[str, Any]) -> dict[str, Any]:
    """How far the meshes are from each other."""
    counts = {}
    for name in ("vertices", "faces"):
        old, new = (each.get("mesh", {}).get(name) for each in (record, again))
        if old is not None and new is not None:
            counts[name] = {"before": old, "now": new}
    meshes = [_first_mesh(folder) for folder in (before, now)]
    if meshes[0] is None or meshes[1] is None:
        return counts
    return {"chamfer": round(chamfer(meshes[0], meshes[1]), 8), **counts}


def _first_mesh(folder: Path) -> Mesh | None:
    from lrm.meshfile import read_mesh
    from multiview.errors import MeshError

    for name in _MESH_FILES:
        if (folder / name).is_file():
            try:
                return read_mesh(folder / name)
            except MeshError:
                return None
    return None


def chamfer(a: Mesh, b: Mesh) -> float:
    """Mean distance from each surface to the other, in units of the longest side of ``a``; 0 for one surface."""
    import numpy as np

    from lrm.metrics import sample_surface
    from lrm.nearest import NearestOnMesh

    rng = np.random.default_rng(0)
    there = NearestOnMesh(b)(sample_surface(a, _CHAMFER_SAMPLES, rng)).distance.mean()
    back = NearestOnMesh(a)(sample_surface(b, _CHAMFER_SAMPLES, rng)).distance.mean()
    return float((there + back) / 2 / max(float(a.extent.max()), 1e-12))


# The command line.

_TEXT = (
    "Make a result again from its asset.json, with the photo, the weights, the settings and the seed that it names, "
    "and compare every file. Exit status 0: all have the same bytes; 1: some differ, and why and by how much is said."
)


def add_parser(commands: Any) -> None:
    """Add ``reproduce`` to the command line's sub-commands; ``command`` is set to `run`."""
    parser = commands.add_parser("reproduce", help="make a result again and compare", description=_TEXT)
    add = parser.add_argument
    add("record", type=Path, metavar="ASSET.JSON", help="or its folder")
    add("--photo", type=Path, metavar="PATH", help="where the photo is now (default: where it was)")
    add("--model", metavar="NAME", help="the weights' name, folder or file now (default: the recorded name)")
    add("-o", "--out", type=Path, metavar="FOLDER", help="keep the new result there")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    add("--quiet", action="store_true", help="only failures on stderr")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; errors leave as `TriliftError`."""
    narrator = Narrator(sys.stderr, args.quiet)
    try:
        found = reproduce(
            args.record, args.out, photo=args.photo, model=args.model, device=args.device,
            on_stage=narrator.stages_of(str(args.record)),
        )  # fmt: skip
    except SettingsError as error:  # what is wrong is in the record, not in the command
        raise TriliftError(str(error)) from error
    if args.json:
        print(json.dumps(found.as_json()), flush=True)
    if found.equal:
        narrator.say(f"{args.record}: the same, all {len(found.same)} files")
        return SAME
    for line in _told(found):
        narrator.problem(f"{args.record}: {line}")
    return DIFFERENT


def _told(found: Reproduction) -> list[str]:
    """What differs, in lines."""
    lines = []
    for name, files in (("differ", found.changed), ("not made again", found.missing), ("new", found.extra)):
        if files:
            lines.append(f"{name}: {', '.join(files)}")
    lines += found.causes or ("nothing that was recorded differs: the numbers of this machine or its libraries do",)
    if "chamfer" in found.apart:
        lines.append(f"the meshes are {found.apart['chamfer']:.3g} of the longest side apart (mean surface distance)")
    for name in ("vertices", "faces"):
        if name in found.apart and found.apart[name]["before"] != found.apart[name]["now"]:
            lines.append(f"{name}: {found.apart[name]['before']} before, {found.apart[name]['now']} now")
    return lines
