"""Zero123++ on disk: published folders of `diffusers`, our own folders, and what they say.

::

    published                                   ours
    model_index.json  ramp of the prompt        config.json        `Zero123PlusConfig`
    scheduler/        checked, not used         model.safetensors  the text encoder's answer to ""
    feature_extractor_clip/, _vae/  two rules
    tokenizer/, text_encoder/  asked for "" alone
    unet/, vae/, vision_encoder/                unet/, vae/, vision_encoder/, of the same form

Everything is strict: a network is built from its own ``config.json``, whose class is compared and never imported, and
every tensor of its file has a place or a reason to be left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .camerafile import (
    ZERO123PLUS_AZIMUTHS_DEG,
    ZERO123PLUS_DISTANCE,
    ZERO123PLUS_ELEVATIONS_DEG,
    ZERO123PLUS_FOV_DEG,
)
from .cameras import Cameras, orbit
from .checkpoint import Dropped, KeyMap, read_checkpoint
from .devices import CPU
from .errors import SettingsError, WeightsError
from .files import folder_written_whole, write_json_whole
from .hub import NoSuchFileError, hub_file, is_hub_id
from .ldm import CLIP_MEAN, CLIP_STD, fill_parts
from .weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    config_from_dict,
    read_config_json,
    read_safetensors,
    save_folder,
    write_safetensors,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPVisionModelWithProjection

ARCHITECTURE = "zero123plus"
V1_1_ELEVATIONS_DEG = (30.0, -20.0, 30.0, -20.0, 30.0, -20.0)
GREY, WHITE = 127, 255
LICENCE = "CC-BY-NC-4.0"
INSTANTMESH_LICENCE = "Apache-2.0 as published by TencentARC, fine-tuned from CC-BY-NC-4.0 weights (not commercial)"
INSTANTMESH_BASE = "sudo-ai/zero123plus-v1.2"
"""Whose other parts InstantMesh's UNet works with."""
INSTANTMESH_UNET = (
    "TencentARC/InstantMesh",
    "diffusion_pytorch_model.bin",
    "9d78d78421d1feb6871d13e13e86ed8099628648d7d9c51ffca9015b7d5fa3c4",
)

Version = Literal["1.1", "1.2"]
Values = dict[str, Any]


@dataclass(frozen=True)
class PictureRule:
    """How a square picture becomes the input of one of the two image encoders.

    Attributes:
        size: pixels per side.
        resample: how an 8-bit picture is resized, with antialiasing.
        mean, std: three numbers each, taken off the picture in [0, 1] and divided by.
    """

    size: int
    resample: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP_PICTURE = PictureRule(224, "bicubic", CLIP_MEAN, CLIP_STD)
VAE_PICTURE = PictureRule(512, "bilinear", (0.5, 0.5, 0.5), (0.8, 0.8, 0.8))


@dataclass(frozen=True)
class Zero123PlusConfig:
    """What the networks' own configs do not say; the defaults are the published v1.2.

    Attributes:
        version: decides the elevations: 20 and -10 degrees in 1.2, 30 and -20 in 1.1.
        ramp: how strongly each token of the prompt gets the image embedding; published in ``model_index.json``.
        background: sRGB byte that is put behind the input, and that the tiles come on: 127, or 255 with InstantMesh's
            UNet.
        tile_size: pixels per side of a view; the sheet is 2 tiles wide and 3 high.
        clip_picture, vae_picture: see `PictureRule`.
        fov_deg: of the six cameras. v1.1 has no fixed one, and this is a guess there.
        distance: camera centres to the origin, world units, as InstantMesh assumes.
        licence: of the weights.
    """

    version: Version = "1.2"
    ramp: tuple[float, ...] = ()
    background: int = GREY
    tile_size: int = 320
    clip_picture: PictureRule = CLIP_PICTURE
    vae_picture: PictureRule = VAE_PICTURE
    fov_deg: float = ZERO123PLUS_FOV_DEG
    distance: float = ZERO123PLUS_DISTANCE
    licence: str = LICENCE

    @property
    def cameras(self) -> Cameras:
        """The six cameras, tile by tile. Azimuths count from the input's camera, elevations from the ground."""
        elevations = V1_1_ELEVATIONS_DEG if self.version == "1.1" else ZERO123PLUS_ELEVATIONS_DEG
        return orbit(ZERO123PLUS_AZIMUTHS_DEG, elevations, self.distance, self.fov_deg)


