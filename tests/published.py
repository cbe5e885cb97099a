"""Small copies of the published models, in the files that their publishers use, filled by the rule of tests/parity."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lrm.instantmesh import InstantMesh, InstantMeshConfig
from lrm.openlrm import OpenLRM, OpenLRMConfig
from lrm.published import PublishedModel
from lrm.triposr import TripoSR, TripoSRConfig
from lrm.vit import VitConfig
from tests.parity.fill import fill_tensor

_VIT = VitConfig(patch_size=16, table_side=4, width=48, layers=3, heads=4, mlp_width=96)
SMALL: dict[str, Any] = {
    "triposr": TripoSRConfig(
        image_size=96, vit=_VIT, plane_size=4, channels=64, heads=2, head_width=32, layers=2, plane_channels=6,
        decoder_width=16,
    ),
    "openlrm": OpenLRMConfig(
        image_size=42, camera_width=32, plane_size=4, width=64, heads=4, layers=2, plane_channels=6,
        vit=VitConfig(14, 5, 48, 2, 4, 192, 1e-6, registers=4, layer_scale=True, resampling="antialias"),
    ),
    "instantmesh": InstantMeshConfig(
        image_size=96, vit=VitConfig(16, 4, 48, 3, 4, 96, condition_width=48), plane_size=4, width=64, heads=4,
        layers=2, plane_channels=6,
    ),
}  # fmt: skip
MODELS: dict[str, type[PublishedModel]] = {"triposr": TripoSR, "openlrm": OpenLRM, "instantmesh": InstantMesh}
FILES = {"triposr": "model.ckpt", "openlrm": "model.safetensors", "instantmesh": "instant_nerf_base.ckpt"}


def published_state(family: str, config: Any = None) -> dict[str, Tensor]:
    """{published name: tensor} of a family, by default of its small copy."""
    model = MODELS[family]
    with torch.device("meta"):
        network = model.network_type(config or SMALL[family])
    shapes: dict[str, list[int]] = {}
    for name, tensor in network.state_dict().items():
        published = model.keys.published(name)
        if published in shapes:  # query, key and value in one
            shapes[published][0] += tensor.shape[0]
        else:
            shapes[published] = list(tensor.shape)
    if family == "triposr":
        width = SMALL[family].vit.width if config is None else config.vit.width
        shapes["image_tokenizer.model.pooler.dense.weight"] = [width, width]
        shapes["image_tokenizer.model.pooler.dense.bias"] = [width]
    prefix = model.keys.prefix
    return {key: fill_tensor(key.removeprefix(prefix), shape) for key, shape in shapes.items()}


def save_published(path: Path, state: dict[str, Tensor]) -> Path:
    """Write ``state`` as its publisher would: bare in a .ckpt of TripoSR, wrapped in one of InstantMesh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        wrapped = any(key.startswith("lrm_generator.") for key in state)
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return path


def published_folder(folder: Path, family: str) -> Path:
    """A folder with a small copy: the publisher's file, and the sizes in a config.json of our own form.

    The published configs cannot state sizes of an image encoder other than the real one.
    """
    save_published(folder / FILES[family], published_state(family))
    config = {"format": 1, "architecture": family, "network": asdict(SMALL[family])}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder
