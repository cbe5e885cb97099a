"""``python -m benchmarks``: its parts, its arithmetic and its charts, on small sizes; no times are asserted."""

from __future__ import annotations

import json
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

MACHINE = Machine(fp32=1e11, bf16=4e11, copied=1e10, cpus=2, threads=1, torch="2", python="3.11")


def test_floors_are_operations_and_bytes_at_the_machines_rates() -> None:
    assert MACHINE.floor_seconds(flop=2e11) == 2.0
    assert MACHINE.floor_seconds(flop=2e11, dtype="bf16") == 0.5
    assert MACHINE.floor_seconds(bytes_moved=5e9) == 0.5
    # A product of (3, 5) and (5, 7) is 3 * 5 * 7 multiplications with their additions.
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert counted_flop(lambda: a @ b) == 210


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
    assert "expected parts of lift, extraction, networks" in capsys.readouterr().err
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
