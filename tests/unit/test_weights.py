"""Weights load strictly or not at all; configs say what is wrong with them."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from multiview.errors import WeightsError
from multiview.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_dict,
    file_sha256,
    load_strict,
    read_config_json,
    read_safetensors,
    save_folder,
)


@dataclass(frozen=True)
class Part:
    width: int
    ratio: float = 0.5


@dataclass(frozen=True)
class Config:
    part: Part
    kind: Literal["small", "large"] = "small"
    sizes: tuple[int, ...] = (1, 2)
    limit: float | None = None
    closed: bool = False


class TestConfigFromDict:
    def test_nested_and_defaults(self) -> None:
        values = {"part": {"width": 3, "ratio": 2}, "sizes": [4, 5], "limit": 1}
        config = config_from_dict(Config, values, "config.json")
        assert config == Config(Part(3, 2.0), sizes=(4, 5), limit=1.0)
        # Whole numbers in the file become floats where floats are wanted.
        assert isinstance(config.part.ratio, float) and isinstance(config.limit, float)

    def test_none_where_it_may_be(self) -> None:
        assert config_from_dict(Config, {"part": {"width": 1}, "limit": None}, "config.json").limit is None

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            pytest.param({"sizse": [1]}, "config.json: unknown key 'sizse'. Did you mean 'sizes'", id="nearest key"),
            pytest.param({"part": {"widht": 1}}, "config.json: part: unknown key 'widht'.*'width'", id="nested key"),
            pytest.param({}, "missing.*'part'", id="missing key"),
            pytest.param({"part": {}}, "config.json: part: .*missing.*'width'", id="nested missing key"),
            pytest.param({"part": {"width": 1.5}}, "width: expected int, found 1.5", id="float for int"),
            pytest.param({"part": {"width": True}}, "width: expected int, found True", id="bool for int"),
            pytest.param({"part": {"width": 1, "ratio": "x"}}, "ratio: expected float, found 'x'", id="text"),
            pytest.param(
                {"part": {"width": 1, "ratio": True}}, "ratio: expected float, found True", id="bool for float"
            ),
            pytest.param({"part": [1]}, r"part: expected an object, found \[1\]", id="list for object"),
            pytest.param({"part": {"width": 1}, "closed": 1}, "closed: expected bool, found 1", id="int for bool"),
            pytest.param(
                {"part": {"width": 1}, "kind": "huge"}, "kind: expected one of .*'small', 'large'", id="choice"
            ),
            pytest.param({"part": {"width": 1}, "sizes": 3}, "sizes: expected a list, found 3", id="number for list"),
            pytest.param({"part": {"width": 1}, "limit": "no"}, "limit: expected float or None", id="optional"),
        ],
    )
    def test_errors(self, values: dict[str, Any], words: str) -> None:
        with pytest.raises(WeightsError, match=words):
            config_from_dict(Config, values, "config.json")


class TestReadConfig:
    def write(self, folder: Path, text: str) -> Path:
        (folder / CONFIG_FILE).write_text(text, "utf-8")
        return folder

    def test_reads_what_save_folder_wrote(self, tmp_path: Path) -> None:
        save_folder(tmp_path / "model", {"family": "tiny"}, {"w": torch.ones(1)})
        assert read_config_json(tmp_path / "model") == {"format": 1, "family": "tiny"}

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"config\.json: not found. A model folder holds config.json and model"):
            read_config_json(tmp_path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "not readable as JSON"),
            ("", "not readable as JSON"),
            ("[]", "expected an object with format 1, found 'list'"),
            ("{}", "expected an object with format 1, found None"),
            ('{"format": 2}', "expected an object with format 1, found 2"),
        ],
    )
    def test_errors(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(WeightsError, match=words):
            read_config_json(self.write(tmp_path, text))

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / CONFIG_FILE).write_bytes(b'{"format": 1, "name": "\xff"}')
        with pytest.raises(WeightsError, match="not readable as JSON"):
            read_config_json(tmp_path)


class TestSafetensors:
    state: ClassVar = {"a.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor([7])}

    def test_round_trip(self, tmp_path: Path) -> None:
        save_folder(tmp_path, {}, self.state)
        found = read_safetensors(tmp_path / WEIGHTS_FILE)
        assert sorted(found) == ["a.weight", "count"]
        assert all(torch.equal(found[key], value) for key, value in self.state.items())
        assert json.loads((tmp_path / CONFIG_FILE).read_text()) == {"format": 1}

    def test_stored_as_half_precision_but_for_whole_numbers(self, tmp_path: Path) -> None:
        save_folder(tmp_path, {}, {**self.state, "turned": self.state["a.weight"].T}, torch.float16)
        found = read_safetensors(tmp_path / WEIGHTS_FILE)
        assert found["a.weight"].dtype == torch.float16
        assert found["count"].dtype == torch.int64
        assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]

    def test_same_state_same_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            save_folder(tmp_path / name, {"x": 1}, self.state)
        assert file_sha256(tmp_path / "one" / WEIGHTS_FILE) == file_sha256(tmp_path / "two" / WEIGHTS_FILE)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"gone\.safetensors: not found"):
            read_safetensors(tmp_path / "gone.safetensors")

    @pytest.mark.parametrize("kept", [0, 4, 40, -1], ids=["empty", "header length", "header", "last byte"])
    def test_truncated(self, tmp_path: Path, kept: int) -> None:
        save_folder(tmp_path, {}, self.state)
        path = tmp_path / WEIGHTS_FILE
        whole = path.read_bytes()
        path.write_bytes(whole[:kept])
        size = len(whole[:kept])
        with pytest.raises(WeightsError, match=rf"not a whole safetensors file \({size} bytes.*cut short"):
            read_safetensors(path)

    def test_a_pickle_is_not_weights(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(pickle.dumps({"a": [1.0]}))
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            read_safetensors(path)


class Counter:
    """Notes that it was unpickled, as a hostile file would."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Counter, "ran", True))


