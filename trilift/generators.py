"""From what a user named to a view generator in memory: find out what it is, fetch, read, fit it into the memory."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrm.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, merge_lora, read_adapter_config
from multiview.devices import CPU, pick_device, pick_dtype
from multiview.errors import SettingsError, TriliftError, WeightsError
from multiview.hub import NoSuchFileError, cached_file, hub_file, remembered_sha256
from multiview.networks import NetworkGenerator, plan_memory, use_plan
from multiview.weights import CONFIG_FILE, file_sha256

from . import registry
from .dtype import why_dtype
from .families import (
    GENERATORS,
    INDEX_FILE,
    GeneratorFamily,
    family_by_keys,
    find_family,
    find_generator,
    generator_at,
    keys_at,
    own_config,
)
from .loading import WeightsRecord, check_commercial, make_record

if TYPE_CHECKING:
    from multiview.generator import StoredGenerator, ViewGenerator

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """A repository in which somebody has published known weights in another form.

    Attributes:
        row: of the registry, whose licence and options hold.
        variant: which of the repository's files to take, where it has several of each.
    """

    row: str
    variant: str | None = None


CONVERSIONS: Mapping[str, Conversion] = {
    "kxic/zero123-105000": Conversion("zero123-105000"),
    "kxic/zero123-165000": Conversion("zero123-165000"),
    "kxic/zero123-xl": Conversion("zero123-xl"),
    # Of three variants the running averages, with which the first publisher samples.
    "bennyguo/zero123-xl-diffusers": Conversion("zero123-xl", "fp16_ema"),
    "ashawkey/zero123-xl-diffusers": Conversion("zero123-xl"),
    # Which of the two releases these were made from is not said; the date speaks for the first.
    "kxic/stable-zero123": Conversion("stable-zero123"),
    "ashawkey/stable-zero123-diffusers": Conversion("stable-zero123"),
}
"""In the layout of diffusers, in all of which one part's files may be called by a variant."""


@dataclass(frozen=True)
class GeneratorFiles:
    """Weights of a generator on this machine.

    Attributes:
        family: whose.
        place: a file, or a folder of parts.
        source: what the user named.
        revision: commit, when they come from the hub.
        options: what the files do not say themselves; for `StoredGenerator.load`.
        row: of the registry: by name, by repository, or by the sum.
        adapter: folder of an adapter that is merged into the UNet when it is loaded, or None.
    """

    family: GeneratorFamily
    place: Path
    source: registry.Source
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    row: registry.WeightSet | None = None
    adapter: Path | None = None

    @property
    def config(self) -> Path | None:
        """Our ``config.json``, None where the files are of another form."""
        path = self.place / CONFIG_FILE
        return path if own_config(path) else None


@dataclass(frozen=True)
class LoadedGenerator:
    """A view generator that is ready to run.

    Attributes:
        model: the generator.
        weights: which weights it runs.
        dtype: number format of its networks.
        dtype_reason: why it is that one.
    """

    model: ViewGenerator
    weights: WeightsRecord
    dtype: torch.dtype
    dtype_reason: str


def is_generator(source: str | Path) -> bool:
    """Whether what a user named makes views (rather than objects): by the table, by configs, by names of tensors.

    Neither weights nor the network are read. What is not known or not there is no generator.
    """
    try:
        return family_of(registry.resolve(source)) is not None
    except TriliftError:
        return False


def load_generator(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    commercial_ok: bool = False,
    max_memory: int | None = None,
    on_note: OnNote | None = None,
) -> LoadedGenerator:
    """Load a view generator by name, from a folder or file, or from the hub.

    Args:
        source: a name of `trilift.models()`; a folder of ours, or one as Zero123++ and the conversions of Zero123 to
            diffusers are published; an original checkpoint; ``owner/name`` on the hub; or ``NAME=PATH`` for a file or
            folder that holds the weights of a name, such as ``stable-zero123=stable_zero123.ckpt``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        dtype: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        revision: commit, branch or tag on the hub.
        commercial_ok: take only weights whose licence plainly allows commercial use.
        max_memory: bytes that a run may take on the device. Networks are then moved there as they are needed, and
            fewer views made together. None keeps everything there.
        on_note: told one line for people when something is fetched, or when the licence is not a plain yes to
            commercial use.

    Raises:
        WeightsError: unknown, not there, cannot be fetched, damaged, or of another model.
        SettingsError: a reconstruction model; an unknown device or dtype; ``commercial_ok`` and the licence is not a
            plain yes; or ``max_memory`` is not enough.
    """
    note = on_note or _silent
    found = registry.resolve(source)
    if commercial_ok and found.row is not None:
        check_commercial(found.row)  # before anything is fetched
    torch_device = pick_device(str(device))
    chosen = pick_dtype(dtype, torch_device)
    if max_memory is not None and max_memory < 1:
        raise SettingsError(f"max_memory={max_memory}: expected a number of bytes, 1 or more.")
    files = fetch_generator(found, revision, note)
    record = generator_record(files)
    if commercial_ok:
        check_commercial(record)
    planned = max_memory is not None and issubclass(files.family.load(), NetworkGenerator)
    if max_memory is not None and not planned:
        _check_memory(files, max_memory)
    model = build_generator(files, CPU if planned else torch_device, chosen)
    if max_memory is not None and isinstance(model, NetworkGenerator):
        model.device = torch_device
        use_plan(model, plan_memory(model, max_memory))
    if (notice := record.notice()) is not None:
        note(notice)
    return LoadedGenerator(model, record, chosen, why_dtype(dtype, chosen))


