"""Views: shapes, compositing, joining."""

from __future__ import annotations

import pytest
import torch

from multiview.cameras import orbit
from multiview.errors import ImageError
from multiview.views import Views


def some_views(count: int = 2, height: int = 4, width: int = 6, value: float = 0.5) -> Views:
    images = torch.full((count, 3, height, width), value) + torch.arange(count).reshape(-1, 1, 1, 1) * 0.1
    return Views(images, torch.full((count, 1, height, width), 0.5), orbit([30.0 * i for i in range(count)], 0, 2, 40))


def test_size_is_height_then_width() -> None:
    views = some_views()
    assert len(views) == 2
    assert views.image_size == (4, 6)


def test_composite_over_white_grey_and_a_colour() -> None:
    views = some_views(1)
    # Straight alpha: 0.5 * 0.5 + background * 0.5.
    assert torch.equal(views.composite(), torch.full((1, 3, 4, 6), 0.75))
    assert torch.equal(views.composite(0.0), torch.full((1, 3, 4, 6), 0.25))
    assert views.composite((1.0, 0.0, 0.5))[0, :, 0, 0].tolist() == [0.75, 0.25, 0.5]


def test_composite_leaves_the_views_alone() -> None:
    views = some_views(1)
    views.composite(0.0)
    assert torch.equal(views.images, torch.full((1, 3, 4, 6), 0.5))


@pytest.mark.parametrize(
    ("images", "alpha", "count", "words"),
    [
        pytest.param((2, 3, 4, 4), (2, 1, 4, 4), 1, "and 1 cameras", id="cameras"),
        pytest.param((2, 3, 4, 4), (2, 1, 4, 5), 2, r"\(2, 1, 4, 5\)", id="alpha size"),
        pytest.param((2, 4, 4, 4), (2, 1, 4, 4), 2, r"found \(2, 4, 4, 4\)", id="four channels"),
        pytest.param((3, 4, 4), (1, 4, 4), 1, r"found \(3, 4, 4\)", id="no view axis"),
    ],
)
def test_wrong_shapes(images: tuple[int, ...], alpha: tuple[int, ...], count: int, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Views(torch.zeros(images), torch.zeros(alpha), orbit([0.0] * count, 0, 2, 40))


def test_select_keeps_pictures_and_cameras_together() -> None:
    picked = some_views(3).select([2, 0])
    assert picked.images[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.5])
    assert torch.equal(picked.cameras.c2w, orbit([60.0, 0.0], 0, 2, 40).c2w)


def test_cat_and_to() -> None:
    joined = Views.cat([some_views(1), some_views(2, value=0.2)]).to("cpu")
    assert joined.images[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert len(joined.cameras) == 3


def test_different_sizes_are_not_joined() -> None:
    with pytest.raises(ImageError, match=r"\[\(4, 6\), \(8, 6\)\].*Resize"):
        Views.cat([some_views(), some_views(height=8)])
