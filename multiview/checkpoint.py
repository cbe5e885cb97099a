"""Published checkpoints: read without running their code, renamed key by key, laid into a network without copies.

::

    file ──► {published key: tensor} ──► {our key: tensor} ──► network
       read_checkpoint            rename_keys         fill_network
       mapped, not copied      every key accounted    meta device, then
                                 for, or an error     tensors are assigned
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import WeightsError
from .weights import read_safetensors

PICKLED_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")
CHECKPOINT_SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)
# Under which training programs put the tensors beside epoch counters and the like.
_WRAPPERS = ("state_dict", "weights", "model")
_ZIP_MAGIC = b"PK\x03\x04"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Dropped:
    """Why a tensor of a published file is not used.

    Attributes:
        reason: a sentence for people, such as "the pooler is never read".
    """

    reason: str


# From a published key to our key, to the reason why it is left out, or to None when it does not belong there. A map
# with a method ``published`` (our key → published key) gets missing tensors named as their publisher names them.
KeyMap = Callable[[str], str | Dropped | None]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Map a file of weights into memory: {key as published: tensor}; nothing is copied until it is used.

    ``.safetensors``, and the pickles of torch (``.ckpt``, ``.bin``, ``.pt``, ``.pth``), of which only tensors and plain
    containers are read. What training programs wrap around the tensors (``{"state_dict": ...}``) is taken off.

    Raises:
        WeightsError: not there, cut short, of another kind, or a pickle that could run code (it is not run).
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in PICKLED_SUFFIXES:
        raise WeightsError(f"{path}: expected weights as {', '.join(CHECKPOINT_SUFFIXES)}, found {path.suffix!r}.")
    return _tensors_of(_unpickle(path), path)


def require_zip(path: Path) -> None:
    """Raise WeightsError unless a file is a zip of torch's, whose tensors can be mapped."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise WeightsError(f"{path}: not readable ({error.strerror or error}).") from error
    if magic != _ZIP_MAGIC:
        raise WeightsError(f"{path}: expected a checkpoint of torch 1.6 or newer, found another form.")


def _unpickle(path: Path) -> Any:
    """The content of a torch pickle, its tensors mapped; only what ``weights_only`` allows is ever built."""
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == _ZIP_MAGIC
        # Files from before torch 1.6 are one plain pickle, which cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found.") from error
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


def _refused(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """What to say of a pickle that torch would not read with ``weights_only``."""
    if name := re.search(r"GLOBAL `?([\w.]+\.[\w.]+)", str(error)):
        return WeightsError(
            f"{path}: expected tensors alone, found the Python object {name[1]}, which could run code when it is read. "
            "Nothing was run. Get the weights as .safetensors, or from their first publisher."
        )
    return WeightsError(
        f"{path}: expected tensors as torch.save writes them, found something else ({path.stat().st_size} bytes), of "
        "which nothing was run. Fetch it again, or get the weights as .safetensors."
    )


def _damaged(path: Path, error: Exception) -> WeightsError:
    size = f"{path.stat().st_size} bytes; " if path.is_file() else ""
    reason = re.split(r"[.\n] |\n", str(error).strip())[0].rstrip(".") or type(error).__name__
    return WeightsError(f"{path}: not a whole torch checkpoint ({size}{reason}). It may be cut short: fetch it again.")


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a pickle held."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        found = f"an empty {type(content).__name__}" if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path}: expected tensors by name (a state dict), found {found}.")
    odd = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        kind = type(content[odd[0]]).__name__
        raise WeightsError(
            f"{path}: expected tensors by name, found {len(odd)} of {len(content)} entries of another kind, first "
            f"{odd[0]!r} ({kind}). Save the network's state_dict() alone."
        )
    return {str(key): value for key, value in content.items()}


