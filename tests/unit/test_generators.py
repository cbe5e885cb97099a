"""View generators from whatever a user names: told apart cheaply, loaded strictly, fitted into memory, recorded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiview import hub
from multiview.errors import SettingsError, WeightsError
from multiview.hub import HubFile, NoSuchFileError
from multiview.ldm import checkpoint_keys
from multiview.networks import NetworkGenerator
from multiview.zero123 import Zero123
from multiview.zero123plus import Zero123Plus
from tests.parity.test_zero123plus import write_published
from tests.published import published_folder
from tests.small_generators import SMALL, build_small, make_small
from trilift import ImageTo3D, families, generators, registry
from trilift.generators import is_generator, load_generator

TITLES = {"zero123": "Zero123", "stable-zero123": "Zero123", "syncdreamer": "SyncDreamer", "zero123plus": "Zero123++"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small copy of each generator; tests that change one take a copy."""
    base = tmp_path_factory.mktemp("generators")
    return {name: make_small(name, base / name, seed=3) for name in SMALL}


def networks_of(model: Any) -> dict[str, Tensor]:
    """Every tensor of a generator's networks."""
    assert isinstance(model, NetworkGenerator)
    return {f"{i}.{key}": x for i, one in enumerate(model.networks) for key, x in one.state_dict().items()}


