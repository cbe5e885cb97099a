"""What is written down of how something was made, whatever was made: versions, the photo, messages that name it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
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


@contextmanager
def naming(photo: str) -> Iterator[None]:
    """Put ``photo`` in front of the message of any `TriliftError` that does not name it yet."""
    try:
        yield
    except TriliftError as error:
        if photo in str(error):
            raise
        raise type(error)(f"{photo}: {error}") from error
