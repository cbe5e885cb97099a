"""InstantMesh, NeRF variants: several views with cameras → a triplane field, with the weights that Tencent published.

::

    views (B,V,3,320,320) ─► DINO ViT-B/16, norms modulated ─► view tokens (B, V * 401, 768) ─┐
    cameras (B,V,16) ─► camera embedding ─┘                                                   ▼
                                                          learned plane tokens ─► [cross, self, MLP] x L ─► norm
                                                                                                             ▼
                                                                          planes (B, 3, C, 64, 64) ◄─ upsampler

Source: Xu et al. 2024 (arXiv 2404.07191). Written from measured facts about the published model, not from its code;
tests/parity/test_instantmesh.py compares the numbers. The published FlexiCubes variants (``instant_mesh_*``) end in
another kind of field and are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from multiview.cameras import Cameras
from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.keymap import KeyTable, sequential_renames
from multiview.views import Views
from multiview.weights import config_from_dict

from .blocks import BlockConfig, CameraEmbedding, DecoderBlock, PlaneUpsampler
from .field import PAIRS_XY_XZ_ZY, OutputRule, PlanesDecoder, TriplaneField
from .models import Reconstruction, ViewsModel
from .preprocess import instantmesh_input
from .published import PublishedModel, not_given, source_camera
from .vit import Vit, VitConfig, dino_renames, normalize_imagenet

BLOCK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6


@dataclass(frozen=True)
class InstantMeshConfig:
    """Sizes of InstantMesh; the defaults are the published large model.

    Attributes:
        image_size: pixels per side of each view.
        vit: the encoder; its ``condition_width`` is that of the camera embedding.
        plane_size: plane tokens per side; the planes are twice as fine.
        width, heads, layers: of the plane transformer.
        plane_channels: C of the triplane.
        decoder_width, decoder_layers: hidden layers of the field's decoder.
        scene_radius: half side of the field's cube.
        samples_per_ray: of the published renderer, both passes together, see `lrm.twopass`.
        level: activated density at which the published program takes the surface.
        foreground_ratio: longest side of the object's box / side of the picture that the views are made from.
    """

    image_size: int = 320
    vit: VitConfig = field(default_factory=lambda: VitConfig(condition_width=768))
    plane_size: int = 32
    width: int = 1024
    heads: int = 16
    layers: int = 16
    plane_channels: int = 80
    decoder_width: int = 64
    decoder_layers: int = 3
    scene_radius: float = 1.0
    samples_per_ray: int = 128
    level: float = 10.0
    foreground_ratio: float = 0.85


LARGE = InstantMeshConfig()
BASE = replace(LARGE, layers=12, plane_channels=40, samples_per_ray=96)


class InstantMeshNetwork(nn.Module):
    """Views and cameras → planes; see the drawing at the top of the file."""

    def __init__(self, config: InstantMeshConfig) -> None:
        super().__init__()
        c = self.config = config
        block = BlockConfig(c.width, c.heads, c.vit.width, BLOCK_NORM_EPS, ("cross", "self"), "gelu")
        self.camera = CameraEmbedding(c.vit.condition_width or c.vit.width)
        self.vit = Vit(c.vit)
        self.tokens = nn.Parameter(torch.randn(1, 3 * c.plane_size**2, c.width) * c.width**-0.5)
        self.blocks = nn.ModuleList(DecoderBlock(block) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, FINAL_NORM_EPS)
        self.upsampler = PlaneUpsampler(c.width, c.plane_channels)
        self.decoder = PlanesDecoder(c.plane_channels, c.decoder_width, c.decoder_layers, "relu")

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Views (B, V, 3, S, S) in [0, 1] over white and cameras (B, V, 16) → planes (B, 3, C, H, W) float32."""
        return self.upsampler(self.plane_tokens(self.view_tokens(images, cameras)))

    def view_tokens(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Views (B, V, 3, S, S) and cameras (B, V, 16) → (B, V * (1 + h * w), E), views in order, each with CLS."""
        condition = self.camera(cameras.flatten(0, 1))
        tokens = self.vit(normalize_imagenet(images.flatten(0, 1)), condition)
        return tokens.unflatten(0, images.shape[:2]).flatten(1, 2)

    def plane_tokens(self, context: Tensor) -> Tensor:
        """View tokens (B, M, E) → plane tokens (B, 3 * s * s, D), plane by plane, row-major."""
        x = self.tokens.expand(len(context), -1, -1)
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)


def camera_numbers(cameras: Cameras) -> Tensor:
    """V cameras → (V, 16): the first three rows of c2w, then fx, fy, cx, cy over the picture's width and height."""
    k = cameras.intrinsics
    focal = torch.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], -1)
    return torch.cat([cameras.c2w[:, :3].flatten(1), focal], -1)