def state_file(path: Path, keys: dict[str, Tensor]) -> Path:
    """A checkpoint with a few tensors, as Lightning wraps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": keys}, path)
    return path


SYNC_KEYS = {
    "spatial_volume.target_encoder.init_conv.weight": torch.zeros(16, 4, 3, 3),
    "cc_projection.weight": torch.zeros(768, 772), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
}  # fmt: skip
ZERO_KEYS = {key: SYNC_KEYS[key] for key in list(SYNC_KEYS)[1:]}


# What is it?


@pytest.mark.parametrize("name", list(SMALL))
def test_a_small_copy_loads_and_says_what_it_is(name: str, folders: dict[str, Path]) -> None:
    assert is_generator(folders[name]) and is_generator(str(folders[name]))
    notes: list[str] = []
    loaded = load_generator(folders[name], device="cpu", on_note=notes.append)
    assert loaded.model.name == loaded.weights.name == name
    assert loaded.weights.architecture == {"stable-zero123": "zero123"}.get(name, name)
    assert loaded.dtype == torch.float32 and loaded.dtype_reason.startswith("auto")
    made = build_small(name, seed=3)
    found, expected = networks_of(loaded.model), networks_of(made)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert len(notes) == 1 and notes[0].startswith(f"weights {name}: licence ")
    rule = {"zero123": "distance", "stable-zero123": "polar"}.get(name)
    assert loaded.model.record.get("pose_rule") == rule  # type: ignore[attr-defined]


def test_names_of_the_table_are_told_without_reading_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "generator_at", lambda path: pytest.fail("looked at files"))
    for row in registry.WEIGHT_SETS:
        assert is_generator(row.name) == (row.stage == "views")
    assert is_generator("kxic/zero123-xl") and is_generator("sudo-ai/zero123plus-v1.1")
    assert not is_generator("stabilityai/TripoSR") and not is_generator("no-such-name")


def test_checkpoints_are_told_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    sync = state_file(tmp_path / "a.ckpt", SYNC_KEYS)
    zero = state_file(tmp_path / "b.ckpt", ZERO_KEYS)
    other = state_file(tmp_path / "c.ckpt", {"model.diffusion_model.out.2.weight": torch.zeros(1)})
    save_file(SYNC_KEYS, tmp_path / "d.safetensors")
    found = [families.generator_at(path) for path in (sync, zero, other, tmp_path / "d.safetensors")]
    assert [family and family.name for family in found] == ["syncdreamer", "zero123", None, "syncdreamer"]
    assert sorted(checkpoint_keys(sync)) == sorted(SYNC_KEYS)
    alone = state_file(tmp_path / "folder" / "syncdreamer-pretrain.ckpt", SYNC_KEYS).parent
    assert is_generator(alone) and not is_generator(tmp_path)
    (tmp_path / "e.ckpt").write_bytes(b"PK\x03\x04cut")
    assert not is_generator(tmp_path / "e.ckpt") and not is_generator(tmp_path / "nowhere")


def test_published_folders_are_told_by_their_index_or_their_parts(tmp_path: Path) -> None:
    plus = write_published(tmp_path / "plus")
    assert is_generator(plus)
    (plus / "model_index.json").unlink()
    assert is_generator(plus)
    shutil.rmtree(plus / "vision_encoder")
    assert not is_generator(plus)
    conversion = make_small("zero123", tmp_path / "conversion")
    (conversion / "config.json").unlink()
    found = families.generator_at(conversion)
    assert found is not None and found.name == "zero123"
    (conversion / "config.json").write_text("{cut")
    assert not is_generator(conversion)
    with pytest.raises(WeightsError, match=r"config\.json: not readable as JSON"):
        load_generator(conversion)


# The wrong kind


@pytest.mark.parametrize("name", list(SMALL))
def test_a_generator_is_no_reconstruction_model(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises(
        SettingsError, match=rf"is {re.escape(TITLES[name])}, which makes views .*--views.*instantmesh-base"
    ):
        ImageTo3D.from_pretrained(folders[name])


def test_a_generators_name_and_file_are_no_reconstruction_model(tmp_path: Path) -> None:
    for name in ("zero123-xl", "syncdreamer", "zero123plus-v1.2"):
        with pytest.raises(SettingsError, match=rf"^{name} is .*makes views of a photo and no object.*--views"):
            ImageTo3D.from_pretrained(name)
    path = state_file(tmp_path / "mine.ckpt", SYNC_KEYS)
    with pytest.raises(SettingsError, match=r"mine\.ckpt is SyncDreamer, which makes views"):
        ImageTo3D.from_pretrained(path)


def test_a_reconstruction_model_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^triposr is TripoSR, which lifts pictures .*--model.*zero123-xl"):
        load_generator("triposr")
    with pytest.raises(SettingsError, match=r"tiny is embedded: small model"):
        load_generator("tiny")
    folder = published_folder(tmp_path / "src", "openlrm")
    with pytest.raises(SettingsError, match=r"src is OpenLRM 1\.1, which lifts pictures to an object"):
        load_generator(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SettingsError, match=r"model\.safetensors is OpenLRM 1\.1"):
        load_generator(folder / "model.safetensors")
    copied = tmp_path / "copied"
    shutil.copytree(registry.find("tiny").embedded_folder, copied)
    with pytest.raises(SettingsError, match=r"copied is a model of architecture 'tiny"):
        load_generator(copied)


def test_what_is_neither_is_named(tmp_path: Path) -> None:
    unet = state_file(tmp_path / "unet.bin", {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"checkpoint of .*SyncDreamer, .*UNet or VAE alone: give the folder"):
        load_generator(unet)
    other = state_file(tmp_path / "other.ckpt", {"x": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"other\.ckpt: expected a checkpoint of .*another model \(1 tensors\)"):
        load_generator(other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"expected a folder of .*SyncDreamer, .*found nothing"):
        load_generator(tmp_path / "empty")
    with pytest.raises(WeightsError, match=r"'zero123-xxl' is not a known model.*Did you mean .*zero123-xl"):
        load_generator("zero123-xxl")


# Files by a name


def test_a_file_can_be_said_to_be_known_weights(tmp_path: Path) -> None:
    path = state_file(tmp_path / "x.ckpt", ZERO_KEYS)
    with pytest.raises(SettingsError, match=r"does not say which cameras.*pose_rule='distance' for Zero123"):
        load_generator(path)
    with pytest.raises(WeightsError, match=r"x\.ckpt does not fit the model .*missing"):
        load_generator(f"stable-zero123-c={path}")
    assert is_generator(f"stable-zero123-c={path}")
    with pytest.raises(WeightsError, match=r"expected weights of SyncDreamer, as the name .* says, found Zero123"):
        load_generator(f"syncdreamer={path}")
    with pytest.raises(WeightsError, match=r"x\.ckpt has sha256 [0-9a-f]{64}, but zero123-xl has bc4ea2f8"):
        load_generator(f"zero123-xl={path}")
    with pytest.raises(WeightsError, match=r"zero123-xl=nowhere: there is no folder or file nowhere"):
        load_generator("zero123-xl=nowhere")
    with pytest.raises(SettingsError, match=r"triposr=.*|x\.ckpt is TripoSR"):
        load_generator(f"triposr={path}")


def test_a_conversion_by_name_gets_the_rows_pose_rule_and_licence(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["stable-zero123"], tmp_path / "conversion")
    (folder / "config.json").unlink()
    notes: list[str] = []
    loaded = load_generator(f"stable-zero123-c={folder}", device="cpu", on_note=notes.append)
    assert isinstance(loaded.model, Zero123) and loaded.model.config.pose_rule == "polar"
    assert (loaded.weights.licence, loaded.weights.commercial) == ("Stability AI Community", "conditions")
    assert notes == [
        "weights stable-zero123-c: licence Stability AI Community, commercial use only on its conditions, read them"
    ]
    with pytest.raises(SettingsError, match=r"--commercial-ok: stable-zero123-c has licence"):
        load_generator(f"stable-zero123-c={folder}", commercial_ok=True)


def test_commercial_use_is_asked_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "hub_file", lambda *_, **__: pytest.fail("fetched"))
    for name in ("stable-zero123", "syncdreamer", "zero123plus-v1.2", "zero123plus-v1.2-instantmesh"):
        with pytest.raises(SettingsError, match=rf"--commercial-ok: {name} has licence"):
            load_generator(name, commercial_ok=True)


def test_our_folders_are_held_to_what_is_said_of_them(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"these weights have the pose rule 'distance', not 'polar'"):
        load_generator(f"stable-zero123={folders['zero123']}", device="cpu")
    assert load_generator(f"zero123-105000={folders['zero123']}", device="cpu").weights.licence == "MIT"
    with pytest.raises(SettingsError, match=r"these weights are of version 1\.2, not 1\.1"):
        load_generator(f"zero123plus-v1.1={folders['zero123plus']}", device="cpu")


# From the hub


def as_cached(monkeypatch: pytest.MonkeyPatch, repository: str, folder: Path, revision: str | None = None) -> list[str]:
    """Let the hub have the files of ``folder`` and nothing else; gives the list of what is asked for."""
    asked: list[str] = []

    def found(name: str, file: str, *, revision: str | None = revision, **_: Any) -> HubFile:
        asked.append(file)
        if name != repository or not (folder / file).is_file():
            raise NoSuchFileError(f"{name}: there is no file {file}")
        return HubFile(folder / file, "c" * 40)

    for module in ("trilift.generators", "multiview.zero123weights", "multiview.zero123plusweights"):
        monkeypatch.setattr(f"{module}.hub_file", found)
    return asked


def test_a_row_is_fetched_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state_file(tmp_path / "stable_zero123.ckpt", ZERO_KEYS)
    asked = as_cached(monkeypatch, "stabilityai/stable-zero123", tmp_path)
    with pytest.raises(WeightsError, match=r"stable_zero123\.ckpt does not fit the model"):
        load_generator("stable-zero123")
    assert asked == ["stable_zero123.ckpt"]
    with pytest.raises(WeightsError, match=r"no file zero123-xl\.ckpt.*zero123\.cs\.columbia.*zero123-xl=PATH"):
        load_generator("zero123-xl")


def test_a_known_conversion_is_fetched_part_by_part(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folders["zero123"], tmp_path / "xl")
    (folder / "config.json").unlink()
    asked = as_cached(monkeypatch, "kxic/zero123-xl", folder)
    loaded = load_generator("kxic/zero123-xl", device="cpu")
    assert isinstance(loaded.model, Zero123) and loaded.model.config.pose_rule == "distance"
    record = loaded.weights
    assert (record.name, record.licence, record.commercial) == ("zero123-xl", "MIT", "yes")
    assert record.repository == "kxic/zero123-xl"
    assert "unet/config.json" in asked and "unet/diffusion_pytorch_model.safetensors" in asked


@pytest.mark.parametrize("name", ["zero123", "syncdreamer", "zero123plus"])
def test_our_own_form_on_the_hub_is_fetched_whole(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = as_cached(monkeypatch, "someone/hers", folders[name])
    loaded = load_generator("someone/hers", device="cpu")
    assert loaded.weights.repository == "someone/hers" and loaded.weights.architecture == name
    needed = {str(path.relative_to(folders[name])) for path in folders[name].rglob("*.safetensors")}
    assert needed <= set(asked)


def test_a_generator_on_the_hub_is_no_reconstruction_model(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HubFile(folders["zero123"] / "config.json", None)
    monkeypatch.setattr("trilift.loading.cached_file", lambda repository, name, revision: config)
    with pytest.raises(SettingsError, match=r"someone/hers is Zero123, which makes views"):
        ImageTo3D.from_pretrained("someone/hers")


def test_zero123plus_is_fetched_with_its_own_unet_or_instantmeshs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_published(tmp_path / "plus")
    unet = tmp_path / "unet.bin"
    torch.save(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), unet)
    asked = as_cached(monkeypatch, "sudo-ai/zero123plus-v1.2", folder)
    loaded = load_generator("zero123plus-v1.2", device="cpu")
    assert isinstance(loaded.model, Zero123Plus) and loaded.model.config.background == 127
    assert (loaded.weights.licence, loaded.weights.commercial) == ("CC-BY-NC-4.0", "no")
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    monkeypatch.setattr("multiview.zero123plusweights._unet_file", lambda name: unet)
    asked.clear()
    loaded = load_generator("zero123plus-v1.2-instantmesh", device="cpu")
    assert isinstance(loaded.model, Zero123Plus) and loaded.model.config.background == 255
    assert loaded.weights.commercial == "no" and "Apache-2.0" in str(loaded.weights.licence)
    assert "unet/diffusion_pytorch_model.safetensors" not in asked and "unet/config.json" in asked


def test_offline_a_name_says_that_it_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRILIFT_OFFLINE", "1")
    monkeypatch.setattr(hub, "cached_file", lambda *_: None)
    for name in ("syncdreamer", "zero123-105000", "zero123plus-v1.1"):
        with pytest.raises(WeightsError, match=r"not on this machine and TRILIFT_OFFLINE is set"):
            load_generator(name)


# What is written down


def test_the_sum_covers_every_part_and_a_folder_without_terms_is_unknown(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    record = load_generator(folders["zero123"], device="cpu").weights
    stems = {"image_encoder": "model"}
    lines = []
    for part in ("unet", "vae", "image_encoder", "cc_projection"):
        name = f"{stems.get(part, 'diffusion_pytorch_model')}.safetensors"
        lines.append(f"{part}/{name} {hashlib.sha256((folders['zero123'] / part / name).read_bytes()).hexdigest()}")
    assert record.sha256 == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (record.licence, record.commercial, record.file) == (None, "unknown", None)
    changed = shutil.copytree(folders["zero123"], tmp_path / "changed")
    shutil.copy(folders["zero123"] / "vae" / "config.json", changed / "vae" / "config.json")
    file = changed / "cc_projection" / "diffusion_pytorch_model.safetensors"
    save_file({key: x + 1 for key, x in load_file(file).items()}, file)
    assert load_generator(changed, device="cpu").weights.sha256 != record.sha256


# Bad weights


def spoil(folder: Path, part: str, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Change the tensors of one part."""
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    change(state)
    save_file(state, file)
    return file


