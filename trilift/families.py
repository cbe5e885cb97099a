"""Whose weights are these? Families of networks, told by the names of their tensors, and what sizes a file has.

Reconstruction models and view generators are told apart here as well, before any weights are read.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiview.checkpoint import CHECKPOINT_SUFFIXES
from multiview.errors import SettingsError, WeightsError
from multiview.ldm import checkpoint_keys
from multiview.weights import CONFIG_FILE

if TYPE_CHECKING:
    from lrm.published import PublishedModel
    from multiview.generator import StoredGenerator


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


@dataclass(frozen=True)
class GeneratorFamily:
    """An architecture that turns one picture into views.

    Attributes:
        name: as in the registry and in our config.json.
        title: what people call it.
        module: where its model is.
        model: name of its `multiview.generator.StoredGenerator` there.
        marks: names of tensors that its original checkpoints have; the first family whose marks are all there is it.
            Empty for what is published as a folder of parts.
        pipeline: what ``model_index.json`` of a folder of parts calls it, a pattern.
        parts: sub-folders that such a folder has, by which one without that file is told.
    """

    name: str
    title: str
    module: str
    model: str
    marks: tuple[str, ...]
    pipeline: str
    parts: tuple[str, ...]

    def load(self) -> type[StoredGenerator]:
        """The class; its module is imported now."""
        found: type[StoredGenerator] = getattr(importlib.import_module(self.module), self.model)
        return found


_POSE = "cc_projection.weight"
GENERATORS = (
    GeneratorFamily(
        "tiny-views", "the embedded view generator", "trilift.embeddedviews", "EmbeddedViews",
        ("told.0.weight", "share_down.0.qkv.weight"), r"(?!)", (),
    ),
    GeneratorFamily(
        "syncdreamer", "SyncDreamer", "multiview.syncdreamer", "SyncDreamer",
        ("spatial_volume.target_encoder.init_conv.weight",), r"(?!)", (),
    ),
    GeneratorFamily(
        "zero123", "Zero123", "multiview.zero123", "Zero123",
        (_POSE, "model.diffusion_model.input_blocks.0.0.weight"), r"Zero(1to3StableDiffusion|123)Pipeline",
        ("unet", "vae", "image_encoder"),
    ),
    GeneratorFamily(
        "zero123plus", "Zero123++", "multiview.zero123plus", "Zero123Plus", (), r"Zero123PlusPipeline",
        ("unet", "vae", "vision_encoder"),
    ),
)  # fmt: skip
INDEX_FILE = "model_index.json"

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


def family_by_keys(keys: Iterable[str]) -> Family | None:
    """The family of reconstruction models whose published files have tensors of these names, None for none."""
    names = {key.removeprefix(PREFIX) for key in keys}
    return next((family for family in FAMILIES if names.issuperset(family.marks)), None)


def find_generator(name: str) -> GeneratorFamily | None:
    """The family of view generators called ``name``."""
    return next((family for family in GENERATORS if family.name == name), None)


def generator_by_keys(keys: Iterable[str]) -> GeneratorFamily | None:
    """The family of view generators whose original checkpoints have tensors of these names, None for no generator."""
    names = set(keys)
    return next((family for family in GENERATORS if family.marks and names.issuperset(family.marks)), None)


def generator_at(path: Path) -> GeneratorFamily | None:
    """Which view generator a folder or file on this machine holds, None for none.

    Cheap: of folders the configs are read, of files the names of the tensors.

    Raises:
        WeightsError: a folder's config.json is damaged.
    """
    if path.is_dir():
        return _generator_in(path)
    return generator_by_keys(keys_at(path))


def keys_at(path: Path, *, strict: bool = False) -> list[str]:
    """Names of the tensors in a file; none when they cannot be read, unless ``strict``.

    Raises:
        WeightsError: see `multiview.ldm.checkpoint_keys`.
    """
    try:
        return checkpoint_keys(path)
    except WeightsError:
        if strict:
            raise
        return []  # whoever reads it says what is wrong with it


def _generator_in(folder: Path) -> GeneratorFamily | None:
    """By our config.json, by the index or the parts of a published folder, or by a file of weights in it."""
    if own := own_config(folder / CONFIG_FILE):
        return find_generator(str(own.get("architecture")))
    index = _values(folder / INDEX_FILE)
    for family in GENERATORS:
        if re.fullmatch(family.pipeline, str(index.get("_class_name"))):
            return family
    for family in GENERATORS:
        if family.parts and all((folder / part / CONFIG_FILE).is_file() for part in family.parts):
            return family
    files = [file for file in folder.iterdir() if file.suffix in CHECKPOINT_SUFFIXES and file.is_file()]
    return generator_at(files[0]) if len(files) == 1 else None


def own_config(config: Path) -> dict[str, Any]:
    """What a config.json of our own form says, empty for any other file: published ones have no format version.

    Raises:
        WeightsError: it is no JSON.
    """
    values = read_config(config) if config.name == CONFIG_FILE and config.is_file() else {}
    return values if isinstance(values, dict) and "format" in values else {}


def _values(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none that can be read."""
    try:
        values = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def refuse_generator(name: str, family: GeneratorFamily | None) -> None:
    """Raise SettingsError when what was given for a reconstruction model makes views."""
    if family is not None:
        raise SettingsError(
            f"{name} is {family.title}, which makes views of a photo and no object. Give it with --views "
            "(views= in Python), and a model that takes views with --model, such as instantmesh-base or tiny."
        )


def recognise(keys: Iterable[str], where: str) -> tuple[Family, bool]:
    """Tell the family from the names of the tensors.

    Returns:
        The family, and whether the names are the published ones (False: ours, as our own folders have them).

    Raises:
        WeightsError: of no family that this version knows; says what the file is where that can be told.
        SettingsError: a view generator.
    """
    names = {key.removeprefix(PREFIX) for key in keys}
    if (found := family_by_keys(names)) is not None:
        return found, True
    refuse_generator(where, generator_by_keys(names))
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
