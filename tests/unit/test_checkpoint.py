"""Published checkpoints are read without running them, and laid into a network strictly and without copies."""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multiview.checkpoint import Dropped, fill_network, read_checkpoint, rename_keys
from multiview.errors import WeightsError
from multiview.weights import load_strict, read_safetensors, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([7]), "half": torch.ones(2).half()}


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


class TestRead:
    @pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".safetensors"])
    def test_every_kind_of_file(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"model{suffix}"
        if suffix == ".safetensors":
            write_safetensors(path, STATE)
        else:
            torch.save(STATE, path)
        found = read_checkpoint(path)
        assert sorted(found) == ["a.weight", "half", "n"]
        assert found["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["half"].dtype == torch.float16

    @pytest.mark.parametrize("wrapper", ["state_dict", "weights", "model"])
    def test_what_a_trainer_wraps_around_is_taken_off(self, tmp_path: Path, wrapper: str) -> None:
        torch.save({"epoch": 3, wrapper: STATE, "lr": [1e-4]}, tmp_path / "a.ckpt")
        assert sorted(read_checkpoint(tmp_path / "a.ckpt")) == ["a.weight", "half", "n"]

    def test_a_file_from_before_torch_1_6(self, tmp_path: Path) -> None:
        torch.save(STATE, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
        assert read_checkpoint(tmp_path / "a.bin")["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize("kept", [0, 100, 0.5, -1], ids=["empty", "start", "half", "last byte"])
    def test_truncated(self, tmp_path: Path, kept: float) -> None:
        path = tmp_path / "model.ckpt"
        torch.save(STATE, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
        size = path.stat().st_size
        words = rf"model\.ckpt: not a whole torch checkpoint \({size} bytes.*cut short: fetch it again"
        with pytest.raises(WeightsError, match=words):
            read_checkpoint(path)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain pickle"])
    def test_a_pickle_that_would_run_code_does_not(self, tmp_path: Path, zipped: bool) -> None:
        path, trace = tmp_path / "model.ckpt", tmp_path / "ran"
        if zipped:
            torch.save({"a": STATE["n"], "b": Hostile(trace)}, path)
        else:
            path.write_bytes(pickle.dumps(Hostile(trace), 2))
        with pytest.raises(WeightsError, match=r"expected tensors.*othing was run|of which nothing was run"):
            read_checkpoint(path)
        assert not trace.exists()
        # The same bytes do run where nobody minds, so the test means something.
        torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
        assert trace.exists()

    def test_the_object_in_the_way_is_named(self, tmp_path: Path) -> None:
        torch.save({"state_dict": STATE, "args": argparse.Namespace(x=1)}, tmp_path / "a.ckpt")
        with pytest.raises(WeightsError, match=r"found the Python object argparse\.Namespace.*safetensors"):
            read_checkpoint(tmp_path / "a.ckpt")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            pytest.param([1.0], "expected tensors by name.*found list", id="list"),
            pytest.param({}, "found an empty dict", id="empty"),
            pytest.param({"a": torch.ones(1), "b": 3}, r"1 of 2 entries of another kind, first 'b' \(int\)", id="odd"),
        ],
    )
    def test_not_a_state_dict(self, tmp_path: Path, content: Any, words: str) -> None:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match=words):
            read_checkpoint(tmp_path / "a.pt")

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(b"<html>504 gateway timeout</html>")
        with pytest.raises(WeightsError, match=r"a\.bin: expected tensors as torch\.save writes them.*32 bytes"):
            read_checkpoint(tmp_path / "a.bin")
        with pytest.raises(WeightsError, match=r"gone\.ckpt: not found"):
            read_checkpoint(tmp_path / "gone.ckpt")
        with pytest.raises(WeightsError, match=r"expected weights as \.safetensors, \.ckpt.*found '\.onnx'"):
            read_checkpoint(tmp_path / "a.onnx")


def key_map(key: str) -> str | Dropped | None:
    """``net.x`` → ``x``; the pooler is left out."""
    if key.startswith("pooler."):
        return Dropped("never read")
    return key.removeprefix("net.") if key.startswith("net.") else None


class TestRename:
    def test_every_key_is_accounted_for(self) -> None:
        one = torch.ones(1)
        made = rename_keys({"net.a": one, "pooler.w": one, "other": one}, key_map, "file")
        assert made.state["a"] is one and list(made.state) == ["a"]
        assert (made.published, made.dropped, made.unknown) == ({"a": "net.a"}, {"pooler.w": "never read"}, ["other"])

    def test_two_keys_for_one_tensor(self) -> None:
        one = torch.ones(1)
        with pytest.raises(WeightsError, match=r"file: net\.a and net.b both stand for same"):
            rename_keys({"net.a": one, "net.b": one}, lambda key: "same", "file")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))


def published() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"net.{k}": torch.randn(v.shape, generator=generator) for k, v in network().state_dict().items()}


