"""InstantMesh's NeRF variants against the published model's own numbers, and its files."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lrm.instantmesh
from lrm.field import PAIRS_XY_XZ_YZ
from lrm.instantmesh import (
    BASE,
    KEYS,
    LARGE,
    InstantMesh,
    InstantMeshConfig,
    InstantMeshNetwork,
    camera_numbers,
    config_from_state,
    published_config,
    read_published_config,
)
from lrm.mesh import extract_mesh
from lrm.twopass import INSTANTMESH_RULE, render_two_pass
from lrm.vit import VitConfig
from multiview.cameras import Cameras, gltf_from_world, orbit, project
from multiview.checkpoint import Dropped, rename_keys
from multiview.errors import FieldError, ImageError, SettingsError, WeightsError
from multiview.views import Views
from tests.parity.fill import TOLERANCE, Shapes, figures, fill, furthest, uniform
from tests.parity.tables import INSTANTMESH_BASE, INSTANTMESH_LARGE, INSTANTMESH_SMALL

SMALL = InstantMeshConfig(
    image_size=96,
    vit=VitConfig(patch_size=16, table_side=4, width=48, layers=3, heads=4, mlp_width=96, condition_width=48),
    plane_size=4, width=64, heads=4, layers=2, plane_channels=6, samples_per_ray=16,
)  # fmt: skip

# The published model's own numbers; see tests/parity/fill.py for what a line holds.
EXPECTED = {
    "view tokens": (+0.003324, 0.994388, -1.126700, -0.648011, +0.301313, +1.493981),
    "plane tokens": (-0.000330, 1.036555, +0.137859, +0.680198, +1.085884, +0.376212),
    "planes": (+0.583885, 1.488145, +0.028862, +0.182259, +3.195498, +2.800205),
    "density": (0.567558, 0.387842, 0.481906, 0.456672, 0.447817),
    "color": (0.639541, 0.403763, 0.614637),
    "render": (+0.816939, 0.080122, +0.930969, +0.916647, +0.830929, +0.967566),
    "opacity": (+0.387592, 0.162933, +0.150499, +0.354693, +0.306009, +0.067172),
}


def zero123plus_cameras() -> Cameras:
    """The six cameras that InstantMesh assumes."""
    return orbit([30, 90, 150, 210, 270, 330], [20, -10] * 3, 4.0, 30.0)


def small_model(
    config: InstantMeshConfig = SMALL, state: dict[str, Tensor] | None = None, **options: Any
) -> InstantMesh:
    """The small copy with filled weights."""
    return InstantMesh.from_state(config, fill(INSTANTMESH_SMALL) if state is None else state, **options)


@torch.no_grad()
def values(model: InstantMesh, cameras: Cameras | None = None, **field_changes: Any) -> dict[str, list[float]]:
    """Everything that `EXPECTED` lists, from our code."""
    numbers = camera_numbers(cameras or zero123plus_cameras())[None]
    view_tokens = model.network.view_tokens(uniform(13, (1, 6, 3, 96, 96)), numbers)
    plane_tokens = model.network.plane_tokens(view_tokens)
    planes = model.network.upsampler(plane_tokens)
    field = replace(model.field(planes[0]), **field_changes)
    density, color = field.density_and_color(uniform(3, (5, 3), -1.05, 1.05))
    rule = replace(INSTANTMESH_RULE, samples_per_ray=SMALL.samples_per_ray)
    generator = torch.Generator().manual_seed(5)
    rendering = render_two_pass(field, orbit(45.0, 20.0, 4.5, 30.0), 6, 6, generator=generator, rule=rule)
    return {
        "view tokens": figures(view_tokens),
        "plane tokens": figures(plane_tokens),
        "planes": figures(planes),
        "density": density.tolist(),
        "color": color[0].tolist(),
        "render": figures(rendering.images),
        "opacity": figures(rendering.opacity),
    }


def worst(found: dict[str, list[float]]) -> float:
    """Largest difference from the published model's numbers."""
    return max(furthest(found[name], expected) for name, expected in EXPECTED.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_is_the_published_models(name: str) -> None:
    assert furthest(values(small_model())[name], EXPECTED[name]) < TOLERANCE


def test_size_based_positions_are_noticed() -> None:
    assert worst(values(small_model(replace(SMALL, vit=replace(SMALL.vit, resampling="size"))))) > 100 * TOLERANCE


def test_a_swapped_third_plane_is_noticed() -> None:
    assert worst(values(small_model(), pairs=PAIRS_XY_XZ_YZ)) > 100 * TOLERANCE


@pytest.mark.parametrize(("constant", "wrong"), [("BLOCK_NORM_EPS", 1e-6)])
def test_a_wrong_eps_is_noticed(constant: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrm.instantmesh, constant, wrong)
    assert worst(values(small_model())) > TOLERANCE


def test_self_before_cross_is_noticed() -> None:
    model = small_model()
    for block in model.network.blocks:
        block.order = ("self", "cross")
    assert worst(values(model)) > 100 * TOLERANCE


def test_shift_and_scale_exchanged_are_noticed() -> None:
    state = fill(INSTANTMESH_SMALL)
    for key in [key for key in state if "adaLN_modulation" in key]:
        shift1, scale1, shift2, scale2 = state[key].chunk(4)
        state[key] = torch.cat([scale1, shift1, scale2, shift2])
    assert worst(values(small_model(state=state))) > 100 * TOLERANCE


def test_query_and_key_exchanged_are_noticed() -> None:
    state = fill(INSTANTMESH_SMALL)
    for key in [key for key in state if "in_proj_weight" in key]:
        query, key_rows, value = state[key].chunk(3)
        state[key] = torch.cat([key_rows, value, query])
    assert worst(values(small_model(state=state))) > 100 * TOLERANCE


def test_cameras_in_another_order_are_noticed() -> None:
    assert worst(values(small_model(), zero123plus_cameras().select([1, 0, 2, 3, 4, 5]))) > 100 * TOLERANCE


def test_camera_numbers_are_the_published_ones() -> None:
    """Views 0 and 1 of the reference: three rows of c2w, then fx, fy, cx, cy."""
    found = camera_numbers(zero123plus_cameras())
    first = [-0.5, -0.296198, 0.813798, 3.255191, 0.866025, -0.171010, 0.469846, 1.879385, 0, 0.939693, 0.342020]
    assert found[0].tolist() == pytest.approx([*first, 1.368081, 1.866025, 1.866025, 0.5, 0.5], abs=2e-6)
    second = [-1, 0, 0, 0, 0, 0.173648, 0.984808, 3.939231, 0, 0.984808, -0.173648, -0.694593]
    assert found[1].tolist() == pytest.approx([*second, 1.866025, 1.866025, 0.5, 0.5], abs=2e-6)


def test_bf16_matrices_stay_within_2_percent() -> None:
    """Wider and deeper than the small copy, so that errors can add up."""
    vit = VitConfig(table_side=4, width=64, layers=4, heads=4, mlp_width=256, condition_width=64)
    config = replace(SMALL, image_size=64, vit=vit, plane_size=8, width=128, layers=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = InstantMeshNetwork(config).state_dict()
    full, half = (
        InstantMesh.from_state(config, state, dtype=d, published=False) for d in (torch.float32, torch.bfloat16)
    )
    with torch.no_grad():
        inputs = uniform(1, (1, 6, 3, 64, 64)), camera_numbers(zero123plus_cameras())[None]
        expected, found = full.network(*inputs), half.network(*inputs)
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-5 < error.item() < 0.02


# The published files.


@pytest.mark.parametrize(
    ("config", "table", "tensors", "total", "parts"),
    [
        (BASE, INSTANTMESH_BASE, 431, 313_249_004, (114_750_720, 198_481_960, 16_324)),
        (LARGE, INSTANTMESH_LARGE, 495, 378_477_332, (114_750_720, 263_702_608, 24_004)),
    ],
    ids=["base", "large"],
)
def test_the_full_size_network_takes_exactly_the_published_tensors(
    config: InstantMeshConfig, table: Shapes, tensors: int, total: int, parts: tuple[int, int, int]
) -> None:
    assert len(table) == tensors
    assert sum(math.prod(shape) for shape in table.values()) == total
    with torch.device("meta"):
        network = InstantMeshNetwork(config)
        published = {f"lrm_generator.{key}": torch.empty(shape) for key, shape in table.items()}
    renamed = rename_keys(KEYS.part(published), KEYS, "table")
    assert not renamed.unknown and not renamed.dropped
    assert {key: t.shape for key, t in renamed.state.items()} == {
        key: t.shape for key, t in network.state_dict().items()
    }
    assert {KEYS.published(key) for key in renamed.state} == set(published)
    encoder = sum(p.numel() for module in (network.vit, network.camera) for p in module.parameters())
    decoder = sum(p.numel() for p in network.decoder.parameters())
    assert (encoder, total - encoder - decoder, decoder) == parts
    assert sum(p.numel() for p in network.parameters()) == total
    assert config_from_state(published, "table") == config


def test_the_prefix_is_taken_off_and_a_training_camera_left_out() -> None:
    state = {f"lrm_generator.{key}": tensor for key, tensor in fill(INSTANTMESH_SMALL).items()}
    state["lrm_generator.source_camera.c2w"] = torch.zeros(16)
    found = KEYS("lrm_generator.source_camera.c2w")
    assert isinstance(found, Dropped) and "training" in found.reason
    assert worst(values(small_model(state=state))) < TOLERANCE


@pytest.mark.parametrize(("table", "size"), [(INSTANTMESH_BASE, "base"), (INSTANTMESH_LARGE, "large")])
@pytest.mark.parametrize("prefix", ["", "lrm_generator."], ids=["bare", "prefix"])
def test_a_flexicubes_file_is_refused_and_the_nerf_one_named(table: Shapes, size: str, prefix: str) -> None:
    with torch.device("meta"):
        state = {f"{prefix}{key}": torch.empty(shape) for key, shape in table.items() if "decoder.net" not in key}
        state |= {f"{prefix}synthesizer.decoder.net_sdf.{i}.weight": torch.empty(64, 64) for i in (0, 2, 4, 6)}
    words = rf"some\.ckpt.*FlexiCubes.*net_sdf.*instant_nerf_{size}\.ckpt.*instantmesh-{size}"
    with pytest.raises(WeightsError, match=words):
        config_from_state(state, "some.ckpt")
    with pytest.raises(WeightsError, match=words):
        InstantMesh.from_state(LARGE, state, where="some.ckpt")


def test_another_models_file_has_no_config() -> None:
    with pytest.raises(WeightsError, match=r"x\.ckpt.*found 0 layers and transformer\.deconv\.weight missing"):
        config_from_state({"backbone.norm.weight": torch.zeros(2)}, "x.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("transformer.norm.bias"), r"1 missing, first lrm_generator\.transformer\.norm\.bias"),
        (
            lambda s: s.pop("transformer.layers.1.self_attn.in_proj_weight"),
            r"3 missing, first lrm_generator\.transformer\.layers\.1\.self_attn\.in_proj_weight",
        ),
        (lambda s: s.update({"transformer.more": torch.zeros(1)}), r"1 unknown, first transformer\.more"),
    ],
    ids=["missing", "fused", "extra"],
)
def test_weights_that_do_not_fit_are_named_as_published(change: Any, words: str) -> None:
    state = fill(INSTANTMESH_SMALL)
    change(state)
    with pytest.raises(WeightsError, match=words):
        small_model(state=state)


def published_yaml(**changes: Any) -> dict[str, Any]:
    """The content of instant-nerf-large.yaml, with changed parameters."""
    said = {
        "encoder_feat_dim": 768, "encoder_freeze": False, "encoder_model_name": "facebook/dino-vitb16",
        "transformer_dim": 1024, "transformer_layers": 16, "transformer_heads": 16, "triplane_low_res": 32,
        "triplane_high_res": 64, "triplane_dim": 80, "rendering_samples_per_ray": 128,
    }  # fmt: skip
    return {"model_config": {"target": "a.Class", "params": said | changes}, "infer_config": {"mesh_threshold": 10.0}}


def test_the_published_yaml_gives_both_sizes(tmp_path: Path) -> None:
    assert published_config(published_yaml(), "large.yaml") == LARGE
    base = published_yaml(transformer_layers=12, triplane_dim=40, rendering_samples_per_ray=96)
    assert published_config(base, "base.yaml") == BASE
    (tmp_path / "a.yaml").write_text("model_config:\n  params:\n    transformer_layers: 12\n")
    assert read_published_config(tmp_path / "a.yaml") == replace(LARGE, layers=12)
    with pytest.raises(WeightsError, match=r"b\.yaml: not found"):
        read_published_config(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid_res": 128}, r"FlexiCubes.*instant-nerf"),
        ({"encoder_model_name": "dinov2"}, r"encoder_model_name is 'dinov2'"),
        ({"transformer_layer": 2}, r"unknown key 'transformer_layer'"),
        ({"transformer_layers": "x"}, r"expected int, found 'x'"),
    ],
    ids=["flexicubes", "encoder", "unknown", "type"],
)
def test_a_yaml_that_cannot_be_built_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        published_config(published_yaml(**changes), "large.yaml")
    with pytest.raises(WeightsError, match=r"model_config\.params"):
        published_config({"model_config": 3}, "large.yaml")


