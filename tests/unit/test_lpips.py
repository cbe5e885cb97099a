"""`lrm.lpips`, on small random weights in the published layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lrm.lpips import ALEXNET, VGG16, Lpips, Tower, load_lpips
from multiview.errors import ImageError, WeightsError
from train.features import load_features

WIDTH = 4


def tower_state(tower: Tower, seed: int = 0) -> dict[str, Tensor]:
    """A narrow network under torchvision's keys."""
    generator = torch.Generator().manual_seed(seed)
    state, inputs = {}, 3
    for index in tower.convolutions:
        kernel = {("alex", 0): 11, ("alex", 3): 5}.get((tower.name, index), 3)
        state[f"features.{index}.weight"] = torch.randn(WIDTH, inputs, kernel, kernel, generator=generator) * 0.3
        state[f"features.{index}.bias"] = torch.randn(WIDTH, generator=generator) * 0.1
        inputs = WIDTH
    return state


def factor_state(width: int = WIDTH) -> dict[str, Tensor]:
    """Factors 1, 2, 3, 4, 5 under the lpips package's keys."""
    return {f"lin{depth}.model.1.weight": torch.full((1, width, 1, 1), depth + 1.0) for depth in range(5)}


def saved(folder: Path, tower: Tower = VGG16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tower_state(tower) | {"classifier.0.weight": torch.zeros(2, 2)}, folder / "network.pth")
    torch.save(factor_state(), folder / "factors.pth")
    return folder


