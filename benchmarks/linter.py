"""``python -m benchmarks.linter OBJECTS``: does the pose linter name mistakes that are planted, and stay quiet else?

Objects without rotational symmetry are rendered from a ring of 16 views at elevation 30 and from 12 random views on
the whole sphere. For each, one mistake at a time is planted into the files (never into memory), and ``train.check`` is
asked.
A case counts when exactly the planted kind is named as the first mistake.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiview.files import write_json_whole
from train.check import Judged, judge
from train.layouts import FoundObject
from train.posed import ReadFlags
from train.renderset import Job, RenderSettings, find_jobs, load_mesh, render_object

Document = dict[str, Any]
Plant = Callable[[Document, np.random.Generator, Path], None]

DISTANCE = 2.15  # from where every object fits into 49.13 degrees
ALIKE = 0.9  # overlap of silhouettes at which an object counts as symmetric under that turn


def settings_of(setup: str, size: int) -> RenderSettings:
    """What is drawn for ``ring`` or ``sphere``: unlit, no points."""
    preset = "syncdreamer" if setup == "ring" else "zero123"
    return RenderSettings(preset, distance=(DISTANCE,), image_size=size, points=0, light="none", supersample=4)


def matrices(document: Document) -> np.ndarray:
    """(V, 4, 4) poses of a ``transforms.json``."""
    return np.array([frame["transform_matrix"] for frame in document["frames"]])


def put(document: Document, poses: np.ndarray) -> None:
    """Replace its poses."""
    for frame, pose in zip(document["frames"], poses, strict=True):
        frame["transform_matrix"] = pose.tolist()


# The mistakes


def opencv(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """OpenCV's camera axes where OpenGL's are expected."""
    put(document, matrices(document) * np.array([1.0, -1.0, -1.0, 1.0]))


def w2c(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """World to camera where camera to world is expected."""
    put(document, np.linalg.inv(matrices(document)))


def shuffled(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """The frames' pictures in a random order."""
    names = [frame["file_path"] for frame in document["frames"]]
    for frame, index in zip(document["frames"], rng.permutation(len(names)), strict=True):
        frame["file_path"] = names[index]


