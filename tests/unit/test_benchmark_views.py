"""The benchmark of the view generator: what it scores, and that views of one object agree better than mixed ones."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.views import agreement, answers, drawn
from lrm.tiny import TinyLRM
from multiview.tinyviews import TinyViewsConfig, TinyViewsNetwork
from trilift.registry import EMBEDDED

SMALL = TinyViewsConfig(channels=(8, 16, 16), head_width=8, embedding=16)


def row(shade: float = 0.7) -> dict[str, torch.Tensor]:
    """A grey square from everywhere."""
    photo, rings, sketches = torch.zeros(4, 96, 96), torch.zeros(6, 4, 64, 64), torch.zeros(6, 5, 64, 64)
    photo[:3, 16:80, 16:80], photo[3, 16:80, 16:80] = shade, 1
    rings[:, :3, 20:44, 20:44], rings[:, 3, 20:44, 20:44] = shade, 1
    sketches[:, :3, 20:44, 20:44], sketches[:, 3, 20:44, 20:44] = shade, 1
    return {"photo": photo, "rings": rings, "sketches": sketches, "camera": torch.tensor([0.5, 0.0])}


def test_an_untrained_network_answers_with_the_sketch_and_draws_from_its_seed() -> None:
    network = TinyViewsNetwork(SMALL).eval()
    with torch.no_grad():
        found = answers(network, row(), 3, 2)
        again, other = drawn(network, row(), 3, 2), drawn(network, row(), 4, 2)
    assert torch.allclose(found["mean"], found["sketch"], atol=1e-5)
    assert torch.equal(found["drawn"], again) and not torch.equal(again, other)


def test_views_of_the_lifted_object_agree_with_it_better_than_another_objects() -> None:
    model = TinyLRM.from_folder(EMBEDDED / "tiny")
    with torch.no_grad():
        same = agreement(model, row(), row()["rings"])
        wrong = row()["rings"].flip(-1).roll((20, 14), (2, 3))
        off = agreement(model, row(), torch.where(torch.arange(6)[:, None, None, None] % 2 == 0, wrong, row()["rings"]))
    assert math.isfinite(same) and same > off + 0.5


def test_an_empty_view_is_left_out_of_the_lift() -> None:
    model, rings = TinyLRM.from_folder(EMBEDDED / "tiny"), row()["rings"].clone()
    rings[2] = 0
    with torch.no_grad():
        assert agreement(model, row(), rings) == pytest.approx(agreement(model, row(), row()["rings"]), abs=4)
