"""``python -m benchmarks``: its parts, its arithmetic and its charts, on small sizes; no times are asserted."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as front
from benchmarks import everything, extraction
from benchmarks.everything import PARTS, counted_flop, ratios, spread
from benchmarks.machine import Machine
from benchmarks.memory import working_bytes
from benchmarks.plot import chart, page
from lrm.field import FunctionField
from multiview.attention import attend

MACHINE = Machine(fp32=1e11, bf16=4e11, copied=1e10, cpus=2, threads=1, torch="2", python="3.11")


def test_floors_are_operations_and_bytes_at_the_machines_rates() -> None:
    assert MACHINE.floor_seconds(flop=2e11) == 2.0
    assert MACHINE.floor_seconds(flop=2e11, dtype="bf16") == 0.5
    assert MACHINE.floor_seconds(bytes_moved=5e9) == 0.5
    # A product of (3, 5) and (5, 7) is 3 * 5 * 7 multiplications with their additions.
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert counted_flop(lambda: a @ b) == 210
    # Attention of 6 queries to 8 keys in 2 heads of 4 numbers: scores and answers, 2 * 6 * 8 * 4 of each a head.
    query, key = torch.ones(1, 2, 6, 4), torch.ones(1, 2, 8, 4)
    assert counted_flop(lambda: attend(query, key, key)) == 2 * 2 * (2 * 6 * 8 * 4)


def test_ratios_are_of_the_same_turn() -> None:
    ours, plain = [{"wall": 1.0}, {"wall": 10.0}], [{"wall": 8.0}, {"wall": 20.0}]
    # 8 and 2; the machine was slower in the second turn. Of all turns mixed it would be 0.8 to 20.
    assert ratios(ours, plain, "wall") == {"median": 5.0, "low": 2.0, "high": 8.0, "runs": 2}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "runs": 3}
    order: list[str] = []

    def told(name: str) -> dict[str, str]:
        order.append(name)
        return {}

    everything.taking_turns(lambda: told("ours"), lambda: told("plain"), 2)
    assert order == ["ours", "plain", "ours", "plain"]


def test_what_a_network_keeps_is_counted() -> None:
    class Two(torch.nn.Module):
        config = None

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 100, bias=False), torch.nn.Linear(100, 8, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layers(x)
            return y

    # Beside the weights and the input of 10 x 8: 10 x 100 numbers, then 10 x 8 more, of 4 bytes.
    assert working_bytes(Two, lambda config: (torch.zeros(10, 8),)) == 4 * (1000 + 80)


def test_one_part_of_the_quick_run_has_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ball of radius 0.6, by a product of matrices that can be counted.
    field = FunctionField(lambda p: 10 * torch.exp(7.2 - 20 * (p.square() @ torch.ones(3, 1))[:, 0]), lambda p: p.abs())
    for module in (everything, extraction):
        monkeypatch.setattr(module, "teapot_field", lambda: field)
    status = front.main(["--quick", "--only", "extraction", "--repeats", "2", "--json", str(tmp_path / "all.json")])
    found = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert status == 0 and "plain takes" in capsys.readouterr().out
    assert found["quick"] and found["repeats"] == 2 and set(found) == {"machine", "quick", "repeats", "extraction"}
    part = found["extraction"]
    assert {"ours", "plain", "ratio_wall", "ratio_cpu", "floor", "evaluations", "vertex_distance"} <= set(part)
    assert part["ratio_wall"]["runs"] == part["ours"]["wall"]["runs"] == 2
    assert part["floor"] > 0 and part["vertex_distance"]["max"] < 0.01 and found["machine"]["copied"] > 0


def test_unknown_names_and_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["nothing"]) == 2 and "all," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        everything.main(["--only", "lifts"])
    assert "expected parts of lift, extraction, triposr, networks" in capsys.readouterr().err
    assert set(PARTS) == set(everything._TABLES)


def test_charts_are_pictures_with_a_point_for_each_figure(tmp_path: Path) -> None:
    figure = chart("cost & growth", "samples", {"ours": [(128, 0.5), (256, 2.0)], "dense": [(64, 1.0)]})
    root = ET.fromstring(page([figure, figure, figure]))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{space}circle")) == 9 and root.get("height") == "600"
    assert "cost & growth" in [text.text for text in root.iter(f"{space}text")]
    # On logarithmic axes 128 lies halfway between 64 and 256.
    circles = [float(c.get("cx", "nan")) for c in ET.fromstring(page([figure])).iter(f"{space}circle")]
    assert circles[0] - circles[2] == pytest.approx(circles[1] - circles[0], abs=0.2)
    grown = {name: [[1, 0.1], [2, 0.2]] for name in ("resolution", "resolution_dense", "faces", "views", "batch")}
    everything.write_plot(tmp_path / "growth.svg", grown)
    assert len(ET.parse(tmp_path / "growth.svg").getroot().findall(f".//{space}polyline")) == 5


def test_every_command_that_the_readme_names_is_there() -> None:
    text = (Path(front.__file__).parents[1] / "README.md").read_text("utf-8")
    named = re.findall(r"python -m benchmarks(?: ([a-z]+))?(?: --only ([a-z,]+))?", text)
    assert len(named) >= 5
    for name, parts in named:
        assert not name or name in front.names()
        assert not parts or set(parts.split(",")) <= set(PARTS)


def test_tables_say_what_was_measured() -> None:
    stages = [{"stage": name, "wall": 1.5, "cpu": 2.0, "peak_mib": 900.0, "anonymous_mib": 700.0} for name in "ab"]
    stages.append({"stage": "decoder", "wall": 6.0, "cpu": 9.0, "peak_mib": 1500.0, "anonymous_mib": 1300.0})
    ours = everything._whole_lift({"stages": stages, "tflop": 3.0, "tflop_per_s": 0.75})
    assert (ours["wall"], ours["cpu"], ours["network"], ours["floor"], ours["own_mib"]) == (9.0, 13.0, 6.0, 4.0, 1300.0)
    part = {
        "bf16": [ours, ours], "fp32": {**ours, "wall": 20.0}, "plain": {**ours, "wall": 36.0},
        "ratio_wall": spread([4.0, 4.0]), "ratio_cpu": spread([1.0, 1.0]), "network_over_floor": spread([1.5, 1.5]),
    }  # fmt: skip
    told = everything._triposr_table(part)
    assert "bf16 network 1.5 (1.5 to 1.5) times its floor of 4.00 s" in told and "decoder 6.00" in told
    assert [line.split()[:2] for line in told.split("\n")[1:5]] == [
        ["bf16", "9.00"], ["bf16", "9.00"], ["fp32", "20.00"], ["plain", "36.00"],
    ]  # fmt: skip
    alone = [{"resolution": n, "wall": 0.5, "peak_mib": 300.0} for n in (128, 256)]
    grown = {"batch": [[1, 0.25]], "extraction": {"alone": alone, "exponents": {"wall": 1.4}}}
    told = everything._growth_table(grown)
    assert "1: 0.25 s" in told and "128: 0.50 s, 300 MiB  256: 0.50 s, 300 MiB; samples to the power 1.40" in told
    over = {"done": 4, "folder_run_s": 8.0, "over_network_and_meshing": 1.25, "over_bare_lifts": 0.9}
    told = everything._folder_table({"overlap": over, "workers": {"ratio": 1.875, "photos_per_s_by_two": 0.5}})
    assert "4 photos 8.0 s, 1.25 times network and meshing" in told and "1.88 times as many photos as one" in told
