"""Is this installation whole, and what would make it better? The checks behind ``trilift doctor``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from multiview.errors import TriliftError

if TYPE_CHECKING:
    from .registry import WeightSet

MIN_PYTHON = (3, 11)
MIN_FREE_MEMORY = 2_000_000_000
REMBG_MODEL = "u2net"

# Import name, name in the package index, what it is needed for.
NEEDED = (
    ("numpy", "numpy", "arrays"),
    ("PIL", "pillow", "reading photos"),
    ("scipy", "scipy", "the cut-out without a learned remover"),
    ("safetensors", "safetensors", "reading weights"),
    ("huggingface_hub", "huggingface_hub", "fetching published models"),
    ("yaml", "pyyaml", "reading their configs"),
    ("trimesh", "trimesh", "reading meshes"),
)
# Import name, what to install, what it gives.
OPTIONAL = (
    ("rembg", "rembg", "learned background removal"),
    ("mcubes", "PyMCubes", "the trivial answers of trilift eval"),
    ("fast_simplification", "fast-simplification", "--faces N"),
    ("gradio", "gradio", "trilift demo"),
    ("imageio_ffmpeg", "'trilift[video]'", "turntables as mp4"),
    ("pxr", "'trilift[usd]'", "--format usdz"),
    ("xformers", "'trilift[xformers]'", "another attention kernel"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``note``: works, could be better; ``bad``: lifts fail.
        text: what was found, and what to do about it.
    """

    name: str
    state: Literal["ok", "note", "bad"]
    text: str


def examine() -> list[Finding]:
    """Look at everything; a check that itself fails is a ``bad`` finding, never an exception."""
    findings: list[Finding] = []
    checks: tuple[Callable[[], list[Finding]], ...] = (
        check_python, check_torch, check_memory, check_packages, check_rembg_model, check_weights, check_hub,
        check_folder,
    )  # fmt: skip
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(check.__name__.removeprefix("check_"), "bad", f"{type(error).__name__}: {error}"))
    return findings


def check_python() -> list[Finding]:
    """Python's version and the machine."""
    good = sys.version_info[:2] >= MIN_PYTHON
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", "ok" if good else "bad", text + ("" if good else "; 3.11 or newer is needed"))]


def check_torch() -> list[Finding]:
    """Torch, its threads, and the devices that it can use."""
    if importlib.util.find_spec("torch") is None:
        return [Finding("torch", "bad", "not installed. Try: pip install torch")]
    import torch

    from multiview.devices import describe_device, pick_device

    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    findings = [Finding("torch", "ok", f"{torch.__version__}, {threads} threads on {cores} cores")]
    if threads < cores / 4:
        findings.append(Finding("threads", "note", f"{threads} of {cores} cores are used. Look at OMP_NUM_THREADS."))
    device = pick_device("auto")
    findings.append(Finding("device", "ok", f"--device auto takes {describe_device(device)}"))
    return findings


def check_memory() -> list[Finding]:
    """Memory that is free for a lift; nothing is said where the system does not tell."""
    free = free_memory_bytes()
    if free is None:
        return []
    state: Literal["ok", "note"] = "ok" if free >= MIN_FREE_MEMORY else "note"
    hint = "" if state == "ok" else f"; a lift takes up to {MIN_FREE_MEMORY / 1e9:.0f} GB, so close other programs"
    return [Finding("memory", state, f"{free / 1e9:.1f} GB free{hint}")]


def free_memory_bytes() -> int | None:
    """Memory that new work can take, in bytes; None when the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def check_packages() -> list[Finding]:
    """Packages that lifts need, and optional ones with what they give."""
    findings = []
    for module, package, use in NEEDED:
        if importlib.util.find_spec(module) is None:
            findings.append(Finding(package, "bad", f"not installed, needed for {use}. Try: pip install {package}"))
        else:
            findings.append(Finding(package, "ok", f"{_version(package)} ({use})"))
    for module, extra, gives in OPTIONAL:
        here = importlib.util.find_spec(module) is not None
        text = f"found ({gives})" if here else f"not installed; pip install {extra} gives {gives}"
        findings.append(Finding(module, "ok" if here else "note", text))
    return findings


def check_rembg_model() -> list[Finding]:
    """Whether rembg's model file is on this machine; without it cut-outs are made by colours."""
    from .remover import find_rembg_model

    path = find_rembg_model(REMBG_MODEL)
    if path is not None:
        return [Finding("background remover", "ok", f"{path} ({path.stat().st_size / 1e6:.0f} MB)")]
    text = f"{REMBG_MODEL}.onnx is not here: without a network, photos without alpha are cut out by colours alone. "
    return [Finding("background remover", "note", text + f"Try: rembg d {REMBG_MODEL}")]


def check_weights() -> list[Finding]:
    """Whether the embedded weights are there, have the hash of the table, and load."""
    from . import registry

    findings = []
    for row in registry.WEIGHT_SETS:
        if row.status != "ready" or row.repository is not None:
            continue
        path = row.embedded_folder / registry.WEIGHTS_FILE
        try:
            findings.append(_weights_finding(row, path))
        except (TriliftError, OSError) as error:
            findings.append(Finding(f"weights {row.name}", "bad", f"{error} Install trilift again."))
    return findings


def _weights_finding(row: WeightSet, path: Path) -> Finding:
    from multiview.weights import file_sha256, read_safetensors

    name = f"weights {row.name}"
    if not path.is_file():
        return Finding(name, "bad", f"{path} is missing. Install trilift again.")
    digest = file_sha256(path)
    count = len(read_safetensors(path))
    if row.sha256 is not None and digest != row.sha256:
        return Finding(name, "bad", f"{path} has sha256 {digest}, expected {row.sha256}. Install trilift again.")
    return Finding(name, "ok", f"{path.stat().st_size / 1e6:.1f} MB, {count} tensors, sha256 {digest[:16]}")


def check_hub() -> list[Finding]:
    """Which published weights are in the hub's cache, and whether more could be fetched into it."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return []
    from multiview.hub import cache_folder, free_bytes, offline_switch

    from .registry import models

    infos = [info for info in models() if info.weights.status == "ready" and info.weights.repository is not None]
    here = [info.weights.name for info in infos if info.here]
    switch = offline_switch()
    fetching = f"{switch} is set, so none is fetched" if switch else f"{free_bytes(cache_folder()) / 1e9:.0f} GB free"
    text = f"{len(here)} of {len(infos)} here ({', '.join(here) or 'none'}), in {cache_folder()}; {fetching}"
    return [Finding("published weights", "ok", text)]


def check_folder() -> list[Finding]:
    """Whether results can be written below the working directory."""
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"trilift")
    except OSError as error:
        return [Finding("folder", "note", f"{here} cannot be written ({error.strerror}); choose another with -o")]
    return [Finding("folder", "ok", f"{here} can be written")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"
