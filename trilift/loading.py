"""From what a user named to a model in memory: fetch, recognise, read, build; and what to write down about it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrm.blocks import use_dtype
from lrm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, merge_lora, read_adapter_config
from lrm.models import ReconstructionModel
from multiview.checkpoint import CHECKPOINT_SUFFIXES, read_checkpoint
from multiview.devices import pick_dtype
from multiview.errors import SettingsError, WeightsError
from multiview.hub import HubFile, NoSuchFileError, cached_file, hub_file, remembered_sha256
from multiview.weights import CONFIG_FILE, WEIGHTS_FILE, config_from_dict, file_sha256, read_config_json

from . import registry
from .dtype import choose_dtype, why_dtype
from .elevation import estimate_elevations
from .families import (
    FAMILIES,
    PREFIX,
    Family,
    find_config,
    find_family,
    find_generator,
    generator_at,
    own_config,
    published_config,
    recognise,
    refuse_generator,
)

if TYPE_CHECKING:
    from lrm.published import PublishedModel

# Files of weights that a folder or a repository may have, the best first.
_USUAL_FILES = (WEIGHTS_FILE, *registry.OTHER_FILES)
_CONFIG_FILES = (CONFIG_FILE, "config.yaml")


@dataclass(frozen=True)
class WeightsRecord:
    """Which weights a pipeline runs, as asset.json states it.

    Attributes:
        name: as in the registry, or the folder's or file's name.
        sha256: of the weights file; None for a model built in memory.
        config_sha256: of its config, None without one.
        licence: of the weights, None when not known.
        commercial: ``yes``, ``no``, ``conditions`` or ``unknown``.
        architecture: the family.
        repository: on the hub, None when they do not come from there as far as we know.
        revision: commit of that repository.
        file: name of the weights file.
    """

    name: str
    sha256: str | None = None
    config_sha256: str | None = None
    licence: str | None = None
    commercial: str = "unknown"
    architecture: str | None = None
    repository: str | None = None
    revision: str | None = None
    file: str | None = None

    def notice(self) -> str | None:
        """A sentence on a licence that is not a plain yes to commercial use, else None."""
        if self.commercial == "yes":
            return None
        meaning = {
            "no": "not for commercial use",
            "conditions": "commercial use only on its conditions, read them",
            "unknown": "whether commercial use is allowed is not known",
        }[self.commercial]
        return f"weights {self.name}: licence {self.licence or 'not stated'}, {meaning}"


@dataclass(frozen=True)
class Files:
    """Weights on this machine.

    Attributes:
        weights: the file.
        config: our ``config.json`` or the published one beside it, None without either.
        source: what the user named.
        revision: commit, when they come from the hub.
        adapter: folder of an adapter that is merged into the weights when they are loaded, or None.
    """

    weights: Path
    config: Path | None
    source: registry.Source
    revision: str | None = None
    adapter: Path | None = None


def check_commercial(record: WeightsRecord | registry.WeightSet) -> None:
    """Let only weights pass whose licence plainly allows commercial use.

    Raises:
        SettingsError: it does not, or it is not known.
    """
    if record.commercial != "yes":
        raise SettingsError(
            f"--commercial-ok: {record.name} has licence {record.licence or 'not stated'} (commercial use: "
            f"{record.commercial}). trilift models lists those with a plain yes."
        )


def fetch(source: registry.Source, revision: str | None, on_note: Callable[[str], None] | None = None) -> Files:
    """Find the files of what a user named; from the hub they are fetched unless they are here.

    Args:
        source: see `registry.resolve`.
        revision: commit, branch or tag on the hub, None for the table's or the main branch.
        on_note: told when something is going to be fetched.

    Raises:
        SettingsError: a view generator, or a revision of something that is not on the hub.
        WeightsError: nothing there that looks like weights, or whatever `multiview.hub.hub_file` raises.
    """
    if source.row is not None and source.row.stage == "views":
        refuse_generator(source.name, find_generator(source.row.family))
    if source.repository is not None:
        return _fetch_repository(source, revision, on_note)
    if revision is not None:
        raise SettingsError(f"revision={revision!r}: {source.name} is not from a hub. Leave revision out.")
    path = source.path
    assert path is not None, "a source is a path or a repository"
    if (path / ADAPTER_CONFIG).is_file() and not (path / WEIGHTS_FILE).is_file():
        base = read_adapter_config(path)[1]
        return replace(fetch(registry.resolve(base), None, on_note), adapter=path)
    refuse_generator(str(path), generator_at(path))
    weights = _weights_in(path) if path.is_dir() else path
    return Files(weights, _config_of(weights), source)


def _fetch_repository(source: registry.Source, revision: str | None, on_note: Callable[[str], None] | None) -> Files:
    repository, row = source.repository, source.row
    assert repository is not None, "asked for a repository only"
    if row is not None and row.file is not None:
        pinned = revision or row.revision
        if row.config_file is not None:
            hub_file(repository, row.config_file, revision=pinned, on_download=on_note)
        # Of another revision than the table's neither sum nor size is known.
        sha256, size = (row.sha256, row.size_bytes) if revision in (None, row.revision) else (None, None)
        try:
            found = hub_file(repository, row.file, revision=pinned, sha256=sha256, size_bytes=size, on_download=on_note)
        except NoSuchFileError:
            if sha256 is not None:
                raise
            # Not every repository of OpenLRM has been seen: some may have the older form alone.
            found = _first_of(repository, _USUAL_FILES[1:], pinned, on_note)
        return Files(found.path, _config_of(found.path), source, found.revision)
    config = _first_of(repository, _CONFIG_FILES, revision, on_note)
    refuse_generator(repository, find_generator(str(own_config(config.path).get("architecture"))))
    found = _first_of(repository, _USUAL_FILES, revision, on_note)
    return Files(found.path, config.path, source, found.revision)


def _first_of(
    repository: str, names: tuple[str, ...], revision: str | None, on_note: Callable[[str], None] | None
) -> HubFile:
    """The first of ``names`` that a repository has; the last complaint when it has none."""
    for name in names:
        if (found := cached_file(repository, name, revision)) is not None:
            return found
    for name in names[:-1]:
        with contextlib.suppress(NoSuchFileError):
            return hub_file(repository, name, revision=revision, on_download=on_note)
    try:
        return hub_file(repository, names[-1], revision=revision, on_download=on_note)
    except NoSuchFileError as error:
        raise WeightsError(f"{error} Looked for {' or '.join(names)}.") from error


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        WeightsError: there is none, or there are several and none has a usual name.
    """
    for name in _USUAL_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file.name for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES)
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise WeightsError(f"{folder} holds several files of weights: {', '.join(found)}. Give one of them.")
    raise WeightsError(
        f"{folder}: not a model folder: expected {CONFIG_FILE} and {WEIGHTS_FILE} in it, or "
        f"{' or '.join(_USUAL_FILES[1:])} as published."
    )


