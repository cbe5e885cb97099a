"""Muon: momentum whose updates are made orthogonal, for the weight matrices; AdamW for all else.

On the embedded model it learns from fewer pictures than AdamW alone (`docs/training.md` has the figures).

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale that lets matrices and
the rest share one learning rate is Liu et al. 2025 (arXiv 2502.16982), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Odd quintic whose repeated use drives singular values in (0, 1] to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MATCH_ADAM = 0.2  # root mean square of an AdamW update in units of the learning rate


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest half-orthogonal matrix to (N, M), roughly: singular values come out between 0.7 and 1.2.

    Source: Newton-Schulz iteration with the coefficients of Jordan et al. 2024.
    """
    a, b, c = _QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``muon`` true, AdamW for the others.

    Args:
        groups: parameter groups; of ``muon`` ones every parameter has two or more dimensions and is taken as a matrix
            of its first against all others.
        lr: learning rate of both.
        weight_decay: decoupled, unless a group says otherwise.
        momentum: of Muon, with Nesterov's look ahead.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(list(groups), {**defaults, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; see `torch.optim.Optimizer.step`."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._matrix if group["muon"] else self._adam)(parameter, parameter.grad, group)
        return loss

    def _matrix(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        state["momentum"].lerp_(grad, 1 - group["momentum"])
        ahead = grad.lerp(state["momentum"], group["momentum"]).flatten(1)
        scale = _MATCH_ADAM * max(ahead.shape) ** 0.5
        parameter.add_(orthogonalized(ahead).view(parameter.shape), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(grad), square=torch.zeros_like(grad))
        state["step"] += 1
        (b1, b2), t = group["betas"], state["step"].item()
        state["mean"].lerp_(grad, 1 - b1)
        state["square"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        spread = (state["square"] / (1 - b2**t)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - b1**t))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters of a network: matrices and convolutions for Muon, tables and vectors for AdamW."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim > 1 and "position" not in name]
    others = [p for name, p in named if p.ndim <= 1 or "position" in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay, "muon": True},
        {"params": others, "weight_decay": 0.0, "muon": False},
    ]
    return [group for group in groups if group["params"]]
