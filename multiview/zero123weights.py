"""The weights of Zero123 and its relatives: sizes, names, and the three forms in which they lie on disk.

* an original checkpoint (``.ckpt``, ``.safetensors``) with latent-diffusion's names, read by `multiview.ldm.read_ldm`;
* our own folder: ``config.json`` and one sub-folder per part (unet, vae, image_encoder, cc_projection);
* a folder of one of the conversions to diffusers that others have published: the same sub-folders, without our config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import CHECKPOINT_SUFFIXES, Dropped, KeyMap, read_checkpoint
from .errors import SettingsError, WeightsError
from .files import folder_written_whole, write_json_whole
from .hub import NoSuchFileError, hub_file
from .keymap import KeyTable
from .ldm import (
    SCHEDULE_BUFFERS,
    ClipSizes,
    UNetSizes,
    VaeSizes,
    clip_renames,
    fill_parts,
    make_clip,
    make_unet,
    make_vae,
    text_leftovers,
    unet_renames,
    vae_renames,
)
from .weights import CONFIG_FILE, FORMAT_VERSION, config_from_dict, read_config_json, write_safetensors

ARCHITECTURE = "zero123"
PoseRule = Literal["distance", "polar"]
S = TypeVar("S")


@dataclass(frozen=True)
class Zero123Config:
    """Sizes and pose rule; the defaults are the published Zero123 and Zero123-XL.

    Attributes:
        pose_rule: see `pose_numbers`; no file of the publishers says which one its weights were trained with.
        unet, vae, clip: sizes of the parts.
        foreground_ratio: longest side of the object's box / image side.
    """

    pose_rule: PoseRule = "distance"
    unet: UNetSizes = field(default_factory=UNetSizes)
    vae: VaeSizes = field(default_factory=VaeSizes)
    clip: ClipSizes = field(default_factory=ClipSizes)
    foreground_ratio: float = 200 / 256

    @property
    def image_size(self) -> int:
        """Pixels per side of pictures in and out."""
        return self.unet.latent_size * 2 ** (len(self.vae.channels) - 1)


class Zero123Network(nn.Module):
    """The four parts under the names that our files have."""

    def __init__(self, config: Zero123Config) -> None:
        super().__init__()
        self.config = config
        self.unet: Any = make_unet(config.unet)
        self.vae: Any = make_vae(config.vae)
        self.image_encoder: Any = make_clip(config.clip)
        self.cc_projection = nn.Linear(config.clip.projection_width + 4, config.unet.context_width)


PARTS = ("unet", "vae", "image_encoder", "cc_projection")


def ldm_keys(config: Zero123Config | None = None) -> KeyTable:
    """The names in the original checkpoints; running averages are to be dealt with first (`multiview.ldm.use_ema`)."""
    config = config or Zero123Config()
    return KeyTable(
        renames=(
            *unet_renames(sizes=config.unet),
            *vae_renames(sizes=config.vae),
            *clip_renames(),
            ("cc_projection", "cc_projection"),
        ),
        dropped=text_leftovers() | SCHEDULE_BUFFERS,
    )


def fill_zero123(
    config: Zero123Config, state: Mapping[str, Tensor], where: str, key_map: KeyMap, device: torch.device | str,
    dtype: torch.dtype,
) -> Zero123Network:  # fmt: skip
    """The network around tensors, strictly and without a second copy; see `multiview.checkpoint.fill_network`."""
    return fill_parts(lambda: Zero123Network(config).to(dtype=dtype), state, where, key_map=key_map, device=device)


def save_zero123(
    folder: str | Path, network: Zero123Network, facts: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write our own folder, whole or not at all.

    Args:
        folder: made when missing; a model that is there is replaced.
        network: the four parts.
        facts: for ``config.json``, beside architecture and sizes: which weights they are and where they came from.
        dtype: of the tensors in the files; None keeps theirs.

    Raises:
        OutputError: it cannot be written.
    """
    with folder_written_whole(folder, last=CONFIG_FILE) as aside:
        for part in PARTS:
            module = getattr(network, part)
            write_safetensors(aside / part / f"{_STEMS[part][0]}.safetensors", module.state_dict(), dtype)
            write_json_whole(aside / part / CONFIG_FILE, _part_config(module))
        values = {"format": FORMAT_VERSION, "architecture": ARCHITECTURE, **facts, "network": asdict(network.config)}
        write_json_whole(aside / CONFIG_FILE, values)


def require_pose_rule(rule: PoseRule | None, path: Path) -> PoseRule:
    """The rule, or SettingsError where it was not given for weights that do not say it."""
    if rule not in ("distance", "polar"):
        raise SettingsError(
            f"{path}: the file does not say which cameras its weights were trained with. Give pose_rule='distance' for "
            "Zero123 and Zero123-XL, 'polar' for Stable Zero123."
        )
    return rule


