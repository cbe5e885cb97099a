"""Packed data in parts, and the split of a category."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.category import paired, split_category
from multiview.errors import SettingsError
from train.batches import PackedData
from train.subset import main, subset


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    shapes = {
        "views": (2, 4, 4, 7),
        "cameras": (2, 6),
        "points": (8, 3),
        "inside": (8,),
        "surface": (4, 3),
        "colors": (4, 3),
    }
    for name, shape in shapes.items():
        rows = np.arange(40).reshape(40, *(1 for _ in shape)) * np.ones(shape)
        np.save(folder / f"{name}.npy", rows.astype(np.float32 if name == "cameras" else np.uint8))
    names = [f"thing-{row:02d}" for row in range(40)]
    (folder / "objects.json").write_text(json.dumps({"settings": {"views": 2}, "names": names}))
    return folder


@pytest.mark.parametrize("without", [False, True])
def test_a_subset_holds_the_rows_of_its_names_in_their_order(packed: Path, tmp_path: Path, without: bool) -> None:
    wanted = ["thing-31", "thing-02", "thing-17"]
    kept = subset(packed, tmp_path / "part", wanted, without=without)
    rows = [row for row in range(40) if (row in (2, 17, 31)) != without]
    assert kept == [f"thing-{row:02d}" for row in rows]
    part = PackedData(tmp_path / "part")
    assert len(part) == len(rows)
    for array in part.arrays.values():
        assert [int(array[i].flat[-1]) for i in range(len(rows))] == rows
    assert json.loads((tmp_path / "part" / "objects.json").read_text())["settings"] == {"views": 2}


def test_names_that_are_not_there_and_taken_folders_are_errors(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds 40 objects, but not chair, sofa"):
        subset(packed, tmp_path / "part", ["thing-01", "sofa", "chair"])
    with pytest.raises(SettingsError, match="none of its 40 objects"):
        subset(packed, tmp_path / "part", [f"thing-{row:02d}" for row in range(40)], without=True)
    subset(packed, tmp_path / "part", ["thing-01"])
    with pytest.raises(SettingsError, match="holds packed data already"):
        subset(packed, tmp_path / "part", ["thing-02"])


def test_the_command_reads_a_list(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("thing-03\nthing-05\n")
    assert main([str(packed), "-o", str(tmp_path / "part"), "--names", str(tmp_path / "names.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == 2
    with pytest.raises(SettingsError, match="cannot be read as a list"):
        main([str(packed), "-o", str(tmp_path / "other"), "--names", str(tmp_path / "missing.txt")])


def test_a_category_is_split_without_overlap_and_the_same_way_each_time(tmp_path: Path) -> None:
    rows = [f"tree-{i},tree,train" for i in range(60)] + ["rock,rock,val", "tree-x,tree,val", "house,house,train"]
    (tmp_path / "m.csv").write_text("\n".join(["id,category,split", *rows]))
    split = split_category(tmp_path / "m.csv", "tree", 20)
    assert len(split["tune"]) == 20 and len(split["test"]) == 40 and not set(split["tune"]) & set(split["test"])
    assert split["others"] == ["rock"]
    assert split == split_category(tmp_path / "m.csv", "tree", 20)
    with pytest.raises(SettingsError, match="tree has 60 objects"):
        split_category(tmp_path / "m.csv", "tree", 30)


def test_paired_differences_by_hand() -> None:
    found = paired({"a": 0.2, "b": 0.4, "c": 0.9}, {"a": 0.3, "b": 0.5, "d": 0.1})
    assert found["objects"] == 2
    assert (found["before"], found["after"], found["gain"]) == (0.3, 0.4, 0.1)
    assert found["interval_95"] == [0.1, 0.1]
