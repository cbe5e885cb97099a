"""What every training run is told: its settings as a dataclass, read from a YAML recipe and the command line."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from multiview.errors import SettingsError, TriliftError
from multiview.weights import config_from_dict

from .guards import GuardConfig
from .readflags import ReadFlags

C = TypeVar("C", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run needs whatever it trains.

    Attributes:
        steps, learning_rate, warmup_steps, weight_decay, clip_norm: linear warm-up, then half a cosine.
        batch_size: pictures of one optimiser step, over all processes and pieces together.
        accumulate: pieces that a step's batch is cut into, one after the other; less memory, the same result.
        ema_decay: of the averaged weights, which are what is saved for use.
        seed: of all that is random; what a step sees depends on it and the step's number alone.
        workers: processes that make batches; 0 for a thread of this one.
        precision: as accelerate names them.
        log_every, val_every, save_every: steps between lines of the log, gauges with previews, and checkpoints.
        trackers: of accelerate, such as ``wandb``; TensorBoard is written wherever it is installed.
        guards: what stops a bad run early.
    """

    steps: int = 6000
    batch_size: int = 24
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.9985
    seed: int = 0
    workers: int = 0
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    log_every: int = 25
    val_every: int = 500
    save_every: int = 250
    trackers: tuple[str, ...] = ()
    guards: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)}: expected at least 1.")
        if not 0 <= self.ema_decay < 1 or self.learning_rate <= 0:
            raise SettingsError(
                f"ema_decay={self.ema_decay:g}, learning_rate={self.learning_rate:g}: expected a decay from 0 to "
                "below 1 and a positive rate."
            )


@dataclass(frozen=True)
class DataFolder:
    """A folder of posed pictures; in a recipe ``DIR`` or ``{path: DIR, up: y, look_at: [0, 0, 0], order: [1, 0]}``.

    Attributes:
        path: the folder.
        read: how its poses are meant, where that is not what the layout says.
    """

    path: str
    read: ReadFlags = field(default_factory=ReadFlags)


def folder_chances(data: Sequence[object], data_weights: Sequence[float]) -> tuple[float, ...]:
    """How often each folder of a recipe is drawn from, in proportion to each other.

    Args:
        data: the recipe's folders.
        data_weights: its numbers for them; none for all alike.

    Raises:
        SettingsError: no folders; not one number for each; or numbers that are negative, not finite or all 0.
    """
    chances = tuple(data_weights) or (1.0,) * len(data)
    if not data or len(chances) != len(data):
        raise SettingsError(
            f"data names {len(data)} folders, data_weights {len(chances)}; they must be equal and not 0."
        )
    if any(not weight >= 0 for weight in chances) or not 0 < sum(chances) < float("inf"):
        raise SettingsError(f"data_weights={list(chances)}: expected numbers of 0 or more, not all of them 0.")
    return chances


@dataclass(frozen=True)
class _Lists:
    """Those of `ReadFlags` that are lists where they are anything."""

    look_at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    order: tuple[int, ...] = ()


def data_folder(value: Any, where: str) -> DataFolder:
    """An entry of a recipe's ``data`` as a `DataFolder`.

    Args:
        value: a path, or a mapping of ``path`` and fields of `ReadFlags`.
        where: what to call the recipe's place in an error.

    Raises:
        SettingsError: neither, or a flag's value is out of range.
        WeightsError: an unknown flag, or one of a wrong type.
    """
    if isinstance(value, str):
        return DataFolder(value)
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise SettingsError(f"{where}: expected a folder, or {{path: FOLDER, up: y, ...}}, found {str(value)[:60]!r}.")
    lists = {"look_at", "order"} & {name for name, given in value.items() if given is not None}
    given = config_from_dict(_Lists, {name: value[name] for name in lists}, where)
    plain = {name: item for name, item in value.items() if name not in ("path", "look_at", "order")}
    flags = config_from_dict(ReadFlags, plain, where)
    return DataFolder(value["path"], replace(flags, **{name: getattr(given, name) for name in lists}))


def recipe_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML recipe as plain values; ``overrides`` are ``key=value`` or ``part.key=value`` with YAML values.

    Raises:
        SettingsError: not YAML, no mapping, or an override without ``=`` or into something that has no parts.
    """
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: not a readable YAML recipe ({error}).") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected a recipe of key: value lines, found {str(values)[:60]!r}.")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"{override!r}: an override is written key=value.")
        target = values
        *parents, last = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise SettingsError(f"{override!r}: {parent} has no parts.")
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"{override!r}: the value is not YAML ({error}).") from error
    if values.get("precision") is False:  # YAML reads a bare no as a truth value
        values["precision"] = "no"
    return values


def read_config(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """`recipe_values` as a typed config; lists of `DataFolder` may have plain paths in them.

    Raises:
        SettingsError: see `recipe_values`, or a value out of range.
        WeightsError: an unknown key or a value of a wrong type.
    """
    values = recipe_values(path, overrides)
    folders: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if hint == tuple[DataFolder, ...] and isinstance(values.get(name), list):
            folders[name] = tuple(data_folder(entry, f"{path}: {name}") for entry in values[name])
            values[name] = [{"path": folder.path} for folder in folders[name]]
    return replace(config_from_dict(kind, values, str(path)), **folders)


def run_command(main: Callable[[], int]) -> int:
    """Run a command line; an error that a user can mend becomes one message on stderr.

    Returns:
        The exit status: 2 for wrong settings, 1 for other errors.
    """
    try:
        return main()
    except SettingsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except TriliftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
