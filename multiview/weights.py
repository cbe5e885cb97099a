"""Safe, strict loading of weights; folders of ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import WeightsError
from .files import write_json_whole, written_whole

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
C = TypeVar("C")


def read_config_json(folder: str | Path) -> dict[str, Any]:
    """Read ``folder/config.json``.

    Raises:
        WeightsError: the file is missing, not JSON, not an object, or of another format version.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found. A model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}). Fetch or copy the folder again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT_VERSION:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise WeightsError(f"{path}: expected an object with format {FORMAT_VERSION}, found {found!r}.")
    return config


def config_from_dict(cls: type[C], values: dict[str, Any], where: str) -> C:
    """Build the dataclass ``cls`` from ``values``; lists become tuples, nested objects nested dataclasses.

    Args:
        cls: a dataclass type with plain, tuple or dataclass fields.
        values: what the file says; keys may be left out where the dataclass has a default.
        where: what to call the source in an error.

    Raises:
        WeightsError: an unknown key (the nearest known one is named), a missing key, or a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise WeightsError(f"{where}: unknown key {key!r}.{hint}")
    built = {key: _as_type(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:
        raise WeightsError(f"{where}: {error}.") from error


def _as_type(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise WeightsError(f"{where}: expected an object, found {value!r}.")
        return config_from_dict(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise WeightsError(f"{where}: expected a list, found {value!r}.")
        kinds = typing.get_args(hint) or (Any, ...)
        each = (kinds[0],) * len(value) if kinds[-1] is Ellipsis else kinds
        if len(each) != len(value):
            raise WeightsError(f"{where}: expected {len(each)} values, found {len(value)}.")
        return tuple(_as_type(kind, item, where) for kind, item in zip(each, value, strict=True))
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise WeightsError(f"{where}: expected one of {typing.get_args(hint)}, found {value!r}.")
        return value
    kinds = typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,)
    lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if lists and value is not None:  # a list or nothing
        return _as_type(lists[0], value, where)
    if float in kinds and not isinstance(value, bool) and _is_number(value):
        return float(value)
    plain = tuple(k for k in kinds if isinstance(k, type))
    if plain and (not isinstance(value, plain) or (isinstance(value, bool) and bool not in kinds)):
        raise WeightsError(f"{where}: expected {' or '.join(k.__name__ for k in plain)}, found {value!r}.")
    return value


def _is_number(value: Any) -> bool:
    """Numbers, and texts like 1e-4, which YAML does not take for one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory: {key: tensor}, nothing is copied until it is used.

    Raises:
        WeightsError: missing, truncated or not a safetensors file.
    """
    with _opened(Path(path)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


def safetensors_keys(path: str | Path) -> list[str]:
    """Names of the tensors in a safetensors file; their numbers are not read.

    Raises:
        WeightsError: see `read_safetensors`.
    """
    with _opened(Path(path)) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; what goes wrong with it is a `WeightsError`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({path.stat().st_size} bytes; {error}). "
            "It may be cut short: fetch or copy it again."
        ) from error


def load_strict(module: nn.Module, state: dict[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Copy ``state`` into ``module``; every key must be there with its shape, and no other.

    Args:
        module: its parameters and persistent buffers are overwritten; floats are converted to their dtype.
        state: {key: tensor}.
        where: what to call the weights in an error.
        assign: put the tensors in the place of the module's instead, those of its dtype without a copy (so that mapped
            files stay mapped); the module may then be on the meta device.

    Raises:
        WeightsError: missing, extra or differently shaped tensors, each kind counted and its first named.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state]
    extra = [k for k in state if k not in wanted]
    differ = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing, first {missing[0]}")
    if extra:
        problems.append(f"{len(extra)} unknown, first {extra[0]}")
    if differ:
        k = differ[0]
        problems.append(
            f"{len(differ)} with another shape, first {k} {tuple(state[k].shape)} in the file, "
            f"{tuple(wanted[k].shape)} in the model"
        )
    if problems:
        raise WeightsError(
            f"{where} does not fit the model ({len(state)} tensors in the file, {len(wanted)} in the model): "
            f"{'; '.join(problems)}. Check that weights and config come from one release."
        )
    if assign:
        state = {key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}
    module.load_state_dict(state, strict=True, assign=assign)


def save_folder(
    folder: str | Path, config: dict[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``, each whole; floats are stored as ``dtype`` when given.

    Tensors that share memory are stored as separate copies. One tensor at a time is converted and written, so that
    memory rises by the largest of them alone.
    """
    folder = Path(folder)
    write_safetensors(folder / WEIGHTS_FILE, state, dtype)
    write_json_whole(
        folder / CONFIG_FILE, {"format": FORMAT_VERSION, **{k: v for k, v in config.items() if k != "format"}}
    )


# What the safetensors format calls the number formats that weights have.
_TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_safetensors(path: str | Path, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors as a safetensors file, whole, one tensor in memory at a time.

    Args:
        path: the file.
        state: {key: tensor}, on any device.
        dtype: of the floating-point tensors in the file; None keeps each tensor's.

    Raises:
        OutputError: it cannot be written.

    Source:
        https://github.com/huggingface/safetensors, section "Format": header length (8 bytes), header (JSON), data. As
        its own library does, wide types come first, so that every tensor is aligned to its type.
    """
    stored = {key: _stored_dtype(tensor, dtype) for key, tensor in state.items()}
    order = sorted(state, key=lambda key: (-stored[key].itemsize, key))
    header: dict[str, Any] = {}
    end = 0
    for key in order:
        start, end = end, end + state[key].numel() * stored[key].itemsize
        header[key] = {"dtype": _TYPE_NAMES[stored[key]], "shape": list(state[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as aside, aside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            tensor = state[key].detach().to("cpu", stored[key]).contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