@dataclass(frozen=True)
class Parts:
    """The networks.

    Attributes:
        unet: `diffusers.UNet2DConditionModel`, 4 channels in and out.
        vae: `diffusers.AutoencoderKL`.
        vision: `transformers.CLIPVisionModelWithProjection`.
        prompt: (L, D) the text encoder's answer to "", which is all that is ever asked of it.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    vision: CLIPVisionModelWithProjection
    prompt: Tensor


def load_folder(
    source: str | Path,
    *,
    revision: str | None,
    version: Version | None,
    unet: str | Path | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> tuple[Parts, Zero123PlusConfig, str]:
    """The parts of a model, what they do not say themselves, and its name.

    Args: see `multiview.zero123plus.Zero123Plus.from_pretrained`.

    Raises:
        WeightsError: something is missing, damaged, of another model, or does not fit.
        SettingsError: our folder says another version.
    """
    folder, name = Path(source), Path(source).name
    if not folder.exists() and is_hub_id(str(source)):
        folder, name = fetch_folder(str(source), revision, with_unet=unet is None), str(source)
    unet_file = None if unet is None else _unet_file(unet)
    if (folder / CONFIG_FILE).is_file():
        config, prompt = _read_own(folder)
        if version is not None and version != config.version:
            raise SettingsError(f"{folder}: these weights are of version {config.version}, not {version}.")
    else:
        config, prompt = _read_published(folder, version), _empty_prompt(folder)
    if unet_file is not None:
        config = replace(config, background=WHITE, licence=INSTANTMESH_LICENCE)
    unet_network, vae, vision = (
        part.load(folder / place, torch.device(device), dtype, unet_file if place == "unet" else None)
        for place, part in PARTS.items()
    )
    return Parts(unet_network, vae, vision, prompt), config, name


def save_plus_folder(
    folder: str | Path, parts: Parts, config: Zero123PlusConfig, facts: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Write our folder form, whole or not at all.

    Args:
        folder: made when missing; a model that is there is replaced.
        parts, config: of the model.
        facts: for ``config.json``, beside architecture and sizes: where the weights came from.
        dtype: of the networks in the files; None keeps theirs. The prompt stays fp32.

    Raises:
        OutputError: it cannot be written.
    """
    networks = (parts.unet, parts.vae, parts.vision)
    with folder_written_whole(folder, last=CONFIG_FILE) as aside:
        for (name, part), network in zip(PARTS.items(), networks, strict=True):
            write_safetensors(aside / name / part.files[0], network.state_dict(), dtype)
            write_json_whole(aside / name / CONFIG_FILE, part.config_of(network))
        top = {"architecture": ARCHITECTURE, **facts, "network": asdict(config)}
        save_folder(aside, top, {"empty_prompt": parts.prompt})


def weight_files(folder: Path, unet: str | Path | None) -> list[Path]:
    """The files of weights that `load_folder` reads of a folder on this machine.

    Raises:
        WeightsError: a part has none.
    """
    own = (folder / CONFIG_FILE).is_file()
    files = [
        _unet_file(unet) if name == "unet" and unet is not None else part.weights(folder / name)
        for name, part in PARTS.items()
    ]
    return [*files, folder / WEIGHTS_FILE if own else TEXT.weights(folder / "text_encoder")]


# Key maps: the published names are those of today's libraries, but for what older ones wrote.

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_COUNTED = Dropped("0, 1, 2, ...: counted anew when the network is made")


def unet_key(key: str) -> str | Dropped | None:
    """A published name of the UNet → the same name."""
    return key


