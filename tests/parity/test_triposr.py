"""TripoSR against the published model's own numbers, and its files."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lrm.triposr
from lrm.field import PAIRS_XY_XZ_ZY, PlanesDecoder
from lrm.fixedstep import render_fixed_step
from lrm.mesh import extract_mesh
from lrm.preprocess import triposr_input
from lrm.triposr import KEYS, TripoSR, TripoSRConfig, TripoSRNetwork, published_config, read_published_config
from lrm.vit import VitConfig
from multiview.cameras import gltf_from_world, orbit, project
from multiview.checkpoint import Dropped, rename_keys
from multiview.errors import FieldError, ImageError, WeightsError
from tests.parity.fill import TOLERANCE, figures, fill, furthest, uniform
from tests.parity.tables import TRIPOSR_FULL, TRIPOSR_SMALL

SMALL = TripoSRConfig(
    image_size=96, vit=VitConfig(patch_size=16, table_side=4, width=48, layers=3, heads=4, mlp_width=96), plane_size=4,
    channels=64, heads=2, head_width=32, layers=2, plane_channels=6, decoder_width=16, samples_per_ray=16,
)  # fmt: skip

# The published model's own numbers; see tests/parity/fill.py for what a line holds.
EXPECTED = {
    "image tokens": (-0.005752, 1.030443, +0.472645, +0.944845, -0.382607, -1.493177),
    "plane tokens": (-0.065808, 2.087837, +1.479983, -0.327486, +2.721334, -0.784109),
    "planes": (-1.002853, 3.681772, -6.694775, -6.009974, +2.077796, +0.031412),
    "density": (0.447334, 0.440733, 0.447294, 0.449046, 0.450062),
    "color": (0.522719, 0.424267, 0.544040),
    "render": (+0.818826, 0.018773, +0.829032, +0.828101, +0.827649, +0.835301),
}
WITH_SIZE_BASED_POSITIONS = {
    "image tokens": (+0.484314, +0.923396, -0.393849, -1.484627),
    "planes": (-6.630997, -5.966032, +2.105284, +0.053868),
    "density": (0.447286, 0.440593, 0.447270, 0.449029, 0.450061),
}


def small_model(config: TripoSRConfig = SMALL, state: dict[str, Tensor] | None = None, **options: Any) -> TripoSR:
    """The small copy with filled weights."""
    return TripoSR.from_state(config, fill(TRIPOSR_SMALL) if state is None else state, **options)


@torch.no_grad()
def values(model: TripoSR, **field_changes: Any) -> dict[str, list[float]]:
    """Everything that `EXPECTED` lists, from our code."""
    picture = uniform(7, (80, 100, 3)).permute(2, 0, 1)[None]
    image_tokens = model.network.image_tokens(triposr_input(picture, SMALL.image_size))
    plane_tokens = model.network.plane_tokens(image_tokens)
    planes = model.network.upsampler(plane_tokens)
    field = replace(model.field(planes[0]), **field_changes)
    density, color = field.density_and_color(uniform(3, (5, 3), -0.9, 0.9))
    rendering = render_fixed_step(field, orbit([0.0, 180.0], 0.0, 1.9, 40.0), 6, 6, samples_per_ray=16)
    return {
        "image tokens": figures(image_tokens),
        "plane tokens": figures(plane_tokens.transpose(1, 2)),
        "planes": figures(planes),
        "density": density.tolist(),
        "color": color[0].tolist(),
        "render": figures(rendering.images.permute(0, 2, 3, 1)),
    }


def worst(found: dict[str, list[float]]) -> float:
    """Largest difference from the published model's numbers."""
    return max(furthest(found[name], expected) for name, expected in EXPECTED.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_is_the_published_models(name: str) -> None:
    assert furthest(values(small_model())[name], EXPECTED[name]) < TOLERANCE


def test_size_based_positions_give_the_newer_librarys_numbers_and_are_noticed() -> None:
    found = values(small_model(replace(SMALL, vit=replace(SMALL.vit, resampling="size"))))
    for name, expected in WITH_SIZE_BASED_POSITIONS.items():
        assert furthest(found[name][-len(expected) :], expected) < TOLERANCE, name
    assert worst(found) > 100 * TOLERANCE


def test_a_swapped_third_plane_is_noticed() -> None:
    assert worst(values(small_model(), pairs=PAIRS_XY_XZ_ZY)) > 100 * TOLERANCE


def test_value_and_gate_exchanged_are_noticed() -> None:
    state = fill(TRIPOSR_SMALL)
    for key in [key for key in state if ".ff.net.0.proj." in key]:
        state[key] = torch.cat(state[key].chunk(2)[::-1])
    assert worst(values(small_model(state=state))) > 100 * TOLERANCE


@pytest.mark.parametrize(("constant", "wrong"), [("BLOCK_NORM_EPS", 1e-6), ("GROUP_NORM_EPS", 1e-5)])
def test_a_wrong_eps_is_noticed(constant: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrm.triposr, constant, wrong)
    assert worst(values(small_model())) > TOLERANCE


@pytest.mark.parametrize("order", [("cross", "self")], ids="-".join)
def test_the_other_order_of_attentions_is_noticed(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    for block in model.network.blocks:
        block.order = order
    assert worst(values(model)) > 100 * TOLERANCE


def test_bf16_matrices_stay_within_2_percent() -> None:
    """Wider and deeper than the small copy, so that errors can add up; the full size is measured in benchmarks."""
    config = TripoSRConfig(
        image_size=64, vit=VitConfig(table_side=4, width=64, layers=4, heads=4, mlp_width=256), plane_size=8,
        channels=128, heads=2, layers=16, plane_channels=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = TripoSRNetwork(config).state_dict()
    full, half = (TripoSR.from_state(config, state, dtype=d, published=False) for d in (torch.float32, torch.bfloat16))
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert {p.dtype for p in half.network.decoder.parameters()} == {torch.float32}
    with torch.no_grad():
        picture = uniform(1, (1, 3, 64, 64))
        expected, found = full.network(picture), half.network(picture)
    assert found.dtype == torch.float32
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-5 < error.item() < 0.02


@torch.no_grad()
def test_what_no_picture_changes_is_worked_out_once_and_changes_nothing() -> None:
    network = small_model().network
    calls: list[int] = []
    network.blocks[0].attend_self.register_forward_hook(lambda *_: calls.append(1))
    pictures = uniform(4, (2, 3, 96, 96))
    first, second, again = (network(pictures[i : i + 1]) for i in (0, 1, 0))
    assert len(calls) == 1
    for i, planes in enumerate((first, second)):
        assert torch.equal(small_model().network(pictures[i : i + 1]), planes)
    assert torch.equal(again, first)
    # Both at once share the first tokens: equal up to rounding.
    torch.testing.assert_close(network(pictures), torch.cat([first, second]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["tokens", "norm.weight", "enter.bias", "blocks.0.norm_self.bias"])
def test_changed_weights_are_noticed_between_pictures(name: str) -> None:
    model, picture = small_model(), uniform(4, (1, 3, 96, 96))
    with torch.no_grad():
        before = model.network(picture)
        model.network.get_parameter(name).mul_(1.5)
        after = model.network(picture)
        fresh = copy.deepcopy(model.network)
        fresh._begun = None
        assert torch.equal(fresh(picture), after) and not torch.equal(before, after)
    parameter = model.network.get_parameter(name).requires_grad_()
    for _ in range(2):  # a kept result would have no gradient, or one of a graph that is gone
        parameter.grad = None
        model.network(picture).square().mean().backward()
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0


# The published file's tensors, full size, without memory for them.


def test_the_full_size_network_takes_exactly_the_published_tensors() -> None:
    assert len(TRIPOSR_FULL) == 549
    assert sum(math.prod(shape) for shape in TRIPOSR_FULL.values()) == 419_275_628
    with torch.device("meta"):
        network = TripoSRNetwork(TripoSRConfig())
        published = {key: torch.empty(shape) for key, shape in TRIPOSR_FULL.items()}
    renamed = rename_keys(published, KEYS, "table")
    assert not renamed.unknown
    assert set(renamed.dropped) == {f"image_tokenizer.model.pooler.dense.{end}" for end in ("weight", "bias")}
    assert {key: t.shape for key, t in renamed.state.items()} == {
        key: t.shape for key, t in network.state_dict().items()
    }
    assert all(KEYS.published(ours) == key for ours, key in renamed.published.items())


def test_the_parts_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network = TripoSRNetwork(TripoSRConfig())
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in network.named_children()}
    pooler = 768 * 768 + 768
    assert counts["vit"] + pooler == 86_389_248
    assert network.tokens.numel() == 3_145_728
    assert sum(counts[name] for name in ("norm", "enter", "blocks", "leave")) == 329_535_488
    assert counts["upsampler"] == 163_880
    assert counts["decoder"] == 41_284


def test_both_generations_of_encoder_names_load_to_the_same_numbers() -> None:
    renames = (
        ("attention.output.dense", "attention.o_proj"), ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"), ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )  # fmt: skip
    state = {}
    for key, tensor in fill(TRIPOSR_SMALL).items():
        for old, new in renames if key.startswith("image_tokenizer") else ():
            key = key.replace(old, new)
        state[key] = tensor
    assert any("layers.2.mlp.fc2" in key for key in state)
    assert worst(values(small_model(state=state))) < TOLERANCE
    both = state | fill(TRIPOSR_SMALL)
    with pytest.raises(WeightsError, match=r"both stand for"):
        small_model(state=both)


def test_the_pooler_is_dropped_for_a_stated_reason() -> None:
    found = KEYS("image_tokenizer.model.pooler.dense.weight")
    assert isinstance(found, Dropped) and "never read" in found.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("backbone.norm.weight"), r"small\.ckpt.*1 missing, first backbone\.norm\.weight.*\(64,\)"),
        (lambda s: s.update({"backbone.extra.weight": torch.zeros(1)}), r"1 unknown, first backbone\.extra\.weight"),
        (
            lambda s: s.update({"decoder.layers.0.weight": s["decoder.layers.0.weight"].t()}),
            r"1 transposed, first decoder\.layers\.0\.weight \(18, 16\) in the file, \(16, 18\) in the model",
        ),
        (lambda s: s.update({"decoder.layers.20.bias": torch.zeros(4)}), r"1 unknown, first decoder\.layers\.20\.bias"),
    ],
    ids=["missing", "extra", "transposed", "deeper"],
)
def test_weights_that_do_not_fit_are_named_as_published(change: Any, words: str) -> None:
    state = fill(TRIPOSR_SMALL)
    change(state)
    with pytest.raises(WeightsError, match=words):
        small_model(state=state, where="small.ckpt")


def test_weights_are_taken_over_without_a_copy_and_half_ones_are_converted() -> None:
    state = fill(TRIPOSR_SMALL)
    model = small_model(state=state)
    assert model.network.tokens.data_ptr() == state["tokenizer.embeddings"].data_ptr()
    half = small_model(state={key: tensor.half() for key, tensor in state.items()})
    assert half.dtype == torch.float32
    assert worst(values(half)) < 0.01


def test_our_folder_gives_the_same_model_back(tmp_path: Path) -> None:
    model = small_model()
    model.save(tmp_path / "small", {"source": "test"})
    again = TripoSR.from_folder(tmp_path / "small")
    assert (again.name, again.network.config) == ("small", SMALL)
    assert worst(values(again)) < TOLERANCE
    (tmp_path / "small" / "config.json").write_text('{"format": 1, "architecture": "tiny"}')
    with pytest.raises(WeightsError, match=r"architecture 'tiny', expected 'triposr'"):
        TripoSR.from_folder(tmp_path / "small")


# The published config.yaml.

PUBLISHED_YAML = """
cond_image_size: 512
image_tokenizer_cls: tsr.models.tokenizers.image.DINOSingleImageTokenizer
image_tokenizer:
  pretrained_model_name_or_path: "facebook/dino-vitb16"
tokenizer_cls: tsr.models.tokenizers.triplane.Triplane1DTokenizer
tokenizer:
  plane_size: 32
  num_channels: 1024
backbone_cls: tsr.models.transformer.transformer_1d.Transformer1D
backbone:
  in_channels: ${tokenizer.num_channels}
  num_attention_heads: 16
  attention_head_dim: 64
  num_layers: 16
  cross_attention_dim: 768
post_processor_cls: tsr.models.network_utils.TriplaneUpsampleNetwork
post_processor:
  in_channels: 1024
  out_channels: 40
decoder_cls: tsr.models.network_utils.NeRFMLP
decoder:
  in_channels: 120 # 3 * 40
  n_neurons: 64
  n_hidden_layers: 9
  activation: silu
renderer_cls: tsr.models.nerf_renderer.TriplaneNeRFRenderer
renderer:
  radius: 0.87
  feature_reduction: concat
  density_activation: exp
  density_bias: -1.0
  num_samples_per_ray: 128
"""


def test_the_published_yaml_is_the_default_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(PUBLISHED_YAML)
    assert read_published_config(path) == TripoSRConfig()
    path.write_text(PUBLISHED_YAML.replace("num_layers: 16", "num_layers: 2"))
    assert read_published_config(path) == TripoSRConfig(layers=2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_layers: 16", "num_layer: 16", r"unknown key 'backbone\.num_layer'"),
        ("num_layers: 16", "num_layers: many", r"expected int, found 'many'"),
        ("${tokenizer.num_channels}", "${tokenizer.channels}", r"backbone\.in_channels refers to tokenizer\.channels"),
        ("in_channels: 120", "in_channels: 96", r"decoder\.in_channels is 96, but only 120"),
        ("density_activation: exp", "density_activation: trunc_exp", r"'trunc_exp', but only 'exp'"),
        ("tsr.models.network_utils.NeRFMLP", "os.system", r"decoder_cls is 'os\.system'"),
        ("backbone:\n", "other:\n", r"section backbone"),
        ("tokenizer:\n", "tokenizer: [\n", r"not readable as YAML"),
    ],
    ids=["unknown", "type", "reference", "sizes", "activation", "class", "section", "yaml"],
)
def test_a_config_that_cannot_be_built_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(PUBLISHED_YAML.replace(old, new))
    with pytest.raises(WeightsError, match=words) as caught:
        read_published_config(path)
    assert str(path) in str(caught.value)
    with pytest.raises(WeightsError, match=r"there\.yaml: not found"):
        read_published_config(tmp_path / "there.yaml")
    with pytest.raises(WeightsError, match="section backbone"):
        published_config(["a list"], "config.yaml")


