"""``python -m train.check DATA``: the pose linter. Masks and cameras judge each other, before a training run has to.

It reads every layout of ``train/layouts.py``, tries the usual mistakes (OpenCV given for OpenGL, w2c for c2w, shuffled
frames, wrong field of view, mirrored pictures, another axis up, scale or middle off), names the one that fits with
numbers before and after, draws it, and says with which flags the readers mend it. It also finds pictures that no pose
can help: cut off by the frame, empty, given twice, without a matte. Exit status 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import SettingsError, TriliftError
from multiview.files import write_json_whole, written_whole

from .carving import EDGE, Outlines, disagreement, outlines_of, tangent_lines
from .layouts import CONVENTIONS_OF, FoundObject, find_posed, read_posed
from .mistakes import Evidence, Mistake, carved_under, find_mistakes, nice_factor
from .posed import PosedObject, ReadFlags, add_flags, flags_of

REPORT_FILE = "check.json"
ERROR, WARNING = "error", "warning"

_LOOKED_AT = 160  # pixels of the longer side at which pictures are judged
_MOST_VIEWS = 64  # of an object that poses are judged by
_FEWEST_VIEWS = 3
_NO_MATTE = 0.002  # share of a picture that an object must fill at least to be there
_CONTRAST = 0.06  # difference from the background at which a pixel counts as half object, where there is no alpha
_FULL_CONTRAST = 0.12
_PLAIN_BORDER = 0.9  # of the frame's pixels have the background's colour, or there is no plain background
_CUT_EDGE = 0.1  # of the object's size along the frame: more is cut off for certain
_SAME_POSE = 1e-4
_SHOWN, _CELL = 6, 160  # views a row of a picture, pixels each


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with an object.

    Attributes:
        kind: of `train.mistakes.Mistake`, or cropped, empty, duplicates, no-matte, few-views, unreadable.
        level: ``error`` or ``warning``.
        message: with numbers.
        flags: words for the command line that mend it.
        before, after: disagreement in shares of the object's size; None where that is not the point.
        explained_before, explained_after: share of the masks that the carved hull explains.
    """

    kind: str
    level: str
    message: str
    flags: tuple[str, ...] = ()
    before: float | None = None
    after: float | None = None
    explained_before: float | None = None
    explained_after: float | None = None


@dataclass(frozen=True)
class Judged:
    """What was found in one object; ``picture`` (H, W, 3) uint8 shows it before and after."""

    name: str
    layout: str
    views: int
    disagreement: float | None
    findings: tuple[Finding, ...] = ()
    mended: ReadFlags | None = None
    picture: NDArray[np.uint8] | None = field(default=None, compare=False)

    @property
    def wrong(self) -> bool:
        """Whether anything is an error."""
        return any(finding.level == ERROR for finding in self.findings)


# One object


def judge(found: FoundObject, flags: ReadFlags, drawn: bool = False) -> Judged:
    """Read and judge one object; what cannot be read becomes its finding. See `judge_object`."""
    try:
        return judge_object(read_posed(found, flags), drawn)
    except TriliftError as error:
        return Judged(found.name, found.layout, 0, None, (Finding("unreadable", ERROR, str(error)),))


