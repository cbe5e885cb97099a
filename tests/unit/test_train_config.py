"""What recipes of every family share: how often each folder of data is drawn from."""

from __future__ import annotations

import math
from typing import Any

import pytest

from multiview.errors import SettingsError
from train.config import DataFolder, folder_chances
from train.finetune import FinetuneConfig
from train.tiny import TrainConfig, data_sources
from train.viewtuning import ViewTuneConfig

FOLDERS = (DataFolder("a"), DataFolder("b"))


def recipe_of(kind: str, data: tuple[DataFolder, ...], weights: tuple[float, ...]) -> Any:
    """What each kind of run does with a recipe first."""
    if kind == "viewtuning":
        return ViewTuneConfig(family="zero123", data=data, data_weights=weights)
    if kind == "finetune":
        return FinetuneConfig(family="triposr", data=data, data_weights=weights)
    return data_sources(TrainConfig(data=tuple(folder.path for folder in data), data_weights=weights))


def test_chances_are_the_recipes_or_alike() -> None:
    assert folder_chances(FOLDERS, ()) == (1.0, 1.0)
    assert folder_chances(FOLDERS, (3.0, 0.0)) == (3.0, 0.0)


@pytest.mark.parametrize("kind", ["viewtuning", "finetune", "tiny"])
@pytest.mark.parametrize(
    ("data", "weights", "said"),
    [
        pytest.param((), (), r"data names 0 folders, data_weights 0", id="no data"),
        pytest.param(FOLDERS, (1.0,), r"data names 2 folders, data_weights 1; they must be equal", id="one is missing"),
        pytest.param(FOLDERS, (1.0, -0.5), r"data_weights=\[1.0, -0.5\]: expected numbers of 0 or more", id="negative"),
        pytest.param(FOLDERS, (1.0, math.nan), r"data_weights=\[1.0, nan\]: expected numbers", id="nan"),
        pytest.param(FOLDERS, (math.inf, 1.0), r"data_weights=\[inf, 1.0\]: expected numbers", id="infinite"),
        pytest.param(FOLDERS, (0.0, 0.0), r"data_weights=\[0.0, 0.0\]: .* not all of them 0", id="all zero"),
    ],
)
def test_weights_that_nothing_can_be_drawn_by_are_refused(
    kind: str, data: tuple[DataFolder, ...], weights: tuple[float, ...], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        recipe_of(kind, data, weights)
