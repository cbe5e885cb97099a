"""Device and number format: the choices of machines that this one is not are played by stand-ins."""

from __future__ import annotations

import pytest
import torch

from multiview.devices import describe_device, on_accelerator, pick_device, pick_dtype, synchronize
from multiview.errors import SettingsError


def play_machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int = 0, mps: bool = False, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "expected"),
    [
        pytest.param(0, False, "cpu", id="plain"),
        pytest.param(2, False, "cuda", id="gpu"),
        pytest.param(0, True, "mps", id="mac"),
        pytest.param(1, True, "cuda", id="both"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, expected: str) -> None:
    play_machine(monkeypatch, gpus=gpus, mps=mps)
    assert pick_device() == torch.device(expected)
    assert pick_device("auto") == torch.device(expected)


def test_named_devices_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    play_machine(monkeypatch, gpus=2)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
        ("", "expected auto, cpu"),
        ("cuda:2", "--device cuda:2: this machine has 2 of that kind. Try --device auto"),
        ("mps", "this machine has 0 of that kind"),
        ("meta", "this machine has 0 of that kind"),
    ],
)
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    play_machine(monkeypatch, gpus=2)
    with pytest.raises(SettingsError, match=words):
        pick_device(name)


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [
        ("cpu", True, torch.float32),
        ("mps", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
    ],
)
def test_auto_dtype(monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, expected: torch.dtype) -> None:
    play_machine(monkeypatch, gpus=1, bf16=bf16)
    assert pick_dtype("auto", torch.device(device)) == expected


def test_named_dtypes() -> None:
    assert pick_dtype("fp32", torch.device("cuda")) == torch.float32
    assert pick_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("fp16", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize(
    ("name", "words"),
    [("fp8", "--dtype fp8: expected auto, fp32, bf16, fp16"), ("fp16", "fp16 needs a GPU.*bf16 or fp32")],
)
def test_dtype_errors(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        pick_dtype(name, torch.device("cpu"))


def test_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    assert describe_device(torch.device("cuda")) == "cuda: NVIDIA Test"
    assert describe_device(torch.device("cpu")) == f"cpu: {torch.get_num_threads()} threads"
    assert describe_device(torch.device("mps")) == "mps"


def test_synchronize_waits_for_accelerators_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "cuda:0", "mps"):
        device = torch.device(name)
        synchronize(device)
        assert on_accelerator(device) == (name != "cpu")
    assert waited == ["cuda:0", "mps"]
