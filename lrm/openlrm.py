"""OpenLRM 1.1: one picture → a triplane field, in three sizes; the weights are for non-commercial use.

::

    picture ─► DINOv2 with registers ─► image tokens (B, 1 + h * w, E) ───────┐
    (B,3,S,S)                                                                 ▼
               learned plane tokens ─► [cross, self, MLP] x layers ─► norm ─► upsampler ─► planes (B, 3, C, 64, 64)
               camera (B,16) ─► MLP ──────► every norm ┘

Source: Hong et al. 2024 (LRM, arXiv 2311.04400), as rebuilt by He and Wang (OpenLRM). Written from measured facts about
the published models, not from their code; tests/parity/test_openlrm.py compares the numbers.

The published frame is the photograph's camera's, not the ground's: in training every camera was moved to (0, -d, 0),
looking along +y, and the object with it. An object seen from 30 degrees above therefore comes out pitched by 30
degrees. `OpenLRM` turns the frame so that the camera sits on +x, and takes the pitch out when it knows the elevation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from multiview.cameras import Cameras, pitch_rotation
from multiview.errors import FieldError, WeightsError
from multiview.keymap import KeyTable, sequential_renames

from .blocks import BlockConfig, CameraEmbedding, DecoderBlock, PlaneUpsampler, fingerprints
from .field import PAIRS_XY_XZ_ZY, FoldedPlanes, OutputRule, PlanesDecoder, TriplaneField
from .models import Reconstruction
from .preprocess import openlrm_input
from .published import PublishedModel, not_given, source_camera
from .vit import Vit, VitConfig

NORM_EPS = 1e-6
EMPTY_RAW_DENSITY = -20.0
"""Raw density outside the planes' cube: softplus(-21) is 8e-10, and the number stays harmless in interpolation."""

ElevationEstimate = Callable[[Tensor], Sequence[float]]
"""Straight-alpha pictures (B, 4, S, S) in [0, 1] → B elevations in degrees."""

# The world's axes, z up and the camera on +x, from the published ones, camera on -y: (x, y, z) → (-y, x, z).
_WORLD_FROM_PUBLISHED = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))

_VIT_B14 = VitConfig(14, 37, 768, 12, 12, 3072, NORM_EPS, registers=4, layer_scale=True, resampling="antialias")
_VIT_S14 = replace(_VIT_B14, width=384, heads=6, mlp_width=1536)


@dataclass(frozen=True)
class OpenLRMConfig:
    """Sizes of OpenLRM; the defaults are the published base model, see `SMALL` and `LARGE` for the others.

    Attributes:
        image_size: pixels per side of the picture that the network sees.
        vit: the image encoder.
        camera_width: of the camera's embedding.
        plane_size: plane tokens per side; the planes are twice as fine.
        width, heads, layers: of the plane transformer.
        plane_channels: C of the triplane.
        decoder_width, decoder_layers: hidden layers of the field's decoder.
        scene_radius: half side of the planes' cube.
        samples_per_ray: of the published renderer, both passes, see `lrm.twopass`.
        level: activated density at which the published program takes the surface.
        camera_distance, camera_focal: of the camera that the network is told, focal length in picture sides.
        foreground_ratio: longest side of the object's box / image side.
    """

    image_size: int = 336
    vit: VitConfig = field(default_factory=lambda: _VIT_B14)
    camera_width: int = 1024
    plane_size: int = 32
    width: int = 768
    heads: int = 12
    layers: int = 12
    plane_channels: int = 48
    decoder_width: int = 64
    decoder_layers: int = 3
    scene_radius: float = 1.0
    samples_per_ray: int = 96
    level: float = 3.0
    camera_distance: float = 2.0
    camera_focal: float = 0.75
    foreground_ratio: float = 0.8


BASE = OpenLRMConfig()
SMALL = replace(BASE, image_size=224, vit=_VIT_S14, width=512, heads=8, plane_channels=32)
LARGE = replace(BASE, image_size=448, width=1024, heads=16, layers=16, plane_channels=80, samples_per_ray=128)


