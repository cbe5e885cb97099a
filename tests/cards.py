"""A stand-in for an accelerator: tensors that say they are on one, and refuse whatever a real one would refuse.

Arithmetic is the CPU's. What is strict is where things are: a tensor of the card meets tensors of the card (or numbers)
alone, new tensors must name their device, and the card's numbers reach Python and numpy only through calls that copy
them. So code that runs here does not fall back to the CPU unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device("cuda", 0)
# Those that wait for the device, since their answer or the size of their answer is a number on it.
_WAITING = {"nonzero", "item", "tolist", "cpu", "__bool__", "__int__", "__float__", "unique", "repeat_interleave"}
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor, torch.rand, torch.linspace)


class CardTensor(Tensor):
    """A tensor on the card; its numbers are kept in the CPU's memory, which only `strict_card` reads."""


@dataclass
class Seen:
    """What the card was asked: the names of all calls, and of those that waited for it."""

    calls: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


def to_card(values: Tensor) -> Tensor:
    """The same numbers on the card."""
    with torch._C.DisableTorchFunction():
        return values.detach().clone().as_subclass(CardTensor)


def decoder_on_card(network: nn.Module) -> Any:
    """A copy of a network whose parameters are on the card."""
    moved = copy.deepcopy(network)
    for module in moved.modules():
        for name, values in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            module.__dict__[name] = to_card(values)  # a plain attribute: parameters of subclasses are another matter
    return moved


class _Strict(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at where a call's tensors are, run it on the CPU, and say that its answer is on the card."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        on_card = [one for one in tensors if isinstance(one, CardTensor)]
        made_there = _made_on_card(func, name, args, kwargs)
        if not on_card and not made_there:
            return func(*args, **kwargs)
        if name == "__get__":
            return _attribute(func, args)
        self.seen.calls.append(name)
        if name in _WAITING or (name in ("__getitem__", "__setitem__") and _asks_a_mask(args)):
            self.seen.waits.append(name)
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert a tensor on the card to numpy. Use Tensor.cpu() first.")
        mixed = [one for one in tensors if not isinstance(one, CardTensor) and one.ndim]
        if mixed and not made_there:
            raise RuntimeError(f"{name}: tensors on the card and on the CPU: {[tuple(one.shape) for one in tensors]}")
        with torch._C.DisableTorchFunction():
            found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        return found if name in ("cpu", "tolist", "item") else tree_map(_carded, found)


def _made_on_card(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call makes a tensor on the card or copies one to it; such calls are then told nothing of devices."""
    if name == "to" and len(args) == 2 and args[1] == CARD:
        return True
    wanted = kwargs.get("device")
    if wanted is not None and torch.device(wanted).type == CARD.type:
        assert func in _MAKERS or name.startswith("new_"), f"{name} with a device: teach tests/cards.py about it"
        return True
    return False


def _attribute(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """An attribute of a tensor on the card."""
    with torch._C.DisableTorchFunction():
        value = func(*tree_map(_plain, args))
    return CARD if isinstance(value, torch.device) else tree_map(_carded, value)


def _asks_a_mask(args: tuple[Any, ...]) -> bool:
    """Whether an index has a mask in it, so that the answer's size is not known beforehand."""
    return any(isinstance(one, CardTensor) and _plain(one).dtype == torch.bool for one in tree_flatten(args[1])[0])


def _plain(value: Any) -> Any:
    if isinstance(value, CardTensor):
        with torch._C.DisableTorchFunction():
            return value.as_subclass(Tensor)
    return torch.device("cpu") if isinstance(value, (str, torch.device)) and str(value).startswith("cuda") else value


def _carded(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, CardTensor):
        with torch._C.DisableTorchFunction():
            return value.as_subclass(CardTensor)
    return value


@contextmanager
def strict_card() -> Iterator[Seen]:
    """Work on the card inside the block; gives what it is asked."""
    seen = Seen()
    with _Strict(seen):
        yield seen
