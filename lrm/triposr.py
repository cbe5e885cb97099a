"""TripoSR: one picture → a triplane field, with the weights that Stability AI and Tripo published.

::

    picture ─► DINO ViT-B/16 ─► image tokens (B, 1025, 768) ─────────────────┐
    (B,3,512,512)                                                            ▼
               learned plane tokens ─► group norm ─► enter ─► [self, cross, GEGLU] x 16 ─► leave ─► + ─► upsampler
                       └────────────────────────────────────────────────────────────────────────────┘      ▼
                                                                                            planes (B, 3, 40, 64, 64)

Source: Tochilkin et al. 2024 (arXiv 2403.02151). Written from measured facts about the published model, not from its
code; tests/parity/test_triposr.py compares the numbers. The picture's positions are resampled by the ``legacy`` rule,
which is what the published program pins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiview.errors import WeightsError
from multiview.keymap import KeyTable, sequential_renames
from multiview.weights import config_from_dict

from .blocks import BlockConfig, DecoderBlock, Linear, PlaneUpsampler, fingerprints
from .field import PAIRS_XY_XZ_YZ, Activation, OutputRule, PlanesDecoder, TriplaneField
from .models import Reconstruction
from .preprocess import triposr_input
from .published import PublishedModel, not_given, source_camera
from .vit import Vit, VitConfig, dino_renames, normalize_imagenet

CAMERA_DISTANCE = 1.9
CAMERA_FOV_DEG = 40.0
GROUP_NORM_EPS = 1e-6
BLOCK_NORM_EPS = 1e-5


@dataclass(frozen=True)
class TripoSRConfig:
    """Sizes of TripoSR; the defaults are the published model.

    Attributes:
        image_size: pixels per side of the picture that the network sees.
        vit: the image encoder.
        plane_size: plane tokens per side; the planes are twice as fine.
        channels: of the learned plane tokens.
        heads, head_width, layers: of the plane transformer, whose width is heads * head_width.
        norm_groups: of the group norm in front of it.
        plane_channels: C of the triplane.
        decoder_width, decoder_layers, activation: hidden layers of the field's decoder.
        scene_radius: half side of the field's cube.
        samples_per_ray: of the published renderer, see `lrm.fixedstep`.
        level: activated density at which the published program takes the surface.
        foreground_ratio: longest side of the object's box / image side.
    """

    image_size: int = 512
    vit: VitConfig = field(default_factory=VitConfig)
    plane_size: int = 32
    channels: int = 1024
    heads: int = 16
    head_width: int = 64
    layers: int = 16
    norm_groups: int = 32
    plane_channels: int = 40
    decoder_width: int = 64
    decoder_layers: int = 9
    activation: Activation = "silu"
    scene_radius: float = 0.87
    samples_per_ray: int = 128
    level: float = 25.0
    foreground_ratio: float = 0.85


class TripoSRNetwork(nn.Module):
    """Picture → planes; see the drawing at the top of the file."""

    def __init__(self, config: TripoSRConfig) -> None:
        super().__init__()
        c = self.config = config
        width = c.heads * c.head_width
        block = BlockConfig(width, c.heads, c.vit.width, BLOCK_NORM_EPS, ("self", "cross"), "geglu", out_bias=True)
        self.vit = Vit(c.vit)
        self.tokens = nn.Parameter(torch.randn(3, c.channels, c.plane_size, c.plane_size) * c.channels**-0.5)
        self.norm = nn.GroupNorm(c.norm_groups, c.channels, GROUP_NORM_EPS)
        self.enter, self.leave = Linear(c.channels, width), Linear(width, c.channels)
        self.blocks = nn.ModuleList(DecoderBlock(block) for _ in range(c.layers))
        self.upsampler = PlaneUpsampler(c.channels, c.plane_channels)
        self.decoder = PlanesDecoder(c.plane_channels, c.decoder_width, c.decoder_layers, c.activation)
        self._begun: tuple[object, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] over mid grey → planes (B, 3, C, H, W) float32."""
        return self.upsampler(self.plane_tokens(self.image_tokens(images)))

    def image_tokens(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → (B, 1 + h * w, E): CLS, then patches row-major."""
        return self.vit(normalize_imagenet(images))

    def plane_tokens(self, context: Tensor) -> Tensor:
        """Image tokens (B, M, E) → plane tokens (B, 3 * s * s, channels), plane by plane, row-major."""
        x = self.begun_tokens()
        for i, block in enumerate(self.blocks):
            x = block(x, context, begun=i == 0)
        return self.leave(x) + self._learned().transpose(1, 2)

    def begun_tokens(self) -> Tensor:
        """Plane tokens (1, 3 * s * s, width) as far as the picture has no say: past the first block's self-attention.

        They are the same for every picture, so without gradients they are kept from one to the next while the weights
        that they come from stay as they are.
        """
        first = self.blocks[0]
        assert isinstance(first, DecoderBlock)  # nn.ModuleList does not say so
        parts = (self.norm, self.enter, first.norm_self, first.attend_self)
        sources = [self.tokens, *(parameter for part in parts for parameter in part.parameters())]
        key = fingerprints(sources)
        if torch.is_grad_enabled() or self._begun is None or self._begun[0] != key:
            # The group norm runs over groups of channels and all tokens at once.
            x = self.enter(self.norm(self._learned()).transpose(1, 2)).float()
            x = x + first.attend_self(first.norm_self(x))
            self._begun = None if torch.is_grad_enabled() else (key, x)
            return x
        return self._begun[1]

    def _learned(self) -> Tensor:
        """The learned tokens (1, channels, 3 * s * s), plane by plane, row-major."""
        return self.tokens.transpose(0, 1).flatten(1)[None]


_BLOCK = "backbone.transformer_blocks.*"
KEYS = KeyTable(
    renames=(
        *dino_renames("image_tokenizer.model", "vit"),
        ("tokenizer.embeddings", "tokens"),
        ("backbone.norm", "norm"),
        ("backbone.proj_in", "enter"),
        ("backbone.proj_out", "leave"),
        (f"{_BLOCK}.norm1", "blocks.*.norm_self"),
        (f"{_BLOCK}.norm2", "blocks.*.norm_cross"),
        (f"{_BLOCK}.norm3", "blocks.*.norm_mlp"),
        *(
            (f"{_BLOCK}.{theirs}.{a}", f"blocks.*.{ours}.{b}")
            for theirs, ours in (("attn1", "attend_self"), ("attn2", "attend_cross"))
            for a, b in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out"))
        ),
        (f"{_BLOCK}.ff.net.0.proj", "blocks.*.mlp.expand"),
        (f"{_BLOCK}.ff.net.2", "blocks.*.mlp.shrink"),
        ("post_processor.upsample", "upsampler"),
        *sequential_renames("decoder.layers", "decoder.layers"),
    ),
    dropped={"image_tokenizer.model.pooler.dense": "the pooler's output is never read"},
)

# Where the published config.yaml says what `TripoSRConfig` holds.
_SIZES = {
    "cond_image_size": "image_size",
    "tokenizer.plane_size": "plane_size",
    "tokenizer.num_channels": "channels",
    "backbone.num_attention_heads": "heads",
    "backbone.attention_head_dim": "head_width",
    "backbone.num_layers": "layers",
    "backbone.norm_num_groups": "norm_groups",
    "post_processor.out_channels": "plane_channels",
    "decoder.n_neurons": "decoder_width",
    "decoder.n_hidden_layers": "decoder_layers",
    "decoder.activation": "activation",
    "renderer.radius": "scene_radius",
    "renderer.num_samples_per_ray": "samples_per_ray",
}
# What it may also say, of which this file knows one value only.
_FIXED: dict[str, Any] = {
    "image_tokenizer_cls": "tsr.models.tokenizers.image.DINOSingleImageTokenizer",
    "image_tokenizer.pretrained_model_name_or_path": "facebook/dino-vitb16",
    "tokenizer_cls": "tsr.models.tokenizers.triplane.Triplane1DTokenizer",
    "backbone_cls": "tsr.models.transformer.transformer_1d.Transformer1D",
    "backbone.cross_attention_dim": 768,
    "backbone.dropout": 0.0,
    "backbone.attention_bias": False,
    "backbone.activation_fn": "geglu",
    "post_processor_cls": "tsr.models.network_utils.TriplaneUpsampleNetwork",
    "decoder_cls": "tsr.models.network_utils.NeRFMLP",
    "renderer_cls": "tsr.models.nerf_renderer.TriplaneNeRFRenderer",
    "renderer.feature_reduction": "concat",
    "renderer.density_activation": "exp",
    "renderer.density_bias": -1.0,
    "renderer.color_activation": "sigmoid",
}


def read_published_config(path: str | Path) -> TripoSRConfig:
    """Read the published ``config.yaml``; class paths in it are compared, never imported.

    Raises:
        WeightsError: the file is missing or not YAML, or says something that this file cannot build.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found. TripoSR's folder holds config.yaml and model.ckpt.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise WeightsError(f"{path}: not readable as YAML ({error}). Fetch or copy the file again.") from error
    return published_config(values, str(path))


def published_config(values: Any, where: str) -> TripoSRConfig:
    """What the published ``config.yaml`` says, already parsed, as our config.

    Args:
        values: nested dict; a text ``${a.b}`` stands for the value at a.b.
        where: what to call the source in an error.

    Raises:
        WeightsError: an unknown key, a value that this file cannot build, or sizes that contradict each other.
    """
    if not isinstance(values, dict) or "backbone" not in values:
        raise WeightsError(
            f"{where}: expected TripoSR's config.yaml with a section backbone, found {str(values)[:80]!r}."
        )
    said = _resolved(dict(_flattened(values)), where)
    sizes = config_from_dict(TripoSRConfig, {_SIZES[k]: v for k, v in said.items() if k in _SIZES}, where)
    expected = {
        **_FIXED,
        "backbone.in_channels": sizes.channels,
        "post_processor.in_channels": sizes.channels,
        "decoder.in_channels": 3 * sizes.plane_channels,
    }
    for key, value in said.items():
        if key in _SIZES:
            continue
        if key not in expected:
            raise WeightsError(f"{where}: unknown key {key!r}. TripoSR's config.yaml has no such setting.")
        if value != expected[key]:
            raise WeightsError(f"{where}: {key} is {value!r}, but only {expected[key]!r} goes with the rest.")
    return sizes


def _flattened(values: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts as (dotted key, value)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{front}{key}.")
        else:
            yield f"{front}{key}", value


def _resolved(said: dict[str, Any], where: str) -> dict[str, Any]:
    """Put values in place of ``${dotted.key}``, one level deep, as the published file needs."""
    done = {}
    for key, value in said.items():
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference and reference[1] not in said:
            raise WeightsError(f"{where}: {key} refers to {reference[1]}, which the file does not say.")
        done[key] = said[reference[1]] if reference else value
    return done


class TripoSR(PublishedModel):
    """TripoSR as a `ReconstructionModel`.

    Its frame is the world frame: z up, the photographed side toward +x. In its training the cameras' elevation was not
    taken out, so that its fields are upright by themselves as far as is known: a given elevation only moves the camera.
    Without one the camera is the published program's, level and 1.9 away with 40 degrees; another field of
    view keeps the object as large in the picture.
    """

    framing = "cropped"
    architecture = "triposr"
    config_type = TripoSRConfig
    network_type = TripoSRNetwork
    keys = KEYS

    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """See `ReconstructionModel.reconstruct`; ``upright`` changes nothing, since the fields stand already."""
        self._check_pictures(images)
        planes = self._planes(triposr_input(images, self.image_size))
        camera = source_camera(fov_deg, elevation_deg, usual_fov_deg=CAMERA_FOV_DEG, usual_distance=CAMERA_DISTANCE)
        assumed = not_given(elevation_deg, fov_deg)
        return [Reconstruction(self.field(one), camera, elevation_deg or 0.0, assumed) for one in planes]

    def field(self, planes: Tensor) -> TriplaneField:
        """Planes (3, C, H, W) with this model's decoder, as a field in the world frame."""
        config = self.network.config
        return TriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=config.scene_radius,
            level=config.level,
            outputs=OutputRule("exp", density_bias=-1.0),
            pairs=PAIRS_XY_XZ_YZ,
        )
