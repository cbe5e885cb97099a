"""Painting a mesh from pictures: who sees what, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrm.mesh import Mesh
from multiview.cameras import Cameras, orbit
from multiview.views import Views
from trilift.paint import painted


def sphere(rings: int = 24) -> Mesh:
    """A grey ball of radius 0.5 as a grid of latitudes and longitudes."""
    import trimesh

    ball = trimesh.creation.uv_sphere(radius=0.5, count=[rings, 2 * rings])
    return Mesh(np.asarray(ball.vertices), np.asarray(ball.faces), np.full((len(ball.vertices), 3), 0.5))


def plain(color: tuple[float, float, float], camera: Cameras, size: int = 96) -> Views:
    """A picture of one colour all over."""
    images = torch.tensor(color)[None, :, None, None].expand(1, 3, size, size).contiguous()
    return Views(images, torch.ones(1, 1, size, size), camera)


def test_each_side_gets_the_colour_of_the_picture_that_sees_it() -> None:
    red, blue = plain((1.0, 0.0, 0.0), orbit(0.0, 0.0, 3.0, 30.0)), plain((0.0, 0.0, 1.0), orbit(180.0, 0.0, 3.0, 30.0))
    mesh = painted(sphere(), Views.cat([red, blue]))
    front, back = mesh.vertices[:, 0] > 0.35, mesh.vertices[:, 0] < -0.35
    assert np.allclose(mesh.colors[front], (1, 0, 0), atol=1e-3)
    assert np.allclose(mesh.colors[back], (0, 0, 1), atol=1e-3)


def test_what_nobody_sees_keeps_its_colour_and_slants_are_blended() -> None:
    mesh = painted(sphere(), plain((1.0, 0.0, 0.0), orbit(0.0, 0.0, 3.0, 30.0)))
    away = mesh.vertices[:, 0] < 0.05
    assert np.allclose(mesh.colors[away], 0.5, atol=1e-6)
    slanted = (mesh.vertices[:, 0] > 0.2) & (mesh.vertices[:, 0] < 0.3)
    assert ((mesh.colors[slanted, 0] > 0.5) & (mesh.colors[slanted, 0] < 1)).all()


def test_what_stands_behind_something_is_not_painted() -> None:
    front, far = sphere(), sphere()
    vertices = np.concatenate([front.vertices, far.vertices * 0.6 + np.float32([-1.2, 0, 0])])
    faces = np.concatenate([front.faces, far.faces + len(front.vertices)])
    both = Mesh(vertices, faces, np.full((len(vertices), 3), 0.5))
    colors = painted(both, plain((1.0, 0.0, 0.0), orbit(0.0, 0.0, 4.0, 40.0))).colors
    assert np.allclose(colors[len(front.vertices) :], 0.5, atol=1e-6)
    assert (colors[: len(front.vertices), 0] > 0.9).any()


def test_transparent_pixels_say_nothing() -> None:
    view = plain((1.0, 0.0, 0.0), orbit(0.0, 0.0, 3.0, 30.0))
    clear = Views(view.images, view.alpha * 0.5, view.cameras)
    assert painted(sphere(), clear).colors == pytest.approx(sphere().colors)
