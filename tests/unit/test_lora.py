"""Adapters: at first they change nothing, merged they change the same, and on disk they have peft's names."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lrm.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    load_adapter,
    merge_lora,
    read_adapter_config,
    save_adapter,
)
from lrm.triposr import TripoSRNetwork
from multiview.errors import SettingsError, WeightsError
from tests.published import SMALL, published_folder
from train.tiny import freeze
from train.trainer import frozen_parts

TARGETS = LoraConfig(rank=2, alpha=6.0, targets=("query", "out"))


def network(seed: int = 0) -> TripoSRNetwork:
    torch.manual_seed(seed)
    return TripoSRNetwork(SMALL["triposr"]).eval()


def with_weights(seed: int = 1) -> TripoSRNetwork:
    """A network whose adapters are no longer zero."""
    made = network()
    add_lora(made, TARGETS)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return made


def test_the_formula_by_hand() -> None:
    layer = LoraLinear(nn.Linear(2, 1), rank=1, alpha=3.0)
    with torch.no_grad():
        layer.base.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.base.bias.zero_()
        layer.lora_A.weight.copy_(torch.tensor([[10.0, 0.0]]))
        layer.lora_B.weight.copy_(torch.tensor([[0.5]]))
    # 1 * 4 + 2 * 5, and 3 / 1 * 0.5 * 10 * 4.
    assert layer(torch.tensor([[4.0, 5.0]])).item() == pytest.approx(14 + 60)
    assert layer.merged().weight.tolist() == [[16.0, 2.0]]


def test_new_adapters_change_nothing_and_train_alone() -> None:
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    made = network()
    with torch.no_grad():
        before = made(images)
    chosen = add_lora(made, TARGETS)
    # Of each of 2 blocks both attentions, of each of 3 encoder blocks one: query and out.
    assert len(chosen) == 2 * (2 * 2 + 3)
    with torch.no_grad():
        assert torch.equal(made(images), before)
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(chosen)
    assert all("lora_A" in name or "lora_B" in name for name in trained)


def test_merged_gives_the_same_planes_under_the_plain_names() -> None:
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    made = with_weights()
    with torch.no_grad():
        adapted = made(images)
        merge_lora(made)
        assert (made(images) - adapted).abs().max() < 1e-4 * adapted.abs().max()
    assert made.state_dict().keys() == network().state_dict().keys()


def test_on_disk_with_pefts_names_and_back(tmp_path: Path) -> None:
    made = with_weights()
    save_adapter(tmp_path, made, TARGETS, "triposr")
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", 2, 6.0)
    assert (said["target_modules"], said["base_model_name_or_path"]) == (["query", "out"], "triposr")
    assert "base_model.model.blocks.0.attend_self.query.lora_A.weight" in load_file(
        tmp_path / "adapter_model.safetensors"
    )
    again = network()
    load_adapter(again, tmp_path)
    a, b = made.state_dict(), again.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"lora.targets=\['q_proj'\].*attend|There are .*query"):
        add_lora(network(), LoraConfig(targets=("q_proj",)))
    with pytest.raises(SettingsError, match="expected at least 1"):
        add_lora(network(), LoraConfig(rank=0, targets=("query",)))
    save_adapter(tmp_path, with_weights(), TARGETS, "triposr")
    state = load_file(tmp_path / "adapter_model.safetensors")
    state.pop("base_model.model.blocks.1.attend_self.query.lora_B.weight")
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"1 of 28 tensors do not fit.*blocks\.1.*trained on triposr"):
        load_adapter(network(), tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**said, "peft_type": "IA3"}))
    with pytest.raises(WeightsError, match="of kind LORA, found 'IA3'"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="expected peft's adapter_config"):
        read_adapter_config(tmp_path)


def test_frozen_parts_are_named_by_their_largest_part() -> None:
    made = network()
    freeze(made, ["vit", "blocks.0.mlp", "tokens"])
    assert frozen_parts(made) == ["tokens", "vit", "blocks.0.mlp"]
    with pytest.raises(SettingsError, match=r"no part 'vitt'. There are vit, norm"):
        freeze(made, ["vitt"])


def test_an_adapter_folder_is_lifted_with_by_its_name(tmp_path: Path) -> None:
    """`--model run/adapter`: the base that its config names, with the adapter in it, and both in the record."""
    from trilift.pipeline import ImageTo3D

    base = published_folder(tmp_path / "base", "triposr")
    plain = ImageTo3D.from_pretrained(base, device="cpu", dtype="fp32")
    adapted: Any = ImageTo3D.from_pretrained(base, device="cpu", dtype="fp32").model
    adapted.network = copy.deepcopy(adapted.network)
    add_lora(adapted.network, TARGETS)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.network.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    save_adapter(tmp_path / "mine", adapted.network, TARGETS, str(base))
    loaded: Any = ImageTo3D.from_pretrained(tmp_path / "mine", device="cpu", dtype="fp32")
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        merge_lora(adapted.network)
        wanted, found, before = (m.network(images) for m in (adapted, loaded.model, plain.model))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (before - wanted).abs().max() > 1e-3 * wanted.abs().max()
    assert loaded.weights.name == f"{plain.weights.name}+mine" and loaded.weights.sha256 != plain.weights.sha256
    assert loaded.weights.licence == plain.weights.licence