def vae_key(key: str) -> str | Dropped | None:
    """A published name of the VAE → today's; up to diffusers 0.16 its two attentions had other names."""
    front, found, rest = key.partition(".mid_block.attentions.0.")
    part, _, ending = rest.rpartition(".")
    return f"{front}{found}{_OLD_ATTENTION[part]}.{ending}" if part in _OLD_ATTENTION else key


def vision_key(key: str) -> str | Dropped | None:
    """A published name of the image encoder → today's; up to transformers 4.30 the positions' numbers were written."""
    return _COUNTED if key == "vision_model.embeddings.position_ids" else key


def text_key(key: str) -> str | Dropped | None:
    """A published name of the text encoder → today's, in which ``text_model.`` is gone."""
    inner = key.removeprefix("text_model.")
    return _COUNTED if inner == "embeddings.position_ids" else inner


# Networks from their folders


@dataclass(frozen=True)
class NetworkFolder:
    """How one of the networks lies in its sub-folder.

    Attributes:
        kind: class that ``config.json`` must name; compared, never imported.
        make: builds the network from what ``config.json`` says.
        keys: see above.
        files: names that its weights may have, ours first.
    """

    kind: str
    make: Callable[[Values], nn.Module]
    keys: KeyMap
    files: tuple[str, ...]

    def load(self, folder: Path, device: torch.device, dtype: torch.dtype, weights: Path | None = None) -> Any:
        """The network of ``folder``, strictly; with ``weights`` these in place of the folder's.

        Raises:
            WeightsError: a file is missing or damaged, names another class, or does not fit.
        """
        config = folder / CONFIG_FILE
        values = _read_json(config)
        named = values.get("_class_name") or next(iter(values.get("architectures") or []), None)
        if named != self.kind:
            raise WeightsError(f"{config}: expected the config of a {self.kind}, found {named!r}.")
        path = weights or self.weights(folder)

        def build() -> nn.Module:
            try:
                return nn.Module.to(self.make(values), dtype)
            except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError, AssertionError) as error:
                raise WeightsError(f"{config}: no {self.kind} can be built from it ({error}).") from error

        network: Any = fill_parts(build, read_checkpoint(path), str(path), key_map=self.keys, device=device)
        return network

    def config_of(self, network: Any) -> Values:
        """What ``config.json`` shall say of ``network``."""
        text = network.to_json_string() if hasattr(network, "to_json_string") else network.config.to_json_string()
        values: Values = json.loads(text)
        return {**values, "architectures": [self.kind]} if "_class_name" not in values else values

    def weights(self, folder: Path) -> Path:
        """The file of weights in ``folder``.

        Raises:
            WeightsError: there is none of a known name.
        """
        for name in self.files:
            if (folder / name).is_file():
                return folder / name
        raise WeightsError(f"{folder}: no weights. Expected one of {', '.join(self.files)}.")


def _make_unet(values: Values) -> nn.Module:
    from diffusers import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel.from_config(values)
    return unet


def _make_vae(values: Values) -> nn.Module:
    from diffusers import AutoencoderKL

    vae: nn.Module = AutoencoderKL.from_config(values)
    return vae


def _make_vision(values: Values) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(values))
    _count_positions(network)
    return network


def _make_text(values: Values) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    network: CLIPTextModel = CLIPTextModel(CLIPTextConfig.from_dict(values))
    _count_positions(network)
    # Up to transformers 5.0 the network's names begin with text_model, as the published ones do.
    return getattr(network, "text_model", network)