def judge_object(obj: PosedObject, drawn: bool = False) -> Judged:
    """Judge one object's pictures and cameras.

    Args:
        obj: as it is read now.
        drawn: make a picture of what is wrong.

    Raises:
        ImageError: a picture is unreadable.
    """
    chosen = list(np.unique(np.linspace(0, len(obj) - 1, min(len(obj), _MOST_VIEWS)).round().astype(int)))
    views = obj.views(chosen, size=min(_LOOKED_AT, max(obj.image_size)))
    pictures = views.images.permute(0, 2, 3, 1).numpy()
    mattes, findings = find_mattes(pictures, views.alpha[:, 0].numpy())
    there = [i for i in range(len(chosen)) if (mattes[i] > EDGE).mean() > 0 and _has_area(mattes[i])]
    if len(there) < len(chosen) and not findings:
        names = [chosen[i] for i in range(len(chosen)) if i not in there]
        findings.append(
            Finding("empty", ERROR, f"{len(names)} of {len(chosen)} masks are empty: views {_named(names)}")
        )
    if len(there) < _FEWEST_VIEWS:
        if not findings:
            text = f"{len(there)} views, too few for masks and cameras to judge each other (3 or more)"
            findings.append(Finding("few-views", WARNING, text))
        return Judged(obj.name, obj.layout, len(obj), None, tuple(findings))
    outlines = outlines_of(mattes[there])
    findings += _cropped(mattes[there], [chosen[i] for i in there])
    evidence = _evidence(obj, [chosen[i] for i in there], outlines, mattes[there])
    mistakes = find_mistakes(evidence)
    unmended = [mistake for mistake in mistakes if mistake.kind in ("views", "unknown")]
    seen = np.concatenate([pictures * mattes[..., None], mattes[..., None]], -1)
    twice = _duplicates(obj, chosen, seen, bool(unmended))
    if twice:
        mistakes = [mistake for mistake in mistakes if mistake not in unmended]
    findings += twice
    mended = next((m.flags for m in reversed(mistakes) if m.flags is not None), None)
    findings += [_finding(evidence, mistake, obj) for mistake in mistakes]
    picture = None
    if mistakes and drawn:
        picture = draw(evidence, pictures[there], mended)
    eyes = evidence.eyes()
    total = disagreement(outlines, eyes).total if eyes else None
    return Judged(obj.name, obj.layout, len(obj), total, tuple(findings), mended, picture)


def _has_area(matte: NDArray[np.float32]) -> bool:
    """Whether a mask reaches over more than one row or column, so that it has an outline."""
    mask = matte > EDGE
    return bool(mask.any(0).sum() > 1 and mask.any(1).sum() > 1)


def _evidence(obj: PosedObject, chosen: list[int], outlines: Outlines, mattes: NDArray[np.float32]) -> Evidence:
    """What `find_mistakes` needs; the order of the files is looked at only when all views are judged."""
    flags = obj.flags
    if len(chosen) < len(obj):
        flags = replace(flags, order=None)
    radius = flags.scene_radius or obj.scene_radius
    return Evidence(obj.stored[chosen], obj.intrinsics[chosen], flags, outlines, mattes, radius)


def find_mattes(pictures: NDArray[np.float32], alpha: NDArray[np.float32]) -> tuple[NDArray[np.float32], list[Finding]]:
    """The mattes of pictures: their alpha, or else their contrast to a plain background.

    Args:
        pictures: (V, h, w, 3) in [0, 1].
        alpha: (V, h, w).

    Returns:
        (V, h, w), and what is wrong with them.
    """
    if (alpha < 0.5).any():
        return alpha, []
    border = np.concatenate([pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]], 1)
    background = np.median(border, axis=(0, 1))
    plain = (np.abs(border - background).max(-1) < _CONTRAST).mean()
    apart = np.abs(pictures - background).max(-1)
    mattes = (apart / _FULL_CONTRAST).clip(0, 1).astype(np.float32)
    color = ", ".join(f"{255 * c:.0f}" for c in background)
    if plain < _PLAIN_BORDER:
        text = (
            f"no alpha, and no plain background ({plain:.0%} of the frame has one colour, expected {_PLAIN_BORDER:.0%})"
        )
        return mattes, [Finding("no-matte", ERROR, text + "; cut the objects out, or give masks")]
    lost = np.flatnonzero((mattes > 0.5).mean((1, 2)) < _NO_MATTE)
    if len(lost):
        text = f"no alpha, and in {len(lost)} of {len(mattes)} views nothing stands out from the background ({color})"
        return mattes, [Finding("no-matte", ERROR, f"{text}: views {_named(lost.tolist())}; give pictures with alpha")]
    return mattes, []


