"""Key tables: names renamed, parted and dropped, and back again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multiview.checkpoint import Dropped, fill_network
from multiview.errors import WeightsError
from multiview.keymap import KeyTable, sequential_renames

TABLE = KeyTable(
    prefix="outer.",
    renames=(
        ("layer.*.part.*.dense", "blocks.*.mlp.*"),
        ("layer.*.old", "blocks.*.norm"),
        ("layer.*.new", "blocks.*.norm"),
        ("layer.*.in_proj_weight", ("blocks.*.query.weight", "blocks.*.key.weight", "blocks.*.value.weight")),
        *sequential_renames("net", "steps", 3),
    ),
    dropped={"pooler": "never read", "**camera**": "of training"},
)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("layer.3.part.12.dense.weight", "blocks.3.mlp.12.weight"),
        ("outer.layer.3.part.12.dense.bias", "blocks.3.mlp.12.bias"),
        ("layer.0.old.weight", "blocks.0.norm.weight"),
        ("layer.0.new.weight", "blocks.0.norm.weight"),
        ("net.4.bias", "steps.2.bias"),
        ("layer.1.in_proj_weight", "blocks.1.query.weight"),
        ("layer.1.in_proj_weight[2]", "blocks.1.value.weight"),
        ("net.3.bias", None),
        ("layer.x.old.weight", None),
        ("layer.0.old.weight_g", None),
        ("layer.1.in_proj_weight[3]", None),
        ("layer.0.old.weight[1]", None),
        ("a.layer.0.old.weight", None),
    ],
)
def test_names_become_ours_or_are_not_known(published: str, ours: str | None) -> None:
    assert TABLE(published) == ours


@pytest.mark.parametrize(("key", "reason"), [("outer.pooler.bias", "never read"), ("a.camera_b", "of training")])
def test_dropped_names_come_with_their_reason(key: str, reason: str) -> None:
    assert TABLE(key) == Dropped(reason)


def test_our_names_lead_back_to_the_first_published_ones() -> None:
    assert TABLE.published("blocks.7.norm.weight") == "outer.layer.7.old.weight"
    assert TABLE.published("blocks.7.value.weight") == "outer.layer.7.in_proj_weight"
    assert TABLE.published("steps.1.bias") == "outer.net.2.bias"
    assert TABLE.published("elsewhere") == "elsewhere"


def test_parts_are_rows_in_order_and_views() -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    parted = TABLE.part({"outer.layer.0.in_proj_weight": whole, "net.0.bias": whole})
    first = "outer.layer.0.in_proj_weight"
    assert list(parted) == [first, f"{first}[1]", f"{first}[2]", "net.0.bias"]
    assert parted[f"{first}[1]"].tolist() == [[4, 5], [6, 7]]
    assert parted[f"{first}[2]"].data_ptr() == whole[4:].data_ptr()
    assert parted["net.0.bias"] is whole


def test_rows_that_cannot_be_parted_are_found_wrong_at_loading() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(2, 2, bias=False) for _ in range(3))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block()])

    state = TABLE.part({"layer.0.in_proj_weight": torch.zeros(7, 2)})
    with pytest.raises(WeightsError, match=r"file\.bin.*3 of another shape.*in_proj_weight.*\(7, 2\).*\(2, 2\)"):
        fill_network(Network, state, "file.bin", key_map=TABLE)
    good = TABLE.part({"layer.0.in_proj_weight": torch.eye(2).repeat(3, 1)})
    assert fill_network(Network, good, "file.bin", key_map=TABLE).blocks[0].key.weight.tolist() == [[1, 0], [0, 1]]