_LAYER = "transformer.layers.*"
KEYS = KeyTable(
    prefix="lrm_generator.",
    renames=(
        *dino_renames("encoder.model", "vit"),
        ("encoder.model.encoder.layer.*.adaLN_modulation.1", "vit.blocks.*.modulation"),
        ("encoder.camera_embedder.0", "camera.expand"),
        ("encoder.camera_embedder.2", "camera.mix"),
        ("transformer.pos_embed", "tokens"),
        (f"{_LAYER}.norm1", "blocks.*.norm_cross"),
        (f"{_LAYER}.norm2", "blocks.*.norm_self"),
        (f"{_LAYER}.norm3", "blocks.*.norm_mlp"),
        (f"{_LAYER}.cross_attn.q_proj_weight", "blocks.*.attend_cross.query.weight"),
        (f"{_LAYER}.cross_attn.k_proj_weight", "blocks.*.attend_cross.key.weight"),
        (f"{_LAYER}.cross_attn.v_proj_weight", "blocks.*.attend_cross.value.weight"),
        (f"{_LAYER}.cross_attn.out_proj", "blocks.*.attend_cross.out"),
        (
            f"{_LAYER}.self_attn.in_proj_weight",
            tuple(f"blocks.*.attend_self.{part}.weight" for part in ("query", "key", "value")),
        ),
        (f"{_LAYER}.self_attn.out_proj", "blocks.*.attend_self.out"),
        (f"{_LAYER}.mlp.0", "blocks.*.mlp.expand"),
        (f"{_LAYER}.mlp.3", "blocks.*.mlp.shrink"),
        ("transformer.norm", "norm"),
        ("transformer.deconv", "upsampler"),
        *sequential_renames("synthesizer.decoder.net", "decoder.layers"),
    ),
    dropped={"**source_camera**": "a camera of the training run; the published app leaves it out, too"},
)


def refuse_flexicubes(state: Mapping[str, Any], where: str) -> None:
    """Raise when ``state`` (by its published names) is a FlexiCubes variant.

    Raises:
        WeightsError: it is; the message names the NeRF file to take instead.
    """
    names = [key.removeprefix(KEYS.prefix) for key in state]
    found = next(
        (name for name in names if re.match(r"synthesizer\.decoder\.net_(sdf|rgb|deformation|weight)\.", name)), None
    )
    if found is None:
        return
    layers = {name.split(".")[2] for name in names if name.startswith("transformer.layers.")}
    size = "large" if len(layers) > BASE.layers else "base"
    raise WeightsError(
        f"{where}: expected an InstantMesh NeRF checkpoint (synthesizer.decoder.net.0.weight), found a FlexiCubes one "
        f"({found}), which ends in a grid of signed distances and not in a radiance field. "
        f"Use instant_nerf_{size}.ckpt of the same repository, which --model instantmesh-{size} fetches."
    )


def config_from_state(state: Mapping[str, Tensor], where: str) -> InstantMeshConfig:
    """The config that a published checkpoint's shapes say; the hub serves no config file beside it.

    Args:
        state: {published name: tensor}, with or without the prefix.
        where: what to call the weights in an error.

    Raises:
        WeightsError: a FlexiCubes variant, or not an InstantMesh checkpoint at all.
    """
    refuse_flexicubes(state, where)
    shapes = {key.removeprefix(KEYS.prefix): tuple(tensor.shape) for key, tensor in state.items()}
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.layers.")}
    deconv = shapes.get("transformer.deconv.weight", ())
    for config in (BASE, LARGE):
        if (len(layers), deconv) == (config.layers, (config.width, config.plane_channels, 2, 2)):
            return config
    raise WeightsError(
        f"{where}: expected InstantMesh with 12 layers and 40 channels or 16 layers and 80 channels, found "
        f"{len(layers)} layers and transformer.deconv.weight {deconv or 'missing'}. Check that this is "
        "instant_nerf_base.ckpt or instant_nerf_large.ckpt; another size needs its config.json beside it."
    )


