"""Cells of space: what lies in them, which is nearest, and values between them."""

from __future__ import annotations

import numpy as np
import pytest

from lrm.cells import Cells

# Five cells of side 1 in a row, from 0 to 5; points in the first, twice, in the fourth, and on the far end.
ROW = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [3.5, 0.5, 0.5], [5.0, 0.5, 0.5]])


def test_points_of_one_cell_are_taken_together() -> None:
    cells = Cells(ROW, 5)
    assert cells.side == 1.0 and cells.group.tolist() == [0, 0, 1, 2]
    assert cells.middles == pytest.approx(np.array([[0.25, 0.25, 0.25], [3.5, 0.5, 0.5], [5.0, 0.5, 0.5]]))
    assert cells.sums(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx([3, 4, 8])
    assert cells.means(np.array([[1.0, 0.0], [2.0, 1.0], [4.0, 1.0], [8.0, 3.0]])) == pytest.approx(
        np.array([[1.5, 0.5], [4, 1], [8, 3]])
    )


def test_the_nearest_cell_with_points() -> None:
    cells = Cells(ROW, 5)
    # From the second cell one step back, from the third one step on; above and far beyond the lattice likewise.
    places = np.array([[1.5, 0.5, 0.5], [2.5, 0.5, 0.5], [0.5, 0.5, 1.5], [900.0, 0.5, 0.5], [-900.0, 0.5, 0.5]])
    assert cells.nearest(places).tolist() == [0, 1, 0, 2, 0]
    assert cells.nearest(places[None, :2]).shape == (1, 2)


def test_values_between_cells_are_blended() -> None:
    cells = Cells(ROW, 5)
    values = np.array([[1.0, 10.0], [3.0, 30.0], [7.0, 70.0]])
    # In the middle of cells their own; half way between the second (the first's, being nearest) and the third.
    places = np.array([[0.5, 0.5, 0.5], [3.5, 0.5, 0.5], [2.0, 0.5, 0.5], [2.25, 0.5, 0.5], [1000.0, 0.5, 0.5]])
    assert cells.blended(values, places) == pytest.approx(
        np.array([[1, 10], [3, 30], [2, 20], [2.5, 25], [7, 70]]), rel=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_point_is_nearest_to_its_own_cell(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(500, 3)) * (1.0, 0.3, 2.0)
    cells = Cells(points, 16)
    assert np.array_equal(cells.nearest(points), cells.group)
    assert np.abs(points - cells.middles[cells.group]).max() < cells.side


def test_one_point_and_wrong_numbers() -> None:
    assert Cells(np.zeros((1, 3)), 8).nearest(np.ones((2, 3))).tolist() == [0, 0]
    for points, along in ((np.zeros((0, 3)), 8), (np.zeros((1, 3)), 0), (np.zeros((1, 3)), 257)):
        with pytest.raises(ValueError, match="1 to 256 cells, found"):
            Cells(points, along)