class OpenLRMNetwork(nn.Module):
    """Picture and camera → planes; see the drawing at the top of the file."""

    def __init__(self, config: OpenLRMConfig) -> None:
        super().__init__()
        c = self.config = config
        block = BlockConfig(c.width, c.heads, c.vit.width, NORM_EPS, condition_width=c.camera_width)
        self.vit = Vit(c.vit)
        self.camera = CameraEmbedding(c.camera_width)
        self.tokens = nn.Parameter(torch.randn(1, 3 * c.plane_size**2, c.width) * c.width**-0.5)
        self.blocks = nn.ModuleList(DecoderBlock(block) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, NORM_EPS)
        self.upsampler = PlaneUpsampler(c.width, c.plane_channels)
        self.decoder = PlanesDecoder(c.plane_channels, c.decoder_width, c.decoder_layers, "relu")
        self._told: tuple[list[Any], Tensor, Tensor] | None = None

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] over white, cameras (B, 16) → planes (B, 3, C, H, W) float32."""
        return self.upsampler(self.plane_tokens(self.image_tokens(images), cameras))

    def image_tokens(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] → (B, 1 + h * w, E): CLS, then patches. No mean is taken off them."""
        return self.vit(images)

    def plane_tokens(self, context: Tensor, cameras: Tensor) -> Tensor:
        """Image tokens (B, M, E), cameras (B, 16) → plane tokens (B, 3 * s * s, D) after the last norm."""
        condition = self.condition(cameras)
        x = self.tokens.expand(len(context), -1, -1)
        for block in self.blocks:
            x = block(x, context, condition)
        return self.norm(x)

    def condition(self, cameras: Tensor) -> Tensor:
        """Cameras (B, 16) → what modulates the norms, (B, camera_width) float32.

        `OpenLRM` tells its network the same camera for every picture. Of a single one, on the CPU and without
        gradients, it is therefore the very same tensor as long as camera and weights stay, for which the norms keep
        what they make of it.
        """
        if len(cameras) != 1 or cameras.device.type != "cpu" or torch.is_grad_enabled():
            return self.camera(cameras)
        key = fingerprints(self.camera.parameters())
        told = self._told  # read once: another thread may put its own in between
        if told is None or told[0] != key or not torch.equal(told[1], cameras):
            told = key, cameras.clone(), self.camera(cameras)
            self._told = told
        return told[2]


def camera_numbers(config: OpenLRMConfig, batch: int) -> Tensor:
    """What the network is told of the camera, (B, 16): the upper 3 x 4 of c2w by rows, then fx, fy, cx, cy.

    The published frame: the camera at (0, -d, 0), looking along +y, up +z.
    """
    d, f = config.camera_distance, config.camera_focal
    pose = [1, 0, 0, 0, 0, 0, -1, -d, 0, 1, 0, 0]
    return torch.tensor([[*pose, f, f, 0.5, 0.5]], dtype=torch.float32).repeat(batch, 1)


_VIT, _BLOCK = "encoder.model.blocks.*", "transformer.layers.*"
_QUERY_KEY_VALUE = ("query", "key", "value")
KEYS = KeyTable(
    renames=(
        ("pos_embed", "tokens"),
        ("encoder.model.cls_token", "vit.cls_token"),
        ("encoder.model.pos_embed", "vit.positions"),
        ("encoder.model.register_tokens", "vit.registers"),
        ("encoder.model.patch_embed.proj", "vit.patches"),
        (f"{_VIT}.norm1", "vit.blocks.*.norm_attention"),
        (f"{_VIT}.norm2", "vit.blocks.*.norm_mlp"),
        (f"{_VIT}.attn.qkv", tuple(f"vit.blocks.*.attention.{part}" for part in _QUERY_KEY_VALUE)),
        (f"{_VIT}.attn.proj", "vit.blocks.*.attention.out"),
        (f"{_VIT}.ls1.gamma", "vit.blocks.*.scale_attention"),
        (f"{_VIT}.ls2.gamma", "vit.blocks.*.scale_mlp"),
        (f"{_VIT}.mlp.fc1", "vit.blocks.*.mlp.expand"),
        (f"{_VIT}.mlp.fc2", "vit.blocks.*.mlp.shrink"),
        ("encoder.model.norm", "vit.norm"),
        ("camera_embedder.mlp.0", "camera.expand"),
        ("camera_embedder.mlp.2", "camera.mix"),
        *(
            (f"{_BLOCK}.{theirs}.{a}", f"blocks.*.{ours}{b}")
            for theirs, ours in (("norm1", "norm_cross"), ("norm2", "norm_self"), ("norm3", "norm_mlp"))
            for a, b in (("norm", ""), ("mlp.1", ".modulation"))
        ),
        *((f"{_BLOCK}.cross_attn.{p[0]}_proj_weight", f"blocks.*.attend_cross.{p}.weight") for p in _QUERY_KEY_VALUE),
        # torch joins the three where image tokens are as wide as plane tokens, as in the base model.
        *(
            (f"{_BLOCK}.{theirs}.in_proj_weight", tuple(f"blocks.*.{ours}.{part}.weight" for part in _QUERY_KEY_VALUE))
            for theirs, ours in (("cross_attn", "attend_cross"), ("self_attn", "attend_self"))
        ),
        (f"{_BLOCK}.cross_attn.out_proj", "blocks.*.attend_cross.out"),
        (f"{_BLOCK}.self_attn.out_proj", "blocks.*.attend_self.out"),
        (f"{_BLOCK}.mlp.0", "blocks.*.mlp.expand"),
        (f"{_BLOCK}.mlp.3", "blocks.*.mlp.shrink"),
        ("transformer.norm", "norm"),
        ("upsampler", "upsampler"),
        *sequential_renames("synthesizer.decoder.net", "decoder.layers"),
    ),
    dropped={},
)

