"""What a user names becomes a model: names, folders, files and hub repositories, and every way in which that fails."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrm.openlrm import OpenLRM
from lrm.triposr import TripoSR
from multiview import hub
from multiview.devices import CPU
from multiview.errors import SettingsError, WeightsError
from multiview.hub import HubFile, NoSuchFileError
from multiview.weights import file_sha256
from tests.published import FILES, MODELS, SMALL, published_folder, published_state, save_published
from trilift import ImageTo3D, families, loading, registry
from trilift import dtype as dtype_choice
from trilift.dtype import choose_dtype
from trilift.elevation import estimate_elevations, fitted
from trilift.families import FAMILIES, find_config, find_family, published_config, recognise
from trilift.loading import WeightsRecord

FAMILY_NAMES = list(SMALL)
TRIPOSR_YAML = """
cond_image_size: 96
image_tokenizer_cls: tsr.models.tokenizers.image.DINOSingleImageTokenizer
image_tokenizer: {pretrained_model_name_or_path: facebook/dino-vitb16}
tokenizer: {plane_size: 4, num_channels: 64}
backbone: {in_channels: "${tokenizer.num_channels}", num_attention_heads: 2, attention_head_dim: 32, num_layers: 2}
post_processor: {in_channels: 64, out_channels: 6}
decoder: {in_channels: 18, n_neurons: 16, n_hidden_layers: 9, activation: silu}
"""
OPENLRM_JSON = {
    "camera_embed_dim": 32, "rendering_samples_per_ray": 16, "transformer_dim": 64, "transformer_layers": 2,
    "transformer_heads": 4, "triplane_low_res": 4, "triplane_high_res": 8, "triplane_dim": 6, "encoder_type": "dinov2",
    "encoder_model_name": "dinov2_vits14_reg", "encoder_feat_dim": 384, "encoder_freeze": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small copy of each family, as published."""
    base = tmp_path_factory.mktemp("published")
    return {family: published_folder(base / family, family) for family in FAMILY_NAMES}


def load(path: Path | str, **options: Any) -> ImageTo3D:
    return ImageTo3D.from_pretrained(path, device="cpu", dtype="fp32", on_note=lambda text: None, **options)


# Telling families apart


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_each_family_is_told_by_its_tensors(family: str) -> None:
    keys = published_state(family)
    assert recognise(keys, "file") == (find_family(family), True)
    for other in FAMILIES:
        assert (set(other.marks) <= {key.removeprefix("lrm_generator.") for key in keys}) == (other.name == family)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["lrm_generator.synthesizer.decoder.net_sdf.0.weight", "lrm_generator.transformer.deconv.weight"],
         "this is InstantMesh \\(mesh, FlexiCubes\\). Use instant_nerf_base or instant_nerf_large"),
        (["model.diffusion_model.out.2.weight", "cc_projection.weight"], "a latent diffusion model, such as Zero123"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a diffusers UNet"),
        (["encoder.model.embeddings.cls_token", "transformer.norm.weight"], "OpenLRM 1.0, of which only the 1.1"),
        (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"], "an image encoder .* alone"),
        (["image_norm.weight", "plane_position"], "trilift's own small model; give its folder"),
        (["fc.weight", "fc.bias"], "2 tensors of another model were found, first fc.bias"),
        ([], "0 tensors of another model"),
    ],
)  # fmt: skip
def test_other_models_are_told_what_they_are(keys: list[str], words: str) -> None:
    with pytest.raises(WeightsError, match=rf"x\.ckpt: expected weights of TripoSR, OpenLRM.*{words}"):
        recognise(keys, "x.ckpt")


# Loading


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_published_file_beside_our_sizes(family: str, folders: dict[str, Path]) -> None:
    pipe = load(folders[family])
    assert type(pipe.model) is MODELS[family]
    found = pipe.model.network.state_dict()
    state = published_state(family)
    taken = MODELS[family].keys.part(state)
    assert all(
        torch.equal(found[ours], taken[key]) for key in taken if isinstance(ours := MODELS[family].keys(key), str)
    )
    assert pipe.weights == WeightsRecord(
        family, file_sha256(folders[family] / FILES[family]), file_sha256(folders[family] / "config.json"),
        architecture=family, file=FILES[family],
    )  # fmt: skip
    assert pipe.takes_views == (family == "instantmesh")


