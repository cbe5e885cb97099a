"""The models that a run starts from: as inference loads them, with numbers of their own that may be trained."""

from __future__ import annotations

import copy
from typing import Any

import torch

from multiview.devices import CPU


def load_base(name: str) -> tuple[Any, dict[str, Any]]:
    """Load a model for training, in fp32 on the CPU.

    Args:
        name: as `trilift.ImageTo3D.from_pretrained` takes it: a name, a folder, a file, or a repository of the hub.

    Returns:
        The model, whose network has memory of its own (a file is only mapped); and what the ``config.json`` of a model
        made from it must say: the licence goes on to whatever is trained from the weights.

    Raises:
        WeightsError, SettingsError: see `trilift.loading.fetch` and `trilift.loading.build`.
    """
    from trilift import registry
    from trilift.loading import build, fetch, weights_record

    files = fetch(registry.resolve(name), None)
    model: Any = build(files, torch.device(CPU), "fp32")[0]
    record = weights_record(files, getattr(model, "architecture", "tiny"))
    model.network = copy.deepcopy(model.network)
    base = {"name": record.name, "sha256": record.sha256, "repository": record.repository, "revision": record.revision}
    return model, {"licence": record.licence, "commercial": record.commercial, "base": base}