def _named(indices: Sequence[int]) -> str:
    return ", ".join(str(i) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")


def _cropped(mattes: NDArray[np.float32], names: list[int]) -> list[Finding]:
    """Views whose object goes on beyond the frame."""
    shares = np.array([_on_frame(matte) for matte in mattes])
    touched = np.flatnonzero(shares > 0)
    if len(touched) == 0:
        return []
    certain = shares > _CUT_EDGE
    text = (
        f"{len(touched)} of {len(names)} views touch the frame, {int(certain.sum())} are cut off "
        f"(up to {shares.max():.0%} of the object's size along the frame): views {_named([names[i] for i in touched])}"
    )
    return [Finding("cropped", ERROR if certain.mean() > 0.1 else WARNING, text)]


def _on_frame(matte: NDArray[np.float32]) -> float:
    """Pixels of the object on the frame against its longer side."""
    mask = matte > 0.5
    if not mask.any():
        return 0.0
    longest = max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1))
    return float(max(edge.sum() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) / longest)


def _duplicates(obj: PosedObject, chosen: list[int], pictures: NDArray[np.float32], wrong: bool) -> list[Finding]:
    """Pictures (V, h, w, 4) that are given twice; for two cameras that is right for a symmetric object, unless its
    views contradict each other (``wrong``)."""
    codes: dict[bytes, int] = {}
    same: list[tuple[int, int]] = []
    symmetric: list[tuple[int, int]] = []
    poses = obj.cameras.c2w[chosen].numpy()
    for index, picture in enumerate(pictures):
        first = codes.setdefault(np.round(picture * 255).astype(np.uint8).tobytes(), index)
        if first != index:
            apart = np.abs(poses[first] - poses[index]).max() / max(float(np.linalg.norm(poses[index][:3, 3])), 1e-9)
            (same if apart < _SAME_POSE else symmetric).append((chosen[first], chosen[index]))
    findings = []
    if same:
        pairs = ", ".join(f"{a} = {b}" for a, b in same[:6])
        text = f"{len(same)} views are given twice, picture and camera: {pairs}; leave them out"
        findings.append(Finding("duplicates", ERROR, text))
    if symmetric and wrong:
        pairs = ", ".join(f"{a} = {b}" for a, b in symmetric[:6])
        text = f"{len(symmetric)} pictures are given twice, for different cameras: {pairs}"
        findings.append(Finding("duplicates", ERROR, text))
    return findings


def _finding(evidence: Evidence, mistake: Mistake, obj: PosedObject) -> Finding:
    """A mistake with what carving says of it."""
    words = () if mistake.flags is None else tuple(mistake.flags.difference(obj.layout_flags, evidence.flags))
    explained: list[float | None] = []
    for flags in (evidence.flags, mistake.flags):
        carved = carved_under(evidence, flags) if flags is not None else None
        explained.append(None if carved is None else round(carved.share, 4))
    level = WARNING if mistake.kind == "up" and mistake.flags is None else ERROR
    return Finding(
        mistake.kind, level, mistake.message, words, mistake.before, mistake.after, explained[0], explained[1]
    )


# Pictures


def draw(evidence: Evidence, pictures: NDArray[np.float32], mended: ReadFlags | None) -> NDArray[np.uint8]:
    """Some views before (upper row) and after (lower row): how silhouettes and tangents of other views fit.

    What the carved hull explains is green, what it does not is red; the two lines are the tangents to the outline in
    another picture, which must touch this one.

    Args:
        evidence: of the object.
        pictures: (V, h, w, 3) in [0, 1], as they are read now.
        mended: flags of the lower row; without them there is one row.
    """
    rows = [_row(evidence, pictures, evidence.flags, "as read")]
    if mended is not None:
        rows.append(_row(evidence, pictures, mended, " ".join(mended.difference(evidence.flags))))
    return np.concatenate(rows)