# As a reconstruction model.


def test_a_picture_becomes_a_field_with_the_published_camera() -> None:
    model = small_model()
    pictures = uniform(2, (2, 4, 96, 96))
    both = model.reconstruct(pictures)
    assert (model.image_size, model.foreground_ratio, model.name) == (96, 0.85, "triposr")
    assert (both[0].field.scene_radius, both[0].field.level) == (0.87, 25.0)
    assert both[0].camera.positions[0].tolist() == pytest.approx([1.9, 0, 0], abs=1e-6)
    assert both[0].camera.fov_y_deg.item() == pytest.approx(40, abs=1e-4)
    assert both[0].estimated == ("elevation", "fov", "distance")
    points = uniform(3, (7, 3), -0.9, 0.9)
    for i in range(2):
        alone = model.reconstruct(pictures[i : i + 1])[0]
        assert torch.equal(alone.field.planes, both[i].field.planes)
    assert (both[0].field.density(points) - both[1].field.density(points)).abs().max().item() > 1e-4


def test_a_known_camera_moves_the_camera_and_keeps_the_object_as_large() -> None:
    model = small_model()
    pictures = uniform(2, (1, 4, 96, 96))
    usual = model.reconstruct(pictures)[0]
    known = model.reconstruct(pictures, elevation_deg=30.0, fov_deg=20.0)[0]
    assert torch.equal(usual.field.planes, known.field.planes)
    assert (known.elevation_deg, known.estimated) == (30.0, ())
    assert known.camera.positions[0, 2].item() == pytest.approx(known.camera.positions.norm().item() / 2, rel=1e-5)
    flat = model.reconstruct(pictures, fov_deg=20.0)[0]
    point = torch.tensor([[0.0, 0.3, 0.4]])  # in the plane through the object that faces the camera
    assert project(flat.camera, point)[0].tolist()[0][0] == pytest.approx(
        project(usual.camera, point)[0].tolist()[0][0]
    )


