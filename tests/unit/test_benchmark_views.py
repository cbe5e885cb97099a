"""The benchmark of the view generator: what it scores, and that views of one object agree better than mixed ones."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.views import agreement, answers, blurs, drawn, harmonics, reuse_rows, reuse_table
from lrm.tiny import TinyLRM
from multiview.fastrun import RunOptions
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


def test_the_toy_objects_are_where_their_azimuth_says() -> None:
    quarter = torch.tensor([math.pi / 2])
    seen = blurs(quarter, 21)  # pixels 0.1 apart: x = 0.6 is column 16, y = 0 row 10
    assert seen.shape == (1, 4, 21, 21) and seen[0, 0].argmax().item() == 10 * 21 + 16
    assert seen[0, 0].amax().item() == pytest.approx(2.2, abs=1e-5)
    # The second is a quarter further: x = 0, y = -0.2.
    assert seen[0, 1].argmax().item() == 8 * 21 + 10
    by_hand = torch.tensor([1.0, 0, -1, 0, 0, -1, 0, 1])
    assert torch.allclose(harmonics(quarter)[0, 0], by_hand, atol=1e-6)


class Counter:
    """Answers with ones, a hundredth more for every step left out and a tenth for every one that reuses."""

    def __init__(self) -> None:
        self.schedulers: list[str] = []
        self.options = RunOptions()

    def set_scheduler(self, name: str) -> None:
        self.schedulers.append(name)

    def use_run_options(self, options: RunOptions) -> None:
        self.options = options

    def run(self, steps: int) -> torch.Tensor:
        sum(range(200_000))  # some CPU time, so that shares can be taken
        return torch.ones(4) * (1 + (50 - steps) / 100 + (self.options.reuse_steps - 1) / 10)


def test_reuse_is_measured_against_its_own_schedulers_fifty_steps() -> None:
    model = Counter()
    rows = reuse_rows(model, model.run)  # type: ignore[arg-type]
    assert model.schedulers == ["ddim", "dpm++", "unipc"] and model.options == RunOptions()
    off = {(r["steps"], r["reuse"]): round(r["off"], 5) for r in rows if r["scheduler"] == "unipc"}
    assert off == {
        (50, 1): 0.0, (50, 2): 0.1, (50, 3): 0.2, (25, 1): 0.25, (25, 2): 0.35, (20, 1): 0.3, (10, 1): 0.4,
    }  # fmt: skip
    assert rows[0]["share"] == 1.0 and "unipc" in reuse_table(rows) and len(reuse_table(rows).splitlines()) == 22
