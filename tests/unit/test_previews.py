"""What views look like while they are drawn: shown by every generator after every step, without changing a result."""

from __future__ import annotations

import pytest
import torch

from multiview.generator import rough_pictures
from multiview.zero123plus import LATENT_SCALE, LATENT_SHIFT, rough_tiles
from tests.small_generators import build_small


def test_latents_by_hand() -> None:
    latents = torch.zeros(2, 4, 1, 2)
    latents[1, :, 0, 0] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    latents[1, 0, 0, 1] = 100.0
    drawn = rough_pictures(latents)
    assert drawn.shape == (2, 3, 1, 2)
    assert torch.equal(drawn[0], torch.full((3, 1, 2), 0.5)), "no signal is mid grey"
    # Red: 0.298 - 0.187 - 0.079 - 0.368 = -0.336, halved and moved to [0, 1]; green -0.5265, blue -0.779.
    assert drawn[1, :, 0, 0].tolist() == pytest.approx([0.332, 0.23675, 0.1105], abs=1e-6)
    assert drawn[1, :, 0, 1].tolist() == [1.0, 1.0, 1.0]


def test_a_sheet_of_latents_is_cut_into_its_tiles() -> None:
    latents = torch.full((1, 4, 6, 4), -LATENT_SHIFT * LATENT_SCALE)  # where the decoder's input is 0
    latents[:, :, 2:4, 2:4] += 10  # the tile in the second row, on the right
    drawn = rough_tiles(latents)
    assert drawn.shape == (6, 3, 2, 2)
    grey = [bool((tile == 0.5).all()) for tile in drawn]
    assert grey == [True, True, True, False, True, True]


@pytest.mark.parametrize(("name", "count"), [("zero123", 6), ("syncdreamer", 16), ("zero123plus", 6)])
def test_every_step_is_shown_and_changes_nothing(name: str, count: int) -> None:
    model = build_small(name)
    image = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(1))
    shown: list[torch.Tensor] = []
    options = {"elevation_deg": 10.0, "num_inference_steps": 2}
    plain = model.generate(image, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    seen = model.generate(image, generator=torch.Generator().manual_seed(0), on_preview=shown.append, **options)  # type: ignore[arg-type]
    assert torch.equal(plain.images, seen.images) and len(plain.images) == len(seen.images) == count
    assert len(shown) == 2
    for pictures in shown:
        assert pictures.shape[:2] == (count, 3) and pictures.device.type == "cpu"
        assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1


def test_what_a_preview_raises_ends_the_run() -> None:
    class EnoughError(Exception):
        pass

    def enough(_: torch.Tensor) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        build_small("zero123plus").generate(
            torch.rand(4, 64, 64), elevation_deg=0.0, num_inference_steps=2, on_preview=enough
        )