def test_pictures_of_another_shape_and_broken_planes_are_refused() -> None:
    model = small_model()
    with pytest.raises(ImageError, match=r"\(B, 4, H, W\).*found \(1, 3, 96, 96\)"):
        model.reconstruct(torch.zeros(1, 3, 96, 96))
    broken = copy.deepcopy(model)
    broken.network.tokens[0, 0, 0, 0] = math.inf
    with pytest.raises(FieldError, match=r"not finite.*fp32"):
        broken.reconstruct(torch.zeros(1, 4, 96, 96))


def blob_decoder(decoder: PlanesDecoder) -> PlanesDecoder:
    """A decoder that says 10 where the first channels of all three planes are 1, and -10 where one is 0."""
    decoder = copy.deepcopy(decoder)
    with torch.no_grad():
        for i, layer in enumerate(decoder.layers):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1.0
            if i == 0:
                layer.weight[0, :: layer.weight.shape[1] // 3] = 20.0
                layer.bias[0] = -50.0
    return decoder


def test_an_object_built_by_hand_comes_out_upright_with_the_photographed_side_to_plus_z() -> None:
    """A blob in the model's own frame, near the camera (+x), to the picture's right (+y) and high (+z)."""
    model = small_model()
    model.network.decoder = blob_decoder(model.network.decoder)
    center, half, size = (0.5, 0.2, 0.35), 0.2, 32
    texel = (torch.arange(size) + 0.5) / size * 2 - 1
    inside = [((texel * 0.87 - c).abs() < half).float() for c in center]
    planes = torch.zeros(3, 6, size, size)
    for plane, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        planes[plane, 0] = inside[b][:, None] * inside[a][None, :]
    mesh = extract_mesh(model.field(planes), mesh_resolution=48, fit_box=False)
    middle = torch.from_numpy((mesh.vertices.max(0) + mesh.vertices.min(0)) / 2)
    assert middle.tolist() == pytest.approx(center, abs=0.03)
    assert gltf_from_world(middle).tolist() == pytest.approx([0.2, 0.35, 0.5], abs=0.03)
    camera = model.reconstruct(torch.zeros(1, 4, 96, 96))[0].camera
    u, v = project(camera, torch.tensor([center]))[0][0, 0].tolist()
    assert u > 0.55 and v < 0.45