def drop(state: dict[str, Tensor]) -> None:
    del state[min(state)]


def add(state: dict[str, Tensor]) -> None:
    state["aardvark"] = torch.zeros(1)


def turn(state: dict[str, Tensor]) -> None:
    key = next(key for key, x in sorted(state.items()) if x.ndim == 2 and x.shape[0] != x.shape[1])
    state[key] = state[key].t().contiguous()


@pytest.mark.parametrize(("change", "words"), [(drop, "1 missing"), (add, "1 unknown"), (turn, "1 transposed")])
@pytest.mark.parametrize("name", ["zero123", "syncdreamer", "zero123plus"])
def test_tensors_that_do_not_fit_are_counted_and_named(
    name: str, change: Callable[[dict[str, Tensor]], None], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "bad")
    spoil(folder, "unet", change)
    with pytest.raises(WeightsError, match=rf"bad.* does not fit the model .*{words}, first .*fetch them again"):
        load_generator(folder, device="cpu")


@pytest.mark.parametrize("name", ["zero123", "syncdreamer", "zero123plus"])
def test_a_file_cut_short_or_missing_is_named(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "bad")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"unet/diffusion_pytorch_model\.safetensors: not a whole safetensors file"):
        load_generator(folder, device="cpu")
    file.unlink()
    with pytest.raises(WeightsError, match=r"bad/unet.*(not found|no weights)"):
        load_generator(folder, device="cpu")


