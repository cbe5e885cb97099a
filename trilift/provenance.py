"""What is written down of how something was made, whatever was made: versions, the photo, messages that name it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from multiview.errors import TriliftError
from multiview.weights import file_sha256

if TYPE_CHECKING:
    from .photo import Photo

PACKAGES = ("torch", "numpy", "trimesh", "PyMCubes", "pillow")
VIEW_PACKAGES = ("diffusers", "transformers")
"""Those that decide the numbers of generated views, beside the others."""


def own_version() -> str:
    """Of trilift."""
    from . import __version__

    return __version__


def package_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers; None when one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            found[package.lower()] = None
    return found


def photo_record(photo: Photo) -> dict[str, Any]:
    """Which photo it was, and its mask where it has one."""
    return {
        "name": photo.name,
        "sha256": photo.sha256,
        "mask": photo.mask_path,
        "mask_sha256": None if photo.mask_path is None else file_sha256(photo.mask_path),
        "notes": list(photo.notes),
    }


_PASSPORT_MODEL = ("name", "sha256", "licence", "commercial", "architecture", "repository", "revision")
_PASSPORT_CUTOUT = ("method", "foreground_ratio", "source_size_px", "box_px")
_PASSPORT_CAMERA = ("azimuth_deg", "elevation_deg", "distance_world", "fov_y_deg")
_PASSPORT_EXPORT = ("unit", "up_axis", "front_axis", "color_space", "file_from_world", "profile")


def passport(record: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What a mesh file carries of how it was made, so that it can be told when it has left its folder.

    Nothing that the clock or a person's folders say is in it: equal lifts give equal files.

    Args:
        record: of the asset.
        about: what the asset says of its ``cutout``, its ``camera`` and its ``export``.

    Returns:
        ``trilift``, ``photo_sha256``, ``model`` (name, weights' hash, licence ...), ``seed``, ``versions``, ``device``,
        ``dtype``, ``cutout``, ``camera``, ``export`` (unit, axes, colour space) and ``checks``, as far as known.
    """
    model, photo = record.get("model"), record.get("photo")
    told: dict[str, Any] = {name: record.get(name) for name in ("trilift", "seed", "versions", "device", "dtype")}
    told["photo_sha256"] = photo.get("sha256") if isinstance(photo, Mapping) else None
    told["model"] = _picked(model, _PASSPORT_MODEL) if isinstance(model, Mapping) else model
    told["cutout"] = _picked(about["cutout"], _PASSPORT_CUTOUT)
    told["camera"] = _picked(about["camera"], _PASSPORT_CAMERA)
    told["export"] = _picked(about["export"], _PASSPORT_EXPORT)
    told["checks"] = record.get("checks")
    return {name: value for name, value in told.items() if value is not None}


def _picked(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Those of ``values`` that are named and there."""
    return {name: values[name] for name in names if values.get(name) is not None}


@contextmanager
def naming(photo: str) -> Iterator[None]:
    """Put ``photo`` in front of the message of any `TriliftError` that does not name it yet."""
    try:
        yield
    except TriliftError as error:
        if photo in str(error):
            raise
        raise type(error)(f"{photo}: {error}") from error
