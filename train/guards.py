"""Guards of a training run: what is watched, when it is an alarm, and what the alarm says in plain words.

Nothing here trains; `train.trainer` asks and acts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

Verdict = Literal["step", "skip", "roll back"]
_NORMS = 100  # gradient norms that are remembered
_ENOUGH = 20  # of them, before one can be called a spike
_EMPTY_SHARE = 0.1  # of the truth's mean opacity; below it a render counts as empty
_WHITE, _NOT_WHITE = 0.97, 0.9  # mean colour of a white render, of truth that is not white
_NO_GROUND = 0.6  # mean beside the object; below it there is no white background


@dataclass(frozen=True)
class GuardConfig:
    """What is watched.

    Attributes:
        preflight_steps: steps on one object before the run, 0 for none.
        preflight_factor: what is left of its loss at most; otherwise the run does not start.
        nonfinite_limit: steps in a row without a finite gradient (or with a spike), each left out, until the run goes
            back to the last good checkpoint.
        spike_factor: a gradient this many times the usual one is left out; 0 for never.
        retries: how often the run may go back, each time with other pictures and half the learning rate.
        probe_every: steps between looks at fixed batches: forgetting, renders, and whether the input counts; 0 for
            never.
        probe_size: objects of such a batch.
        forget_limit: rise of the rehearsal set's loss that is an alarm, a share of its first value.
        input_after: share of the steps after which the input must count.
        input_margin: rise of the loss with exchanged pictures below which it does not, a share.
    """

    preflight_steps: int = 0
    preflight_factor: float = 0.8
    nonfinite_limit: int = 5
    spike_factor: float = 20.0
    retries: int = 2
    probe_every: int = 500
    probe_size: int = 8
    forget_limit: float = 0.2
    input_after: float = 0.3
    input_margin: float = 0.02


@dataclass
class Watch:
    """What the guards remember of a run; all of it goes into the checkpoint, since it decides on steps to come.

    Attributes:
        norms: gradient norms of the last good steps.
        streak: bad steps in a row.
        skipped: bad steps in all.
        retries: how often the run went back.
        rehearsal: the rehearsal set's loss at the start, None before it is known.
    """

    norms: deque[float] = field(default_factory=lambda: deque(maxlen=_NORMS))
    streak: int = 0
    skipped: int = 0
    retries: int = 0
    rehearsal: float | None = None

    def judge(self, loss: float, norm: float, config: GuardConfig, patience: int = 1) -> tuple[Verdict, str]:
        """Say what to do with a step.

        Args:
            loss, norm: of all processes together, so that all of them decide alike.
            config: the limits.
            patience: factor of ``nonfinite_limit``.

        Returns:
            The verdict, and a sentence about it, empty for a good step.
        """
        finite = all(abs(value) < float("inf") for value in (loss, norm))  # NaN is not below either
        usual = median(self.norms) if len(self.norms) >= _ENOUGH else 0.0
        spike = finite and config.spike_factor > 0 and usual > 0 and norm > config.spike_factor * usual
        if finite and not spike:
            self.norms.append(norm)
            self.streak = 0
            return "step", ""
        self.streak += 1
        self.skipped += 1
        if spike:
            what = f"the gradient is {norm:.3g}, {norm / usual:.0f} times the usual {usual:.3g}"
        else:
            what = f"the loss is {loss:g} and the gradient {norm:g}, not finite"
        if self.streak >= config.nonfinite_limit * patience:
            return "roll back", f"{what}; {self.streak} bad steps in a row"
        return "skip", f"{what}; this step is left out ({self.skipped} so far)"

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {**vars(self), "norms": list(self.norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for name in vars(self):
            if name in state:
                setattr(self, name, deque(state[name], maxlen=_NORMS) if name == "norms" else state[name])


def forgetting(first: float, now: float, config: GuardConfig) -> str | None:
    """A sentence when the rehearsal set's loss rose too far."""
    if now <= first * (1 + config.forget_limit):
        return None
    return (
        f"the model forgets: the loss on the rehearsal set rose from {first:.4g} to {now:.4g} "
        f"({now / first - 1:+.0%}). Raise rehearsal_share, lower learning_rate, or train with train=lora."
    )


