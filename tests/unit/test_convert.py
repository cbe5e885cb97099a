"""``trilift convert``: published weights become our own folder, with where they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multiview.errors import SettingsError, WeightsError
from multiview.weights import file_sha256, read_safetensors
from tests.published import FILES, SMALL, published_folder, published_state, save_published
from tests.small_generators import SMALL as SMALL_GENERATORS
from tests.small_generators import make_small
from trilift import ImageTo3D, cli, registry
from trilift.convert import convert
from trilift.generators import load_generator


@pytest.mark.parametrize("family", list(SMALL))
def test_every_family_comes_back_with_the_same_numbers(family: str, tmp_path: Path) -> None:
    source = published_folder(tmp_path / "src", family)
    record = convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["format"], config["architecture"]) == (1, family)
    sha256 = file_sha256(source / FILES[family])
    assert config["source"] == {"repository": None, "revision": None, "file": FILES[family], "sha256": sha256}
    assert record.sha256 == file_sha256(tmp_path / "out" / "model.safetensors")
    before, after = (ImageTo3D.from_pretrained(p, dtype="fp32", device="cpu").model for p in (source, tmp_path / "out"))
    assert after.network.config == before.network.config == SMALL[family]
    found = after.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in before.network.state_dict().items())


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_smaller_numbers_for_the_matrices_alone(dtype: str, stored: torch.dtype, tmp_path: Path) -> None:
    convert(published_folder(tmp_path / "src", "triposr"), tmp_path / "out", dtype=dtype)
    state = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert state["enter.weight"].dtype == stored
    assert {state[key].dtype for key in ("norm.weight", "tokens", "decoder.layers.0.weight")} == {torch.float32}
    network = ImageTo3D.from_pretrained(tmp_path / "out", dtype="fp32", device="cpu").model.network
    assert network.enter.weight.dtype == torch.float32
    assert torch.equal(network.enter.weight, state["enter.weight"].float())


def test_licence_and_origin_of_known_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published_folder(tmp_path / "src", "openlrm")
    sha256 = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(registry, "WEIGHT_SETS", (replace(registry.find("openlrm-obj-small"), sha256=sha256),))
    convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["name"], config["licence"], config["commercial"]) == ("openlrm-obj-small", "CC-BY-NC-4.0", "no")
    notes: list[str] = []
    record = ImageTo3D.from_pretrained(tmp_path / "out", dtype="fp32", device="cpu", on_note=notes.append).weights
    assert (record.licence, record.commercial) == ("CC-BY-NC-4.0", "no")
    assert notes == ["weights openlrm-obj-small: licence CC-BY-NC-4.0, not for commercial use"]


def test_the_embedded_model_converts_too(tmp_path: Path) -> None:
    convert("tiny", tmp_path / "out", dtype="fp16")
    pipe = ImageTo3D.from_pretrained(tmp_path / "out", device="cpu", commercial_ok=True)
    assert (pipe.weights.licence, pipe.weights.commercial) == ("Apache-2.0", "yes")


def test_numbers_too_large_for_fp16(tmp_path: Path) -> None:
    source = published_folder(tmp_path / "src", "triposr")
    state = published_state("triposr")
    state["backbone.proj_in.weight"][0, 0] = 1e6
    save_published(source / "model.ckpt", state)
    with pytest.raises(SettingsError, match=r"enter\.weight has a number of 1e\+06, .*fp16 ends at 65504.*bf16"):
        convert(source, tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out", dtype="bf16")


def test_a_folder_is_not_converted_onto_itself(tmp_path: Path) -> None:
    source = published_folder(tmp_path / "src", "openlrm")
    before = file_sha256(source / "model.safetensors")
    with pytest.raises(SettingsError, match="the weights come from there"):
        convert(source, tmp_path / "src" / ".")
    assert file_sha256(source / "model.safetensors") == before
    with pytest.raises(SettingsError, match="--dtype int8: expected fp32, bf16, fp16"):
        convert(source, tmp_path / "out", dtype="int8")


def test_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = published_folder(tmp_path / "src", "triposr")
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "out"), "--dtype", "bf16"]) == cli.OK
    told = capsys.readouterr()
    sha256 = file_sha256(tmp_path / "out" / "model.safetensors")
    assert told.err == f"src (triposr) written to {tmp_path / 'out'}, sha256 {sha256}\n" and told.out == ""
    (source / "model.ckpt").write_bytes(b"PK\x03\x04cut")
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "other")]) == cli.FAILED
    assert "not a whole torch checkpoint" in capsys.readouterr().err and not (tmp_path / "other").exists()
    assert cli.main(["convert", str(source), "-o", str(source)]) == cli.USAGE
    with pytest.raises(SystemExit):
        cli.main(["convert", str(source)])


def test_what_does_not_load_again_is_called_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrm.triposr import TripoSR

    source = published_folder(tmp_path / "src", "triposr")
    save = TripoSR.save

    def lossy(self: TripoSR, folder: Path, *args: object) -> None:
        save(self, folder, *args)  # type: ignore[arg-type]
        (folder / "model.safetensors").write_bytes(b"x")

    monkeypatch.setattr(TripoSR, "save", lossy)
    with pytest.raises(WeightsError, match=r"does not load again .*a bug of ours"):
        convert(source, tmp_path / "out")


# View generators


@pytest.mark.parametrize("name", list(SMALL_GENERATORS))
def test_a_generator_comes_back_with_the_same_numbers_and_says_its_origin(name: str, tmp_path: Path) -> None:
    source = make_small(name, tmp_path / "src", seed=2)
    record = convert(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["format"] == 1 and config["architecture"] == record.architecture
    before = load_generator(source, device="cpu")
    assert config["source"] == {"repository": None, "revision": None, "file": None, "sha256": before.weights.sha256}
    after = load_generator(tmp_path / "out", device="cpu")
    assert after.weights == record and after.weights.name == before.weights.name == "src"
    for a, b in zip(before.model.networks, after.model.networks, strict=True):  # type: ignore[attr-defined]
        found = b.state_dict()
        assert all(torch.equal(found[key], value) for key, value in a.state_dict().items())
    assert not list(tmp_path.rglob(".aside-*"))


def test_a_conversion_of_known_weights_keeps_pose_rule_licence_and_origin(tmp_path: Path) -> None:
    source = make_small("stable-zero123", tmp_path / "src")
    (source / "config.json").unlink()
    convert(f"stable-zero123={source}", tmp_path / "out", dtype="bf16")
    notes: list[str] = []
    loaded = load_generator(tmp_path / "out", device="cpu", on_note=notes.append)
    assert loaded.model.record["pose_rule"] == "polar"  # type: ignore[attr-defined]
    assert (loaded.weights.name, loaded.weights.commercial) == ("stable-zero123", "no")
    assert notes[0].startswith("weights stable-zero123: licence Stability AI Non-Commercial")
    with pytest.raises(SettingsError, match="--commercial-ok: stable-zero123"):
        load_generator(tmp_path / "out", commercial_ok=True)
    stored = read_safetensors(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    # Whoever converts again hands on what the first conversion said.
    again = convert(tmp_path / "out", tmp_path / "again", dtype="bf16")
    assert (again.name, again.licence, again.commercial) == (
        "stable-zero123", "Stability AI Non-Commercial Research Community", "no",
    )  # fmt: skip


def test_norms_of_syncdreamers_volumes_stay_fp32(tmp_path: Path) -> None:
    convert(make_small("syncdreamer", tmp_path / "src"), tmp_path / "out", dtype="fp16")
    stored = read_safetensors(tmp_path / "out" / "volume" / "model.safetensors")
    kinds = {key.split(".")[-2]: tensor.dtype for key, tensor in stored.items()}
    assert kinds["norm"] == torch.float32 and torch.float16 in kinds.values()


def test_generators_are_not_converted_onto_themselves_or_into_fp16_that_cannot_hold_them(tmp_path: Path) -> None:
    source = make_small("zero123", tmp_path / "src")
    with pytest.raises(SettingsError, match="the weights come from there"):
        convert(source, source)
    file = source / "cc_projection" / "diffusion_pytorch_model.safetensors"
    state = {key: tensor.clone() for key, tensor in read_safetensors(file).items()}
    state["bias"][0] = 1e6
    save_published(file, state)
    with pytest.raises(SettingsError, match=r"cc_projection\.bias has a number too large for it, fp16 ends at 65504"):
        convert(source, tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_a_generator_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_small("zero123plus", tmp_path / "src")
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "out")]) == cli.OK
    assert capsys.readouterr().err.startswith(f"src (zero123plus) written to {tmp_path / 'out'}, sha256 ")
    file = source / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "other")]) == cli.FAILED
    assert "not a whole safetensors file" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_small("zero123plus", tmp_path / "src")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multiview.zero123plusweights.save_folder", stopped)
    assert cli.main(["convert", str(source), "-o", str(tmp_path / "out")]) == cli.INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