def _config_of(weights: Path) -> Path | None:
    """Our config.json beside a file of weights, or a published config of any family."""
    own = weights.parent / CONFIG_FILE
    if own_config(own):
        return own
    found = (find_config(family, weights.parent, weights.stem) for family in FAMILIES)
    return next((file for file in found if file is not None), None)


def build(files: Files, device: torch.device, dtype: str) -> tuple[ReconstructionModel, torch.dtype, str]:
    """Read weights and build their model.

    Args:
        files: see `fetch`.
        device: where it shall run.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        The model, the number format of its network, and a sentence on why it is that one.

    Raises:
        WeightsError: the files are damaged, of a model that is not known, or do not fit each other.
        SettingsError: ``dtype`` is unknown or does not go with the device.
    """
    pick_dtype(dtype, device)  # a wrong one fails before anything is read
    if files.adapter is not None:
        return _build_adapted(files, files.adapter, device, dtype)
    if files.config is not None and own_config(files.config):
        return _build_own(files, files.config, device, dtype)
    state = read_checkpoint(files.weights)
    where = str(files.weights)
    family, _ = recognise(state, where)
    _check_family(family, files)
    file = files.config if files.config is not None and _belongs(family, files.config) else None
    config = published_config(family, file, state, where)
    return _build_published(family, config, state, files, device, dtype, published=True)


def _build_adapted(
    files: Files, adapter: Path, device: torch.device, dtype: str
) -> tuple[ReconstructionModel, torch.dtype, str]:
    """The base in fp32, the adapter merged into it, and only then the number format that was asked for."""
    plain: Any = build(replace(files, adapter=None), device, "fp32")[0]
    plain.network = copy.deepcopy(plain.network)  # the file of the base may be mapped
    load_adapter(plain.network, adapter)
    merge_lora(plain.network)
    plain.network.requires_grad_(False)
    if not hasattr(plain.network.config, "vit"):  # the embedded model runs under autocast
        plain.dtype = pick_dtype(dtype, device)
        return plain, plain.dtype, why_dtype(dtype, plain.dtype)
    chosen, why = choose_dtype(dtype, device, *_block_sizes(plain.network.config))
    use_dtype(plain.network, chosen)
    return plain, chosen, why


def _belongs(family: Family, config: Path) -> bool:
    return find_config(family, config.parent, config.stem) is not None