def _count_positions(network: nn.Module) -> None:
    """Make the one buffer that is in no state dict, and so would stay on the meta device."""
    for module in network.modules():
        if isinstance(ids := getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(ids.shape[-1], device=CPU)[None]


_DIFFUSERS_FILES = tuple(
    f"diffusion_pytorch_model{variant}.{kind}" for kind in ("safetensors", "bin") for variant in ("", ".fp16")
)
_TRANSFORMERS_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
PARTS: Mapping[str, NetworkFolder] = {
    "unet": NetworkFolder("UNet2DConditionModel", _make_unet, unet_key, _DIFFUSERS_FILES),
    "vae": NetworkFolder("AutoencoderKL", _make_vae, vae_key, _DIFFUSERS_FILES),
    "vision_encoder": NetworkFolder("CLIPVisionModelWithProjection", _make_vision, vision_key, _TRANSFORMERS_FILES),
}
OWN_FILES = (
    *(f"{name}/{file}" for name, part in PARTS.items() for file in (CONFIG_FILE, part.files[0])), WEIGHTS_FILE,
)  # fmt: skip
TEXT = NetworkFolder("CLIPTextModel", _make_text, text_key, _TRANSFORMERS_FILES)


# The rest of a published folder

INDEX_FILE = "model_index.json"
_RULE_FILE = "preprocessor_config.json"
_TOKEN_FILES = ("vocab.json", "special_tokens_map.json")
# What the published scheduler file says, of which this file knows one value only. Its timestep_spacing is overridden.
_NOISE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear",
    "prediction_type": "v_prediction",
}  # fmt: skip
# The second number of the published ramps, by which the versions are told apart.
_SECOND_OF_RAMP: dict[Version, float] = {"1.1": 0.2060, "1.2": 0.2205}


def _read_own(folder: Path) -> tuple[Zero123PlusConfig, Tensor]:
    """What `save_plus_folder` wrote beside the networks."""
    values = read_config_json(folder)
    if values.get("architecture") != ARCHITECTURE:
        raise WeightsError(f"{folder}: architecture {values.get('architecture')!r}, expected {ARCHITECTURE!r}.")
    config = config_from_dict(Zero123PlusConfig, values.get("network", {}), f"{folder / CONFIG_FILE}")
    state = read_safetensors(folder / WEIGHTS_FILE)
    prompt = state.get("empty_prompt")
    if prompt is None or len(state) != 1 or prompt.ndim != 2:
        raise WeightsError(f"{folder / WEIGHTS_FILE}: expected empty_prompt (L, D) alone, found {sorted(state)}.")
    return config, prompt.clone()