def pictures(count: int = 2, size: int = 64, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tower", [VGG16, ALEXNET], ids=lambda tower: tower.name)
def test_equal_pictures_are_at_0_and_others_are_not(tower: Tower, tmp_path: Path) -> None:
    distance = load_lpips(saved(tmp_path, tower))
    assert distance.tower is tower
    here, there = pictures(), pictures(seed=2)
    assert distance(here, here).tolist() == [0.0, 0.0]
    apart = distance(here, there)
    assert apart.shape == (2,) and apart.min() > 0.01
    torch.testing.assert_close(apart, distance(there, here))
    torch.testing.assert_close(apart[1:], distance(here[1:], there[1:]))
    assert (distance(here, 0.9 * here + 0.1 * there) < apart).all(), "nearer pictures are nearer"


def test_one_depth_worked_out_by_hand() -> None:
    """A network that hands the picture on (1 x 1 kernels, identity) sees colours less the shift over the scale."""
    eye = torch.eye(3)[:, :, None, None]
    tower = Tower("vgg", (0,), (), (0,), 2, (1, 0))
    distance = Lpips(tower, [eye], [torch.zeros(3)], [torch.tensor([1.0, 10.0, 100.0])])
    white, red = torch.ones(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1
    # (1 + 0.03) / 0.458, (1 + 0.088) / 0.448, (1 + 0.188) / 0.45; below zero is cut off, so red keeps its first alone.
    seen = torch.tensor([1.03 / 0.458, 1.088 / 0.448, 1.188 / 0.450])
    unit = seen / seen.norm()
    expected = (unit[0] - 1) ** 2 + 10 * unit[1] ** 2 + 100 * unit[2] ** 2
    torch.testing.assert_close(distance(white, red), expected[None], rtol=1e-5, atol=1e-6)


def test_features_are_those_of_torchs_own_layers(tmp_path: Path) -> None:
    """VGG16 as torchvision stacks it: convolution 3 x 3, ReLU, and a pooling of 2 after layers 3, 8, 15, 22."""
    state, layers, inputs = tower_state(VGG16), [], 3
    for index in range(30):
        if index in VGG16.convolutions:
            layer = torch.nn.Conv2d(inputs, WIDTH, 3, padding=1)
            layer.weight.data, layer.bias.data = state[f"features.{index}.weight"], state[f"features.{index}.bias"]  # type: ignore[union-attr]
            layers.append(layer)
            inputs = WIDTH
        else:
            layers.append(torch.nn.MaxPool2d(2) if index in (4, 9, 16, 23) else torch.nn.ReLU())  # type: ignore[arg-type]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (pictures(1) * 2 - 1 - shift[:, None, None]) / scale[:, None, None]
    found = load_lpips(saved(tmp_path)).features(pictures(1))
    with torch.no_grad():
        for index, layer in enumerate(layers):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):
                torch.testing.assert_close(found[(3, 8, 15, 22, 29).index(index)], x)


def test_the_packages_own_file_reads_as_the_two_parts_do(tmp_path: Path) -> None:
    two = load_lpips(saved(tmp_path / "two"))
    whole = {f"net.slice1.{k.removeprefix('features.')}": v for k, v in tower_state(VGG16).items()}
    whole |= factor_state() | {f"lins.{i}.model.1.weight": torch.zeros(1) for i in range(5)}
    torch.save(whole | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, tmp_path / "whole.pth")
    one = load_lpips(tmp_path / "whole.pth")
    torch.testing.assert_close(one(pictures(), pictures(seed=2)), two(pictures(), pictures(seed=2)), rtol=0, atol=0)


def test_gradients_flow_to_the_answer(tmp_path: Path) -> None:
    answer = pictures(1).requires_grad_()
    load_lpips(saved(tmp_path))(answer, pictures(1, seed=2)).sum().backward()
    assert answer.grad is not None and answer.grad.abs().max() > 0


def test_gradients_are_numbers_where_the_network_sees_nothing(tmp_path: Path) -> None:
    """Biases far below zero: no ReLU lets anything through at the first depth, and lengths are 0."""
    state = tower_state(VGG16) | factor_state()
    state["features.2.bias"] = torch.full((WIDTH,), -1e6)
    torch.save(state, tmp_path / "whole.pth")
    answer = pictures(1).requires_grad_()
    load_lpips(tmp_path / "whole.pth")(answer, pictures(1, seed=2)).sum().backward()
    assert answer.grad is not None and torch.isfinite(answer.grad).all()


def test_the_loss_of_training_is_the_mean_of_the_metric(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    error = load_features([str(folder / "network.pth"), str(folder / "factors.pth")])
    here, there = pictures(), pictures(seed=2)
    expected = load_lpips(folder)(here, there).mean()
    assert expected > 0.01
    torch.testing.assert_close(error(here, there), expected)


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere.*vgg16-397923af\.pth.*one folder"):
        load_lpips(tmp_path / "nowhere")
    torch.save(tower_state(VGG16), tmp_path / "network.pth")
    with pytest.raises(WeightsError, match=r"found 13 and 0.*lin weights"):
        load_lpips(tmp_path / "network.pth")
    torch.save(tower_state(VGG16) | factor_state(7), tmp_path / "mixed.pth")
    with pytest.raises(WeightsError, match=r"vgg network has \[4, 4, 4, 4, 4\].*\[7, 7, 7, 7, 7\]"):
        load_lpips(tmp_path / "mixed.pth")
    broken = tower_state(VGG16) | factor_state()
    broken["features.5.weight"] = torch.zeros(4, 9, 3, 3)
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match=r"features\.5 wants \(C, 4, k, k\), found \(4, 9, 3, 3\)"):
        load_lpips(tmp_path / "broken.pth")
    twice = saved(tmp_path / "twice")
    torch.save(tower_state(VGG16), twice / "again.pth")
    with pytest.raises(WeightsError, match="in two files"):
        load_lpips(twice)


def test_wrong_pictures_are_named(tmp_path: Path) -> None:
    distance = load_lpips(saved(tmp_path))
    with pytest.raises(ImageError, match=r"at least 32 pixels.*\(2, 3, 16, 16\)"):
        distance(pictures(size=16), pictures(size=16))
    with pytest.raises(ImageError, match=r"\(2, 3, 64, 64\) and \(1, 3, 64, 64\)"):
        distance(pictures(), pictures(1))
