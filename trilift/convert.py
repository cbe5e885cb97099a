"""Any weights that we can load → our own folder: config.json and model.safetensors, or a sub-folder for each part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lrm.blocks import use_dtype
from lrm.published import PublishedModel
from multiview.devices import CPU, DTYPES
from multiview.errors import SettingsError, WeightsError
from multiview.weights import CONFIG_FILE, WEIGHTS_FILE, file_sha256

from . import registry
from .generators import build_generator, family_of, fetch_generator, generator_record
from .loading import WeightsRecord, build, fetch, weights_record

_LARGEST_HALF = torch.finfo(torch.float16).max


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "fp32",
    revision: str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> WeightsRecord:
    """Read weights strictly and write them as our own folder, one tensor in memory at a time.

    ``config.json`` gets the architecture, its sizes, and whence the weights come: repository, revision, file and sum,
    licence and commercial use. The folder is then read back, strictly, before this returns.

    Args:
        source: as `ImageTo3D.from_pretrained` or `trilift.generators.load_generator` takes it.
        out: folder, made when missing; a model folder that is there is replaced.
        dtype: of the numbers in the file: ``fp32``, ``bf16`` or ``fp16``; of published reconstruction networks only the
            matrices are made so small, their norms, tokens and field stay fp32, as do SyncDreamer's volume norms.
        revision: see `ImageTo3D.from_pretrained`.
        on_note: likewise.

    Returns:
        What was written: the record of the new files.

    Raises:
        SettingsError: an unknown ``dtype``, numbers too large for fp16, or ``out`` is where the weights come from.
        WeightsError: the weights cannot be found, fetched, read, or do not fit.
        OutputError: ``out`` cannot be written.
    """
    if dtype not in DTYPES:
        raise SettingsError(f"--dtype {dtype}: expected {', '.join(DTYPES)}.")
    out = Path(out)
    found = registry.resolve(source)
    if family_of(found) is not None:
        return _convert_generator(found, out, dtype, revision, on_note)
    files = fetch(found, revision, on_note)
    _check_elsewhere(files.weights.parent, out)
    model: Any = build(files, CPU, "fp32")[0]
    record = weights_record(files, getattr(model, "architecture", "tiny"))
    if dtype == "fp16":
        _check_range(model.network, files.weights)
    if isinstance(model, PublishedModel):
        use_dtype(model.network, DTYPES[dtype])
        model.save(out, _origin(record))
    else:
        model.save(out, _origin(record), DTYPES[dtype])
    return _read_back(out, record)


def _convert_generator(
    source: registry.Source, out: Path, dtype: str, revision: str | None, on_note: Callable[[str], None] | None
) -> WeightsRecord:
    """`convert` for view generators, whose parts get a sub-folder each; matching numbers stay mapped, not copied."""
    files = fetch_generator(source, revision, on_note)
    _check_elsewhere(files.place if files.place.is_dir() else files.place.parent, out)
    record = generator_record(files)
    model = build_generator(files, CPU, DTYPES[dtype])
    if dtype == "fp16":
        for network in model.networks:
            _check_range(network, files.place)
    model.save_pretrained(out, _origin(record))
    try:
        again = fetch_generator(registry.resolve(out), None)
        build_generator(again, CPU, DTYPES[dtype])
        return generator_record(again)
    except WeightsError as error:
        raise WeightsError(f"{out}: does not load again ({error}). This is a bug of ours.") from error


def _check_elsewhere(folder: Path, out: Path) -> None:
    if folder.resolve() == out.resolve():
        raise SettingsError(f"{out}: the weights come from there, and would be replaced. Choose another with -o.")


def _origin(record: WeightsRecord) -> dict[str, Any]:
    """What config.json says beside architecture and sizes; sums of sums are kept when a folder is converted again."""
    return {
        "name": record.name,
        "licence": record.licence,
        "commercial": record.commercial,
        "source": {
            "repository": record.repository,
            "revision": record.revision,
            "file": record.file,
            "sha256": record.sha256,
        },
    }


def _check_range(network: torch.nn.Module, where: Path) -> None:
    """Raise when a number would become infinite in fp16."""
    for key, tensor in network.state_dict().items():
        largest = float(tensor.abs().max()) if tensor.numel() and tensor.is_floating_point() else 0.0
        if largest > _LARGEST_HALF:
            size = "too large for it" if math.isinf(largest) else f"of {largest:.4g}"
            raise SettingsError(
                f"{where}: {key} has a number {size}, fp16 ends at {_LARGEST_HALF:.0f}. Take --dtype bf16."
            )


def _read_back(out: Path, record: WeightsRecord) -> WeightsRecord:
    """Load what was written, strictly; mapped, so that it costs no memory."""
    files = fetch(registry.resolve(out), None)
    try:
        build(files, CPU, "fp32")
    except WeightsError as error:
        raise WeightsError(f"{out}: does not load again ({error}). This is a bug of ours.") from error
    return replace(
        record, sha256=file_sha256(out / WEIGHTS_FILE), config_sha256=file_sha256(out / CONFIG_FILE), file=WEIGHTS_FILE
    )
