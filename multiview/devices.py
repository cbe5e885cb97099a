"""Which device and which number format: the only file that names one."""

from __future__ import annotations

import torch

from .errors import SettingsError

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that exists here.

    Args:
        name: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        SettingsError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise SettingsError(
            f"--device {name}: this machine has {count.get(device.type, 0)} of that kind. Try --device auto."
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto``, ``fp32``, ``bf16`` or ``fp16`` into a dtype; ``auto`` is fp32 on the CPU and MPS, bf16 on CUDA.

    Raises:
        SettingsError: an unknown name, or fp16 on the CPU, where it is slow and overflows.
    """
    if name == "auto":
        on_cuda = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_cuda else torch.float32
    if name not in DTYPES:
        raise SettingsError(f"--dtype {name}: expected auto, {', '.join(DTYPES)}.")
    if name == "fp16" and device.type == "cpu":
        raise SettingsError("--dtype fp16 needs a GPU. On the CPU use --dtype bf16 or fp32.")
    return DTYPES[name]


def describe_device(device: torch.device) -> str:
    """A short human name such as ``cuda: NVIDIA H100`` or ``cpu: 2 threads``."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def on_accelerator(device: torch.device) -> bool:
    """Whether work on ``device`` runs beside the CPU (and so needs a synchronise before a clock is read)."""
    return device.type != "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given; nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