# Folders with one sub-folder per part: ours, and the conversions that others have published.

_STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "image_encoder": ("model", "pytorch_model"),
    "cc_projection": ("diffusion_pytorch_model",),
}
OWN_FILES = tuple(f"{part}/{stems[0]}.safetensors" for part, stems in _STEMS.items())
_OTHER_FOLDERS = {"cc_projection": "clip_camera_projection"}
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def folder_key(key: str) -> str | Dropped | None:
    """The names in such folders, behind the part's name: ours, but for what older libraries called otherwise."""
    if key == "image_encoder.vision_model.embeddings.position_ids":
        return Dropped("0, 1, 2, ... are counted here")
    if match := re.fullmatch(r"cc_projection\.(?:projection\.|proj\.)?(weight|bias)", key):
        return f"cc_projection.{match[1]}"
    if match := re.fullmatch(r"(vae\.(?:en|de)coder\.mid_block\.attentions\.0)\.(\w+)\.(weight|bias)", key):
        front, name, kind = match.groups()
        return f"{front}.{_OLD_VAE_ATTENTION.get(name, name)}.{kind}"
    return key


def read_folder_state(folder: Path, variant: str | None) -> dict[str, Tensor]:
    """{part.name: tensor} of all parts."""
    state: dict[str, Tensor] = {}
    for part, file in zip(PARTS, part_files(folder, variant), strict=True):
        found = read_checkpoint(file)
        state.update((f"{part}.{key}", tensor) for key, tensor in found.items())
    return state


def part_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of weights of the parts, in the order of `PARTS`.

    Raises:
        WeightsError: a part has none.
    """
    return [_part_file(folder, part, variant) for part in PARTS]


def _part_folder(folder: Path, part: str) -> Path:
    other = folder / _OTHER_FOLDERS.get(part, part)
    return other if other.is_dir() and not (folder / part).is_dir() else folder / part


def _part_names(part: str, variant: str | None) -> list[str]:
    """What the weights of one part may be called, the best first.

    ``fp16_ema`` is the UNet's alone in places: the other parts then have ``fp16``.
    """
    variants = [variant] if part == "unet" or variant is None else [variant, variant.partition("_")[0], None]
    return [
        f"{stem}{f'.{one}' if one else ''}{suffix}"
        for one in variants
        for suffix in (".safetensors", ".bin")
        for stem in _STEMS[part]
    ]


def _part_file(folder: Path, part: str, variant: str | None) -> Path:
    """The weights of one part."""
    inside = _part_folder(folder, part)
    names = _part_names(part, variant)
    for name in names:
        if (inside / name).is_file():
            return inside / name
    here = sorted(p.name for p in inside.glob("*") if p.suffix in CHECKPOINT_SUFFIXES)
    if variant is None and len(here) == 1 and any(here[0].startswith(f"{stem}.") for stem in _STEMS[part]):
        return inside / here[0]  # in one variant alone
    raise WeightsError(
        f"{inside}: expected {names[0]}, found {', '.join(here) or 'no weights'}. "
        "Give variant= where the files carry one, or fetch the folder again."
    )


def fetch_zero123(
    repository: str, *, file: str | None, variant: str | None, revision: str | None,
    on_download: Callable[[str], None] | None = None,
) -> Path:  # fmt: skip
    """Weights from the hub, by way of its cache.

    Args:
        repository: ``owner/name``.
        file: the checkpoint in it; None for a conversion, of which one file of weights per part is fetched.
        variant: see `Zero123.from_pretrained`.
        revision: commit, branch or tag; None for the main branch.
        on_download: told one line when something is fetched.

    Returns:
        The checkpoint, or the folder with the parts.

    Raises:
        WeightsError: see `multiview.hub.hub_file`; or a part has no file of a known name.
    """
    if file is not None:
        return hub_file(repository, file, revision=revision, on_download=on_download).path
    folder = None
    for part in PARTS:
        folders = [part, _OTHER_FOLDERS[part]] if part in _OTHER_FOLDERS else [part]
        if part != "cc_projection":
            hub_file(repository, f"{part}/{CONFIG_FILE}", revision=revision, on_download=on_download)
        # Where no variant is asked for, a repository that has but the half-precision one will do.
        variants = (variant,) if variant is not None else (None, "fp16")
        names = [f"{one}/{name}" for v in variants for one in folders for name in _part_names(part, v)]
        folder = _fetch_first(repository, list(dict.fromkeys(names)), revision, on_download).parent.parent
    assert folder is not None, "there are parts"
    return folder


def _fetch_first(
    repository: str, names: Sequence[str], revision: str | None, on_download: Callable[[str], None] | None
) -> Path:
    """The first of several files that the repository has."""
    for name in names:
        try:
            return hub_file(repository, name, revision=revision, on_download=on_download).path
        except NoSuchFileError:
            continue
    raise WeightsError(f"{repository}: expected {names[0]}, found none of {len(names)} names. Give file= or variant=.")


def weights_of_file(file: Path) -> str:
    """Conversions say what they hold in their variants' names alone: ``diffusion_pytorch_model.fp16_ema.bin``."""
    return "ema" if "ema" in re.split(r"[._]", file.name) else "unknown"


