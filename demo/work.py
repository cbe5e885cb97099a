"""What a visitor's buttons start: a photo is kept, a job is begun, its results are put into the session's folder."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilift import Asset, LiftResult, TriliftError
from trilift.asset import write_png
from trilift.turntable import turn_saved, view_bytes

from .bench import Bench
from .cutting import mask_path
from .intake import RefusedError, Upload, unpack_photos
from .jobs import Done, Job, Pace, Snapshot, one_worker, watch
from .recipe import Choices, side_photos, view_settings
from .sessions import Result, Session
from .words import scores_html

_TEXTS = (".json", ".jsonl", ".html")
_TURNTABLES = ("turntable.gif", "turntable.webp")


class Lifting:
    """Jobs of visitors, one after another.

    Args:
        bench: the models.
        pace: what earlier jobs took.
    """

    def __init__(self, bench: Bench, pace: Pace) -> None:
        self.bench, self.pace = bench, pace
        self._worker = one_worker()

    def lift(
        self, session: Session, upload: Upload, sides: Mapping[str, Upload | None], choices: Choices
    ) -> Iterator[Snapshot | Done]:
        """Lift a photo; the end is a `Done` with a `Result`, which is in the session's history.

        News on the way are pictures of all generated views, rough ones at first.

        Raises:
            TriliftError: of the stage that failed; it says nothing of where this server keeps files.
            Stopped: the visitor has stopped it.
        """
        kept = session.photo(upload)
        others = {side: None if each is None else session.photo(each) for side, each in sides.items()}
        settings = choices.settings(side_photos(others))
        job = session.begin(choices.kind)

        def work(job: Job) -> Result:
            job.on_stage("model")
            self.bench.pipe(choices.model, choices.generator)
            asset = self.bench.lift(job, choices.model, choices.generator, kept, settings)
            job.on_stage("write")
            return self._saved(session, asset, choices, kept, others)

        for now in self._watched(session, job, work):
            if isinstance(now, Snapshot) and now.news:  # what was overtaken before anybody saw it is left out
                # Whoever has left has no folder any more, and shall not get one again.
                news = () if job.stopping else (_pictures(now.news[-1], session.fresh("previews")),)
                now = replace(now, news=news)
            yield now

    def turn(self, session: Session) -> Iterator[Snapshot | Done]:
        """Draw the turntable of the result that is looked at; the end is a `Done` with the `Result` that has it.

        Raises what `lift` does; `RefusedError` too where there is nothing to turn.
        """
        before = session.shown
        if before is None or before not in session.results:
            raise RefusedError("There is no object here yet. Lift a photo first.")
        job = session.begin("turntable")

        def work(job: Job) -> Result:
            job.on_stage("turntable")
            path = turn_saved(before.files[0].parent, job.on_step)
            after = replace(before, turntable=path, files=(*before.files, path))
            session.change(before, after)
            return after

        yield from self._watched(session, job, work)

    def views(self, session: Session, upload: Upload, choices: Choices) -> Iterator[Snapshot | Done]:
        """Make views of a photo; the end is a `Done` with (files, facts). Raises what `lift` does."""
        kept = session.photo(upload)
        settings = view_settings(choices)
        if choices.generator is None:
            raise RefusedError("Name a view generator, such as tiny-views.")
        name = choices.generator
        job = session.begin(f"views {choices.kind}")

        def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
            job.on_stage("model")
            self.bench.generator(name)
            made = self.bench.views(job, name, kept, settings)
            job.on_stage("write")
            made.record["photo"]["name"] = kept.name
            made.record["photo"]["mask"] = None
            files = made.save(session.fresh("views") / made.name)
            facts = {key: made.record[key] for key in ("seed", "elevation_deg", "cameras", "warnings", "seconds")}
            return files, facts

        yield from self._watched(session, job, work)

    def folder(self, session: Session, archive: Upload, choices: Choices) -> Iterator[Snapshot | Done]:
        """Lift the photos of a zip file; the end is a `Done` with the zip file of all results and the report.

        News on the way are `trilift.LiftResult`s. Raises what `lift` does.
        """
        settings = choices.settings()
        place = session.fresh("folders")
        job = session.begin(f"folder {choices.kind}")

        def work(job: Job) -> Path:
            job.on_stage("load")
            photos = unpack_photos(archive, place / "photos")
            job.on_stage("model")
            self.bench.pipe(choices.model, choices.generator)
            out = place / "results"
            for result in self.bench.folder(job, choices.model, choices.generator, photos, out, settings):
                error = None if result.error is None else plain_paths(result.error, session.folder)
                job.show(replace(result, error=error))
            job.on_stage("write")
            return _packed(out, session.folder, place / f"{Path(archive.name).stem}-results.zip")

        try:
            for now in self._watched(session, job, work):
                if isinstance(now, Snapshot):  # a generator's views are no news of a folder
                    now = replace(now, news=tuple(each for each in now.news if isinstance(each, LiftResult)))
                yield now
        finally:
            for used in ("photos", "results"):
                shutil.rmtree(place / used, ignore_errors=True)

    def _watched(self, session: Session, job: Job, work: Any) -> Iterator[Snapshot | Done]:
        """Watch a job; what its errors say of files is cut down to their names."""
        try:
            yield from watch(job, work, self.pace, self._worker)
        except TriliftError as error:
            raise RefusedError(plain_paths(str(error), session.folder)) from error
        finally:
            if session.job is job:
                session.job = None

    def _saved(
        self, session: Session, asset: Asset, choices: Choices, photo: Path, others: Mapping[str, Path | None]
    ) -> Result:
        folder = session.fresh("results")
        asset = without_paths(asset, session.folder)
        files = asset.save(folder / asset.name, choices.settings().saving())
        files.sort(key=lambda path: path.suffix != ".glb")
        if mask_path(photo).is_file():  # the command line needs both to do the same
            for extra in (photo, mask_path(photo)):
                files.append(Path(shutil.copyfile(extra, folder / asset.name / extra.name)))
        by_name = {path.name: path for path in files}
        record = asset.record
        facts = {
            "name": asset.name, "vertices": len(asset.mesh.vertices), "faces": len(asset.mesh.faces),
            "watertight": asset.mesh.is_watertight, "seconds": record["seconds"]["lift"],
            "expected_iou": record["checks"].get("expected_iou"), "warnings": list(record["warnings"]),
        }  # fmt: skip
        names = side_photos({side: None if path is None else Path(path.name) for side, path in others.items()})
        result = Result(
            title=f"{asset.name}, {choices.model}", folder=folder, files=tuple(files), picture=by_name["input.png"],
            views=tuple(_pictures(asset.views, folder)) if choices.generator else (),
            turntable=next((by_name[name] for name in _TURNTABLES if name in by_name), None),
            scores=scores_html(asset), command=self._command(choices, photo.name, names), facts=facts,
        )  # fmt: skip
        session.add(result)
        return result

    def _command(self, choices: Choices, photo: str, others: Sequence[str]) -> str:
        views = None if choices.generator is None else self.bench.source(choices.generator)
        return choices.command(photo, others, model=self.bench.source(choices.model), views=views)


def _pictures(views: Any, folder: Path) -> list[Path]:
    """Views, or pictures (V, 3, h, w) in [0, 1] of what they look like so far, as PNG files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(views, "cameras"):
        drawn = view_bytes(views, 1.0)
    else:
        drawn = (views * 255).round().byte().permute(0, 2, 3, 1).numpy()
    paths = []
    for index, picture in enumerate(drawn):
        paths.append(folder / f"view_{index:03d}.png")
        write_png(picture, paths[-1])
    return paths


def _packed(folder: Path, private: Path, target: Path) -> Path:
    """A zip file of all finished files below a folder; texts in it do not name the ``private`` folder."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            if not path.is_file() or any(part.startswith(".") for part in parts):
                continue
            if path.suffix in _TEXTS:
                file.writestr("/".join(parts), plain_paths(path.read_text("utf-8"), private))
            else:
                file.write(path, "/".join(parts))
    return target


def plain_paths(text: str, folder: Path) -> str:
    """A message without the session's folder: of every path in it the name stays."""
    for start in {f"{folder}/", f"{folder.resolve()}/"}:
        while start in text:
            before, _, rest = text.partition(start)
            kind, number, name = (*rest.split("/", 2), "", "")[:3]
            text = before + (name if number.isdigit() else f"{kind}/{number}/{name}".rstrip("/"))
    return text


def without_paths(asset: Asset, folder: Path) -> Asset:
    """The asset with a record that does not say where this server keeps its visitors' files."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return plain_paths(value, folder)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return replace(asset, record=plain(asset.record))
