"""Turn one photograph into one textured 3D object.

The public face of the project::

    from trilift import ImageTo3D

    pipe = ImageTo3D.from_pretrained("tiny")
    asset = pipe("chair.png")
    asset.save("out/chair")

Every public name is loaded when it is first used, so that ``import trilift`` and ``trilift --help`` do not wait for
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiview.errors import TriliftError

    from .asset import Asset
    from .batch import LiftResult
    from .foreground import Cutout, cut_out
    from .photo import Photo, load_photo
    from .pipeline import ImageTo3D, lift, lift_folder
    from .registry import models
    from .runner import RunOptions
    from .settings import LiftSettings, ViewSettings
    from .views import GeneratedViews, PhotoToViews

__version__ = "0.1.0"

__all__ = [
    "Asset",
    "Cutout",
    "GeneratedViews",
    "ImageTo3D",
    "LiftResult",
    "LiftSettings",
    "Photo",
    "PhotoToViews",
    "RunOptions",
    "TriliftError",
    "ViewSettings",
    "__version__",
    "cut_out",
    "lift",
    "lift_folder",
    "load_photo",
    "models",
]

_HOMES = {
    "Asset": ".asset",
    "Cutout": ".foreground",
    "GeneratedViews": ".views",
    "ImageTo3D": ".pipeline",
    "LiftResult": ".batch",
    "LiftSettings": ".settings",
    "Photo": ".photo",
    "PhotoToViews": ".views",
    "RunOptions": ".runner",
    "TriliftError": "multiview.errors",
    "ViewSettings": ".settings",
    "cut_out": ".foreground",
    "lift": ".pipeline",
    "lift_folder": ".pipeline",
    "load_photo": ".photo",
    "models": ".registry",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trilift' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
