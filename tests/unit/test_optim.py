"""Muon against singular values, AdamW against torch's own, and which parameter goes where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrm.tiny import TinyConfig, TinyNetwork
from train.optim import Muon, orthogonalized, parameter_groups


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 30)])
def test_orthogonalized_has_singular_values_near_one_and_the_same_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    made = orthogonalized(matrix)
    assert made.shape == matrix.shape
    singular = torch.linalg.svdvals(made)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # The nearest half-orthogonal matrix has the inner product sum of singular values; that of the rounds is near.
    nearest = torch.linalg.svdvals(matrix).sum()
    assert (made * matrix).sum().item() == pytest.approx(nearest.item(), rel=0.35)


def test_muon_step_has_the_size_of_an_adam_step() -> None:
    weight = nn.Parameter(torch.zeros(64, 256))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.01)
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    # Root mean square 0.2 of the learning rate, whatever the gradient's scale.
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.002, rel=0.25)


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(7), [torch.randn(7) for _ in range(5)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.03),
        torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1),
    ]
    for grad in grads:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = grad.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_muon_finds_the_least_squares_of_a_linear_map() -> None:
    torch.manual_seed(0)
    truth, layer = torch.randn(12, 20), nn.Linear(20, 12, bias=False)
    optimizer = Muon(parameter_groups(layer, 0.0), lr=0.05)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        x = torch.randn(64, 20)
        loss = (layer(x) - x @ truth.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * truth.square().sum(1).mean().item()


def test_every_trained_parameter_is_in_one_group_and_tables_are_not_orthogonalized() -> None:
    network = TinyNetwork(TinyConfig())
    network.head.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert [group["muon"] for group in groups] == [True, False]
    listed = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed) == sum(p.requires_grad for p in network.parameters())
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert any(p is network.image_position for p in groups[1]["params"])
