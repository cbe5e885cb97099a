"""The table of known weights, and how a name or a folder becomes weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from multiview.errors import WeightsError
from trilift import registry
from trilift.registry import WEIGHT_SETS, Source, find, models, resolve


def test_names_are_unique_and_complete():
    names = [row.name for row in WEIGHT_SETS]
    assert len(set(names)) == len(names)
    sizes = [f"openlrm-{data}-{size}" for data in ("obj", "mix") for size in ("small", "base", "large")]
    published = ["triposr", *sizes, "instantmesh-base", "instantmesh-large"]
    views = [
        "zero123-105000", "zero123-165000", "zero123-xl", "stable-zero123", "stable-zero123-c", "syncdreamer",
        "zero123plus-v1.1", "zero123plus-v1.2", "zero123plus-v1.2-instantmesh",
    ]  # fmt: skip
    own = {row.name for row in WEIGHT_SETS if row.repository is None}
    assert [name for name in registry.ready_names() if name not in own] == published + views
    assert "tiny" in own


@pytest.mark.parametrize("row", WEIGHT_SETS, ids=lambda row: row.name)
def test_facts_of_a_row_go_together(row):
    assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
    assert row.size_bytes is None or row.size_bytes > 1_000_000
    assert (row.needs_views == 0) == (row.stage == "views")
    assert row.licence and row.commercial in ("yes", "no", "conditions", "unknown")
    assert row.revision is None or re.fullmatch("[0-9a-f]{40}", row.revision)
    if row.status == "ready":
        assert row.memory_bytes and (row.file or row.family == "zero123plus")
    if row.stage == "reconstruction":
        # Training checkpoints of generators hold several times what is used.
        assert row.memory_bytes and row.memory_bytes > (row.size_bytes or 0)
    if "NC" in row.licence or "Non-Commercial" in row.licence:
        assert row.commercial == "no"


def test_openlrm_sizes_are_four_bytes_a_parameter():
    """Parameter counts as published: 111,390,948 and 260,201,972 and 452,138,004."""
    assert find("openlrm-obj-small").size_bytes == 4 * 111_390_948
    assert find("openlrm-mix-base").size_bytes == 4 * 260_201_972
    assert find("openlrm-mix-large").size_bytes == 4 * 452_138_004
    assert find("openlrm-mix-large").repository == "zxhezexin/openlrm-mix-large-1.1"


def test_licences_and_pose_rules_of_the_generators():
    """As their publishers state them; what a set was trained with is in no file of theirs."""
    said = {
        name: (row.commercial, row.options.get("pose_rule"))
        for name, row in ((row.name, row) for row in WEIGHT_SETS)
        if row.family == "zero123"
    }
    assert said == {
        "zero123-105000": ("yes", "distance"), "zero123-165000": ("yes", "distance"), "zero123-xl": ("yes", "distance"),
        "stable-zero123": ("no", "polar"), "stable-zero123-c": ("conditions", "polar"),
    }  # fmt: skip
    assert find("zero123-165000").repository == "cvlab/zero123-weights" and find("zero123-xl").licence == "MIT"
    assert find("syncdreamer").commercial == "unknown" and find("syncdreamer").repository == "camenduru/SyncDreamer"
    assert [find(f"zero123plus-v{v}").commercial for v in ("1.1", "1.2", "1.2-instantmesh")] == ["no"] * 3
    assert find("zero123plus-v1.2-instantmesh").options == {"version": "1.2", "unet": "instantmesh"}


def test_instantmeshs_unet_is_the_one_that_the_loader_takes():
    from multiview.zero123plusweights import INSTANTMESH_BASE, INSTANTMESH_UNET

    row = find("zero123plus-v1.2-instantmesh")
    assert (row.repository, row.file, row.sha256) == INSTANTMESH_UNET
    assert find("zero123plus-v1.2").repository == INSTANTMESH_BASE


def test_planned_weights_say_so(monkeypatch):
    row = replace(find("triposr"), status="planned")
    monkeypatch.setattr(registry, "WEIGHT_SETS", (find("tiny"), row))
    with pytest.raises(WeightsError, match=r"triposr: planned, not yet available.*Ready today: tiny"):
        resolve("triposr")


def test_a_path_can_be_said_to_hold_known_weights(tmp_path):
    file = tmp_path / "x=y.ckpt"
    file.write_bytes(b"x")
    row = find("stable-zero123")
    assert resolve(f"stable-zero123={file}") == Source("stable-zero123", file, None, row)
    assert resolve(str(file)) == Source("x=y", file)
    with pytest.raises(WeightsError, match=r"triposr=gone: there is no folder or file gone"):
        resolve("triposr=gone")


def test_unknown_name_gets_the_nearest_known_ones():
    with pytest.raises(WeightsError, match=r"'TripoSR-large' is not a known model.*Did you mean .*triposr"):
        resolve("TripoSR-large")
    with pytest.raises(WeightsError, match=r"'tyni' is not a known model.*Did you mean tiny"):
        resolve("tyni")


def test_unknown_name_without_likeness_gets_no_guess():
    with pytest.raises(WeightsError) as caught:
        resolve("zzzzqqqq")
    assert "Did you mean" not in str(caught.value)
    assert "Ready today: tiny" in str(caught.value)


def test_a_folder_and_a_file_are_themselves(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == Source(tmp_path.name, tmp_path)
    file = tmp_path / "mine.ckpt"
    file.write_bytes(b"x")
    assert resolve(str(file)) == Source("mine", file)


@pytest.mark.parametrize("name", ["nowhere/there/x", "./nowhere", "model.ckpt"])
def test_a_missing_path_is_named(name):
    with pytest.raises(WeightsError, match=rf"{Path(name)}: there is no such folder or file"):
        resolve(name)


def test_a_known_name_on_the_hub_and_any_other_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = find("openlrm-mix-base")
    assert resolve("openlrm-mix-base") == Source(row.name, None, "zxhezexin/openlrm-mix-base-1.1", row)
    assert resolve("zxhezexin/openlrm-mix-base-1.1") == resolve("openlrm-mix-base")
    assert resolve("someone/her-model") == Source("her-model", None, "someone/her-model")
    (tmp_path / "someone/her-model").mkdir(parents=True)
    assert resolve("someone/her-model").path == Path("someone/her-model")


def test_a_repository_of_several_models_asks_for_one():
    with pytest.raises(WeightsError, match=r"holds several models\. Name one: instantmesh-base, instantmesh-large"):
        resolve("TencentARC/InstantMesh")


def test_a_file_is_known_by_its_sum():
    row = find("triposr")
    assert registry.find_sha256(str(row.sha256)) == row
    assert registry.find_sha256("0" * 64) is None


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """An installation whose embedded weights are 5 bytes."""
    monkeypatch.setattr(registry, "EMBEDDED", tmp_path)
    file = tmp_path / "tiny" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"12345")
    return file


def test_a_known_name_wins_over_a_folder_of_that_name(embedded, tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "tiny").mkdir(parents=True)
    monkeypatch.chdir(work)
    assert resolve("tiny") == Source("tiny", embedded.parent, None, find("tiny"))
    assert resolve("./tiny") == Source("tiny", Path("tiny"))


def test_missing_embedded_weights_are_an_error(embedded):
    embedded.unlink()
    with pytest.raises(WeightsError, match=r"tiny: its weights .*model\.safetensors are not in this installation"):
        resolve("tiny")


def test_models_says_what_is_here(embedded):
    rows = {info.weights.name: info for info in models()}
    assert rows["tiny"].here and rows["tiny"].path == embedded
    assert not rows["zero123-xl"].here
    assert json.loads(json.dumps(rows["tiny"].as_json()))["here"] is True
    embedded.unlink()
    assert not models()[0].here


def test_models_finds_what_the_hub_cache_holds(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def cached(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(tmp_path / file) if repository == "stabilityai/TripoSR" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    rows = {info.weights.name: info for info in models()}
    assert rows["triposr"].path == tmp_path / "model.ckpt"
    assert not rows["openlrm-obj-small"].here
    assert ("stabilityai/TripoSR", "model.ckpt", find("triposr").revision) in asked


def cache(monkeypatch, files):
    """Let the hub's cache hold {repository: files} and nothing else."""
    import huggingface_hub

    def cached(repository, file, revision=None):
        return f"/cache/{repository}/{file}" if file in files.get(repository, ()) else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return {info.weights.name: info.path for info in models() if info.path is not None and info.weights.repository}