_ENCODERS = {"dinov2_vits14_reg": _VIT_S14, "dinov2_vitb14_reg": _VIT_B14}
# The published config.json does not say the picture's size; other widths get the base model's.
_IMAGE_SIZES = {512: 224, 768: 336, 1024: 448}
_SIZES = {
    "camera_embed_dim": "camera_width",
    "rendering_samples_per_ray": "samples_per_ray",
    "transformer_dim": "width",
    "transformer_layers": "layers",
    "transformer_heads": "heads",
    "triplane_low_res": "plane_size",
    "triplane_dim": "plane_channels",
}
_READ_BY_NOBODY = {"triplane_high_res", "encoder_freeze"}  # the upsampler doubles; freezing is for training
_ENCODER_KEYS = ("encoder_type", "encoder_model_name", "encoder_feat_dim")


def published_config(values: Any, where: str) -> OpenLRMConfig:
    """What the published ``config.json`` says, already parsed, as our config.

    Args:
        values: the file's object.
        where: what to call the source in an error.

    Raises:
        WeightsError: a key is missing or unknown, a value cannot be built, or it is OpenLRM 1.0, which is another
            architecture.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{where}: expected OpenLRM's config.json, an object, found {str(values)[:80]!r}.")
    unknown = sorted(set(values) - set(_SIZES) - _READ_BY_NOBODY - set(_ENCODER_KEYS))
    missing = [key for key in (*_SIZES, *_ENCODER_KEYS) if key not in values]
    name = str(values.get("encoder_model_name", ""))
    if "dino" in name and "dinov2" not in name:
        raise WeightsError(
            f"{where}: this is OpenLRM 1.0 (encoder {name!r}), which is another architecture. Take a 1.1 release, "
            "such as zxhezexin/openlrm-mix-base-1.1."
        )
    if unknown or missing:
        found = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise WeightsError(f"{where}: {found}. Expected the config.json of an OpenLRM 1.1 release.")
    encoder = _ENCODERS.get(name)
    if encoder is None or values["encoder_type"] != "dinov2" or values["encoder_feat_dim"] != encoder.width:
        raise WeightsError(
            f"{where}: expected encoder_type 'dinov2' with {' (384 features) or '.join(_ENCODERS)} (768 features), "
            f"found {values['encoder_type']!r} with {name!r} ({values['encoder_feat_dim']!r} features)."
        )
    for key in _SIZES:
        if not isinstance(values[key], int) or isinstance(values[key], bool) or values[key] < 1:
            raise WeightsError(f"{where}: {key} is {values[key]!r}, expected a positive whole number.")
    sizes: dict[str, Any] = {ours: values[theirs] for theirs, ours in _SIZES.items()}
    return replace(BASE, vit=encoder, image_size=_IMAGE_SIZES.get(sizes["width"], BASE.image_size), **sizes)


@dataclass(frozen=True)
class TurnedFrame:
    """Planes over a cube that is turned against the world's axes; see `lrm.field.Frame`.

    Attributes:
        world_from_plane: (3, 3) rotation.
        scene_radius: half side of the turned cube.
        linear: straight rays stay straight, so that renderers may work in plane coordinates.
    """

    world_from_plane: Tensor
    scene_radius: float
    linear: bool = True

    def to_plane(self, points: Tensor) -> Tensor:
        """World points (N, 3) → (N, 3), [-1, 1] inside the turned cube."""
        return points @ self.world_from_plane.to(points) / self.scene_radius

    @property
    def reach(self) -> float:
        """Half side of the world's cube that holds the turned one."""
        return self.scene_radius * float(self.world_from_plane.abs().sum(1).max())