# As a reconstruction model.


def some_views(count: int, size: int = 96) -> Views:
    """Random pictures with half-clear alpha from Zero123++'s first cameras."""
    cameras = zero123plus_cameras().select(range(count))
    return Views(uniform(1, (count, 3, size, size)), uniform(2, (count, 1, size, size)), cameras)


def test_six_views_become_the_field_of_the_network() -> None:
    model, views = small_model(), some_views(6)
    found = model.reconstruct_views(views)
    with torch.no_grad():
        planes = model.network(views.composite(1.0)[None], camera_numbers(views.cameras)[None])
    torch.testing.assert_close(found.field.planes, planes[0], atol=1e-5, rtol=1e-5)
    assert (found.field.level, found.field.scene_radius) == (10.0, 1.0)
    assert found.camera.positions[0].tolist() == pytest.approx([4, 0, 0], abs=1e-5)
    assert found.camera.fov_y_deg.item() == pytest.approx(30, abs=1e-4)
    assert found.estimated == ("elevation", "fov", "distance")
    known = model.reconstruct_views(views, elevation_deg=20.0, fov_deg=30.0)
    assert (known.elevation_deg, known.estimated) == (20.0, ())
    assert known.camera.positions[0, 2].item() == pytest.approx(4 * math.sin(math.radians(20)), abs=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 96), (4, 128), (5, 64)])