def wrong_fov(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """A field of view 0.6 to 0.8 or 1.25 to 1.6 times the true one."""
    factor = rng.uniform(0.6, 0.8) if rng.random() < 0.5 else rng.uniform(1.25, 1.6)
    for frame in document["frames"]:
        half = math.atan(frame["w"] / 2 / frame["fl_x"]) * factor
        frame["fl_x"] = frame["fl_y"] = frame["w"] / 2 / math.tan(half)


def y_up(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """A world with y up where z up is expected."""
    turn = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    put(document, turn @ matrices(document))


def off_center(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """The whole scene moved, by 0.3 to 0.6 along the ground: cameras look past the origin."""
    poses, angle = matrices(document), rng.uniform(0, 2 * math.pi)
    poses[:, :2, 3] += rng.uniform(0.3, 0.6) * np.array([math.cos(angle), math.sin(angle)])
    put(document, poses)


def wrong_aim(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """Poses that look at another point than the pictures do, 0.15 to 0.3 away, from the same places."""
    import torch

    from multiview.cameras import look_at

    poses, away = matrices(document), rng.normal(size=3)
    target = torch.from_numpy(rng.uniform(0.15, 0.3) * away / np.linalg.norm(away))
    put(document, look_at(torch.from_numpy(poses[:, :3, 3].copy()), target).numpy())


def wrong_scale(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """Camera positions in another unit: 0.5, 2, 10 or 100 times as long."""
    poses = matrices(document)
    poses[:, :3, 3] *= rng.choice([0.5, 2.0, 10.0, 100.0])
    put(document, poses)


def mirrored(document: Document, rng: np.random.Generator, folder: Path) -> None:
    """All pictures mirrored left to right."""
    from PIL import Image, ImageOps

    for index, frame in enumerate(document["frames"]):
        with Image.open(folder / frame["file_path"]) as picture:
            ImageOps.mirror(picture).save(folder / f"{index}.png")
        frame["file_path"] = f"{index}.png"


MISTAKES: dict[str, tuple[str, Plant]] = {
    "opencv for opengl": ("camera-convention", opencv),
    "w2c for c2w": ("pose", w2c),
    "shuffled frames": ("order", shuffled),
    "wrong field of view": ("fov", wrong_fov),
    "y up for z up": ("up", y_up),
    "scene off the origin": ("center", off_center),
    "poses look elsewhere": ("look-at", wrong_aim),
    "wrong scale": ("scale", wrong_scale),
    "mirrored pictures": ("mirror", mirrored),
}


def symmetric(masks: np.ndarray) -> bool:
    """Whether a ring's masks (V, h, w) look alike after some turn of the ring."""

    def overlap(step: int) -> float:
        turned = np.roll(masks, step, 0)
        union = (masks | turned).sum((1, 2))
        return float(((masks & turned).sum((1, 2)) / np.maximum(union, 1)).mean())

    return max(overlap(step) for step in range(1, len(masks) // 2 + 1)) > ALIKE


def render_clean(jobs: Sequence[Job], setup: str, size: int, out: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Render objects into ``out``: name and masks (V, h, w) of each."""
    from PIL import Image

    settings = settings_of(setup, size)
    for job in jobs:
        render_object(load_mesh(job.path, settings), job.name, settings, out / job.name)
        pictures = sorted((out / job.name / "rgba").glob("*.png"))
        yield job.name, np.stack([np.asarray(Image.open(path))[..., 3] > 127 for path in pictures])


def planted(clean: Path, out: Path, plant: Plant, seed: Sequence[int]) -> FoundObject:
    """A copy of an object's folder with a mistake; its pictures stay where they are."""
    document = json.loads((clean / "transforms.json").read_text("utf-8"))
    out.mkdir(parents=True)
    for frame in document["frames"]:
        frame["file_path"] = str((clean / frame["file_path"]).resolve())
    plant(document, np.random.default_rng(seed), out)
    write_json_whole(out / "transforms.json", document)
    return FoundObject(out.name, out, "transforms")


def named_first(judged: Judged) -> str:
    """The kind of an object's first error, or ``nothing``."""
    return next((f.kind for f in judged.findings if f.level == "error"), "nothing")


def measure(objects: Path, count: int, size: int, work: Path, setups: Sequence[str]) -> dict[str, Any]:
    """Plant every mistake into ``count`` objects and ask; gives the figures."""
    jobs, chosen = find_jobs(objects), []
    for name, masks in render_clean(jobs, "ring", size, work / "ring"):
        if not symmetric(masks):
            chosen.append(name)
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int))]
    report: dict[str, Any] = {"objects": chosen, "image_size": size, "setups": {}, "misnamed": []}
    for setup in setups:
        print(f"{setup}: {len(chosen)} objects", file=sys.stderr, flush=True)
        if setup != "ring":
            list(render_clean([job for job in jobs if job.name in chosen], setup, size, work / setup))
        alarms = [n for n in chosen if judge(FoundObject(n, work / setup / n, "transforms"), ReadFlags()).wrong]
        right = {}
        for number, (what, (kind, plant)) in enumerate(MISTAKES.items()):
            hits = 0
            for index, name in enumerate(chosen):
                folder = work / f"{setup}-{number}" / name
                case = planted(work / setup / name, folder, plant, (number, index))
                said = named_first(judge(case, ReadFlags()))
                hits += said == kind
                if said != kind:
                    report["misnamed"].append(f"{setup}: {name}: {what}: {said}")
                    print(report["misnamed"][-1], file=sys.stderr, flush=True)
            right[what] = hits
            print(f"{setup}: {what}: {hits} of {len(chosen)}", file=sys.stderr, flush=True)
        report["setups"][setup] = {"named": right, "false_alarms": alarms}
    cases = len(chosen) * len(MISTAKES) * len(setups)
    report |= {"cases": cases, "right": cases - len(report["misnamed"])}
    return report


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when at least 95 of 100 mistakes are named and no clean object raises an alarm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linter", description=__doc__)
    parser.add_argument("objects", type=Path, help="folder of meshes")
    parser.add_argument("--count", type=int, default=20, help="objects (default %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels per side (default %(default)s)")
    parser.add_argument("--setups", nargs="+", choices=("ring", "sphere"), default=["ring", "sphere"])
    args = parser.parse_args(arguments)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        report = measure(args.objects, args.count, args.size, Path(work), args.setups)
    alarms = sum(len(setup["false_alarms"]) for setup in report["setups"].values())
    print(json.dumps(report, indent=2))
    print(
        f"named {report['right']} of {report['cases']} planted mistakes ({report['right'] / report['cases']:.1%}), "
        f"{alarms} false alarms on {len(report['objects']) * len(args.setups)} clean sets, "
        f"{time.process_time() - begin:.0f} CPU seconds"
    )
    return int(report["right"] < 0.95 * report["cases"] or alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