# Where the published yaml (section model_config.params) says what `InstantMeshConfig` holds.
_SIZES = {
    "transformer_dim": "width",
    "transformer_layers": "layers",
    "transformer_heads": "heads",
    "triplane_low_res": "plane_size",
    "triplane_dim": "plane_channels",
    "rendering_samples_per_ray": "samples_per_ray",
}
_FIXED = {"encoder_model_name": "facebook/dino-vitb16", "encoder_feat_dim": 768}
_UNUSED = ("encoder_freeze", "triplane_high_res")  # of training; read by nothing


def read_published_config(path: str | Path) -> InstantMeshConfig:
    """Read a published ``instant-nerf-*.yaml``; class paths in it are never imported.

    Raises:
        WeightsError: the file is missing or not YAML, is that of a FlexiCubes variant, or says something that this
            file cannot build.
    """
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: not found.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise WeightsError(f"{path}: not readable as YAML ({error}). Fetch or copy the file again.") from error
    return published_config(values, str(path))


def published_config(values: Any, where: str) -> InstantMeshConfig:
    """What a published ``instant-nerf-*.yaml`` says, already parsed, as our config; see `read_published_config`."""
    section = values.get("model_config") if isinstance(values, dict) else None
    said = section.get("params") if isinstance(section, dict) else None
    if not isinstance(said, dict):
        raise WeightsError(
            f"{where}: expected InstantMesh's yaml with model_config.params, found {str(values)[:80]!r}."
        )
    if {"grid_res", "grid_scale"} & set(said):
        raise WeightsError(
            f"{where}: expected a NeRF variant, found a FlexiCubes one (grid_res). Use instant-nerf-*.yaml."
        )
    config = config_from_dict(InstantMeshConfig, {_SIZES[k]: v for k, v in said.items() if k in _SIZES}, where)
    for key, value in said.items():
        if key in _FIXED and value != _FIXED[key]:
            raise WeightsError(f"{where}: {key} is {value!r}, but only {_FIXED[key]!r} can be built.")
        if key not in _SIZES and key not in _FIXED and key not in _UNUSED:
            raise WeightsError(f"{where}: unknown key {key!r}. InstantMesh's yaml has no such setting.")
    return config


class InstantMesh(PublishedModel, ViewsModel):
    """InstantMesh as a reconstruction model: its frame is the world frame, z up, azimuth 0 of the views on +x.

    It does not see the photo; the framing is that of the picture from which its views are generated.
    """

    framing = "cropped"
    architecture = "instantmesh"
    lifts_photos = False
    config_type = InstantMeshConfig
    network_type = InstantMeshNetwork
    keys = KEYS

    @classmethod
    def from_state(
        cls,
        config: Any,
        state: Mapping[str, Tensor],
        *,
        name: str | None = None,
        where: str = "weights",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        published: bool = True,
    ) -> Self:
        """See `PublishedModel.from_state`; a FlexiCubes variant is refused by name."""
        if published:
            refuse_flexicubes(state, where)
        return super().from_state(
            config, state, name=name, where=where, device=device, dtype=dtype, published=published
        )

    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """Refuse: a single picture is not what the network was trained on.

        Raises:
            SettingsError: always; it says where views come from.
        """
        raise SettingsError(
            f"{self.name} lifts several views with cameras, found a single picture. Give --views NAME to have them "
            "generated, or --views-dir DIR with pictures and a cameras file."
        )

    def reconstruct_views(
        self, views: Views, *, elevation_deg: float | None = None, fov_deg: float | None = None
    ) -> Reconstruction:
        """See `ViewsModel.reconstruct_views`; the published weights were made for six views from 4 away, 30 degrees."""
        if len(views) == 0:
            raise ImageError(f"{self.name} wants at least one view, found none. Six of them all around are usual.")
        pictures = instantmesh_input(torch.cat([views.images, views.alpha], 1), self.image_size)
        planes = self._planes(pictures[None], camera_numbers(views.cameras)[None].to(pictures))[0]
        camera = source_camera(
            fov_deg,
            elevation_deg,
            usual_fov_deg=views.cameras.fov_y_deg.median().item(),
            usual_distance=views.cameras.positions.norm(dim=-1).median().item(),
        )
        return Reconstruction(self.field(planes), camera, elevation_deg or 0.0, not_given(elevation_deg, fov_deg))

    def field(self, planes: Tensor) -> TriplaneField:
        """Planes (3, C, H, W) with this model's decoder, as a field in the world frame."""
        config: InstantMeshConfig = self.network.config
        return TriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=config.scene_radius,
            level=config.level,
            outputs=OutputRule("softplus", density_bias=-1.0, color_margin=0.001),
            pairs=PAIRS_XY_XZ_ZY,
        )