def test_any_number_and_size_of_views_is_taken(count: int, size: int) -> None:
    field = small_model().reconstruct_views(some_views(count, size)).field
    assert field.planes.shape == (3, 6, 8, 8) and torch.isfinite(field.planes).all()


def test_the_order_of_views_does_not_matter_when_their_cameras_go_with_them() -> None:
    model, views = small_model(), some_views(4)
    one, two = (model.reconstruct_views(v).field.planes for v in (views, views.select([2, 0, 3, 1])))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_a_single_picture_no_views_and_broken_planes_are_refused() -> None:
    model = small_model()
    with pytest.raises(SettingsError, match=r"several views.*--views NAME.*--views-dir"):
        model.reconstruct(torch.zeros(1, 4, 96, 96))
    with pytest.raises(ImageError, match=r"at least one view"):
        model.reconstruct_views(some_views(0))
    broken = copy.deepcopy(model)
    broken.network.tokens[0, 0, 0] = math.nan
    with pytest.raises(FieldError, match="not finite"):
        broken.reconstruct_views(some_views(1))


def test_an_object_built_by_hand_comes_out_upright_with_the_front_to_plus_z() -> None:
    """A blob in the model's own frame: toward azimuth 0 (+x), to the picture's right (+y) and high (+z)."""
    model = small_model()
    with torch.no_grad():
        for i, layer in enumerate(model.network.decoder.layers):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1.0
            if i == 0:
                layer.weight[0, [0, 6, 12]] = 40.0
                layer.bias[0] = -100.0
    center, half, size = (0.5, 0.2, 0.35), 0.2, 32
    texel = (torch.arange(size) + 0.5) / size * 2 - 1
    inside = [((texel - c).abs() < half).float() for c in center]
    planes = torch.zeros(3, 6, size, size)
    for plane, (a, b) in enumerate(((0, 1), (0, 2), (2, 1))):
        planes[plane, 0] = inside[b][:, None] * inside[a][None, :]
    mesh = extract_mesh(model.field(planes), mesh_resolution=48, fit_box=False)
    middle = torch.from_numpy((mesh.vertices.max(0) + mesh.vertices.min(0)) / 2)
    assert middle.tolist() == pytest.approx(center, abs=0.03)
    assert gltf_from_world(middle).tolist() == pytest.approx([0.2, 0.35, 0.5], abs=0.03)
    u, v = project(model.reconstruct_views(some_views(1)).camera, torch.tensor([center]))[0][0, 0].tolist()
    assert u > 0.55 and v < 0.45