class TestFill:
    def test_tensors_are_taken_over_not_copied(self) -> None:
        state = published()
        filled = fill_network(network, state, "file", key_map=key_map)
        found = filled.state_dict()
        assert all(found[k.removeprefix("net.")].data_ptr() == v.data_ptr() for k, v in state.items())
        assert not filled.training and not any(p.requires_grad for p in filled.parameters())
        x = torch.tensor([[1.0, -2.0]])
        plain = network()
        plain.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
        assert torch.equal(filled(x), plain(x))

    def test_half_precision_files_become_the_networks_dtype(self) -> None:
        state = {k: v.half() for k, v in published().items()}
        filled = fill_network(network, state, "file", key_map=key_map)
        assert {p.dtype for p in filled.parameters()} == {torch.float32}
        assert torch.equal(filled.state_dict()["0.weight"], state["net.0.weight"].float())
        small = fill_network(lambda: network().to(torch.bfloat16), published(), "file", key_map=key_map)
        assert {p.dtype for p in small.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            pytest.param({"net.1.bias": None}, r"3 tensors in the file, 4 wanted\): 1 missing, first 1\.bias \(3,\)",
                         id="one missing"),
            pytest.param({"net.9.x": torch.ones(1)}, r"5 tensors.*1 unknown, first net\.9\.x", id="one extra"),
            pytest.param({"surprise": torch.ones(1)}, r"5 tensors.*1 unknown, first surprise", id="not in the map"),
            pytest.param({"net.0.weight": torch.ones(2, 3)},
                         r"1 transposed, first net\.0\.weight \(2, 3\) in the file, \(3, 2\) in the model",
                         id="transposed"),
            pytest.param({"net.0.bias": torch.ones(4)}, r"1 of another shape, first net\.0\.bias \(4,\)", id="shape"),
            pytest.param({"net.1.bias": None, "net.2.y": torch.ones(1)}, "1 missing, first.*1 unknown", id="both"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, changes: dict[str, Any], words: str) -> None:
        state = {k: v for k, v in {**published(), **changes}.items() if v is not None}
        with pytest.raises(WeightsError, match=f"net.ckpt does not fit the model .*{words}.*one release"):
            fill_network(network, state, "net.ckpt", key_map=key_map)

    def test_missing_tensors_have_their_publishers_names(self) -> None:
        class Map:
            def __call__(self, key: str) -> str | Dropped | None:
                return key_map(key)

            def published(self, name: str) -> str:
                return f"net.{name}"

        state = published()
        del state["net.0.weight"]
        with pytest.raises(WeightsError, match=r"1 missing, first net\.0\.weight"):
            fill_network(network, state, "file", key_map=Map())

    def test_a_network_that_keeps_more_than_its_state_is_a_bug(self) -> None:
        class Keeps(nn.Linear):
            def __init__(self) -> None:
                super().__init__(2, 3)
                self.register_buffer("mean", torch.zeros(3), persistent=False)

        with pytest.raises(AssertionError, match="Keeps keeps mean"):
            fill_network(Keeps, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "file")

    def test_load_strict_can_assign(self) -> None:
        with torch.device("meta"):
            module = nn.Linear(2, 3)
        state = {"weight": torch.ones(3, 2), "bias": torch.ones(3).half()}
        load_strict(module, state, "file", assign=True)
        assert module.weight.data_ptr() == state["weight"].data_ptr() and module.bias.dtype == torch.float32


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.text("abcxyz019._-", min_size=1, max_size=8),
        st.tuples(
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
    )
)
def test_written_safetensors_are_those_of_their_own_library(tmp_path_factory, shapes) -> None:
    from safetensors.torch import save

    state = {
        key: (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(kind)
        for key, (kind, shape) in shapes.items()
    }
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    write_safetensors(path, state)
    found = read_safetensors(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in state.items())
    if len({value.dtype for value in state.values()}) == 1:  # in which order it puts several is its own matter
        assert path.read_bytes() == save(state)


def test_names_in_any_script_come_back(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"größe\n\x7f": torch.ones(2)})
    assert list(read_safetensors(tmp_path / "x.safetensors")) == ["größe\n\x7f"]


# One process for all cases, since starting one takes longer than the cases themselves.
MEMORY = """
import json, sys, torch
from torch import nn
from multiview.checkpoint import fill_network, read_checkpoint

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def network(dtype):
    return nn.Sequential(*(nn.Linear(1000, 1000, dtype=dtype) for _ in range(50)))

state = {"weight": torch.ones(2, 2).bfloat16(), "bias": torch.ones(2)}
fill_network(lambda: nn.Linear(2, 2), state, "warm up")
results = []
for path, wanted in json.loads(sys.argv[1]):
    before = anonymous()
    filled = fill_network(lambda: network(getattr(torch, wanted)), read_checkpoint(path), "file")
    with torch.no_grad():
        total = sum(float(p.sum(dtype=torch.float32)) for p in filled.parameters())
    weights = sum(p.numel() * p.element_size() for p in filled.parameters())
    results.append(((anonymous() - before) / weights, weights, total))
    del filled
print(json.dumps(results))
"""
# (file, format stored, format wanted, most that anonymous memory may rise by, in parts of the weights)
CASES = [
    ("a.ckpt", "float32", "float32", 0.1),
    ("a.safetensors", "float32", "float32", 0.1),
    ("a.ckpt", "float32", "bfloat16", 1.3),
    ("h.safetensors", "float16", "float32", 1.3),
]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_memory_rises_by_no_more_than_the_weights(tmp_path: Path) -> None:
    """200 MB of float32: mapped where the format is right already (all of it is read here), converted singly if not."""
    shapes = {f"{i}.{k}": s for i in range(50) for k, s in (("weight", (1000, 1000)), ("bias", (1000,)))}
    state = {key: torch.ones(shape) for key, shape in shapes.items()}
    torch.save(state, tmp_path / "a.ckpt")
    write_safetensors(tmp_path / "a.safetensors", state)
    write_safetensors(tmp_path / "h.safetensors", state, torch.float16)
    asked = json.dumps([(str(tmp_path / file), wanted) for file, _, wanted, _ in CASES])
    done = subprocess.run([sys.executable, "-c", MEMORY, asked], capture_output=True, text=True, cwd=ROOT, check=True)
    for case, (rise, weights, total) in zip(CASES, json.loads(done.stdout), strict=True):
        assert weights == 50 * 1_001_000 * getattr(torch, case[2]).itemsize and total == 50 * 1_001_000, case
        assert rise <= case[3], case