def test_models_sees_older_forms_too(monkeypatch):
    here = cache(monkeypatch, {"zxhezexin/openlrm-mix-base-1.1": ["pytorch_model.bin"]})
    assert here == {"openlrm-mix-base": Path("/cache/zxhezexin/openlrm-mix-base-1.1/pytorch_model.bin")}
    # TripoSR's sum is known: another file is not it.
    assert cache(monkeypatch, {"stabilityai/TripoSR": ["pytorch_model.bin"]}) == {}


def test_zero123plus_is_here_when_every_part_is(monkeypatch):
    parts = [
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
        "vision_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
    ]  # fmt: skip
    base = "sudo-ai/zero123plus-v1.2"
    assert cache(monkeypatch, {base: parts}) == {"zero123plus-v1.2": Path(f"/cache/{base}/{parts[0]}")}
    assert cache(monkeypatch, {base: parts[1:]}) == {}
    own = {"TencentARC/InstantMesh": ["diffusion_pytorch_model.bin"]}
    assert list(cache(monkeypatch, {base: parts[1:], **own})) == ["zero123plus-v1.2-instantmesh"]
    assert cache(monkeypatch, {base: parts[1:3], **own}) == {}


def test_embedded_weights_have_the_hash_of_the_table():
    from multiview.weights import file_sha256

    row = find("tiny")
    path = row.embedded_folder / registry.WEIGHTS_FILE
    assert row.sha256 == file_sha256(path), "the embedded weights changed: put their hash and size into registry.py"
    assert row.size_bytes == path.stat().st_size
