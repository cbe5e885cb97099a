"""The one attention call: by hand, and through a stand-in for xformers that checks how it is called."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from multiview.attention import attend, join_heads, split_heads, use_attention
from multiview.errors import SettingsError


@pytest.fixture(autouse=True)
def back_to_default() -> Iterator[None]:
    yield
    use_attention("sdpa")


def random_heads(*lengths: int) -> list[torch.Tensor]:
    """One (B = 2, heads = 3, length, width = 4) tensor for each length."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, length, 4, generator=generator) for length in lengths]


class StandIn(types.ModuleType):
    """Plays ``xformers``: attends on (batch, length, heads, width) and remembers the shapes."""

    def __init__(self) -> None:
        super().__init__("xformers")
        self.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
        self.ops = types.ModuleType("xformers.ops")
        self.ops.memory_efficient_attention = self.attention  # type: ignore[attr-defined]
        self.calls: list[tuple[torch.Size, ...]] = []

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        self.calls.append((query.shape, key.shape, value.shape))
        scores = torch.einsum("blhw,bmhw->bhlm", query, key) / math.sqrt(query.shape[-1])
        return torch.einsum("bhlm,bmhw->blhw", scores.softmax(-1), value)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "xformers", module)
    monkeypatch.setitem(sys.modules, "xformers.ops", module.ops)
    return module


def test_equal_scores_give_the_mean() -> None:
    value = torch.tensor([[[[1.0, 10.0], [3.0, 30.0]]]])
    assert torch.allclose(attend(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 2, 2), value), torch.tensor([2.0, 20.0]))


def test_scale_is_the_root_of_the_head_width() -> None:
    # Width 4: scores q.k / 2 = ln 3 and 0, so the weights are 3/4 and 1/4.
    query = torch.tensor([[[[2 * math.log(3.0), 0.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[1.0, 0, 0, 0], [0, 0, 0, 0]]]])
    value = torch.tensor([[[[4.0, 0, 0, 0], [0, 4.0, 0, 0]]]])
    assert torch.allclose(attend(query, key, value), torch.tensor([3.0, 1.0, 0, 0]))


def test_xformers_gets_its_own_layout_and_gives_the_same(stand_in: StandIn) -> None:
    query, key, value = random_heads(5, 7, 7)
    plain = attend(query, key, value)
    use_attention("xformers")
    found = attend(query, key, value)
    # (batch, length, heads, width), not (batch, heads, length, width).
    assert stand_in.calls == [((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4))]
    assert found.shape == (2, 3, 5, 4)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def test_the_default_does_not_touch_xformers(stand_in: StandIn) -> None:
    query, key, value = random_heads(5, 7, 7)
    torch.testing.assert_close(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))
    assert stand_in.calls == []


def test_going_back_to_the_default(stand_in: StandIn) -> None:
    use_attention("xformers")
    use_attention("sdpa")
    attend(*random_heads(2, 2, 2))
    assert stand_in.calls == []


@pytest.mark.parametrize(
    ("queries", "keys"),
    [(1, 1), (512, 7), (513, 40), (1030, 300)],
    ids=["one", "one-block", "one-over", "three-blocks"],
)
def test_bf16_without_gradients_equals_the_fused_kernel_up_to_bf16(queries: int, keys: int) -> None:
    query, key, value = (x.bfloat16() for x in random_heads(queries, keys, keys))
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    with torch.no_grad():
        found = attend(query, key, value)
    assert found.dtype == torch.bfloat16 and found.shape == (2, 3, queries, 4)
    # Three roundings (scores, weights, result) of 2 ** -9 each, of values up to 4 and scores up to 8.
    assert float((found.float() - exact).abs().max()) < 0.03
    wrong = F.scaled_dot_product_attention(query.float(), key.float().flip(2), value.float())
    assert keys == 1 or float((found.float() - wrong).abs().max()) > 0.03  # the bound can tell


def test_bf16_keys_with_a_large_common_part_keep_their_digits() -> None:
    # Scores are near 60 and differ by less than 1: rounded as they are, to steps of 0.25, they would say little.
    query, key, value = random_heads(600, 50, 50)
    query, key, value = (query * 0.1 + 10).bfloat16(), (key * 0.02 + 3).bfloat16(), value.bfloat16()
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    with torch.no_grad():
        found = attend(query, key, value)
    plain = torch.softmax((query * 0.5) @ key.transpose(-1, -2), -1) @ value
    error, plain_error = ((x.float() - exact).square().mean().sqrt() for x in (found, plain))
    assert error < 0.003 < plain_error


@pytest.mark.parametrize("largest", [30.0, 60.0, 300.0], ids=["in-range", "near-its-end", "out-of-it"])
def test_bf16_scores_of_any_size_give_weights(largest: float) -> None:
    # Two keys with scores of +-largest, and a third whose score of 0 lies between: all weight falls on the first or,
    # for the second query, on the second. In bf16 2 ** (300 * 1.44) is no number; 2 ** (60 * 1.44) is one, but large.
    key = torch.tensor([[[[1.0, 0], [-1.0, 0], [0, 0]]]]).bfloat16()
    query = (torch.tensor([[[[1.0, 0], [-1.0, 0], [0, 0]]]]) * largest * math.sqrt(2)).bfloat16()
    value = torch.tensor([[[[8.0, 1], [16.0, 2], [32.0, 3]]]]).bfloat16()
    with torch.no_grad():
        found = attend(query, key, value)[0, 0].float()
    mean = [56 / 3, 2.0]  # a query of zeros looks at all three alike
    torch.testing.assert_close(found, torch.tensor([[8.0, 1], [16.0, 2], mean]), rtol=2**-7, atol=0)


def test_bf16_without_numbers_says_so() -> None:
    query, key, value = (x.bfloat16() for x in random_heads(5, 7, 7))
    query[0, 1, 2] = math.nan
    with torch.no_grad():
        found = attend(query, key, value)
    wrong = found.isnan().all(-1)
    assert wrong[0, 1, 2] and int(wrong.sum()) == 1  # of the others, even of that head, nothing is lost


def test_bf16_heads_lie_as_joining_wants_them() -> None:
    with torch.no_grad():
        found = attend(*(x.bfloat16() for x in random_heads(5, 6, 6)))
    assert join_heads(found).data_ptr() == found.data_ptr()


def test_bf16_with_gradients_is_differentiable() -> None:
    query, key, value = (x.bfloat16().requires_grad_() for x in random_heads(5, 7, 7))
    attend(query, key, value).float().sum().backward()
    assert value.grad is not None and float(value.grad.float().sum()) == pytest.approx(2 * 3 * 5 * 4, rel=0.02)


def test_missing_xformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"xformers is not installed.*trilift\[xformers\]"):
        use_attention("xformers")


def test_unknown_kernel() -> None:
    with pytest.raises(SettingsError, match="'flash': expected sdpa or xformers"):
        use_attention("flash")


def test_split_heads_by_hand() -> None:
    x = torch.arange(8.0).reshape(1, 2, 4)
    assert split_heads(x, 2).tolist() == [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]


def test_join_undoes_split() -> None:
    x = torch.arange(2 * 5 * 12.0).reshape(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(join_heads(split_heads(x, 3)), x)