def _row(evidence: Evidence, pictures: NDArray[np.float32], flags: ReadFlags, caption: str) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    from .mistakes import relative_order

    shown = np.unique(np.linspace(0, len(pictures) - 1, min(_SHOWN, len(pictures))).round().astype(int))
    order = relative_order(flags, evidence.flags) or tuple(range(len(pictures)))
    carved, eyes, outlines = carved_under(evidence, flags), evidence.eyes(flags), evidence.seen(flags)
    strip = Image.new("RGB", (_CELL * len(shown), _CELL + 14), "white")
    pen = ImageDraw.Draw(strip)
    error = WORST_TEXT if eyes is None else f"{disagreement(outlines, eyes).total:.2%}"
    share = "" if carved is None else f", masks explained {carved.share:.1%}"
    pen.text(
        (3, 1), f"{caption}: outlines disagree by {error}{share}".encode("ascii", "replace").decode(), fill="black"
    )
    for column, view in enumerate(shown):
        mirrored, flipped = flags.mirror != evidence.flags.mirror, flags.flip != evidence.flags.flip
        picture, matte = pictures[order[view]], evidence.mattes[order[view]]
        picture, matte = (x[:, ::-1] if mirrored else x for x in (picture, matte))
        picture, matte = (x[::-1] if flipped else x for x in (picture, matte))
        mask = (matte > EDGE)[..., None]
        fits = np.zeros_like(mask) if carved is None else carved.covered[view][..., None]
        tint = np.where(fits, (0.45, 0.8, 0.5), (0.9, 0.25, 0.2))
        painted = np.where(mask, 0.45 * picture + 0.55 * tint, 1.0)
        cell = Image.fromarray((255 * painted).round().astype(np.uint8)).resize(
            (_CELL, _CELL), Image.Resampling.NEAREST
        )
        if eyes is not None:
            other = (int(view) + max(1, len(pictures) // 4)) % len(pictures)
            _draw_lines(cell, tangent_lines(outlines, eyes, int(view), other), eyes.intrinsics[view])
        strip.paste(cell, (_CELL * column, 14))
    return np.asarray(strip)


WORST_TEXT = "25% or more"


def _draw_lines(cell: Any, lines: NDArray[np.float64], k: NDArray[np.float64]) -> None:
    """Draw lines (2, 3) of the camera frame, where a ray (x, y, -1) times the line is 0, into a square picture."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(cell)
    for a, b, c in lines:
        # In picture places u = k00 x + k02 and v = -k11 y + k12 this is p u + q v + r = 0.
        p, q = a / k[0, 0], -b / k[1, 1]
        r = -c - p * k[0, 2] - q * k[1, 2]
        if not np.isfinite([p, q, r]).all() or max(abs(p), abs(q)) < 1e-12:
            continue
        ends = (
            [(t, -(r + p * t) / q) for t in (-1.0, 2.0)]
            if abs(q) > abs(p)
            else [(-(r + q * t) / p, t) for t in (-1.0, 2.0)]
        )
        pen.line([(x * _CELL, y * _CELL) for x, y in ends], fill=(30, 80, 220), width=1)


# All objects


def judge_all(
    found: Sequence[FoundObject], flags: ReadFlags, processes: int = 1, drawn: bool = False
) -> Iterator[Judged]:
    """Judge objects one after the other, or in several processes; in their order."""
    work: Callable[[FoundObject], Judged] = partial(judge, flags=flags, drawn=drawn)
    if processes <= 1:
        yield from map(work, found)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(work, found, 2)


def common_flags(judged: Sequence[Judged], usual: ReadFlags) -> tuple[str, ...]:
    """The flags that mend the whole data folder: those that most of its wrong objects share.

    Numbers (field of view, scale) are the median of what the objects want; ``center`` and ``look_at`` differ from
    object to object and are left to each.
    """
    wanted = [one.mended for one in judged if one.mended is not None]
    if len(wanted) < max(1, len([one for one in judged if one.views]) / 2):
        return ()
    shared: dict[str, Any] = {}
    layout = Counter(one.layout for one in judged if one.mended is not None).most_common(1)[0][0]
    own = usual.filled(*CONVENTIONS_OF[layout])
    for name in ("camera_convention", "pose", "up", "mirror", "flip", "order"):
        value, count = Counter(getattr(flags, name) for flags in wanted).most_common(1)[0]
        if count > len(wanted) / 2 and value != getattr(own, name):
            shared[name] = value
    fov = float(np.median([flags.fov_scale for flags in wanted]))
    scales = np.array([flags.scene_scale for flags in wanted])
    shared |= {"fov_scale": round(fov, 3)} if abs(fov - usual.fov_scale) > 0.02 else {}
    if np.median(scales) != usual.scene_scale:
        shared["scene_scale"] = nice_factor(float(np.quantile(scales, 0.25)), float(np.quantile(scales, 0.75)))
    return tuple(replace(usual, **shared).difference(ReadFlags(), usual))


def write_report(out: Path, judged: Sequence[Judged], mending: tuple[str, ...]) -> None:
    """Write ``check.json`` and a picture for each object with a mistake in its cameras.

    Raises:
        OutputError: it could not be written.
    """
    from PIL import Image

    for one in judged:
        if one.picture is not None:
            with written_whole(out / f"{one.name}.png") as aside:
                Image.fromarray(one.picture).save(aside, "PNG")
    rows = [
        {
            "name": one.name,
            "layout": one.layout,
            "views": one.views,
            "disagreement": one.disagreement,
            "findings": [{k: v for k, v in vars(f).items() if v not in (None, ())} for f in one.findings],
        }
        for one in judged
    ]
    kinds = Counter(f.kind for one in judged for f in one.findings if f.level == ERROR)
    summary = {
        "objects": len(judged),
        "wrong": sum(one.wrong for one in judged),
        "kinds": dict(kinds.most_common()),
        "flags": list(mending),
    }
    write_json_whole(out / REPORT_FILE, {**summary, "details": rows})


def summarize(judged: Sequence[Judged], mending: tuple[str, ...]) -> str:
    """The report for people."""
    lines = []
    for one in judged:
        for finding in one.findings:
            carved = [x for x in (finding.explained_before, finding.explained_after) if x is not None]
            shares = " of the masks, mended ".join(f"{x:.1%}" for x in carved)
            explained = f"; carving explains {shares}{' of the masks' * (len(carved) == 1)}" if carved else ""
            mends = f" -> {' '.join(finding.flags)}" if finding.flags else ""
            lines.append(f"{one.name}: {finding.level}: {finding.kind}: {finding.message}{explained}{mends}")
    wrong = sum(one.wrong for one in judged)
    numbers = [one.disagreement for one in judged if one.disagreement is not None]
    usual = f", outlines disagree by {np.median(numbers):.2%} of an object's size" if numbers else ""
    lines.append(f"{len(judged)} objects, {wrong} with errors{usual}.")
    if mending:
        lines.append(f"What mends most of them: {' '.join(mending)}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, help="folder with one folder an object, in any layout of train/layouts.py")
    add("-o", "--out", type=Path, default=None, help="where check.json and the pictures are written")
    add("--json", action="store_true", help="print the verdict as JSON")
    add("--limit", type=int, default=None, help="only so many objects, evenly spaced")
    add("--processes", type=int, default=1, help="(default %(default)s)")
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when nothing is wrong, 1 when something is, 2 for wrong usage."""
    args = build_parser().parse_args(argv)
    try:
        flags = flags_of(args)
        found = find_posed(args.data)
        if args.limit is not None and args.limit < len(found):
            found = [found[i] for i in np.linspace(0, len(found) - 1, max(args.limit, 1)).round().astype(int)]
        judged = list(judge_all(found, flags, args.processes, args.out is not None))
        mending = common_flags(judged, flags)
        if args.out is not None:
            write_report(args.out, judged, mending)
    except SettingsError as error:
        print(f"SettingsError: {error}", file=sys.stderr)
        return 2
    except TriliftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if args.json:
        wrong = sum(one.wrong for one in judged)
        kinds = Counter(f.kind for one in judged for f in one.findings if f.level == ERROR)
        print(json.dumps({"objects": len(judged), "wrong": wrong, "kinds": dict(kinds), "flags": list(mending)}))
    else:
        print(summarize(judged, mending))
    return int(any(one.wrong for one in judged))


if __name__ == "__main__":
    sys.exit(main())
