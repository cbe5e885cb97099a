"""One network for many threads: pictures that wait for it at the same time go through it together."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from lrm.models import Reconstruction, ReconstructionModel, ViewsModel
from multiview.views import Views

from .recipe import empty_caches, is_out_of_memory


class _Request:
    """One picture that waits.

    Attributes:
        images: (1, 4, H, W).
        options: the keyword arguments of `ReconstructionModel.reconstruct`.
        answer: the reconstruction, or what was raised.
    """

    def __init__(self, images: Tensor, options: dict[str, Any]) -> None:
        self.images, self.options = images, options
        self.answer: Reconstruction | BaseException | None = None

    def goes_with(self, other: _Request) -> bool:
        """Whether both can be in one batch."""
        return self.options == other.options and self.images.shape == other.images.shape


class BatchingModel(ReconstructionModel):
    """A model that gathers single pictures of several threads into batches.

    Nobody waits for a batch to fill: while the network is busy pictures gather, and those that are there when it is
    free go in together, at most ``limit``. When memory does not suffice for a batch, its halves are tried one after the
    other, and the limit stays at the half.

    Args:
        model: what answers; it is asked by one thread at a time.
        limit: pictures in one pass.

    Attributes:
        limit: as given, or what memory allowed.
        passes: how many pictures each pass had, the last thousand.
    """

    def __init__(self, model: ReconstructionModel, limit: int) -> None:
        self._inner = model
        self.limit = limit
        self.passes: list[int] = []
        self.name, self.image_size, self.foreground_ratio = model.name, model.image_size, model.foreground_ratio
        vars(self).update(framing=model.framing, lifts_photos=model.lifts_photos)
        self._waiting: list[_Request] = []
        self._free, self._guard = threading.Lock(), threading.Lock()

    def __getattr__(self, name: str) -> Any:
        """Whatever else a model has, such as its architecture."""
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """See `ReconstructionModel.reconstruct`; equal to a call of the model itself but for rounding."""
        options: dict[str, Any] = {"elevation_deg": elevation_deg, "fov_deg": fov_deg, "upright": upright}
        if len(images) != 1:
            with self._free:
                return self._inner.reconstruct(images, **options)
        request = _Request(images, options)
        with self._guard:
            self._waiting.append(request)
        with self._free:
            if request.answer is None:  # else it went along with another thread's
                self._answer(self._gathered(request))
        if isinstance(request.answer, Reconstruction):
            return [request.answer]
        assert request.answer is not None, "a request that went through has an answer"
        raise request.answer

    def _gathered(self, request: _Request) -> list[_Request]:
        """``request`` and those that can go with it, taken from the line."""
        with self._guard:
            others = [r for r in self._waiting if r is not request and r.goes_with(request)]
            batch = [request, *others[: self.limit - 1]]
            self._waiting = [r for r in self._waiting if not any(r is taken for taken in batch)]
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        """Answer all of ``batch``; what goes wrong with one picture does not become the others' error."""
        self.passes = [*self.passes[-999:], len(batch)]
        half = len(batch) // 2
        try:
            made = self._inner.reconstruct(torch.cat([request.images for request in batch]), **batch[0].options)
            for request, one in zip(batch, made, strict=True):
                request.answer = one
            return
        except BaseException as error:
            if half == 0 or not isinstance(error, Exception):  # Ctrl-C is for all of them
                for request in batch:
                    request.answer = error
                return
            ran_out = is_out_of_memory(error)
        # Out here nothing holds the failed pass's frames any more, and with them what it had allocated.
        if ran_out:
            empty_caches()
            self.limit = half
        self._answer(batch[:half])
        self._answer(batch[half:])


class BatchingViewsModel(BatchingModel, ViewsModel):
    """The same of a model that also takes views; these go through one object at a time."""

    def reconstruct_views(
        self, views: Views, *, elevation_deg: float | None = None, fov_deg: float | None = None
    ) -> Reconstruction:
        """See `ViewsModel.reconstruct_views`."""
        inner: Any = self._inner
        with self._free:
            made: Reconstruction = inner.reconstruct_views(views, elevation_deg=elevation_deg, fov_deg=fov_deg)
        return made


def batching(model: ReconstructionModel, limit: int) -> BatchingModel:
    """``model`` for several threads, with at most ``limit`` pictures in a pass."""
    return (BatchingViewsModel if isinstance(model, ViewsModel) else BatchingModel)(model, limit)