def _read_published(folder: Path, version: Version | None) -> Zero123PlusConfig:
    """The config of a published folder."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise WeightsError(f"{folder}: neither {CONFIG_FILE} nor {INDEX_FILE} in it, so it is no Zero123++ folder.")
    ramp = _read_json(path).get("ramping_coefficients")
    if not isinstance(ramp, list) or not all(_is_number(x) for x in ramp) or len(ramp) < 2:
        raise WeightsError(f"{path}: expected ramping_coefficients, a list of numbers, found {ramp!r:.60}.")
    noise = folder / "scheduler" / "scheduler_config.json"
    values = _read_json(noise)
    for key, wanted in _NOISE.items():
        if values.get(key) != wanted:
            raise WeightsError(f"{noise}: {key} is {values.get(key)!r}, expected {wanted!r}. It is another model's.")
    return Zero123PlusConfig(
        version=version or _version_of(ramp, path),
        ramp=tuple(float(x) for x in ramp),
        clip_picture=_picture_rule(folder / "feature_extractor_clip" / _RULE_FILE, CLIP_PICTURE),
        vae_picture=_picture_rule(folder / "feature_extractor_vae" / _RULE_FILE, VAE_PICTURE),
    )


def _version_of(ramp: list[float], path: Path) -> Version:
    """Which release's ramp it is: nothing else in a published folder tells, and the views' elevations depend on it."""
    for version, second in _SECOND_OF_RAMP.items():
        if abs(ramp[1] - second) < 1e-3:
            return version
    known = " and ".join(f"{second:.4f} of v{version}" for version, second in _SECOND_OF_RAMP.items())
    raise WeightsError(
        f"{path}: the second of ramping_coefficients is {ramp[1]:.4f}, which is neither {known}. Say which version's "
        "cameras the weights have: version='1.1' or '1.2'."
    )


def _picture_rule(path: Path, usual: PictureRule) -> PictureRule:
    """What a published image processor does; ``usual`` says what it must at least resemble."""
    values = _read_json(path)
    crop = values.get("crop_size", usual.size)
    size = crop.get("height") if isinstance(crop, dict) else crop
    resample = {2: "bilinear", 3: "bicubic"}.get(values.get("resample", -1))
    flags = [key for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize") if values.get(key) is False]
    if resample is None or flags or not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise WeightsError(
            f"{path}: expected a picture that is resized, divided by 255 and normalised, found {values}."
        )
    given = {"size": size, "resample": resample, "mean": values.get("image_mean"), "std": values.get("image_std")}
    return config_from_dict(PictureRule, given, str(path))


def empty_prompt_ids(folder: Path, length: int) -> Tensor:
    """Token ids (1, length) of the text "" by a published tokenizer's folder: start, end, padding.

    Stable Diffusion 2 pads with "!", Stable Diffusion 1 with the end token, and the padding is attended to.

    Raises:
        WeightsError: a file is missing or does not say what it must.
    """
    words, special = (_read_json(folder / name) for name in _TOKEN_FILES)
    ids = []
    for role in ("bos_token", "eos_token", "pad_token"):
        token = special.get(role)
        text = str(token.get("content") if isinstance(token, dict) else token)
        if not isinstance(words.get(text), int):
            raise WeightsError(f"{folder}: {role} is {text!r}, which {_TOKEN_FILES[0]} does not have.")
        ids.append(words[text])
    start, end, padding = ids
    return torch.tensor([[start, end, *[padding] * (length - 2)]])


def _empty_prompt(folder: Path) -> Tensor:
    """(L, D) fp32: the published text encoder's answer to ""; the encoder itself is not kept."""
    # On the CPU and in fp32, wherever the model will run: it happens once, and fp16 would round the prompt for good.
    text = TEXT.load(folder / "text_encoder", CPU, torch.float32)
    ids = empty_prompt_ids(folder / "tokenizer", text.config.max_position_embeddings)
    with torch.no_grad():
        answer: Tensor = text(ids).last_hidden_state[0]
    return answer


def _unet_file(unet: str | Path) -> Path:
    """The file of another UNet; ``instantmesh`` is a name."""
    if unet == "instantmesh":
        repository, file, sha256 = INSTANTMESH_UNET
        return hub_file(repository, file, sha256=sha256).path
    return Path(unet)


def fetch_folder(
    repository: str, revision: str | None, *, with_unet: bool = True, on_download: Callable[[str], None] | None = None
) -> Path:
    """All files of a published repository that are read, from the cache or the hub → their folder.

    Raises:
        WeightsError: see `multiview.hub.hub_file`; or a part has no file of a known name.
    """
    index = hub_file(repository, INDEX_FILE, revision=revision, on_download=on_download).path
    plain = ["scheduler/scheduler_config.json", *(f"tokenizer/{name}" for name in _TOKEN_FILES)]
    plain += [f"feature_extractor_{which}/{_RULE_FILE}" for which in ("clip", "vae")]
    networks = {**PARTS, "text_encoder": TEXT}
    for file in (*plain, *(f"{name}/{CONFIG_FILE}" for name in networks)):
        hub_file(repository, file, revision=revision, on_download=on_download)
    for name, part in networks.items():
        if name != "unet" or with_unet:
            _fetch_first(repository, [f"{name}/{file}" for file in part.files], revision, on_download)
    return index.parent


def _fetch_first(
    repository: str, files: list[str], revision: str | None, on_download: Callable[[str], None] | None
) -> None:
    """The first of ``files`` that the repository has."""
    for file in files:
        try:
            hub_file(repository, file, revision=revision, on_download=on_download)
            return
        except NoSuchFileError:
            continue
    raise WeightsError(f"{repository}: none of {', '.join(files)} is there.")


def _read_json(path: Path) -> Values:
    """A JSON object.

    Raises:
        WeightsError: missing, not JSON, or something else.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found. The model's folder is not whole: fetch it again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}). Fetch it again.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(values).__name__}.")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