@dataclass(frozen=True)
class Renamed:
    """What became of the keys of a published file.

    Attributes:
        state: {our key: tensor}.
        published: {our key: published key}.
        dropped: {published key left out: why}.
        unknown: published keys that do not belong there.
    """

    state: dict[str, Tensor]
    published: dict[str, str]
    dropped: dict[str, str]
    unknown: list[str]


def rename_keys(state: Mapping[str, Tensor], key_map: KeyMap, where: str) -> Renamed:
    """Turn published keys into ours; tensors are passed on as they are.

    Args:
        state: {published key: tensor}.
        key_map: see `KeyMap`.
        where: what to call the weights in an error.

    Raises:
        WeightsError: two keys come out as one.
    """
    made = Renamed({}, {}, {}, [])
    for key, tensor in state.items():
        ours = key_map(key)
        if ours is None:
            made.unknown.append(key)
        elif isinstance(ours, Dropped):
            made.dropped[key] = ours.reason
        elif ours in made.state:
            raise WeightsError(
                f"{where}: {made.published[ours]} and {key} both stand for {ours}. Two releases may be mixed in it."
            )
        else:
            made.state[ours], made.published[ours] = tensor, key
    return made


def fill_network(
    make: Callable[[], Network],
    state: Mapping[str, Tensor],
    where: str,
    *,
    key_map: KeyMap | None = None,
    device: torch.device | str = "cpu",
) -> Network:
    """Build a network whose parameters are the tensors of ``state``, strictly, without a second copy of them.

    The network is made on the meta device, where it takes no memory, and the tensors are then put in its place: mapped
    ones stay mapped where device and dtype are right already, others are converted one at a time.

    Args:
        make: builds the network, its parameters of the dtypes wanted; called under the meta device. It must keep
            nothing but parameters and buffers that are in its state dict.
        state: {published key: tensor}, or {our key: tensor} without a ``key_map``.
        where: what to call the weights in an error.
        key_map: see `KeyMap`.
        device: where the parameters shall be.

    Returns:
        The network in evaluation mode, no gradients.

    Raises:
        WeightsError: tensors missing, unknown, or of another shape (transposed ones are called so); each kind is
            counted and its first named.
    """
    with torch.device("meta"):
        network = make()
    renamed = rename_keys(state, key_map or _unchanged, where)
    wanted = network.state_dict()
    _check_fit(renamed, wanted, where, getattr(key_map, "published", _unchanged))
    placed = {key: renamed.state[key].to(device, tensor.dtype) for key, tensor in wanted.items()}
    network.load_state_dict(placed, strict=True, assign=True)
    left = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    assert not left, f"{type(network).__name__} keeps {left[0]}, which no file fills: make it where it is used"
    return network.eval().requires_grad_(False)


def _unchanged(key: str) -> str:
    """The key map of a file that has our keys already."""
    return key


def _check_fit(found: Renamed, wanted: Mapping[str, Tensor], where: str, published: Callable[[str], str]) -> None:
    """Raise unless every wanted tensor is there with its shape, and no other."""
    state = found.state
    missing = [key for key in wanted if key not in state]
    extra = [*found.unknown, *(found.published[key] for key in state if key not in wanted)]
    differ = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    turned = [key for key in differ if state[key].shape == wanted[key].shape[::-1]]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing, first {published(missing[0])} {tuple(wanted[missing[0]].shape)}")
    if extra:
        problems.append(f"{len(extra)} unknown, first {extra[0]}")
    for keys, what in ((turned, "transposed"), ([k for k in differ if k not in turned], "of another shape")):
        if keys:
            shapes = f"{tuple(state[keys[0]].shape)} in the file, {tuple(wanted[keys[0]].shape)} in the model"
            problems.append(f"{len(keys)} {what}, first {found.published[keys[0]]} {shapes}")
    if problems:
        count = len(state) + len(found.dropped) + len(found.unknown)
        raise WeightsError(
            f"{where} does not fit the model ({count} tensors in the file, {len(wanted) + len(found.dropped)} wanted): "
            f"{'; '.join(problems)}. Check that weights and config come from one release, and fetch them again."
        )