def blind(plain: float, exchanged: float, config: GuardConfig) -> str | None:
    """A sentence when the loss is the same whatever picture the network is given."""
    if exchanged > plain * (1 + config.input_margin):
        return None
    return (
        f"the loss does not depend on the input: {plain:.4g}, and {exchanged:.4g} with the pictures exchanged. The "
        "network gives every object the same answer. Check that pictures and cameras belong together (python -m "
        "train.check DATA), or that learning_rate is not too high."
    )


def render_problem(color: Tensor, opacity: Tensor, truth: Tensor) -> str | None:
    """A sentence when renders are white, empty or fog.

    Args:
        color: (..., 3) rendered over white.
        opacity: (...,) of the same rays.
        truth: (..., 4) straight RGBA that should have been rendered.
    """
    alpha = truth[..., 3]
    inside, outside = alpha > 0.5, alpha < 0.1
    if not inside.any():
        return None
    seen = float(opacity[inside].mean())
    if seen < _EMPTY_SHARE:
        return (
            f"renders are empty: their opacity on the object is {seen:.3f}, expected near 1. The field may have died; "
            "lower learning_rate, or check the scale and the masks with python -m train.check DATA."
        )
    if outside.any() and float(opacity[outside].mean()) > 0.9:
        return (
            f"renders are fog: their opacity beside the object is {float(opacity[outside].mean()):.2f}, expected near "
            "0. Check that the pictures have a matte (alpha 0 beside the object)."
        )
    white, wanted = float(color[inside].mean()), float(truth[..., :3][inside].mean())
    if white > _WHITE and wanted < _NOT_WHITE:
        return (
            f"renders are white: their mean colour on the object is {white:.3f}, that of the pictures {wanted:.3f}. "
            "Lower learning_rate, or raise loss.color."
        )
    return None


def view_problem(made: Tensor, truth: Tensor, alpha: Tensor) -> str | None:
    """A sentence when views that a generator drew over white are white, or stand before no white at all.

    Args:
        made, truth: (V, 3, H, W) in [0, 1], the truth as the same decoder gives it back.
        alpha: (V, 1, H, W) of the truth.
    """
    inside, outside = (alpha > 0.5).expand_as(made), (alpha < 0.1).expand_as(made)
    if not inside.any():
        return None
    white, wanted = float(made[inside].mean()), float(truth[inside].mean())
    if white > _WHITE and wanted < _NOT_WHITE:
        return (
            f"views are white: their mean colour on the object is {white:.3f}, that of the pictures {wanted:.3f}. "
            "Lower learning_rate, or check with python -m train.check DATA that the pictures show the object."
        )
    if outside.any():
        beside, usual = float(made[outside].mean()), float(truth[outside].mean())
        if usual > _NOT_WHITE and beside < _NO_GROUND:
            return (
                f"views have no white background: their mean beside the object is {beside:.2f}, that of the pictures "
                f"{usual:.2f}. The network may have died; lower learning_rate."
            )
    return None


def preflight_problem(first: float, last: float, config: GuardConfig) -> str | None:
    """A sentence when one object alone could not be learned."""
    if last <= first * config.preflight_factor:  # NaN is not
        return None
    return (
        f"preflight: one object could not be learned by heart. Its loss went from {first:.4g} to {last:.4g} in "
        f"{config.preflight_steps} steps, expected at most {first * config.preflight_factor:.4g}. Usually cameras, "
        "masks or scale are wrong (python -m train.check DATA says which), or learning_rate is far too low or high. "
        "guards.preflight_steps=0 starts all the same."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