@dataclass(frozen=True)
class TurnedTriplaneField(TriplaneField):
    """A `TriplaneField` that is empty outside its turned cube, parts of which the world's cube holds.

    A plain one reads zeros from the planes there, of which its decoder may make anything.
    """

    def raw(self, points: Tensor) -> Tensor:
        """See `TriplaneField`."""
        raw = super().raw(points)
        density = torch.where(self._inside(points), raw[..., 0], EMPTY_RAW_DENSITY)
        return torch.cat([density[..., None], raw[..., 1:]], -1)

    def folded_raw(
        self, outputs: slice = slice(0, 4), *, rough: bool = False, folded: FoldedPlanes | None = None
    ) -> Callable[[Tensor], Tensor]:
        """See `TriplaneField`."""
        ask = super().folded_raw(outputs, rough=rough, folded=folded)
        if outputs.indices(4)[0] != 0:
            return ask

        def ask_inside(points: Tensor) -> Tensor:
            raw = ask(points)
            raw[~self._inside(points), 0] = EMPTY_RAW_DENSITY
            return raw

        return ask_inside

    def _inside(self, points: Tensor) -> Tensor:
        """Whether points (N, 3) lie in the planes' cube; its faces belong to it, a rounding error aside."""
        return self._coordinates(points).abs().amax(-1) <= 1 + 1e-6


class OpenLRM(PublishedModel):
    """OpenLRM as a `ReconstructionModel`.

    The network is always told the camera that the published program tells it, level in its own frame, 2 away, with a
    focal length of 0.75 picture sides (67 degrees). A known field of view only moves the camera that is given back, so
    that the object stays as large in the picture.

    Attributes:
        estimate: says the elevation of photographs when the caller does not; None for a model that then takes them
            to be level. It may be set at any time.
    """

    framing = "given"
    architecture = "openlrm"
    config_type = OpenLRMConfig
    network_type = OpenLRMNetwork
    keys = KEYS

    def __init__(self, network: nn.Module, name: str, estimate: ElevationEstimate | None = None) -> None:
        super().__init__(network, name)
        self.estimate = estimate

    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """See `ReconstructionModel.reconstruct`; its network thinks in the photograph's camera."""
        self._check_pictures(images)
        elevations = self._elevations(images, elevation_deg) if upright else [0.0] * len(images)
        config: OpenLRMConfig = self.network.config
        planes = self._planes(openlrm_input(images, config.image_size), camera_numbers(config, len(images)))
        assumed = not_given(elevation_deg, fov_deg)
        return [
            Reconstruction(self.field(one, elevation), self._camera(fov_deg, elevation), elevation, assumed)
            for one, elevation in zip(planes, elevations, strict=True)
        ]

    def field(self, planes: Tensor, elevation_deg: float = 0.0) -> TurnedTriplaneField:
        """Planes (3, C, H, W) with this model's decoder, as a field in the world frame.

        Args:
            planes: as the network gives them.
            elevation_deg: of the photograph's camera, by which the field is stood upright.
        """
        config: OpenLRMConfig = self.network.config
        turned = pitch_rotation(elevation_deg) @ torch.tensor(_WORLD_FROM_PUBLISHED)
        return TurnedTriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=config.scene_radius,
            level=config.level,
            outputs=OutputRule("softplus", density_bias=-1.0, color_margin=0.001),
            pairs=PAIRS_XY_XZ_ZY,
            frame=TurnedFrame(turned, config.scene_radius),
        )

    def _camera(self, fov_deg: float | None, elevation_deg: float) -> Cameras:
        """The camera that the network was told, in the world frame; moved when the field of view is known."""
        config: OpenLRMConfig = self.network.config
        told_fov = math.degrees(2 * math.atan(0.5 / config.camera_focal))
        return source_camera(fov_deg, elevation_deg, usual_fov_deg=told_fov, usual_distance=config.camera_distance)

    def _elevations(self, images: Tensor, elevation_deg: float | None) -> list[float]:
        """The elevation of each picture: given, estimated, or 0."""
        if elevation_deg is not None or self.estimate is None:
            return [float(elevation_deg or 0.0)] * len(images)
        found = [float(value) for value in self.estimate(images)]
        if len(found) != len(images) or not all(-90 <= value <= 90 for value in found):
            raise FieldError(
                f"{self.name}: expected {len(images)} estimated elevations within 90 degrees, found {found}. "
                "Give --elevation."
            )
        return found
