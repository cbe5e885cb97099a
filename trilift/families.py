"""Whose weights are these? Families of networks, told by the names of their tensors, and what sizes a file has."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiview.errors import WeightsError

if TYPE_CHECKING:
    from lrm.published import PublishedModel


@dataclass(frozen=True)
class Family:
    """A published architecture.

    Attributes:
        name: as in the registry and in our config.json.
        title: what people call it.
        module: where its network is.
        model: name of its `lrm.published.PublishedModel` there.
        marks: names of tensors that it has and no other family.
        config: file name pattern of its published sizes, and a key that they have.
    """

    name: str
    title: str
    module: str
    model: str
    marks: tuple[str, ...]
    config: tuple[str, str]

    def load(self) -> type[PublishedModel]:
        """The class; its module is imported now."""
        found: type[PublishedModel] = getattr(importlib.import_module(self.module), self.model)
        return found


FAMILIES = (
    Family(
        "triposr", "TripoSR", "lrm.triposr", "TripoSR", ("backbone.proj_in.weight", "tokenizer.embeddings"),
        ("config.yaml", "backbone"),
    ),
    Family(
        "openlrm", "OpenLRM 1.1", "lrm.openlrm", "OpenLRM",
        ("camera_embedder.mlp.0.weight", "upsampler.weight", "encoder.model.register_tokens"),
        ("config.json", "transformer_dim"),
    ),
    Family(
        "instantmesh", "InstantMesh (NeRF)", "lrm.instantmesh", "InstantMesh",
        ("encoder.camera_embedder.0.weight", "transformer.deconv.weight", "synthesizer.decoder.net.0.weight"),
        ("*.yaml", "model_config"),
    ),
)  # fmt: skip

# Weights that people may give by mistake: a pattern of a tensor's name, and what has it.
_FOREIGN = (
    (r"synthesizer\.decoder\.net_sdf\.", "InstantMesh (mesh, FlexiCubes). Use instant_nerf_base or instant_nerf_large"),
    (r"model\.diffusion_model\.", "a latent diffusion model, such as Zero123 or Stable Diffusion"),
    (r"(time_embedding|down_blocks|mid_block|up_blocks)\.", "a diffusers UNet or VAE, such as Zero123++'s"),
    (r"encoder\.model\.(embeddings|encoder)\..*", "OpenLRM 1.0, of which only the 1.1 releases are supported"),
    (r"(backbone|tokenizer)\..*(latent|two_stream|main_blocks)", "Stable Fast 3D or a relative of it"),
    (r"(cls_token|pos_embed|blocks\.\d+\.attn\.qkv\.weight)$", "an image encoder (DINO or DINOv2) alone"),
    (r"embeddings\.patch_embeddings\.projection\.", "an image encoder (ViT) alone"),
    (r"(plane_position|front_plane\.)", "trilift's own small model; give its folder with config.json"),
)
PREFIX = "lrm_generator."


def find_family(name: str) -> Family | None:
    """The family called ``name``."""
    return next((family for family in FAMILIES if family.name == name), None)


def recognise(keys: Iterable[str], where: str) -> tuple[Family, bool]:
    """Tell the family from the names of the tensors.

    Returns:
        The family, and whether the names are the published ones (False: ours, as our own folders have them).

    Raises:
        WeightsError: of no family that this version knows; says what the file is where that can be told.
    """
    names = {key.removeprefix(PREFIX) for key in keys}
    for family in FAMILIES:
        if all(mark in names for mark in family.marks):
            return family, True
    known = ", ".join(family.title for family in FAMILIES)
    for pattern, what in _FOREIGN:
        if any(re.match(pattern, name) for name in names):
            raise WeightsError(f"{where}: expected weights of {known}; this is {what} ({len(names)} tensors).")
    first = min(names, default="none")
    raise WeightsError(
        f"{where}: expected weights of {known}; {len(names)} tensors of another model were found, first {first}. "
        "Our own folders (config.json and model.safetensors) are given by the folder's name."
    )


def published_config(family: Family, file: Path | None, state: Mapping[str, Tensor], where: str) -> Any:
    """The sizes of a published network, as the family's config.

    Args:
        family: whose.
        file: the published config, None when there is none: then those published sizes that the tensors have.
        state: {published name: tensor}.
        where: what to call the weights in an error.

    Raises:
        WeightsError: the config cannot be read or does not go with the family.
    """
    module = importlib.import_module(family.module)
    if file is not None:
        return module.published_config(read_config(file), str(file))
    if family.name == "instantmesh":
        return module.config_from_state(state, where)
    if family.name == "openlrm":
        width = state["upsampler.weight"].shape[0]
        return {size.width: size for size in (module.SMALL, module.LARGE)}.get(width, module.BASE)
    return family.load().config_type()


def find_config(family: Family, folder: Path, stem: str) -> Path | None:
    """The family's published config beside its weights, None when no file there has the look of it."""
    pattern, mark = family.config
    names = [f"{stem}.yaml", "config.yaml"] if "*" in pattern else [pattern]
    for file in (folder / name for name in names):
        if file.is_file() and re.search(rf"(^|[\s{{,\"]){mark}\"?\s*:", file.read_text("utf-8", "replace")):
            return file
    return None


def read_config(file: Path) -> Any:
    """A JSON or YAML file as plain values.

    Raises:
        WeightsError: it cannot be read.
    """
    import yaml

    try:
        text = file.read_text("utf-8")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).split("\n")[0]
        raise WeightsError(f"{file}: not readable as {file.suffix[1:].upper()} ({reason}). Fetch it again.") from error