def test_a_folder_as_triposr_is_published(tmp_path: Path) -> None:
    """The published config.yaml has no word on the encoder, which is therefore the real one: 86 M parameters."""
    (tmp_path / "config.yaml").write_text(TRIPOSR_YAML)
    config = published_config(FAMILIES[0], find_config(FAMILIES[0], tmp_path, "model"), {}, "file")
    assert replace(config, vit=SMALL["triposr"].vit) == SMALL["triposr"]


def test_a_folder_as_openlrm_is_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPENLRM_JSON))
    config = published_config(FAMILIES[1], find_config(FAMILIES[1], tmp_path, "model"), {}, "file")
    assert (config.width, config.plane_channels, config.camera_width, config.vit.width) == (64, 6, 32, 384)


@pytest.mark.parametrize(
    ("family", "shapes", "expected"),
    [
        ("triposr", {}, {"layers": 16, "plane_channels": 40}),
        ("openlrm", {"upsampler.weight": (512, 32, 2, 2)}, {"width": 512, "image_size": 224}),
        ("openlrm", {"upsampler.weight": (768, 48, 2, 2)}, {"width": 768, "image_size": 336}),
        ("openlrm", {"upsampler.weight": (1024, 80, 2, 2)}, {"width": 1024, "image_size": 448}),
        ("instantmesh", {"transformer.deconv.weight": (1024, 40, 2, 2),
                         **{f"transformer.layers.{i}.norm1.weight": (1024,) for i in range(12)}}, {"layers": 12}),
    ],
)  # fmt: skip
def test_a_file_by_itself_has_the_published_sizes(
    family: str, shapes: dict[str, Any], expected: dict[str, int]
) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = published_config(find_family(family), None, state, "file")  # type: ignore[arg-type]
    assert {key: getattr(config, key) for key in expected} == expected


def test_a_single_file_uses_the_config_beside_it(folders: dict[str, Path]) -> None:
    pipe = load(folders["triposr"] / "model.ckpt")
    assert pipe.weights.name == "model" and isinstance(pipe.model, TripoSR)


def test_a_foreign_config_beside_a_file_is_not_ours(tmp_path: Path, folders: dict[str, Path]) -> None:
    shutil.copy(folders["triposr"] / "model.ckpt", tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(WeightsError, match=r"model\.ckpt does not fit the model"):  # taken for the full-size one
        load(tmp_path / "model.ckpt")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_matrices_have_the_dtype_asked_for_and_the_field_is_fp32(dtype: str, folders: dict[str, Path]) -> None:
    pipe = ImageTo3D.from_pretrained(folders["triposr"], device="cpu", dtype=dtype, on_note=lambda text: None)
    network = pipe.model.network
    assert pipe.dtype == {"bf16": "bfloat16", "fp32": "float32"}[dtype] and pipe.dtype_reason == "asked for"
    assert str(network.enter.weight.dtype) == f"torch.{pipe.dtype}"
    assert network.decoder.layers[0].weight.dtype == network.norm.weight.dtype == torch.float32


def test_half_precision_files_load(tmp_path: Path) -> None:
    published_folder(tmp_path, "openlrm")
    state = {key: value.half() for key, value in published_state("openlrm").items()}
    save_published(tmp_path / "model.safetensors", state)
    network = load(tmp_path).model.network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.upsampler.weight, state["upsampler.weight"].float())


# Bad weights


def damaged(folder: Path, family: str, change: Any) -> Path:
    """A published folder whose tensors were changed."""
    published_folder(folder, family)
    state = published_state(family)
    change(state)
    save_published(folder / FILES[family], state)
    return folder