def read_folder_config(folder: Path, rule: PoseRule | None) -> tuple[dict[str, str], Zero123Config]:
    """What a folder says of its weights (``weights``, ``source``; conversions say nothing), and its sizes."""
    if not (folder / CONFIG_FILE).is_file():
        return {}, _converted_config(folder, require_pose_rule(rule, folder))
    values = read_config_json(folder)
    where = str(folder / CONFIG_FILE)
    if values.get("architecture") != ARCHITECTURE:
        raise WeightsError(f"{where}: architecture {values.get('architecture')!r}, expected {ARCHITECTURE!r}.")
    config = config_from_dict(Zero123Config, values.get("network", {}), where)
    if rule is not None and rule != config.pose_rule:
        raise SettingsError(f"{where}: these weights have the pose rule {config.pose_rule!r}, not {rule!r}.")
    said = {key: values[key] for key in ("weights", "source") if key in values}
    if isinstance(said.get("source"), dict):  # where it was converted from
        said["source"] = said["source"].get("file") or said["source"].get("repository") or values.get("name")
    return {key: str(value) for key, value in said.items()}, config


# What the configs of conversions call our sizes.
_UNET_SIZES = {
    "in_channels": "in_channels", "out_channels": "out_channels", "block_out_channels": "channels",
    "layers_per_block": "layers", "attention_head_dim": "heads", "cross_attention_dim": "context_width",
}  # fmt: skip
_VAE_SIZES = {"block_out_channels": "channels", "layers_per_block": "layers", "latent_channels": "latent_channels"}
_CLIP_SIZES = {
    "image_size": "image_size", "patch_size": "patch_size", "hidden_size": "width", "num_hidden_layers": "layers",
    "num_attention_heads": "heads", "intermediate_size": "mlp_width", "projection_dim": "projection_width",
    "hidden_act": "activation",
}  # fmt: skip
# What they may say otherwise without meaning it: the size of the pictures, and where the weights came from.
_WITHOUT_MEANING = ("sample_size", "force_upcast", "_name_or_path", "torch_dtype", "dtype", "transformers_version")


def _converted_config(folder: Path, rule: PoseRule) -> Zero123Config:
    """The sizes that a conversion's own files state, everything else in them compared with what is built here."""
    unet_said, vae_said, clip_said = (_part_said(folder, part) for part in ("unet", "vae", "image_encoder"))
    config = Zero123Config(
        pose_rule=rule,
        unet=_sizes(UNetSizes, _UNET_SIZES, unet_said, f"{folder}/unet/{CONFIG_FILE}"),
        vae=_sizes(VaeSizes, _VAE_SIZES, vae_said, f"{folder}/vae/{CONFIG_FILE}"),
        clip=_sizes(ClipSizes, _CLIP_SIZES, clip_said, f"{folder}/image_encoder/{CONFIG_FILE}"),
    )
    with torch.device("meta"):
        network = Zero123Network(config)
    for part, said in (("unet", unet_said), ("vae", vae_said), ("image_encoder", clip_said)):
        _compare(said, _part_config(getattr(network, part)), f"{folder}/{part}/{CONFIG_FILE}")
    return config


def _part_said(folder: Path, part: str) -> dict[str, Any]:
    path = _part_folder(folder, part) / CONFIG_FILE
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found. Every part of a converted folder has one.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}). Fetch or copy the folder again.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected an object, found {type(values).__name__}.")
    return values


def _sizes(kind: type[S], names: Mapping[str, str], said: Mapping[str, Any], where: str) -> S:
    return config_from_dict(kind, {ours: said[theirs] for theirs, ours in names.items() if theirs in said}, where)


def _part_config(module: nn.Module) -> dict[str, Any]:
    """What a part's ``config.json`` says, in the words of its library."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return {"in_features": module.in_features, "out_features": module.out_features}
    values = config.to_dict() if hasattr(config, "to_dict") else json.loads(module.to_json_string())  # type: ignore[operator]
    return {key: value for key, value in values.items() if not key.startswith("_") or key == "_class_name"}


def _compare(said: Mapping[str, Any], built: Mapping[str, Any], where: str) -> None:
    """Raise where a config says something else than what is built; settings that nobody here has must be off."""
    for key, value in said.items():
        if key.startswith("_") or key in _WITHOUT_MEANING:
            continue
        expected = built.get(key)
        if key in built and json.dumps(value) != json.dumps(expected) and (value or expected):
            raise WeightsError(f"{where}: {key} is {value!r}, but these models have {expected!r}.")
