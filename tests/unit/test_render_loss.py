"""Losses of patches and points by hand, chunks that change nothing, and the worst mistakes rejected."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lrm.field import FunctionField, OutputRule, PlanesDecoder, TriplaneField
from multiview.errors import SettingsError, WeightsError
from train.features import LpipsError, TokenError, load_features
from train.renderloss import gradient_error, over, patch_losses, point_losses, ramp, render_patches


def uniform_field(density: float, grey: float) -> FunctionField:
    return FunctionField(lambda p: torch.full_like(p[:, 0], density), lambda p: torch.full_like(p, grey), 0.5)


def test_patches_of_a_uniform_cube_by_hand() -> None:
    """One unit of density 1 lets exp(-1) through: colour 0.5 in front of a background of 0.2."""
    origins = torch.tensor([[[2.0, 0.0, 0.0], [2.0, 5.0, 0.0]]])
    directions = torch.tensor([[[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    color, opacity = render_patches(
        uniform_field(1.0, 0.5), origins, directions, torch.full((1, 3), 0.2), samples_per_ray=8, chunk_size=100
    )
    through = math.exp(-1)
    assert opacity[0].tolist() == pytest.approx([1 - through, 0.0], abs=1e-5)
    assert color[0, 0].tolist() == pytest.approx([0.5 * (1 - through) + 0.2 * through] * 3, abs=1e-5)
    assert color[0, 1].tolist() == pytest.approx([0.2] * 3)


def test_patch_losses_by_hand() -> None:
    target = torch.zeros(1, 4, 4, 4)
    target[:, :, :, :2] = torch.tensor([0.4, 0.4, 0.4, 1.0])[None, :, None, None]
    background = torch.ones(1, 3)
    truth = over(target, background)
    assert truth[0, 0, 0].tolist() == pytest.approx([0.4, 0.4, 1.0, 1.0])
    exact = patch_losses(truth.flatten(2).transpose(1, 2), target[:, 3].flatten(1), target, background)
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in exact.values())
    white = patch_losses(torch.ones(1, 16, 3), torch.zeros(1, 16), target, background)
    assert white["color"].item() == pytest.approx(0.36 / 2)
    assert white["mask"].item() == pytest.approx(0.5)
    # Across, of 3 differences of neighbours one is 0.6; of 2 at a distance of two both; there is none of four. Down: 0.
    assert white["gradient"].item() == pytest.approx((0.6 / 3 + 0 + 0.6 + 0) / 4)


def test_gradients_do_not_mind_brightness_but_an_edge_that_moved() -> None:
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert gradient_error(picture + 0.3, picture).item() == pytest.approx(0, abs=1e-6)
    assert gradient_error(picture.roll(1, -1), picture).item() > 0.1


def triplane_field(seed: int = 0) -> TriplaneField:
    torch.manual_seed(seed)
    return TriplaneField(
        torch.randn(3, 4, 8, 8, requires_grad=True), PlanesDecoder(4, 8, 2), 1.0, 10.0, OutputRule("exp")
    )


def test_chunks_change_neither_numbers_nor_gradients() -> None:
    field = triplane_field()
    origins = torch.tensor([2.0, 0.0, 0.0]).expand(2, 9, 3)
    directions = torch.nn.functional.normalize(torch.randn(2, 9, 3) * 0.2 - torch.tensor([1.0, 0, 0]), dim=-1)
    found = []
    for chunk in (100, 4):
        planes = field.planes
        color, opacity = render_patches(
            field, origins, directions, torch.ones(2, 3), samples_per_ray=6, chunk_size=chunk
        )
        points = point_losses(
            field, origins[0] * 0.3, torch.ones(9), origins[1] * 0.2, torch.zeros(9, 3), chunk_size=chunk
        )
        total = color.sum() + opacity.square().sum() + points["points"] + points["surface"]
        found.append((color.detach(), torch.autograd.grad(total, planes)[0]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_point_at_the_fields_own_level_is_half_inside() -> None:
    field = triplane_field()
    with torch.no_grad():
        for parameter in field.decoder.parameters():
            parameter.zero_()
        field.decoder.get_parameter("layers.2.bias")[0] = field.outputs.from_density(field.level)
    point = torch.zeros(1, 3)
    for inside in (0.0, 1.0):
        losses = point_losses(field, point, torch.tensor([inside]), point, torch.full((1, 3), 0.5), chunk_size=10)
        assert losses["points"].item() == pytest.approx(math.log(2), abs=1e-5)
        assert losses["surface"].item() == pytest.approx(0, abs=1e-6)


# Features of a user's own networks.

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (4, 4, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8)


def small_vgg() -> dict[str, torch.Tensor]:
    """Random weights with torchvision's names, narrow."""
    generator, state, width = torch.Generator().manual_seed(0), {}, 3
    for number, out in zip(CONVOLUTIONS, WIDTHS, strict=True):
        scale = (2 / (9 * width)) ** 0.5
        state[f"features.{number}.weight"] = torch.randn(out, width, 3, 3, generator=generator) * scale
        state[f"features.{number}.bias"] = torch.randn(out, generator=generator) * 0.1
        width = out
    return {**state, "classifier.0.weight": torch.zeros(2, 2)}


def small_linear() -> dict[str, torch.Tensor]:
    """Random weights with LPIPS' names."""
    widths = sorted(set(WIDTHS))
    return {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) + 0.1 for k, width in enumerate(widths)}