def _check_memory(files: GeneratorFiles, limit: int) -> None:
    """Of generators too small to be planned: by the table, or the first row of the family."""
    row = files.row or next(row for row in registry.WEIGHT_SETS if row.family == files.family.name)
    if row.memory_bytes is not None and limit < row.memory_bytes:
        raise SettingsError(
            f"--max-memory {limit / 1e9:.3g} GB: {row.name} needs about {row.memory_bytes / 1e9:.3g} GB."
        )


def _silent(_: str) -> None:
    """Notes that nobody wants."""


# What is it?


def family_of(source: registry.Source) -> GeneratorFamily | None:
    """The family of view generators that a source is of, None for none or where only fetching would tell."""
    row = source.row or _converted_row(source.repository)
    if row is not None:
        return find_generator(row.family) if row.stage == "views" else None
    if source.path is not None:
        return family_of(_base_of(source.path)) if _is_adapter(source.path) else generator_at(source.path)
    assert source.repository is not None, "a source is a path or a repository"
    return _family_in_cache(source.repository)


def _converted_row(repository: str | None) -> registry.WeightSet | None:
    known = CONVERSIONS.get(repository or "")
    return None if known is None else registry.find(known.row)


def _family_in_cache(repository: str) -> GeneratorFamily | None:
    """What the small files of a repository say, as far as they are in the hub's cache."""
    for name in (CONFIG_FILE, INDEX_FILE, f"unet/{CONFIG_FILE}"):
        if (found := cached_file(repository, name)) is not None:
            folder = found.path.parents[name.count("/")]
            return generator_at(folder)
    return None