def lose(state: dict[str, torch.Tensor]) -> None:
    del state["backbone.norm.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["backbone.extra.weight"] = torch.ones(2)


def turn(state: dict[str, torch.Tensor]) -> None:
    key = "decoder.layers.0.weight"
    state[key] = state[key].T.contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lose, r"1 missing, first backbone\.norm\.weight"),
        (add, r"1 unknown, first backbone\.extra\.weight"),
        (turn, r"1 transposed, first decoder\.layers\.0\.weight \(18, 16\) in the file, \(16, 18\) in the model"),
    ],
)
def test_tensors_that_do_not_fit_have_their_published_names(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(WeightsError, match=rf"model\.ckpt does not fit the model .*{words}.*one release"):
        load(damaged(tmp_path, "triposr", change))


def test_a_truncated_file(tmp_path: Path) -> None:
    path = published_folder(tmp_path, "triposr") / "model.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"model\.ckpt: not a whole torch checkpoint .*cut short"):
        load(tmp_path)


def test_the_file_of_another_family(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TRIPOSR_YAML)
    save_published(tmp_path / "model.safetensors", published_state("openlrm"))
    words = r"model\.safetensors: expected weights of TripoSR, as .*config\.yaml says, found OpenLRM 1\.1"
    with pytest.raises(WeightsError, match=words):
        load(tmp_path)


def test_folders_with_nothing_and_with_too_much(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a model folder: expected config\.json and model\.safetensors"):
        load(tmp_path)
    for name in ("instant_nerf_base.ckpt", "instant_nerf_large.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"several files of weights: instant_nerf_base.*large\.ckpt\. Give one"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["backbone: [", "\xff"], ids=["yaml", "bytes"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    save_published(tmp_path / "model.ckpt", published_state("triposr"))
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1") + b"\nbackbone: {}\n")
    with pytest.raises(WeightsError, match=r"config\.yaml: not readable as YAML"):
        load(tmp_path)


def test_a_revision_of_what_is_no_repository(folders: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match="revision='v1': triposr is not from a hub"):
        load(folders["triposr"], revision="v1")


# The hub


class StandIn:
    """In place of the hub: files that lie in a folder, and a list of what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str, str | None, str | None]] = []

    def __call__(
        self, repository: str, file: str, *, revision: str | None = None, sha256: str | None = None,
        size_bytes: int | None = None, on_download: Any = None,
    ) -> HubFile:  # fmt: skip
        self.asked.append((repository, file, revision, sha256))
        path = self.folder / file
        if not path.is_file():
            raise NoSuchFileError(f"{repository}: there is no file {file} in revision {revision or 'main'}.")
        return HubFile(path, "c" * 40)


@pytest.fixture
def stand_in(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(folders["triposr"])
    monkeypatch.setattr(loading, "hub_file", made)
    monkeypatch.setattr(loading, "cached_file", lambda *args: None)
    return made


def test_a_known_name_is_fetched_at_the_tables_revision(stand_in: StandIn, tmp_path: Path) -> None:
    shutil.copytree(stand_in.folder, tmp_path / "hub")
    (tmp_path / "hub" / "config.json").rename(tmp_path / "hub" / "config.yaml")
    stand_in.folder = tmp_path / "hub"
    row = registry.find("triposr")
    files = loading.fetch(registry.resolve("triposr"), None)
    assert stand_in.asked == [
        (row.repository, "config.yaml", row.revision, None), (row.repository, "model.ckpt", row.revision, row.sha256)
    ]  # fmt: skip
    assert files.weights == tmp_path / "hub" / "model.ckpt" and files.revision == "c" * 40
    loading.fetch(registry.resolve("triposr"), "main")
    assert stand_in.asked[-1] == (
        row.repository,
        "model.ckpt",
        "main",
        None,
    )  # of another revision the sum is not known


def test_a_known_repository_may_have_the_older_form_alone(stand_in: StandIn, tmp_path: Path) -> None:
    save_published(tmp_path / "pytorch_model.bin", published_state("openlrm"))
    shutil.copy(published_folder(tmp_path / "x", "openlrm") / "config.json", tmp_path)
    stand_in.folder = tmp_path
    pipe = load("openlrm-obj-small")
    assert isinstance(pipe.model, OpenLRM) and pipe.weights.file == "pytorch_model.bin"
    assert (pipe.weights.licence, pipe.weights.commercial) == ("CC-BY-NC-4.0", "no")


def test_nothing_but_the_models_own_files_is_fetched(stand_in: StandIn) -> None:
    """The reference asks for the image encoder's config, too: ours must not."""
    pipe = load("someone/her-triposr", revision="v2")
    assert {repository for repository, *_ in stand_in.asked} == {"someone/her-triposr"}
    assert [file for _, file, _, _ in stand_in.asked] == ["config.json", "model.safetensors", "model.ckpt"]
    assert (pipe.weights.name, pipe.weights.repository, pipe.weights.revision) == (
        "her-triposr", "someone/her-triposr", "c" * 40
    )  # fmt: skip


def test_a_repository_without_weights(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.folder = tmp_path
    with pytest.raises(WeightsError, match=r"no file config\.yaml.*Looked for config\.json or config\.yaml"):
        load("someone/nothing")


def test_the_wrong_file_under_a_known_name(stand_in: StandIn, folders: dict[str, Path], tmp_path: Path) -> None:
    save_published(tmp_path / "model.ckpt", published_state("openlrm"))
    (tmp_path / "config.yaml").write_text(TRIPOSR_YAML)
    stand_in.folder = tmp_path
    with pytest.raises(WeightsError, match="expected weights of TripoSR, as the name triposr says, found OpenLRM"):
        load("triposr")


# Licences


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (WeightsRecord("a", licence="MIT", commercial="yes"), None),
        (WeightsRecord("a", licence="CC-BY-NC-4.0", commercial="no"), "a: licence CC-BY-NC-4.0, not for commercial"),
        (WeightsRecord("a", licence="X", commercial="conditions"), "commercial use only on its conditions"),
        (WeightsRecord("a"), "licence not stated, whether commercial use is allowed is not known"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_licence(record: WeightsRecord, words: str | None) -> None:
    notice = record.notice()
    assert notice is None if words is None else words in str(notice)


def test_a_licence_that_is_not_a_plain_yes_is_shown(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ImageTo3D.from_pretrained(folders["triposr"], device="cpu", dtype="fp32")
    captured = capsys.readouterr()
    assert captured.err.startswith("trilift: weights triposr: licence not stated") and captured.out == ""
    ImageTo3D.from_pretrained("tiny", device="cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["openlrm-obj-small", "instantmesh-base"])
def test_commercial_ok_refuses_before_anything_is_fetched(stand_in: StandIn, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"--commercial-ok: {name} has licence .*commercial use: (no|conditions)"):
        load(name, commercial_ok=True)
    assert stand_in.asked == []


def test_commercial_ok_passes_a_plain_yes_only(folders: dict[str, Path]) -> None:
    assert load("tiny", commercial_ok=True).weights.commercial == "yes"
    with pytest.raises(SettingsError, match=r"triposr has licence not stated \(commercial use: unknown"):
        load(folders["triposr"], commercial_ok=True)


def test_a_file_whose_sum_the_table_knows_has_its_licence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["triposr"], tmp_path / "downloaded")
    path = (tmp_path / "downloaded" / "model.ckpt").rename(tmp_path / "downloaded" / "renamed.ckpt")
    row = replace(registry.find("triposr"), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(registry, "WEIGHT_SETS", (row,))
    record = load(path.parent, commercial_ok=True).weights
    assert (record.name, record.licence, record.commercial, record.file) == ("triposr", "MIT", "yes", "renamed.ckpt")


# Number formats and elevation


def test_auto_takes_bf16_where_a_block_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    calls: list[tuple[Any, ...]] = []

    def timed(dtype: torch.dtype, *rest: Any) -> float:
        calls.append((dtype, *rest))
        return seconds[dtype]

    monkeypatch.setattr(dtype_choice, "_block_seconds", timed)
    dtype_choice.bf16_is_faster.cache_clear()
    dtype, why = choose_dtype("auto", CPU, 64, 4, 48)
    assert dtype == torch.bfloat16 and why == "auto: one decoder block runs faster in bf16 on this device"
    assert calls == [(torch.float32, "cpu", 64, 4, 48), (torch.bfloat16, "cpu", 64, 4, 48)]
    assert choose_dtype("auto", CPU, 64, 4, 48)[0] == torch.bfloat16 and len(calls) == 2  # measured once
    seconds[torch.bfloat16] = 0.9
    assert choose_dtype("auto", CPU, 128, 4, 48)[0] == torch.float32  # not worth it
    assert choose_dtype("fp32", CPU, 256, 4, 48) == (torch.float32, "asked for") and len(calls) == 4
    dtype_choice.bf16_is_faster.cache_clear()


def test_a_device_without_bf16_gets_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(dtype: torch.dtype, *rest: Any) -> float:
        if dtype == torch.bfloat16:
            raise RuntimeError("not implemented for BFloat16")
        return 1.0

    monkeypatch.setattr(dtype_choice, "_block_seconds", timed)
    dtype_choice.bf16_is_faster.cache_clear()
    assert choose_dtype("auto", CPU, 32, 4, 48)[0] == torch.float32
    dtype_choice.bf16_is_faster.cache_clear()


def test_the_probe_runs_a_real_block() -> None:
    assert all(dtype_choice._block_seconds(d, "cpu", 64, 4, 48) > 0 for d in (torch.float32, torch.bfloat16))


def test_openlrm_asks_the_embedded_model_for_the_elevation(folders: dict[str, Path]) -> None:
    model = load(folders["openlrm"]).model
    assert isinstance(model, OpenLRM) and model.estimate is estimate_elevations
    picture = torch.zeros(1, 4, 42, 42)
    picture[:, :, 8:34, 12:30] = 1
    (made,) = model.reconstruct(picture)
    assert made.elevation_deg == pytest.approx(estimate_elevations(picture)[0]) and "elevation" in made.estimated
    assert -60 <= made.elevation_deg <= 85
    (told,) = model.reconstruct(picture, elevation_deg=30.0)
    assert told.elevation_deg == 30.0 and "elevation" not in told.estimated


@pytest.mark.parametrize(("half", "ratio"), [(10, 0.5), (16, 0.8), (30, 0.85)])
def test_pictures_are_fitted_to_the_other_models_ratio(half: int, ratio: float) -> None:
    """A red square of 2 * half pixels in 64 comes out as ``ratio`` of 100 pixels, still fully red."""
    picture = torch.zeros(1, 4, 64, 64)
    picture[:, 1] = 1.0  # green where it is transparent: must not bleed in
    picture[:, :, 32 - half : 32 + half, 32 - half : 32 + half] = torch.tensor([1.0, 0.0, 0.0, 1.0])[
        None, :, None, None
    ]
    made = fitted(picture, 100, ratio)
    assert made.shape == (1, 4, 100, 100)
    rows = (made[0, 3] > 0.5).any(1).sum()
    assert abs(int(rows) - 100 * ratio) <= 2
    solid = made[0, :, made[0, 3] > 0.5]
    assert solid[0].min() > 0.98 and solid[1].max() < 0.02


def test_an_empty_picture_is_fitted_without_harm() -> None:
    assert torch.equal(fitted(torch.zeros(2, 4, 16, 16), 8, 0.8), torch.zeros(2, 4, 8, 8))


def test_offline_switches_are_those_of_the_background_remover() -> None:
    assert hub.OFFLINE_SWITCHES == ("TRILIFT_OFFLINE", "HF_HUB_OFFLINE")
    assert MODELS["instantmesh"].keys.prefix == families.PREFIX
