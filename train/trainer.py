"""The base of every trainer: steps, averaged weights, checkpoints, guards, and where the run is in time.

What a step sees depends on the seed, the step's number and how often the run went back, and on nothing else, so that a
run killed anywhere goes on to the same numbers, and that several processes give the result of one.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from multiview.devices import CPU, pick_device
from multiview.errors import OutputError, SettingsError, WeightsError
from multiview.files import write_json_whole, written_whole

from .config import RunConfig
from .guards import Verdict, Watch, blind, forgetting, is_out_of_memory, preflight_problem

CHECKPOINT = "checkpoint.pt"
_BUCKET = 1 << 23  # numbers that one exchange between processes carries
B = TypeVar("B")
C = TypeVar("C", bound=RunConfig)


class BatchMaker(ABC, Generic[C, B]):
    """Makes what a process sees at a step; also in processes of its own, so it opens its data itself.

    Args:
        config: of the run.
        share: number of this process, and of all.
    """

    def __init__(self, config: C, share: tuple[int, int]) -> None:
        self.config, self.share = config, share

    @abstractmethod
    def objects(self, step: int) -> int:
        """Objects of the step's batch, over all processes."""

    @abstractmethod
    def samples(self, step: int, retry: int, which: range) -> B:
        """Objects number ``which`` of a step's batch; every one depends on seed, step, retry and its number alone."""

    @abstractmethod
    def preflight(self) -> B:
        """The one object that must be learned by heart before the run; the same for all processes."""

    @abstractmethod
    def probe(self, rehearsal: bool) -> B | None:
        """Fixed objects to look at, of the rehearsal set or of the run's own data; None where there are none."""

    def __call__(self, step: int, retry: int = 0) -> B:
        """This process's part of the step's batch."""
        rank, ranks = self.share
        count = self.objects(step)
        if count < ranks:
            raise SettingsError(
                f"step {step} has {count} objects for {ranks} processes. Raise batch_size to at least one each."
            )
        return self.samples(step, retry, range(count * rank // ranks, count * (rank + 1) // ranks))


def batch_length(batch: Any) -> int:
    """Objects in a batch: a dataclass of tensors (B, ...), or None where it has no such thing."""
    return next(len(value) for value in vars(batch).values() if value is not None)


def batch_pieces(batch: B, pieces: int) -> list[B]:
    """Cut a batch into at most ``pieces`` of nearly equal length."""
    count = batch_length(batch)
    pieces = min(pieces, count)
    ends = [count * i // pieces for i in range(pieces + 1)]
    return [
        type(batch)(**{name: None if value is None else value[a:b] for name, value in vars(batch).items()})
        for a, b in pairwise(ends)
    ]


class BaseTrainer(ABC, Generic[C, B]):
    """One run.

    Args:
        config: the run.
        out: run folder.

    Attributes:
        inner: the network.
        averaged: {name: averaged weight} of what is trained.
        step: steps done.
        chunk_size: rays or points of one pass; halved when memory runs out, which changes no result.
        pieces: the batch is cut into; doubled when a smaller chunk is not enough.
    """

    maker_type: type[BatchMaker[C, B]]
    smallest_chunk = 256
    last_rate = 0.01  # of the peak: what the learning rate falls to

    def __init__(self, config: C, out: Path) -> None:
        self.config, self.out = config, Path(out)
        self.accelerator = _accelerator(config, self.out)
        self.device = self.accelerator.device
        self.share = (self.accelerator.process_index, self.accelerator.num_processes)
        torch.manual_seed(config.seed)
        self.inner = self.build().to(self.device)
        self.choose_trained()
        self.trained = {name: p for name, p in self.inner.named_parameters() if p.requires_grad}
        if not self.trained:
            raise SettingsError("nothing is left to train. Check train and freeze.")
        self.averaged = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimizer = self.accelerator.prepare(self.make_optimizer())
        self.maker = self.maker_type(config, self.share, **self.maker_words())
        self.step, self.watch = 0, Watch()
        self.verdict: Verdict = "step"
        self.chunk_size, self.pieces = 1 << 30, config.accumulate
        self._last_alarm: dict[str, int] = {}
        self.board = _tensorboard(self.out) if self.is_main else None

    # What a kind of network brings.

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with the weights that it starts from."""

    @abstractmethod
    def choose_trained(self) -> None:
        """Set ``requires_grad`` of `inner`'s parameters; more parameters may be put in."""

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """Over `trained`."""

    @abstractmethod
    def loss(self, batch: B) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the batch's objects of the loss, and its parts without gradients."""

    @abstractmethod
    def save_model(self) -> None:
        """Write what inference loads."""

    @abstractmethod
    def validate(self) -> None:
        """Log gauges of the averaged weights on unseen objects and write a preview; on the main process alone."""

    def maker_words(self) -> dict[str, Any]:
        """What `maker_type` is told beside config and share; it must pickle."""
        return {}

    def exchanged(self, batch: B) -> B | None:
        """The batch with every object's pictures given to another; None where that means nothing."""
        return None

    def render_problem(self, batch: B) -> str | None:
        """What is wrong with renders of a batch, in words; None for nothing."""
        return None

    # Steps.

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to `last_rate` of the peak, which halves each time the run went back."""
        c, peak = self.config, self.config.learning_rate * 0.5**self.watch.retries
        if self.step < c.warmup_steps:
            return peak * (self.step + 1) / c.warmup_steps
        share = (self.step - c.warmup_steps) / max(1, c.steps - c.warmup_steps)
        return peak * (self.last_rate + (1 - self.last_rate) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    def train_step(self, batch: B) -> dict[str, float]:
        """One optimiser step, or none when the guards say so; returns the loss's parts over all processes."""
        values = self._gradients(batch, self.maker.objects(self.step))
        norm = self._clipped()
        scaler = self.accelerator.scaler
        # fp16 finds its scale by overflowing a few times.
        patience = 1 if scaler is None else 10
        verdict, sentence = self.watch.judge(values["loss"], norm, self.config.guards, patience)
        if verdict == "step":
            self._update(self.learning_rate())
            self._average()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            if scaler is not None:
                scaler.update()
            self.alarm("bad step", sentence)
        self.verdict = verdict
        self.step += 1
        return {**values, "norm": norm}

    def _gradients(self, batch: B, objects: int) -> dict[str, float]:
        """Backward through the batch, piece by piece; with less at a time when memory runs out."""
        while True:
            try:
                return self._try_gradients(batch, objects)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = f"{type(error).__name__}"
            # Outside of the handler, so that the traceback no longer holds the tensors.
            self.optimizer.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
            self._make_room(batch_length(batch), problem)

    def _try_gradients(self, batch: B, objects: int) -> dict[str, float]:
        ranks = self.share[1]
        sums: dict[str, Tensor] = {}
        for piece in batch_pieces(batch, self.pieces):
            share = batch_length(piece) * ranks / objects  # of the mean that all processes take together
            with self.accelerator.autocast():
                total, parts = self.loss(_moved(piece, self.device))
            self.accelerator.backward(total * share)
            for name, value in {**parts, "loss": total.detach()}.items():
                sums[name] = sums.get(name, value.new_zeros(())) + value * share
        return self._reduced(sums)

    def _reduced(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Average gradients and ``values`` over the processes; nothing to do with one."""
        if self.share[1] == 1:
            return {name: value.item() for name, value in values.items()}
        for parameter in self.trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        bucket: list[Tensor] = []
        for gradient in (p.grad for p in self.trained.values() if p.grad is not None):
            bucket.append(gradient)
            if sum(g.numel() for g in bucket) > _BUCKET:
                self._reduce_bucket(bucket)
                bucket = []
        stacked = torch.stack([value.float() for value in values.values()])
        self._reduce_bucket([*bucket, stacked])
        return dict(zip(values, stacked.tolist(), strict=True))

    def _reduce_bucket(self, tensors: Sequence[Tensor]) -> None:
        joined = self.accelerator.reduce(torch.cat([t.reshape(-1).float() for t in tensors]), reduction="mean")
        for tensor, mean in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def _clipped(self) -> float:
        """Clip the gradients; returns their norm before."""
        norm = self.accelerator.clip_grad_norm_(list(self.trained.values()), self.config.clip_norm)
        return float(norm) if norm is not None else 0.0

    def _update(self, learning_rate: float) -> None:
        """Step the optimiser; a group may say in ``lr_scale`` how much faster than the others it learns."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.trained.items():
            self.averaged[name].lerp_(value, 1 - decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[nn.Module]:
        """`inner` with the averaged weights in the place of the trained ones, without a copy."""
        self._swap()
        try:
            yield self.inner
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.averaged[name] = self.averaged[name], parameter.data

    def _make_room(self, objects: int, problem: str) -> None:
        """Do less at a time and say so.

        Raises:
            SettingsError: there is nothing left to lower.
        """
        chunk = min(self.chunk_size, self.largest_chunk())
        if chunk > self.smallest_chunk:
            self.chunk_size = max(self.smallest_chunk, chunk // 2)
            self.alarm("memory", f"out of memory ({problem}): rays or points of one pass are now {self.chunk_size}.")
        elif self.pieces < objects:
            self.pieces = min(objects, max(2, 2 * self.pieces))
            self.alarm("memory", f"out of memory ({problem}): the batch is now cut into {self.pieces} pieces.")
        else:
            raise SettingsError(
                "out of memory with one object and as few rays or points as can be at a time. Try "
                "gradient_checkpointing=true, precision=bf16, train=lora, or smaller pictures and patches."
            )

    def largest_chunk(self) -> int:
        """Rays or points that a pass has when nothing limits it; 0 for a network that knows no chunks."""
        return 0

    # The run.

    def run(self) -> None:
        """Train to the last step."""
        config = self.config
        if self.step == 0 and config.guards.retries and not (self.out / CHECKPOINT).exists():
            self.save(model=False)  # so that there is something to go back to
        started, first = time.monotonic(), self.step
        while self.step < config.steps:
            with self._batches() as batches:
                while self.step < config.steps and self.verdict != "roll back":
                    parts = self.train_step(next(batches))
                    last = self.step == config.steps
                    if self.step % config.log_every == 0 or last:
                        self.log({**parts, "lr": self.learning_rate(), **self._speed(first, started)})
                    self._look_and_save(last)
            if self.verdict == "roll back":
                self.roll_back()
        if config.trackers:
            self.accelerator.end_training()

    def _speed(self, first: int, started: float) -> dict[str, float]:
        rate = max(1, self.step - first) * self.config.batch_size / (time.monotonic() - started)
        return {"pictures_per_s": rate, "left_s": (self.config.steps - self.step) * self.config.batch_size / rate}

    def _look_and_save(self, last: bool) -> None:
        """Gauges, probes and checkpoints, where they are due."""
        config = self.config
        if (self.step % config.val_every == 0 or last) and self.is_main:
            self.validate()
        every = config.guards.probe_every
        if every and (self.step % every == 0 or last) and self.is_main:
            self.probe()
        # A checkpoint is only ever of a run that goes well: it is what a bad one goes back to.
        if (self.step % config.save_every == 0 and self.watch.streak == 0) or last:
            self.save(must=last)

    @contextmanager
    def _batches(self) -> Iterator[Iterator[B]]:
        """Batches from the present step on, made ahead of time by a thread or by ``workers`` processes."""
        config, retry = self.config, self.watch.retries
        pool: Executor
        if config.workers:
            context = torch.multiprocessing.get_context("spawn")
            words = (self.maker_type, config, self.share, self.maker_words())
            pool = ProcessPoolExecutor(config.workers, context, _start_worker, words)
            make: Callable[[int, int], B] = _batch_in_worker
        else:
            pool, make = ThreadPoolExecutor(1), self.maker

        def batches() -> Iterator[B]:
            ahead = deque(pool.submit(make, self.step + i, retry) for i in range(1 + 2 * config.workers))
            last = self.step + len(ahead)
            while True:
                yield ahead.popleft().result()
                ahead.append(pool.submit(make, last, retry))
                last += 1

        try:
            yield batches()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    # Guards.

    def preflight(self) -> None:
        """Learn one object by heart and forget it again.

        Raises:
            SettingsError: it could not be learned; nothing has been written.
        """
        guards = self.config.guards
        if not guards.preflight_steps or self.step:
            return
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        batch = self.maker.preflight()
        objects = batch_length(batch) * self.share[1]  # every process has the same one
        found: list[float] = []
        for step in range(guards.preflight_steps + 1):
            found.append(self._gradients(batch, objects)["loss"])
            self._clipped()
            self._update(self.config.learning_rate * min(1.0, (step + 1) / 5))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(kept[name])
        self.optimizer.optimizer.state.clear()
        problem = preflight_problem(found[0], min(found[-3:], key=_or_infinite), guards)
        if problem is not None:
            raise SettingsError(problem)
        self.say(f"preflight passed: one object's loss went from {found[0]:.4g} to {found[-1]:.4g}")

    @torch.no_grad()
    def probe(self) -> None:
        """Look at fixed objects: whether the input counts, renders show something, and what was known is kept."""
        guards = self.config.guards
        own, rehearsal = self.maker.probe(False), self.maker.probe(True)
        found: dict[str, float] = {}
        if own is not None and (problem := self.render_problem(_moved(own, self.device))) is not None:
            self.alarm("renders", problem)
        other = None if own is None else self.exchanged(own)
        if own is not None and other is not None:
            found["probe"], found["probe_exchanged"] = self.probe_loss(own), self.probe_loss(other)
            problem = blind(found["probe"], found["probe_exchanged"], guards)
            if problem is not None and self.step >= guards.input_after * self.config.steps:
                self.alarm("input", problem)
        if rehearsal is not None:
            found["probe_rehearsal"] = self.probe_loss(rehearsal)
            if self.watch.rehearsal is None:
                self.watch.rehearsal = found["probe_rehearsal"]
            problem = forgetting(self.watch.rehearsal, found["probe_rehearsal"], guards)
            if problem is not None:
                self.alarm("forgetting", problem)
        if found:
            self.log(found)

    def probe_loss(self, batch: B) -> float:
        """The loss of a batch, no gradients."""
        with self.accelerator.autocast():
            return self.loss(_moved(batch, self.device))[0].item()

    def roll_back(self) -> None:
        """Go back to the last checkpoint and on with other pictures and half the learning rate.

        Raises:
            SettingsError: it was done as often as the guards allow.
        """
        retries, step = self.watch.retries + 1, self.step
        if retries > self.config.guards.retries or not (self.out / CHECKPOINT).exists():
            raise SettingsError(
                f"step {step}: too many bad steps, and the run went back {self.watch.retries} times already. Lower "
                f"learning_rate (now {self.config.learning_rate:g}), or try precision=no. The last good checkpoint is "
                f"{self.out / CHECKPOINT}."
            )
        skipped = self.watch.skipped
        self.accelerator.wait_for_everyone()
        self.resume()
        self.watch.retries, self.watch.skipped, self.watch.streak = retries, skipped, 0
        self.verdict = "step"
        self.save(model=False)  # killed now, it goes on from here
        self.alarm("rolled back", f"at step {step} the run went back to step {self.step}, with half the learning rate.")

    # Checkpoints.

    def save(self, *, model: bool = True, must: bool = False) -> None:
        """Write the checkpoint and the usable model, each whole.

        A disk that is full costs nothing but time: the last good checkpoint stays, and the next save tries again.

        Args:
            model: also write what inference loads.
            must: raise when it cannot be written.

        Raises:
            OutputError: see ``must``.
        """
        if self.is_main:
            try:
                # The model first: a run killed in between does its last steps again, and ends with no old model.
                if model:
                    self.save_model()
                with written_whole(self.out / CHECKPOINT) as aside:
                    torch.save(self.state(), aside)
            except (OutputError, RuntimeError) as error:  # torch says a full disk in a RuntimeError
                if must or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                    raise
                self.alarm("disk", f"the checkpoint could not be written ({error}). The last one stays; going on.")
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """All that decides on what is still to come; frozen weights are not in it."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "network": {name: p.detach() for name, p in self.trained.items()},
            "average": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "watch": self.watch.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def resume(self) -> bool:
        """Load the checkpoint when there is one.

        Raises:
            WeightsError: it is damaged, or of another network.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        try:
            # To the CPU first: a device "cpu:0", as processes on one CPU have it, is none that torch.load knows.
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise WeightsError(f"{path}: not a whole checkpoint ({error}). Remove it to start anew.") from error
        self.step = state["step"]
        with torch.no_grad():
            self._fill({name: p.data for name, p in self.trained.items()}, state["network"], path)
            self._fill(self.averaged, state["average"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.watch.load(state.get("watch", {}))
        if state.get("scaler") and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return True

    @staticmethod
    def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
        missing = [n for n, t in targets.items() if n not in values or values[n].shape != t.shape]
        if missing:
            raise WeightsError(
                f"{path}: expected the {len(targets)} trained tensors of this recipe, {len(missing)} are missing or of "
                f"another shape, first {missing[0]}. Give another -o, or the recipe that the run was started with."
            )
        for name, target in targets.items():
            target.copy_(values[name])

    # Words.

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def alarm(self, kind: str, message: str) -> None:
        """Print an alarm and put it into the log; one kind speaks at most once in ``log_every`` steps."""
        if not self.is_main or self.step - self._last_alarm.get(kind, -(10**9)) < self.config.log_every:
            return
        self._last_alarm[kind] = self.step
        print(f"ALARM at step {self.step}: {message}", flush=True)
        self._append({"step": self.step, "alarm": kind, "message": message})

    def log(self, values: Mapping[str, float]) -> None:
        """Append a line to ``log.jsonl``, print it and hand it to the trackers."""
        if not self.is_main:
            return
        row = {"step": self.step, **{name: round(value, 6) for name, value in values.items()}}
        self._append(row)
        left = f" ({spoken_time(row['left_s'])} left)" if "left_s" in row else ""
        print(" ".join(f"{name} {value:g}" for name, value in row.items()) + left, flush=True)
        if self.config.trackers:
            self.accelerator.log(dict(values), step=self.step)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, self.step)

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a line of the log is not worth a run
            print(f"{self.out / 'log.jsonl'}: could not be written ({error.strerror or error})", flush=True)

    def picture(self, file: Path, picture: Any) -> None:
        """Hand a preview (H, W, 3) uint8 to TensorBoard; ``file`` has it already."""
        if self.board is not None:
            self.board.add_image(file.parent.name, picture, self.step, dataformats="HWC")


def _or_infinite(value: float) -> float:
    return value if value == value else math.inf


def _moved(batch: B, device: torch.device) -> B:
    moved = {n: v if v is None else v.to(device, non_blocking=True) for n, v in vars(batch).items()}
    return type(batch)(**moved)


def spoken_time(seconds: float) -> str:
    """4000 → ``1 h 07 min``; 75 → ``1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


_in_worker: dict[str, Any] = {}


def _start_worker(
    maker_type: type[BatchMaker[Any, Any]], config: RunConfig, share: tuple[int, int], words: dict[str, Any]
) -> None:
    """Open the data in a process that makes batches; one thread each, they are many."""
    torch.set_num_threads(1)
    _in_worker["maker"] = maker_type(config, share, **words)


def _batch_in_worker(step: int, retry: int) -> Any:
    return _in_worker["maker"](step, retry)


def _accelerator(config: RunConfig, out: Path) -> Accelerator:
    """As the config wants it.

    Raises:
        SettingsError: an unknown tracker, or one that is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    here = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in config.trackers:
        if name not in here:
            why = "is not installed" if name in LOGGER_TYPE_TO_CLASS else "is not one that accelerate knows"
            raise SettingsError(f"trackers: {name} {why}. Installed here: {', '.join(here) or 'none'}.")
    made = Accelerator(
        mixed_precision=config.precision, cpu=pick_device().type == CPU.type,
        log_with=list(config.trackers) or None, project_dir=str(out),
    )  # fmt: skip
    if config.trackers:
        plain = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str | bool)}
        made.init_trackers("trilift", plain)
    return made


def _tensorboard(out: Path) -> Any:
    """A writer into ``out/tensorboard``, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))


def start(trainer: BaseTrainer[Any, Any]) -> None:
    """Write the run's config, take up its checkpoint, try one object, and train."""
    out = trainer.out
    if trainer.is_main:
        out.mkdir(parents=True, exist_ok=True)
        for left in list(out.rglob(".aside-*")):  # of a run that was killed while it wrote
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    resumed = trainer.resume()
    trainer.accelerator.wait_for_everyone()  # else a slow one takes a quick one's first checkpoint for an old run's
    total = sum(p.numel() for p in trainer.inner.parameters())
    trained = sum(p.numel() for p in trainer.trained.values())
    frozen = frozen_parts(trainer.inner)
    trainer.say(
        f"{'resumed at' if resumed else 'starting at'} step {trainer.step}, {total / 1e6:.1f}M parameters"
        + (f", {trained / 1e6:.2f}M of them trained; frozen: {_first_few(frozen)}" if frozen else "")
    )
    if not resumed:
        trainer.preflight()
    if trainer.is_main:
        versions = {"torch": torch.__version__}
        record = {
            "config": asdict(trainer.config),
            "frozen": frozen,
            "processes": trainer.share[1],
            "versions": versions,
        }
        write_json_whole(out / "config.json", record)
        guards = trainer.config.guards
        if not resumed and guards.probe_every and trainer.watch.rehearsal is None:
            trainer.probe()
    trainer.run()


def _first_few(names: Sequence[str], count: int = 8) -> str:
    """Some names for a line; config.json has them all."""
    more = f" and {len(names) - count} more parts (config.json)" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def frozen_parts(network: nn.Module) -> list[str]:
    """The largest parts of a network of which nothing is trained; dotted names."""
    found: list[str] = []

    def walk(module: nn.Module, name: str) -> None:
        parameters = list(module.parameters())
        if not parameters:
            return
        if not any(p.requires_grad for p in parameters):
            found.append(name or "everything")
            return
        found.extend(
            f"{name}.{own}".lstrip(".") for own, p in module.named_parameters(recurse=False) if not p.requires_grad
        )
        for own, child in module.named_children():
            walk(child, f"{name}.{own}".lstrip("."))

    walk(network, "")
    return found


def plain_copy(network: nn.Module) -> nn.Module:
    """A deep copy that gives no gradients, in evaluation mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)