@pytest.mark.parametrize("name", ["syncdreamer", "zero123plus"])
def test_parts_of_another_architecture_are_refused(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["zero123"], tmp_path / "mixed")
    shutil.copy(folders[name] / "config.json", folder / "config.json")
    with pytest.raises(WeightsError, match=r"mixed"):
        load_generator(folder, device="cpu")


class Touches:
    """Pickled, it would make a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_does_not_run(legacy: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {**ZERO_KEYS, "x": Touches(trap)}}, bad, _use_new_zipfile_serialization=not legacy)
    assert not is_generator(bad)
    for source in (str(bad), f"stable-zero123={bad}"):
        with pytest.raises(WeightsError, match=r"bad\.ckpt"):
            load_generator(source, device="cpu")
    with pytest.raises(WeightsError, match=r"bad\.ckpt"):
        ImageTo3D.from_pretrained(bad)
    # In a part of a conversion as well.
    folder = shutil.copytree(folders["zero123"], tmp_path / "conversion")
    (folder / "config.json").unlink()
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    torch.save({"x": Touches(trap)}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"could run code.*Nothing was run"):
        load_generator(f"zero123-105000={folder}", device="cpu")
    assert not trap.exists()
    torch.load(bad, weights_only=False)
    assert trap.exists()  # for whoever lets it


# Memory


def test_memory_bounds_are_kept_or_refused_with_a_number(folders: dict[str, Path]) -> None:
    enough = load_generator(folders["zero123"], device="cpu", max_memory=10**9)
    assert isinstance(enough.model, NetworkGenerator) and not enough.model.offload
    with pytest.raises(SettingsError, match=r"--max-memory 0\.001 GB: zero123 needs about 0\.\d+ GB on cpu .*bf16"):
        load_generator(folders["zero123"], device="cpu", max_memory=10**6)
    for wrong in (0, -5):
        with pytest.raises(SettingsError, match=rf"max_memory={wrong}: expected a number of bytes"):
            load_generator(folders["zero123"], max_memory=wrong)


def test_other_settings_that_make_no_sense(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"revision='main': zero123 is not from a hub"):
        load_generator(folders["zero123"], revision="main")
    with pytest.raises(SettingsError, match="--dtype int8: expected auto"):
        load_generator(folders["zero123"], dtype="int8")
    with pytest.raises(SettingsError, match="--device toaster"):
        load_generator(folders["zero123"], device="toaster")


def test_a_known_sum_gives_a_file_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = state_file(tmp_path / "anything.ckpt", ZERO_KEYS)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(registry, "WEIGHT_SETS", (replace(registry.find("zero123-xl"), sha256=sha256),))
    files = generators.fetch_generator(registry.resolve(path), None)
    assert files.row is not None and files.row.name == "zero123-xl" and files.options == {"pose_rule": "distance"}
    record = generators.generator_record(files)
    assert (record.name, record.licence, record.sha256) == ("zero123-xl", "MIT", sha256)


def test_syncdreamers_terms_are_those_of_its_only_release(tmp_path: Path) -> None:
    files = generators.fetch_generator(registry.resolve(state_file(tmp_path / "mine.ckpt", SYNC_KEYS)), None)
    record = generators.generator_record(files)
    assert (record.name, record.licence) == ("mine", "not stated by the publisher (code MIT)")
    assert record.commercial == "unknown" and json.dumps(record.licence)
