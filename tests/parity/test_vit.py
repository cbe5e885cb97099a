"""The encoders' parts against torch's own operators, and the three rules for resampling positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrm.vit import PatchEmbedding, Resampling, Vit, VitConfig, normalize_imagenet, resample_positions
from multiview.errors import ImageError

RULES: tuple[Resampling, ...] = ("legacy", "size", "antialias")
SMALL = VitConfig(patch_size=4, table_side=3, width=16, layers=2, heads=2, mlp_width=32, norm_eps=1e-6)


def by_torch(table: Tensor, side: int, rows: int, columns: int, rule: Resampling) -> Tensor:
    """The same resampling by torch's interpolate."""
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if rule == "legacy":
        factors = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False, antialias=rule == "antialias")
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("side", "rows", "columns"), [(14, 32, 32), (14, 20, 20), (4, 6, 6), (37, 16, 24), (5, 3, 7)], ids=str
)
def test_positions_are_resampled_as_torch_does_it(side: int, rows: int, columns: int, rule: Resampling) -> None:
    table = torch.randn(1, 1 + side * side, 3, generator=torch.Generator().manual_seed(side))
    found = resample_positions(table, rows, columns, rule)
    torch.testing.assert_close(found, by_torch(table, side, rows, columns, rule), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "change"), [(32, 0.056), (20, 0.089)])
def test_the_two_plain_rules_differ_as_much_as_was_measured(rows: int, change: float) -> None:
    """Measured on the references: 5.6 % and 8.9 % RMS for a random table; only the rule tells them apart."""
    table = torch.randn(1, 197, 64, generator=torch.Generator().manual_seed(0))
    legacy, size = (resample_positions(table, rows, rows, rule)[:, 1:] for rule in ("legacy", "size"))
    ratio = (legacy - size).square().mean().sqrt() / size.square().mean().sqrt()
    assert ratio.item() == pytest.approx(change, abs=0.005)


@pytest.mark.parametrize(("rule", "expected"), [("size", 0.2265625), ("legacy", 0.2078265)])
def test_a_position_by_hand(rule: Resampling, expected: float) -> None:
    """Columns 0 and 1 hold 0 and 1; the second of four targets lies t right of column 0.

    Taps beyond column 1 read it, so it weighs w(1 - t) + w(2 - t), with Keys' w for a = -0.75. By size t is
    1.5 * 2 / 4 - 0.5 = 0.25: 0.26171875 - 0.03515625. By the legacy rule t is 1.5 * 2 / 4.1 - 0.5 = 0.2317073:
    0.2387628 - 0.0309363.
    """
    table = torch.tensor([[[9.0], [0.0], [1.0], [0.0], [1.0]]])
    found = resample_positions(table, 4, 4, rule)[0, 1:, 0].reshape(4, 4)
    assert found[:, 1].tolist() == pytest.approx([expected] * 4, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_grid_gives_the_table_itself(rule: Resampling) -> None:
    table = torch.randn(1, 17, 2, generator=torch.Generator().manual_seed(1))
    assert resample_positions(table, 4, 4, rule) is table


@given(side=st.integers(2, 8), rows=st.integers(1, 12), columns=st.integers(1, 12), rule=st.sampled_from(RULES))
def test_a_constant_table_stays_constant_and_cls_untouched(
    side: int, rows: int, columns: int, rule: Resampling
) -> None:
    table = torch.cat([torch.full((1, 1, 1), 7.0), torch.full((1, side * side, 1), 2.5)], 1)
    found = resample_positions(table, rows, columns, rule)
    assert found.shape == (1, 1 + rows * columns, 1)
    assert found[0, 0, 0].item() == 7.0
    assert (found[:, 1:] - 2.5).abs().max().item() < 1e-5


def test_patches_are_a_strided_convolution() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        patches = PatchEmbedding(4, 6)
        images = torch.randn(2, 3, 14, 9)  # not whole patches: two rows and one column are left out
    expected = F.conv2d(images, patches.weight, patches.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(images), expected, atol=1e-5, rtol=1e-5)


def random_vit(config: VitConfig) -> Vit:
    """A transformer with every parameter random, so that nothing cancels."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        vit = Vit(config).eval().requires_grad_(False)
        for parameter in vit.parameters():
            parameter.normal_(0, 0.5)
    return vit


def test_registers_take_part_but_have_no_position_and_leave() -> None:
    vit = random_vit(VitConfig(4, 3, 16, 2, 2, 32, 1e-6, registers=4, layer_scale=True, resampling="antialias"))
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = vit(images)
    assert tokens.shape == (1, 1 + 4, 16)
    assert vit.registers is not None
    vit.registers.copy_(vit.registers[:, [2, 0, 3, 1]])  # no positions: their order does not matter
    torch.testing.assert_close(vit(images), tokens, atol=1e-5, rtol=1e-5)
    vit.registers.copy_(vit.registers.flip(2))  # but their values do
    assert (vit(images) - tokens).abs().max().item() > 1e-3


def test_a_modulation_of_zeros_changes_nothing_and_shift_comes_before_scale() -> None:
    plain, modulated = random_vit(SMALL), random_vit(VitConfig(4, 3, 16, 2, 2, 32, 1e-6, condition_width=8))
    modulated.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    condition = torch.ones(1, 8)
    for block in modulated.blocks:
        block.modulation.weight.zero_()
        block.modulation.bias.zero_()
    expected = plain(images)
    torch.testing.assert_close(modulated(images, condition), expected, atol=1e-5, rtol=1e-5)
    # Shifting and scaling of the first norm by hand: LN(x) * (1 + 0.5) + 0.25 is a norm of other weight and bias.
    for block, twin in zip(modulated.blocks, plain.blocks, strict=True):
        block.modulation.bias[:16] = 0.25
        block.modulation.bias[16:32] = 0.5
        twin.norm_attention.bias.copy_(twin.norm_attention.bias * 1.5 + 0.25)
        twin.norm_attention.weight.mul_(1.5)
    torch.testing.assert_close(modulated(images, condition), plain(images), atol=1e-5, rtol=1e-5)
    assert (plain(images) - expected).abs().max().item() > 1e-3


def test_imagenet_normalisation_by_hand() -> None:
    grey = normalize_imagenet(torch.full((1, 3, 1, 1), 0.5))
    assert grey.flatten().tolist() == pytest.approx([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225], abs=1e-6)


def test_a_picture_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ImageError, match=r"patches of 4 pixels.*3 x 8.*larger"):
        random_vit(SMALL)(torch.zeros(1, 3, 8, 3))
