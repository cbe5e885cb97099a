"""What the page can do: which models there are, and lifting, making views and going through a folder with them."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilift import Asset, GeneratedViews, ImageTo3D, LiftResult, LiftSettings, PhotoToViews, ViewSettings, models
from trilift.generators import is_generator

from .intake import RefusedError
from .jobs import Job, stoppable

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MAX_LOADED = 2
_MAX_RUNS = 200
_PREVIEW_SECONDS = 0.5

if TYPE_CHECKING:
    from torch import Tensor

PipeLoader = Callable[..., ImageTo3D]


class Bench:
    """Models by the names that the page offers; the last `MAX_LOADED` stay in memory.

    Args:
        model: the one that is chosen at first: a name of `trilift.models()`, a folder, or anything else that
            `ImageTo3D.from_pretrained` takes.
        models_dir: a folder of training runs, whose weights are offered, too.
        device: where models run.
        load: gives the pipeline for ``(model, views=, device=)``; `ImageTo3D.from_pretrained` unless a test says else.
    """

    def __init__(
        self, model: str = "tiny", models_dir: Path | None = None, device: str = "auto", load: PipeLoader | None = None
    ) -> None:
        self.first, self.device = model, device
        self.models_dir = models_dir
        self._load = load or ImageTo3D.from_pretrained
        self._pipes: OrderedDict[tuple[str, str | None], ImageTo3D] = OrderedDict()
        self._generators: OrderedDict[str, PhotoToViews] = OrderedDict()
        self._lock = threading.Lock()

    def reconstruction_names(self) -> list[str]:
        """Models that lift, the first choice first: those of the table that are here, and those of runs."""
        table = [info.weights.name for info in models() if info.here and info.weights.stage == "reconstruction"]
        runs = [name for name, folder in self.runs().items() if not is_generator(folder)]
        return list(dict.fromkeys([self.first, *table, *runs]))

    def generator_names(self) -> list[str]:
        """Models that make views."""
        table = [info.weights.name for info in models() if info.here and info.weights.stage == "views"]
        return [*table, *(name for name, folder in self.runs().items() if is_generator(folder))]

    def runs(self) -> dict[str, Path]:
        """Weights below ``models_dir`` by their place in it, such as ``mine`` for ``mine/model``."""
        root = self.models_dir
        if root is None or not root.is_dir():
            return {}
        found: dict[str, Path] = {}
        for pattern in ("*", "*/model", "*/*/model"):
            for folder in sorted(root.glob(pattern)):
                if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file() and len(found) < _MAX_RUNS:
                    place = folder.relative_to(root)
                    found.setdefault((place.parent if place.name == "model" else place).as_posix(), folder)
        return found

    def source(self, name: str) -> str:
        """What `ImageTo3D.from_pretrained` and ``--model`` take for a name of the page.

        Raises:
            RefusedError: the page does not offer it; clients choose from its list and from nothing else.
        """
        runs = self.runs()
        if name in runs and name != self.first:
            return str(runs[name])
        if name == self.first or name in {info.weights.name for info in models() if info.here}:
            return name
        offered = ", ".join([*self.reconstruction_names(), *self.generator_names()])
        raise RefusedError(f"{name!r} is not a model of this page. It has {offered}.")

    def pipe(self, model: str, views: str | None) -> ImageTo3D:
        """A loaded pipeline; loading is done by one thread at a time."""
        key = (self.source(model), self.source(views) if views else None)
        with self._lock:
            if key not in self._pipes:
                while len(self._pipes) >= MAX_LOADED:
                    self._pipes.popitem(last=False)
                self._pipes[key] = self._load(key[0], views=key[1], device=self.device)
            self._pipes.move_to_end(key)
            return self._pipes[key]

    def generator(self, name: str) -> PhotoToViews:
        """A loaded view generator."""
        source = self.source(name)
        with self._lock:
            for (_, views), pipe in self._pipes.items():
                if views == source and pipe.generator is not None:
                    return pipe.generator
            if source not in self._generators:
                self._generators.clear()
                self._generators[source] = PhotoToViews.from_pretrained(source, device=self.device)
            return self._generators[source]

    def lift(self, job: Job, model: str, views: str | None, photo: Path, settings: LiftSettings) -> Asset:
        """Lift a photo; generated views are shown while they come.

        Raises:
            TriliftError: of the stage that failed. Stopped: the job was stopped.
        """
        pipe = watched(self.pipe(model, views), job)
        return pipe(photo, settings, on_stage=job.on_stage, on_step=job.on_step)

    def views(self, job: Job, name: str, photo: Path, settings: ViewSettings) -> GeneratedViews:
        """Make views of a photo; raises what `lift` does."""
        return showing(self.generator(name), job)(photo, settings, on_stage=job.on_stage, on_step=job.on_step)

    def folder(
        self, job: Job, model: str, views: str | None, photos: Sequence[Path], out: Path, settings: LiftSettings
    ) -> Iterator[LiftResult]:
        """Lift unpacked photos, which lie in the folder ``photos`` beside ``out``, through the folder runner.

        Between two photos, and in the layers of the networks, it can be stopped.
        """
        run = watched(self.pipe(model, views), job).lift_folder(out.parent / "photos", out, settings)
        try:
            for number, result in enumerate(run, 1):
                job.on_stage("photos")
                job.on_step(number, len(photos))
                yield result
        finally:
            run.close()  # type: ignore[attr-defined]  # it is a generator, which finishes what is in hand


class _Showing(PhotoToViews):
    """A view generator that shows its views to a job: roughly while they come, and as they are when they are there."""

    job: Job

    def generate(self, *args: Any, **options: Any) -> Any:
        """See `PhotoToViews.generate`."""
        made = super().generate(*args, **options)
        self.job.show(made.views)
        return made


def showing(generator: PhotoToViews, job: Job) -> PhotoToViews:
    """The same generator for one job alone; whoever else uses it meanwhile shows nothing to this one."""
    mine = copy.copy(generator)
    mine.__class__ = _Showing
    vars(mine)["job"] = job
    run = type(generator.model).generate
    if "on_preview" in inspect.signature(run).parameters:
        mine.model = copy.copy(generator.model)
        vars(mine.model)["generate"] = functools.partial(run, mine.model, on_preview=_Previews(job))
    return mine


class _Previews:
    """Shows what the views look like so far, not oftener than anybody can see."""

    def __init__(self, job: Job) -> None:
        self._job, self._next = job, 0.0

    def __call__(self, pictures: Tensor) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PREVIEW_SECONDS
            self._job.show(pictures)


class _Watched(ImageTo3D):
    """A pipeline that belongs to one job: it stops with it, in whatever thread it runs."""

    job: Job

    def __call__(self, photo: Any, settings: LiftSettings | None = None, **options: Any) -> Any:
        """See `ImageTo3D.__call__`."""
        on_stage = options.pop("on_stage", None)

        def tell(name: str) -> None:
            self.job.check()
            if on_stage is not None:
                on_stage(name)

        with stoppable(self.job):
            return super().__call__(photo, settings, on_stage=tell, **options)


def watched(pipe: ImageTo3D, job: Job) -> ImageTo3D:
    """The same pipeline for one job alone: stopped with it, its generated views shown before they are lifted."""
    mine = copy.copy(pipe)
    mine.__class__ = _Watched
    vars(mine)["job"] = job
    if pipe.generator is not None:
        mine.generator = showing(pipe.generator, job)
    return mine