def test_a_hostile_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": Counter()}, path)
    with pytest.raises(WeightsError):
        read_safetensors(path)
    assert not Counter.ran


class TestLoadStrict:
    def module(self) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        with torch.no_grad():
            module[0].weight.fill_(-1)
        return module

    def state(self, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
        state: dict[str, Any] = {key: torch.full_like(value, 5) for key, value in self.module().state_dict().items()}
        state.update({key.replace("__", "."): value for key, value in changes.items()})
        return {key: value for key, value in state.items() if value is not None}

    def test_fits(self) -> None:
        module = self.module()
        load_strict(module, self.state(), "model.safetensors")
        assert module[0].weight.tolist() == [[5, 5]] * 3  # type: ignore[union-attr]
        assert module[1].running_mean.tolist() == [5, 5, 5]  # type: ignore[union-attr]

    def test_half_precision_becomes_the_modules_own(self) -> None:
        module = self.module()
        load_strict(module, self.state(**{"0__weight": torch.full((3, 2), 0.5, dtype=torch.float16)}), "w")
        assert module[0].weight.dtype == torch.float32
        assert module[0].weight.tolist() == [[0.5, 0.5]] * 3  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            pytest.param({"0__bias": None}, "1 missing, first 0.bias", id="missing"),
            pytest.param({"0__bias": None, "1__bias": None}, "2 missing, first 0.bias", id="two missing"),
            pytest.param({"2__bias": torch.ones(1)}, "1 unknown, first 2.bias", id="unknown"),
            pytest.param(
                {"0__weight": torch.ones(3, 4)},
                r"1 with another shape, first 0.weight \(3, 4\) in the file, \(3, 2\) in the model",
                id="shape",
            ),
            pytest.param(
                {"0__bias": None, "9": torch.ones(1)}, "1 missing, first 0.bias; 1 unknown, first 9", id="both"
            ),
        ],
    )
    def test_errors(self, changes: dict[str, Any], words: str) -> None:
        module = self.module()
        state = self.state(**changes)
        with pytest.raises(WeightsError, match=words) as raised:
            load_strict(module, state, "tiny/model.safetensors")
        assert f"tiny/model.safetensors does not fit the model ({len(state)} tensors in the file, 7" in str(
            raised.value
        )
        # Nothing was copied before the check.
        assert module[0].weight.tolist() == [[-1, -1]] * 3  # type: ignore[union-attr]


def test_file_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


def test_file_sha256_reads_past_the_first_piece(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(3 << 20))
    (tmp_path / "longer").write_bytes(bytes((3 << 20) + 1))
    assert file_sha256(tmp_path / "long") != file_sha256(tmp_path / "longer")