def _is_adapter(path: Path) -> bool:
    """Whether a folder holds the files of an adapter alone."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG_FILE).is_file()


def _base_of(adapter: Path) -> registry.Source:
    """What an adapter was trained on."""
    return registry.resolve(read_adapter_config(adapter)[1])


def refuse_reconstruction(source: registry.Source) -> None:
    """Raise SettingsError when what was given for a view generator lifts pictures to objects."""
    row, title = source.row, None
    if row is not None:
        title = row.what if row.stage == "reconstruction" else None
    elif source.path is not None:
        title = _reconstruction_at(source.path)
    if title is not None:
        raise SettingsError(
            f"{source.path or source.name} is {title}, which lifts pictures to an object and makes no views. Give it "
            "with --model, and a view generator with --views, such as zero123-xl, syncdreamer or zero123plus-v1.2."
        )


def _reconstruction_at(path: Path) -> str | None:
    """What people call the reconstruction model in a folder or file, None for anything else."""
    if path.is_dir() and (said := own_config(path / CONFIG_FILE)):
        name = str(said.get("architecture"))
        if find_generator(name) is None and (path / registry.WEIGHTS_FILE).is_file():
            family = find_family(name)
            return family.title if family is not None else f"a model of architecture {name!r}"
    family = family_by_keys(keys_at(path))
    return None if family is None else family.title


# Where is it?


def fetch_generator(source: registry.Source, revision: str | None, on_note: OnNote | None = None) -> GeneratorFiles:
    """Find the files of a generator; from the hub they are fetched unless they are here.

    Args:
        source: see `registry.resolve`.
        revision: commit, branch or tag on the hub, None for the table's or the main branch.
        on_note: told when something is going to be fetched.

    Raises:
        SettingsError: a reconstruction model, or a revision of something that is not on the hub.
        WeightsError: nothing there that looks like a generator, or whatever `multiview.hub.hub_file` raises.
    """
    if source.path is not None and _is_adapter(source.path):
        return replace(fetch_generator(_base_of(source.path), None, on_note), adapter=source.path)
    refuse_reconstruction(source)
    if source.repository is not None:
        return _fetch(source, source.repository, revision, on_note)
    path, row = source.path, source.row
    assert path is not None, "a source is a path or a repository"
    if revision is not None:
        raise SettingsError(f"revision={revision!r}: {source.name} is not from a hub. Leave revision out.")
    family = generator_at(path) or (find_generator(row.family) if row is not None and path.is_dir() else None)
    if family is None:
        raise _unknown(path)
    _check_family(family, row, path)
    place = _checkpoint_in(path) if path.is_dir() else path
    if row is not None and place.is_file() and row.sha256 is not None:
        _check_sum(place, row)
    row = row or (registry.find_sha256(remembered_sha256(place)) if place.is_file() else None)
    options = {} if row is None else dict(row.options)
    if own_config(place / CONFIG_FILE):
        # Our folders say all of it themselves; what was said is held against them, but no part is replaced.
        options.pop("unet", None)
    return GeneratorFiles(family, place, source, options=options, row=row)


def _checkpoint_in(folder: Path) -> Path:
    """The one checkpoint that is all a folder has of a generator, else the folder."""
    if (folder / CONFIG_FILE).is_file() or (folder / INDEX_FILE).is_file() or (folder / "unet").is_dir():
        return folder
    files = [file for file in folder.iterdir() if file.is_file() and generator_at(file) is not None]
    return files[0] if len(files) == 1 else folder


def _check_family(family: GeneratorFamily, row: registry.WeightSet | None, path: Path) -> None:
    if row is not None and row.family != family.name:
        expected = find_generator(row.family)
        assert expected is not None, "rows that make views have a family here"
        raise WeightsError(
            f"{path}: expected weights of {expected.title}, as the name {row.name} says, found {family.title}. Give "
            "the right file, or this one by itself."
        )


def _check_sum(file: Path, row: registry.WeightSet) -> None:
    found = remembered_sha256(file)
    if found != row.sha256:
        raise WeightsError(
            f"{file} has sha256 {found}, but {row.name} has {row.sha256}: it is damaged, or another release. Fetch it "
            "again, or give the file without the name."
        )


def _unknown(path: Path) -> WeightsError:
    """What to say of a folder or file that is no view generator and no reconstruction model."""
    known = ", ".join(family.title for family in GENERATORS)
    if path.is_dir():
        here = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        return WeightsError(f"{path}: expected a folder of {known}, found {here or 'nothing'}.")
    keys = keys_at(path, strict=True)
    what = "a diffusers UNet or VAE alone: give the folder with all the parts" if _is_part(keys) else "another model"
    return WeightsError(f"{path}: expected a checkpoint of {known}; this is {what} ({len(keys)} tensors).")


def _is_part(keys: list[str]) -> bool:
    return any(key.startswith(("down_blocks.", "encoder.down_blocks.")) for key in keys)


def _fetch(source: registry.Source, repository: str, revision: str | None, on_note: OnNote | None) -> GeneratorFiles:
    """The files of a repository, by the table or by what its small files say."""
    from multiview.zero123plusweights import INSTANTMESH_BASE, fetch_folder
    from multiview.zero123weights import fetch_zero123

    row = source.row or _converted_row(repository)
    options: dict[str, Any] = {} if row is None else dict(row.options)
    if source.row is not None and source.row.family != "zero123plus":
        return _fetch_checkpoint(source, source.row, revision, on_note)
    if row is None and (place := _fetch_own(repository, revision, on_note)) is not None:
        return GeneratorFiles(
            _known(str(own_config(place / CONFIG_FILE)["architecture"])), place, source, _commit(place)
        )
    family = _known(row.family) if row is not None else _family_on_hub(repository, revision)
    if family.name == "zero123plus":
        base, own_unet = (INSTANTMESH_BASE, False) if "unet" in options else (repository, True)
        place = fetch_folder(base, revision, with_unet=own_unet, on_download=on_note)
    else:
        if (converted := CONVERSIONS.get(repository)) is not None and converted.variant is not None:
            options["variant"] = converted.variant
        variant = options.get("variant")
        place = fetch_zero123(repository, file=None, variant=variant, revision=revision, on_download=on_note)
    return GeneratorFiles(family, place, source, _commit(place), options, row)


def _fetch_checkpoint(
    source: registry.Source, row: registry.WeightSet, revision: str | None, on_note: OnNote | None
) -> GeneratorFiles:
    """The one file of a row."""
    assert row.repository is not None and row.file is not None, "rows of one file say where it is"
    # Of another revision than the table's neither sum nor size is known.
    sha256, size = (row.sha256, row.size_bytes) if revision is None else (None, None)
    try:
        found = hub_file(
            row.repository, row.file, revision=revision or row.revision, sha256=sha256, size_bytes=size,
            on_download=on_note,
        )  # fmt: skip
    except WeightsError as error:
        if row.page is None:
            raise
        raise WeightsError(
            f"{error} Its publisher has it at {row.page}: fetch it from there and give {row.name}=PATH."
        ) from error
    return GeneratorFiles(_known(row.family), found.path, source, found.revision, dict(row.options), row)


def _fetch_own(repository: str, revision: str | None, on_note: OnNote | None) -> Path | None:
    """Our folder form, which somebody has put on the hub; None where a repository has another form."""
    try:
        config = hub_file(repository, CONFIG_FILE, revision=revision, on_download=on_note).path
    except NoSuchFileError:
        return None
    family = find_generator(str(own_config(config).get("architecture")))
    if family is None:
        return None
    for file in family.load().own_files:
        hub_file(repository, file, revision=revision, on_download=on_note)
    return config.parent


def _family_on_hub(repository: str, revision: str | None) -> GeneratorFamily:
    """What the small files of a repository say that nobody has looked into yet."""
    for name in (INDEX_FILE, f"unet/{CONFIG_FILE}"):
        with contextlib.suppress(NoSuchFileError):
            hub_file(repository, name, revision=revision)
    family = _family_in_cache(repository)
    # Without an index it can only be a conversion of Zero123; its fetching says what is missing.
    return family or _known("zero123")


def _known(name: str) -> GeneratorFamily:
    family = find_generator(name)
    assert family is not None, f"the table names the family {name}"
    return family


def _commit(place: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    return place.name if place.parent.name == "snapshots" else None


# What is it made of?


def build_generator(files: GeneratorFiles, device: torch.device, dtype: torch.dtype) -> StoredGenerator:
    """Read weights and build their generator.

    Raises:
        WeightsError: the files are damaged or do not fit.
        SettingsError: the files do not say what they must, or contradict what was said.
    """
    if files.adapter is not None:
        return _build_adapted(files, files.adapter, device, dtype)
    name = files.row.name if files.row is not None else files.source.name
    return files.family.load().load(files.place, name=name, device=device, dtype=dtype, **files.options)


def _build_adapted(files: GeneratorFiles, adapter: Path, device: torch.device, dtype: torch.dtype) -> StoredGenerator:
    """The base in fp32, the adapter merged into its UNet, and only then the number format that was asked for."""
    model: Any = build_generator(replace(files, adapter=None), CPU, torch.float32)
    model.network.unet = copy.deepcopy(model.network.unet)  # the file of the base may be mapped
    load_adapter(model.network.unet, adapter)
    merge_lora(model.network.unet)
    model.network.requires_grad_(False)
    model.name = f"{model.name}+{adapter.name}"
    return model.to(device, dtype)


def generator_record(files: GeneratorFiles) -> WeightsRecord:
    """What is written down of a generator's weights: the table's word where it knows them, else their folder's own."""
    if files.adapter is not None:
        base = generator_record(replace(files, adapter=None))
        sums_of_both = f"{base.sha256} {file_sha256(files.adapter / ADAPTER_WEIGHTS)}"
        joined = hashlib.sha256(sums_of_both.encode()).hexdigest()
        return replace(base, name=f"{base.name}+{files.adapter.name}", sha256=joined)
    model = files.family.load()
    weights = model.weight_files(files.place, **files.options)
    sums = [remembered_sha256(file) for file in weights]
    config = files.config
    return make_record(
        files.source,
        sha256=sums[0] if len(sums) == 1 else joined_sha256(weights, sums),
        row=files.row,
        values=_like(files) if config is None else own_config(config),
        config_sha256=None if config is None else file_sha256(config),
        architecture=files.family.name,
        revision=files.revision,
        file=weights[0].name if len(weights) == 1 else None,
    )


def _like(files: GeneratorFiles) -> dict[str, Any]:
    """Licence and commercial use of the known weights that files which nobody knows are likely made from.

    That is only told where every set of the family has the same terms.
    """
    rows = [row for row in registry.WEIGHT_SETS if row.family == files.family.name]
    terms = {(row.licence, row.commercial) for row in rows if "unet" not in row.options}
    licence, commercial = terms.pop() if len(terms) == 1 else (None, None)
    return {"licence": licence, "commercial": commercial}


def joined_sha256(files: list[Path], sums: list[str]) -> str:
    """One sum for a model of several files: of the lines ``part/file sum``, in the order of the parts."""
    lines = [f"{file.parent.name}/{file.name} {one}" for file, one in zip(files, sums, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