def small_dino(width: int = 16, registers: int = 0) -> dict[str, torch.Tensor]:
    """Random weights with the names of ``torch.hub``: two blocks, patches of 4 pixels."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 17, width), "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    if registers:
        shapes |= {"register_tokens": (1, registers, width), "mask_token": (1, width)}
    for i in range(2):
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,), "mlp.fc1.weight": (2 * width, width), "mlp.fc1.bias": (2 * width,),
            "mlp.fc2.weight": (width, 2 * width), "mlp.fc2.bias": (width,),
        }  # fmt: skip
        if registers:
            block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def files(folder: Path, *states: dict[str, torch.Tensor]) -> list[str]:
    paths = [folder / f"{i}.safetensors" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return [str(path) for path in paths]


def lpips_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the package lpips names them."""
    made = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    for key, tensor in state.items():
        made["net.slice1" + key.removeprefix("features") if key.startswith("features") else key] = tensor
    return {key: tensor for key, tensor in made.items() if not key.startswith("classifier")}


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        pytest.param([small_vgg(), small_linear()], LpipsError, id="vgg16 and lpips"),
        pytest.param([lpips_names({**small_vgg(), **small_linear()})], LpipsError, id="lpips in one file"),
        pytest.param([small_dino()], TokenError, id="dino"),
        pytest.param([small_dino(registers=2)], TokenError, id="dinov2"),
        pytest.param([{f"teacher.backbone.{k}": v for k, v in small_dino().items()}], TokenError, id="a teacher"),
    ],
)
def test_equal_pictures_differ_by_nothing_and_gradients_flow(states: list[Any], kind: type, tmp_path: Path) -> None:
    error = load_features(files(tmp_path, *states))
    assert isinstance(error, kind)
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(2, 3, 16, 16, generator=generator)
    made = truth.clone().requires_grad_()
    assert error(made, truth).item() == pytest.approx(0, abs=1e-6)
    other = torch.rand(2, 3, 16, 16, generator=generator, requires_grad=True)
    far, near = error(other, truth), error(truth + 0.05 * (other - truth), truth)
    assert far.item() > near.item() > 1e-6
    (gradient,) = torch.autograd.grad(far, other)
    assert torch.isfinite(gradient).all() and (gradient != 0).float().mean() > 0.5
    assert not any(parameter.requires_grad for parameter in error.parameters())


def test_lpips_by_hand() -> None:
    """Convolutions that pass the first two channels on: features are the two normalised colours at five depths."""

    def passing(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.zeros(2, width, 3, 3)
        weight[0, 0, 1, 1] = weight[1, 1, 1, 1] = 1.0
        return weight, torch.zeros(2)

    error = LpipsError([passing(3), *[passing(2)] * 12], [torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)] * 5)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    a, b = (torch.tensor(x) * deviation + mean for x in ((1.0, 0.0, 0.0), (0.6, 0.8, 0.0)))
    pictures = [x[None, :, None, None].expand(1, 3, 16, 16) for x in (a, b)]
    # (1, 0) and (0.6, 0.8) have unit length: 3 * 0.4 ** 2 + 5 * 0.8 ** 2, at each of five depths.
    assert error(*pictures).item() == pytest.approx(5 * (3 * 0.16 + 5 * 0.64), rel=1e-4)
    with pytest.raises(SettingsError, match=r"16 px or more, found 8 x 8 px.*patch_size"):
        error(*[picture[..., :8, :8] for picture in pictures])


def test_a_dino_of_the_hub_gives_the_tokens_that_its_names_say(tmp_path: Path) -> None:
    state = small_dino()
    error = load_features(files(tmp_path, state))
    assert isinstance(error, TokenError)
    block = error.encoder.get_submodule("blocks.1.attention")
    query = block.get_parameter("query.weight")
    value = block.get_parameter("value.weight")
    assert torch.equal(query, state["blocks.1.attn.qkv.weight"][:16])
    assert torch.equal(value, state["blocks.1.attn.qkv.weight"][32:])
    assert error.encoder.config.patch_size == 4 and error.encoder.config.table_side == 4


def test_files_that_are_missing_or_of_another_network_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth: not found"):
        load_features([str(tmp_path / "nowhere.pth")])
    with pytest.raises(WeightsError, match=r"5 tensors are missing.*lin0.*vgg16\.pth, lpips\.pth"):
        load_features(files(tmp_path, small_vgg()))
    thin = {**small_linear(), "lin2.model.1.weight": torch.zeros(1, 9, 1, 1)}
    with pytest.raises(WeightsError, match=r"lin2.model.1.weight has shape \(1, 9, 1, 1\), expected \(1, 6, 1, 1\)"):
        load_features(files(tmp_path, small_vgg(), thin))
    wrong = {**small_vgg(), "features.7.weight": torch.zeros(5, 4, 3, 3)}
    with pytest.raises(WeightsError, match=r"features.7.weight has shape \(5, 4, 3, 3\).*expected \(N, 5, 3, 3\)"):
        load_features(files(tmp_path, wrong, small_linear()))
    with pytest.raises(WeightsError, match=r"found 1 tensors of another network, first conv\.weight"):
        load_features(files(tmp_path, {"conv.weight": torch.zeros(1)}))
    lost = {key: value for key, value in small_dino().items() if key != "blocks.1.mlp.fc2.bias"}
    with pytest.raises(WeightsError, match=r"1 missing, first blocks\.1\.mlp\.fc2\.bias"):
        load_features(files(tmp_path, lost))


def test_a_part_of_the_loss_comes_in_slowly() -> None:
    assert [ramp(step, 100, (0.2, 0.6)) for step in (0, 20, 30, 40, 60, 99)] == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [ramp(step, 100, (0.0, 0.0)) for step in (0, 1)] == [0, 1]