def _check_family(family: Family, files: Files) -> None:
    """Raise when weights are of another family than name or config say."""
    row = files.source.row
    expected = find_family(row.family) if row is not None else None
    if expected is None and files.config is not None:
        by_config = [f for f in FAMILIES if _belongs(f, files.config)]
        expected = by_config[0] if by_config else None
    if expected is not None and expected.name != family.name:
        said = f"{files.config}" if row is None else f"the name {row.name}"
        raise WeightsError(
            f"{files.weights}: expected weights of {expected.title}, as {said} says, found {family.title}. Put the "
            "right file there, or give the file by itself."
        )


def _build_own(
    files: Files, config: Path, device: torch.device, dtype: str
) -> tuple[ReconstructionModel, torch.dtype, str]:
    """A folder of our own: its config.json names the architecture, and has the sizes."""
    values = read_config_json(config.parent)
    architecture = str(values.get("architecture"))
    family = find_family(architecture)
    if family is None:
        from lrm.tiny import TinyLRM

        # It runs under autocast, which a probe of single blocks says nothing about; it names its own architecture.
        chosen = pick_dtype(dtype, device)
        if files.weights.name != WEIGHTS_FILE:
            raise WeightsError(
                f"{files.weights}: expected {WEIGHTS_FILE} beside {config}. Give the folder by its name."
            )
        return TinyLRM.from_folder(config.parent, device=device, dtype=chosen), chosen, why_dtype(dtype, chosen)
    sizes: Any = config_from_dict(family.load().config_type, values.get("network", {}), f"{config}: network")
    state = read_checkpoint(files.weights)
    published = set(family.marks) <= {key.removeprefix(PREFIX) for key in state}
    return _build_published(family, sizes, state, files, device, dtype, published=published)


def _build_published(
    family: Family, config: Any, state: dict[str, Tensor], files: Files, device: torch.device, dtype: str,
    *, published: bool,
) -> tuple[ReconstructionModel, torch.dtype, str]:  # fmt: skip
    model_type: type[PublishedModel] = family.load()
    chosen, why = choose_dtype(dtype, device, *_block_sizes(config))
    model = model_type.from_state(
        config, state, name=files.source.name, where=str(files.weights), device=device, dtype=chosen,
        published=published,
    )  # fmt: skip
    if family.name == "openlrm":
        model.estimate = estimate_elevations  # type: ignore[attr-defined]
    return model, chosen, why


def _block_sizes(config: Any) -> tuple[int, int, int]:
    """Width, heads and context width of a decoder block."""
    width = config.width if hasattr(config, "width") else config.heads * config.head_width
    return width, config.heads, config.vit.width


def weights_record(files: Files, architecture: str | None) -> WeightsRecord:
    """What asset.json says of the weights: the table's word where their sum is in it, else the folder's own."""
    values = {} if files.config is None else own_config(files.config)
    if files.adapter is not None:
        return _adapted_record(files, files.adapter, architecture)
    return make_record(
        files.source, sha256=remembered_sha256(files.weights), row=files.source.row, values=values,
        config_sha256=None if files.config is None else file_sha256(files.config), architecture=architecture,
        revision=files.revision, file=files.weights.name,
    )  # fmt: skip


def make_record(
    source: registry.Source, *, sha256: str, row: registry.WeightSet | None, values: dict[str, Any],
    config_sha256: str | None, architecture: str | None, revision: str | None, file: str | None,
) -> WeightsRecord:  # fmt: skip
    """Join what is known of some weights.

    Args:
        source: what the user named.
        sha256: of the weights.
        row: of the table, where the user named one; else it is looked for by the sum, or by that of the file that the
            weights were converted from.
        values: what our config.json says, empty without one.
        config_sha256, architecture, revision, file: see `WeightsRecord`.
    """
    said = values.get("source")
    origin: dict[str, Any] = said if isinstance(said, dict) else {}
    row = row or registry.find_sha256(sha256) or registry.find_sha256(str(origin.get("sha256")))
    commercial = values.get("commercial")
    return WeightsRecord(
        name=row.name if row is not None else _text_or_none(values.get("name")) or source.name,
        sha256=sha256,
        config_sha256=config_sha256,
        licence=row.licence if row else _text_or_none(values.get("licence")),
        commercial=row.commercial if row else (commercial if commercial in ("yes", "no", "conditions") else "unknown"),
        architecture=architecture,
        repository=source.repository or _text_or_none(origin.get("repository")),
        revision=revision or _text_or_none(origin.get("revision")),
        file=file,
    )


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _adapted_record(files: Files, adapter: Path, architecture: str | None) -> WeightsRecord:
    """Of a base with an adapter: named after both, with one sum of both; the base's licence holds."""
    base = weights_record(replace(files, adapter=None), architecture)
    sums = f"{base.sha256} {file_sha256(adapter / ADAPTER_WEIGHTS)}"
    return replace(base, name=f"{base.name}+{adapter.name}", sha256=hashlib.sha256(sums.encode()).hexdigest())
