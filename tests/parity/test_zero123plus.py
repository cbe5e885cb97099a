"""Zero123++: against a second way of saying what the facts say, and its files.

No numbers of the published program are known for these weights, so the sampler below is written a second time, from the
facts alone and with other means: stock attention of `diffusers` whose inputs are changed by hooks, and the scheduler's
formulas by hand. Both run on small networks filled from the rule of tests/parity/fill.py.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from multiview.camerafile import zero123plus_cameras, zero123plus_views
from multiview.cameras import project
from multiview.checkpoint import Dropped
from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.hub import HubFile, NoSuchFileError
from multiview.views import Views
from multiview.zero123plus import (
    PLUS_SCHEDULERS,
    ReferenceAttention,
    Zero123Plus,
    cut_sheet,
    matte_from_byte,
    picture_input,
    picture_over,
    plus_scheduler,
    set_steps,
)
from multiview.zero123plusweights import (
    CLIP_PICTURE,
    INSTANTMESH_LICENCE,
    PARTS,
    TEXT,
    VAE_PICTURE,
    Parts,
    Zero123PlusConfig,
    empty_prompt_ids,
)
from tests.parity.fill import fill, fill_tensor, with_endings

Table = dict[str, tuple[int, ...]]

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [32, 64, 128, 128], "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 32,
    "layers_per_block": 2, "use_linear_projection": True,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
VISION = {
    "architectures": ["CLIPVisionModelWithProjection"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 56, "image_size": 224, "projection_dim": 32,
    "hidden_act": "gelu",
}  # fmt: skip
TEXT_SMALL = {
    "architectures": ["CLIPTextModel"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 8, "vocab_size": 12, "hidden_act": "gelu",
}  # fmt: skip
RAMP = (0.003, 0.2205, 0.2153, 0.235, 0.4, 0.5, 0.6, 0.7)
STEPS = 3
SEED = 11


def filled(network: nn.Module) -> nn.Module:
    """The network with weights from the rule, by its own names."""
    network.load_state_dict(fill({key: tuple(x.shape) for key, x in network.state_dict().items()}))
    return network


def small_config(**changes: Any) -> Zero123PlusConfig:
    return replace(
        Zero123PlusConfig(ramp=RAMP, tile_size=32, vae_picture=replace(VAE_PICTURE, size=64)), **changes
    )  # fmt: skip


def small_parts(vision: dict[str, Any] = VISION) -> Parts:
    networks = [filled(part.make(values)) for part, values in zip(PARTS.values(), (UNET, VAE, vision), strict=True)]
    unet, vae, clip = networks
    return Parts(unet, vae, clip, fill_tensor("prompt", (8, 32)))


@functools.cache
def stock_parts(activation: str = "gelu") -> Parts:
    """Shared by tests that leave them as they were; nobody replaces their attention processors."""
    return small_parts({**VISION, "hidden_act": activation})


def small_model(**changes: Any) -> Zero123Plus:
    return Zero123Plus(small_parts(), small_config(**changes))


@pytest.fixture(scope="module")
def model() -> Zero123Plus:
    """Shared by tests that leave it as it was."""
    return small_model()


@pytest.fixture(scope="module")
def cutout() -> Tensor:
    """(4, 48, 48): a soft-edged disc of noise; black, not background, lies under alpha = 0."""
    r = torch.from_numpy(np.random.RandomState(5).uniform(size=(3, 48, 48)).astype(np.float32))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    alpha = (4 * (0.8 - (x**2 + y**2).sqrt()) + 0.5).clamp(0, 1)[None]
    return torch.cat([r * (alpha > 0), alpha])


def seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# A second way of saying it


@contextmanager
def changed_self_attention(unet: nn.Module, change: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """``change`` sees the input of every self-attention, by name, and may give what keys and values are made of."""

    def hook(name: str) -> Any:
        def before(_module: nn.Module, inputs: Any, words: dict[str, Any]) -> Any:
            context = change(name, inputs[0])
            return None if context is None else (inputs, {**words, "encoder_hidden_states": context})

        return before

    handles = [
        module.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn1")
    ]
    assert len(handles) == 16
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Oracle:
    """The published program in plain words; ``wrong`` names the one thing that is done as a pitfall has it."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        parts = stock_parts("quick_gelu" if wrong == "quick_gelu" else "gelu")
        self.unet, self.vae, self.vision, self.prompt = parts.unet, parts.vae, parts.vision, parts.prompt
        power = 2 if wrong == "scaled_linear" else 1
        bars = np.cumprod(1 - np.linspace(0.00085 ** (1 / power), 0.012 ** (1 / power), 1000) ** power)
        self.sigmas = np.sqrt((1 - bars) / bars)

    def latent(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        drawn = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        if self.wrong == "mode":
            return posterior.mean
        if self.wrong == "scaled latent":
            return 0.18215 * drawn
        return (0.18215 * drawn - 0.22) * 0.75 if self.wrong == "shifted latent" else drawn

    def condition(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        grey = 255 if self.wrong == "white" else 127
        rgba = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.int64)
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        picture = Image.fromarray(((rgb * alpha + grey * (255 - alpha) + 127) // 255).astype(np.uint8))
        std = 0.5 if self.wrong == "full range" else 0.8
        x = torch.from_numpy(np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)) / np.float32(255))
        x = (x.permute(2, 0, 1)[None] - 0.5) / std
        y = torch.from_numpy(np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC)) / np.float32(255))
        y = (y - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
        embedding = self.vision(y.permute(2, 0, 1)[None]).image_embeds[0]
        if self.wrong == "unit embedding":
            embedding = embedding / embedding.norm()
        told = self.prompt + torch.outer(torch.tensor(RAMP), embedding)
        seen, grey_latent = self.latent(x, generator), self.latent(torch.zeros_like(x), generator)
        if self.wrong == "zero latent":
            grey_latent = torch.zeros_like(grey_latent)
        without = told if self.wrong == "picture in the negative prompt" else self.prompt
        return torch.cat([grey_latent, seen]), torch.stack([without, told])

    def v(self, latents: Tensor, t: float, prompts: Tensor, reference: Tensor) -> Tensor:
        kept: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            kept[name] = x

        def read(name: str, x: Tensor) -> Tensor:
            if self.wrong == "no reference":
                return x
            other = kept[name].flip(0) if self.wrong == "branches exchanged" else kept[name]
            return other if self.wrong == "reference alone" else torch.cat([x, other], 1)

        with changed_self_attention(self.unet, keep):
            self.unet(reference, t, prompts)
        with changed_self_attention(self.unet, read):
            return self.unet(latents, t, prompts).sample

    @torch.no_grad()
    def sample(self, image: Tensor, generator: torch.Generator, scale: float = 4.0) -> Tensor:
        """The last latents (1, 4, 12, 8), for `STEPS` steps."""
        latents, prompts = self.condition(image, generator)
        steps = [999, 666, 332] if self.wrong != "linspace" else [999, 499.5, 0]
        sigmas = [*np.interp(steps, np.arange(1000), self.sigmas), 0.0]
        x = torch.randn(1, 4, 12, 8, generator=generator) * sigmas[0]
        for t, s, after in zip(steps, sigmas, sigmas[1:], strict=False):
            noise = torch.randn(2, 4, 8, 8, generator=generator)
            shrink = math.sqrt(s * s + 1)
            reference = (latents + s * noise) / shrink
            if self.wrong == "clean reference":
                reference = latents
            if self.wrong == "unscaled reference":
                reference = latents + s * noise
            without, told = self.v((x / shrink).expand(2, -1, -1, -1), t, prompts, reference)
            predicted = (without + scale * (told - without))[None]
            clean = x / (s * s + 1) - predicted * s / shrink
            if self.wrong == "epsilon":
                clean = x - s * predicted
            up = math.sqrt(after**2 * (s**2 - after**2) / s**2)
            down = math.sqrt(after**2 - up**2)
            x = x + (x - clean) / s * (down - s) + up * torch.randn(x.shape, generator=generator)
        return x


@pytest.fixture(scope="module")
def right(cutout: Tensor) -> Tensor:
    """What the oracle gives for the cut-out."""
    return Oracle().sample(cutout, seeded())


@pytest.fixture(scope="module")
def ours(model: Zero123Plus, cutout: Tensor) -> Tensor:
    """What our sampler gives for it."""
    found = model(cutout, generator=seeded(), num_inference_steps=STEPS, output_type="latent")
    assert isinstance(found, Tensor)
    return found


TOLERANCE = 1e-4
"""Absolute, on latents of size 1, as the facts ask of a sample; the two ways differ by rounding, 2e-5."""


def test_the_sampler_is_the_published_one(right: Tensor, ours: Tensor) -> None:
    assert ours.shape == (1, 4, 12, 8)
    assert (ours - right).abs().max() < TOLERANCE
    assert ours.std() > 0.3


@pytest.mark.parametrize(
    "wrong",
    [
        "mode", "scaled latent", "shifted latent", "white", "full range", "unit embedding", "zero latent", "quick_gelu",
        "picture in the negative prompt", "no reference", "reference alone", "branches exchanged", "clean reference",
        "unscaled reference", "scaled_linear", "linspace", "epsilon",
    ],
)  # fmt: skip
def test_a_pitfall_is_noticed(wrong: str, cutout: Tensor, ours: Tensor) -> None:
    found = Oracle(wrong).sample(cutout, seeded())
    assert (found - ours).abs().max() > 20 * TOLERANCE


def test_guidance_1_is_the_branch_with_the_picture_alone(model: Zero123Plus, cutout: Tensor) -> None:
    found = model(cutout, generator=seeded(), num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    both = model.condition(cutout, seeded())
    one = model.condition(cutout, seeded(), guided=False)
    assert one.latents.shape == (1, 4, 8, 8)
    assert torch.equal(one.latents, both.latents[1:])
    assert torch.equal(one.prompts, both.prompts[1:])
    assert isinstance(found, Tensor) and bool(torch.isfinite(found).all())


def test_processors_are_ordinary_attention_without_a_memory(model: Zero123Plus) -> None:
    x, prompts = fill_tensor("x", (1, 4, 8, 8)), fill_tensor("p", (1, 8, 32))
    with torch.no_grad():
        stock = stock_parts().unet(x, 10, prompts).sample
        assert torch.allclose(model.unet(x, 10, prompts).sample, stock, atol=1e-5)
    assert all(isinstance(p, ReferenceAttention) for p in model.unet.attn_processors.values())


# Schedules


def test_the_schedule_is_the_published_one() -> None:
    scheduler = plus_scheduler()
    assert scheduler.alphas_cumprod[999].item() == pytest.approx(0.00157896, abs=5e-9)
    scheduler.set_timesteps(28)
    assert scheduler.init_noise_sigma.item() == pytest.approx(25.1461, abs=1e-4)
    steps = scheduler.timesteps.tolist()
    assert (len(steps), steps[0], steps[1], steps[-1]) == (28, 999, 963, 35)


@pytest.mark.parametrize("name", PLUS_SCHEDULERS)
def test_every_scheduler_has_this_noise_and_starts_at_its_end(name: Any) -> None:
    scheduler = plus_scheduler(name)
    assert scheduler.alphas_cumprod[999].item() == pytest.approx(0.00157896, abs=5e-9)
    assert scheduler.config.prediction_type == "v_prediction"
    for count in (1, 28, 61, 103):
        set_steps(scheduler, count, torch.device("cpu"))
        steps = scheduler.timesteps.tolist()
        assert len(steps) == count and steps[0] == 999 and min(steps) >= 0


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'heun'.*euler-ancestral, ddim, dpm\+\+, unipc"):
        plus_scheduler("heun")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_other_schedulers_give_other_pictures_and_parity_does_not_heed_them(
    name: Any, model: Zero123Plus, cutout: Tensor, ours: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "scheduler", plus_scheduler(name))
    found = model(cutout, generator=seeded(), num_inference_steps=STEPS, output_type="latent")
    assert isinstance(found, Tensor) and bool(torch.isfinite(found).all())
    assert (found - ours).abs().max() > 0.01
    same = model(cutout, generator=seeded(), num_inference_steps=STEPS, output_type="latent", parity=True)
    assert isinstance(same, Tensor) and torch.equal(same, ours)


# Pictures


def test_the_two_picture_rules_are_the_libraries_image_processors() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = np.random.RandomState(0).randint(0, 256, (90, 90, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    clip = CLIPImageProcessorPil()(picture, return_tensors="pt").pixel_values
    vae = CLIPImageProcessorPil(
        size={"shortest_edge": 512}, crop_size={"height": 512, "width": 512}, resample=2, image_mean=[0.5] * 3,
        image_std=[0.8] * 3,
    )(picture, return_tensors="pt").pixel_values  # fmt: skip
    assert torch.allclose(picture_input(picture, CLIP_PICTURE), clip, atol=1e-5)
    found = picture_input(picture, VAE_PICTURE)
    assert torch.allclose(found, vae, atol=1e-5)
    assert found.abs().max() <= 0.6250001


def test_a_cut_out_lies_over_grey_127_and_what_is_under_alpha_0_does_not_show() -> None:
    image = torch.zeros(4, 2, 2)
    image[:, 0, 0] = torch.tensor([1.0, 0.5, 0.0, 1.0])
    image[:, 1, 1] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = np.asarray(picture_over(image, 127))
    assert found[0, 0].tolist() == [255, 128, 0]
    assert found[0, 1].tolist() == found[1, 1].tolist() == [127, 127, 127]
    assert np.asarray(picture_over(image, 255))[1, 0].tolist() == [255, 255, 255]


def test_a_sheet_is_cut_as_the_reader_of_sheets_cuts_it() -> None:
    pixels = np.random.RandomState(1).randint(0, 256, (24, 16, 3)).astype(np.uint8)
    sheet = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    assert torch.equal(cut_sheet(sheet), zero123plus_views(pixels).images)


@pytest.mark.parametrize("background", [127, 255])
def test_the_background_becomes_alpha_and_edges_get_their_colour_back(background: int) -> None:
    """A square of orange, its rim half covered."""
    grey, orange = background / 255, torch.tensor([0.9, 0.3, 0.1]).reshape(3, 1, 1)
    cover = torch.zeros(1, 20, 20)
    cover[:, 5:15, 5:15] = 0.5
    cover[:, 6:14, 6:14] = 1
    images = (orange * cover + grey * (1 - cover))[None]
    color, alpha = matte_from_byte(images, background)
    assert (alpha[0] - cover).abs().max() < 0.02
    assert (color[0] - orange).abs()[:, 5:15, 5:15].max() < 0.02


# Cameras


def test_the_cameras_are_the_published_ones() -> None:
    cameras = Zero123PlusConfig().cameras
    assert torch.equal(cameras.c2w, zero123plus_cameras().c2w)
    # The vectors of facts 4.4: c2w's rows of tiles 0 and 1.
    first = [[-0.5, -0.296198, 0.813798, 3.255191], [0.866025, -0.171010, 0.469846, 1.879385]]
    assert torch.allclose(cameras.c2w[0, :2], torch.tensor(first), atol=2e-6)
    assert cameras.c2w[1, 2].tolist() == pytest.approx([0, 0.984808, -0.173648, -0.694593], abs=2e-6)
    assert cameras.intrinsics[5, 0, 0].item() == pytest.approx(1.866025, abs=2e-6)


def test_version_1_1_has_its_own_elevations() -> None:
    height = Zero123PlusConfig(version="1.1").cameras.positions[:, 2]
    assert height.tolist() == pytest.approx([2.0, -4 * math.sin(math.radians(20))] * 3, abs=1e-5)


def test_a_landmark_drawn_at_the_claimed_cameras_is_found_where_it_was(model: Zero123Plus) -> None:
    """A dot in front, 0.5 toward the input's camera and 0.2 up, drawn on a sheet and triangulated from its views."""
    size, point = 256, torch.tensor([0.5, 0.0, 0.2])
    uv, _ = project(model.config.cameras, point[None])
    # By hand for tile 0, azimuth 30 and elevation 20: right = (-sin a, cos a, 0), so the dot is 0.25 to the left.
    e = math.radians(20)
    depth = 4 - (0.5 * math.cos(math.radians(30)) * math.cos(e) + 0.2 * math.sin(e))
    assert uv[0, 0, 0].item() == pytest.approx(0.5 - 0.25 * 1.866025 / depth, abs=1e-5)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    sheet = torch.full((3, 3 * size, 2 * size), 127 / 255)
    for tile, (u, v) in enumerate(uv[:, 0] * size):
        dot = (x - u) ** 2 + (y - v) ** 2 < 8**2
        sheet[0, size * (tile // 2) :, size * (tile % 2) :][:size, :size][dot] = 1.0
    views = model.views(sheet)
    assert seen_at(views) == pytest.approx(point.tolist(), abs=0.005)
    mixed = Views(views.images, views.alpha, views.cameras.select([1, 0, 2, 3, 4, 5]))
    assert seen_at(mixed) != pytest.approx(point.tolist(), abs=0.05)


def seen_at(views: Views) -> list[float]:
    """The point nearest to the rays through the middle of each view's alpha."""
    size = views.image_size[0]
    grid = (torch.arange(size) + 0.5) / size
    total = views.alpha.sum((1, 2, 3))
    u = (views.alpha.sum((1, 2)) * grid).sum(-1) / total
    v = (views.alpha.sum((1, 3)) * grid).sum(-1) / total
    k = views.cameras.intrinsics
    local = torch.stack([(u - 0.5) / k[:, 0, 0], -(v - 0.5) / k[:, 1, 1], -torch.ones(len(u))], -1)
    rays = torch.nn.functional.normalize((views.cameras.c2w[:, :3, :3] @ local[..., None])[..., 0], dim=-1)
    across = torch.eye(3) - rays[:, :, None] * rays[:, None, :]
    return torch.linalg.solve(across.sum(0), (across @ views.cameras.positions[..., None]).sum(0))[:, 0].tolist()


# Running


def run(model: Zero123Plus, image: Tensor, seed: int = SEED, **settings: Any) -> Views:
    return model.generate(image, elevation_deg=10.0, generator=seeded(seed), num_inference_steps=2, **settings)


def test_same_seed_same_bytes_and_another_seed_another_sheet(model: Zero123Plus, cutout: Tensor) -> None:
    state = torch.random.get_rng_state()
    one, two, other = run(model, cutout), run(model, cutout), run(model, cutout, seed=12)
    assert one.images.shape == (6, 3, 32, 32) and one.alpha.shape == (6, 1, 32, 32)
    assert torch.equal(one.images, two.images) and torch.equal(one.alpha, two.alpha)
    assert (one.images - other.images).abs().max() > 0.01
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's global generator was touched"


def test_memory_settings_change_nothing(model: Zero123Plus, cutout: Tensor) -> None:
    plain = run(model, cutout, view_batch_size=16).images
    assert torch.equal(run(model, cutout, view_batch_size=1).images, plain)
    try:
        model.set_attention_slice(7)
        model.offload = True
        assert (run(model, cutout).images - plain).abs().max() < 2e-5
    finally:
        model.set_attention_slice(None)
        model.offload = False


def test_output_types_are_one_picture(model: Zero123Plus, cutout: Tensor) -> None:
    def made(kind: Any) -> Any:
        return model(cutout, generator=seeded(), num_inference_steps=1, output_type=kind)

    sheet, picture = made("sheet"), made("pil")
    assert sheet.shape == (3, 96, 64)
    assert np.array_equal(np.asarray(picture), (sheet.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    assert torch.equal(model.decode(made("latent")), sheet)
    with pytest.raises(SettingsError, match=r"'mesh'.*views, sheet, pil or latent"):
        made("mesh")


def test_decoding_takes_off_what_encoding_puts_on(model: Zero123Plus) -> None:
    """A latent z of the VAE's own scale lies at (0.18215 z - 0.22) 0.75, a picture x in [-1, 1] at 0.625 x."""
    z = fill_tensor("z", (1, 4, 3, 2))
    with torch.no_grad():
        drawn = model.vae.decode(z).sample[0]
    expected = (drawn * 1.6 / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode((0.18215 * z - 0.22) * 0.75), expected, atol=1e-5)


def test_steps_are_told_and_a_callback_may_change_the_latents(model: Zero123Plus, cutout: Tensor) -> None:
    told: list[tuple[int, int]] = []
    seen: list[tuple[int, float]] = []

    def callback(pipe: Any, index: int, t: float, given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipe is model
        seen.append((index, t))
        return {"latents": torch.zeros_like(given["latents"])}

    found = model(
        cutout, generator=seeded(), num_inference_steps=2, output_type="latent", callback_on_step_end=callback,
        on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)]
    assert seen == [(0, 999.0), (1, 499.0)]
    assert isinstance(found, Tensor) and found.abs().max() == 0


def test_a_cancelled_run_leaves_the_model_as_it_was(model: Zero123Plus, cutout: Tensor) -> None:
    class CancelledError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise CancelledError

    before = run(model, cutout).images
    with pytest.raises(CancelledError):
        run(model, cutout, on_step=stop)
    assert torch.equal(run(model, cutout).images, before)


def test_an_overflow_in_half_precision_is_repeated_in_fp32(cutout: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model().to(dtype=torch.float16)
    assert model.dtype == torch.float16
    with torch.no_grad():
        model.unet.conv_out.weight *= 60000  # above 65504 at the output, far from it in fp32
    found = model(cutout, generator=seeded(), num_inference_steps=1, output_type="latent")
    assert isinstance(found, Tensor) and bool(torch.isfinite(found).all())
    assert "step 1 of 1 (t = 999)" in caplog.text and "repeated in fp32" in caplog.text
    assert model.dtype == torch.float16


def test_weights_that_give_nan_in_fp32_are_named(cutout: Tensor) -> None:
    model = small_model()
    with torch.no_grad():
        model.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(WeightsError, match=r"step 1 of 2 \(t = 999\).*damaged"):
        run(model, cutout)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"view_batch_size": 0}, "view_batch_size=0"),
        ({"elevation_deg": 91.0}, "elevation_deg=91"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, Any], words: str, model: Zero123Plus, cutout: Tensor
) -> None:
    with pytest.raises(SettingsError, match=words):
        model(cutout, **settings)
    with pytest.raises(SettingsError, match="0 rows"):
        model.set_attention_slice(0)


def test_a_picture_of_another_form_is_refused(model: Zero123Plus) -> None:
    with pytest.raises(ImageError, match=r"\(4, S, S\).*\(3, 8, 8\)"):
        model(torch.zeros(3, 8, 8))


def test_parts_of_different_models_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"numbers in the ramp: 3, but tokens in the prompt: 8"):
        Zero123Plus(stock_parts(), small_config(ramp=(0.1, 0.2, 0.3)))
    with pytest.raises(WeightsError, match="tile_size=20"):
        Zero123Plus(stock_parts(), small_config(tile_size=20))


# Files


def write_published(folder: Path, *, old_names: bool = False, position_ids: bool = False) -> Path:
    """A small published folder, written without our code, in fp32."""

    def put(name: str, values: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))

    processors = {
        "clip": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3,
                 "image_mean": CLIP_PICTURE.mean, "image_std": CLIP_PICTURE.std},
        "vae": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "resample": 2,
                "image_mean": [0.5] * 3, "image_std": [0.8] * 3, "do_normalize": True, "rescale_factor": 1 / 255},
    }  # fmt: skip
    put("model_index.json", {"_class_name": "Zero123PlusPipeline", "ramping_coefficients": RAMP})
    put("scheduler/scheduler_config.json", {
        "_class_name": "EulerAncestralDiscreteScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "linear", "prediction_type": "v_prediction", "timestep_spacing": "linspace",
    })  # fmt: skip
    for which, values in processors.items():
        put(f"feature_extractor_{which}/preprocessor_config.json", values)
    put("tokenizer/vocab.json", {"!": 0, "a": 5, "<|startoftext|>": 10, "<|endoftext|>": 11})
    put("tokenizer/special_tokens_map.json", {
        "bos_token": {"content": "<|startoftext|>"}, "eos_token": {"content": "<|endoftext|>"}, "pad_token": "!",
    })  # fmt: skip
    for name, part, values, file in (
        ("unet", PARTS["unet"], UNET, "diffusion_pytorch_model"),
        ("vae", PARTS["vae"], VAE, "diffusion_pytorch_model"),
        ("vision_encoder", PARTS["vision_encoder"], VISION, "model"),
        ("text_encoder", TEXT, TEXT_SMALL, "model"),
    ):
        put(f"{name}/config.json", values)
        state: dict[str, Tensor] = dict(filled(part.make(values)).state_dict())
        if name == "text_encoder":
            state = {f"text_model.{key.removeprefix('text_model.')}": x for key, x in state.items()}
        if name == "vae" and old_names:
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): x for key, x in state.items()}
        if position_ids and name in ("vision_encoder", "text_encoder"):
            inner = "vision_model" if name == "vision_encoder" else "text_model"
            state[f"{inner}.embeddings.position_ids"] = torch.arange(5)[None]
        save_file({key: x.contiguous() for key, x in state.items()}, folder / name / f"{file}.safetensors")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("plus") / "zero123plus-small", old_names=True, position_ids=True)


def last_latents(model: Zero123Plus, image: Tensor) -> Tensor:
    found = model(image, generator=seeded(), num_inference_steps=1, output_type="latent")
    assert isinstance(found, Tensor)
    return found


def test_a_published_folder_and_what_we_save_of_it_are_the_same_model(
    published: Path, cutout: Tensor, tmp_path: Path
) -> None:
    model = Zero123Plus.from_pretrained(published)
    assert model.config == replace(small_config(), tile_size=320)
    assert model.name == "zero123plus-small"
    expected = stock_parts()
    for name in ("unet", "vae", "vision"):
        ours, wanted = getattr(model, name).state_dict(), getattr(expected, name).state_dict()
        assert list(ours) == list(wanted) and all(torch.equal(ours[key], wanted[key]) for key in wanted)
    model.config = replace(model.config, tile_size=32)
    model.save_pretrained(tmp_path / "own")
    again = Zero123Plus.from_pretrained(tmp_path / "own", scheduler="ddim")
    assert again.config == model.config
    assert torch.equal(again.prompt, model.prompt)
    again.set_scheduler("euler-ancestral")
    assert torch.equal(last_latents(again, cutout), last_latents(model, cutout))
    assert not list((tmp_path / "own").rglob(".aside*"))


def test_folders_that_we_write_can_be_read_by_the_libraries(published: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPVisionModelWithProjection

    model = Zero123Plus.from_pretrained(published)
    model.save_pretrained(tmp_path, dtype=torch.float16)
    for kind, name, ours in (
        (UNet2DConditionModel, "unet", model.unet),
        (AutoencoderKL, "vae", model.vae),
        (CLIPVisionModelWithProjection, "vision_encoder", model.vision),
    ):
        theirs = kind.from_pretrained(tmp_path / name, torch_dtype=torch.float32).state_dict()
        assert all(torch.equal(theirs[key], x.half().float()) for key, x in ours.state_dict().items())


def test_the_prompt_is_the_text_encoders_answer_to_nothing(published: Path) -> None:
    assert empty_prompt_ids(published / "tokenizer", 8).tolist() == [[10, 11, 0, 0, 0, 0, 0, 0]]
    text = filled(TEXT.make(TEXT_SMALL))
    with torch.no_grad():
        expected = text(torch.tensor([[10, 11, 0, 0, 0, 0, 0, 0]])).last_hidden_state[0]
        padded_with_end = text(torch.tensor([[10, 11, 11, 11, 11, 11, 11, 11]])).last_hidden_state[0]
    found = Zero123Plus.from_pretrained(published).prompt
    assert torch.equal(found, expected)
    assert (found - padded_with_end).abs().max() > 0.1


def test_another_unet_takes_the_place_of_the_folders_own(published: Path, cutout: Tensor, tmp_path: Path) -> None:
    state = dict(stock_parts().unet.state_dict())
    state["conv_in.bias"] = state["conv_in.bias"] + 1
    file = tmp_path / "diffusion_pytorch_model.bin"
    torch.save(state, file)
    model = Zero123Plus.from_pretrained(published, unet=file)
    assert torch.equal(model.unet.state_dict()["conv_in.bias"], state["conv_in.bias"])
    assert (model.config.background, model.config.licence) == (255, INSTANTMESH_LICENCE)
    model.config = replace(model.config, tile_size=32)
    white = torch.ones(3, 96, 64)
    assert model.views(white).alpha.max() == 0
    del state["conv_in.bias"]
    torch.save(state, file)
    with pytest.raises(WeightsError, match=r"1 missing, first conv_in.bias \(32,\)"):
        Zero123Plus.from_pretrained(published, unet=file)


@pytest.mark.parametrize(("second", "version"), [(0.2060, "1.1"), (0.2205, "1.2")])
def test_the_version_is_told_by_the_ramp(second: float, version: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path)
    (folder / "model_index.json").write_text(json.dumps({"ramping_coefficients": [0.0, second, *RAMP[2:]]}))
    assert Zero123Plus.from_pretrained(folder).config.version == version


def broken(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model_index.json", lambda v: v.pop("ramping_coefficients"), "expected ramping_coefficients"),
        ("model_index.json", lambda v: v.update(ramping_coefficients=[0.5] * 8), r"0\.5000.*version='1\.1'"),
        ("model_index.json", lambda v: v.update(ramping_coefficients=list(RAMP[:5])), "ramp: 5, but tokens.*: 8"),
        ("scheduler/scheduler_config.json", lambda v: v.update(beta_schedule="scaled_linear"), "expected 'linear'"),
        ("scheduler/scheduler_config.json", lambda v: v.update(prediction_type="epsilon"), "expected 'v_prediction'"),
        ("unet/config.json", lambda v: v.update(_class_name="os.system"), "UNet2DConditionModel, found 'os.system'"),
        ("unet/config.json", lambda v: v.update(cross_attention_dim=48), "of another shape"),
        ("unet/config.json", lambda v: v.update(block_out_channels=[32, 64]), "can be built"),
        ("vae/config.json", lambda v: v.update(latent_channels=8), "of another shape"),
        ("feature_extractor_vae/preprocessor_config.json", lambda v: v.update(do_normalize=False), "normalised"),
        ("tokenizer/special_tokens_map.json", lambda v: v.update(pad_token="?"), "pad_token is '[?]'"),
    ],
)  # fmt: skip
def test_a_folder_of_another_model_is_refused(
    name: str, change: Callable[[dict[str, Any]], Any], words: str, published: Path, tmp_path: Path
) -> None:
    for file in sorted(p for p in published.rglob("*") if p.is_file()):
        copy = tmp_path / file.relative_to(published)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken(tmp_path, name, change)
    with pytest.raises(WeightsError, match=words) as raised:
        Zero123Plus.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value) or tmp_path.name in str(raised.value)


def test_an_empty_folder_and_a_missing_file_are_named(published: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither config\.json nor model_index\.json"):
        Zero123Plus.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "architecture": "triposr"}))
    with pytest.raises(WeightsError, match="'triposr', expected 'zero123plus'"):
        Zero123Plus.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.safetensors"):
        PARTS["unet"].load(write_config_alone(tmp_path / "unet"), torch.device("cpu"), torch.float32)


def write_config_alone(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(UNET))
    return folder


def test_a_hub_name_is_fetched_file_by_file_as_far_as_it_is_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def hub_file(repository: str, file: str, **words: Any) -> HubFile:
        asked.append(file)
        assert words.get("revision") == ("abc" if repository == "sudo-ai/zero123plus-v1.2" else None)
        if file == "diffusion_pytorch_model.bin":
            assert repository == "TencentARC/InstantMesh" and len(words["sha256"]) == 64
            return HubFile(published / "unet" / "diffusion_pytorch_model.safetensors", None)
        # As in a repository that was published before safetensors.
        if file == "vae/diffusion_pytorch_model.safetensors" or not (published / file).is_file():
            raise NoSuchFileError(f"no {file}")
        return HubFile(published / file, "abc")

    monkeypatch.setattr("multiview.zero123plusweights.hub_file", hub_file)
    with pytest.raises(WeightsError, match=r"none of vae/.*\.bin is there"):
        Zero123Plus.from_pretrained("sudo-ai/zero123plus-v1.2", revision="abc")
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    asked.clear()
    monkeypatch.setattr("multiview.zero123plusweights._fetch_first", lambda *_: None)
    model = Zero123Plus.from_pretrained("sudo-ai/zero123plus-v1.2", revision="abc", unet="instantmesh")
    assert (model.name, model.config.background) == ("sudo-ai/zero123plus-v1.2", 255)
    assert {"model_index.json", "tokenizer/vocab.json", "vae/config.json", "text_encoder/config.json"} < set(asked)


def test_offline_a_hub_name_says_that_it_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRILIFT_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"sudo-ai/zero123plus-v1\.2: model_index\.json is not on this machine"):
        Zero123Plus.from_pretrained("sudo-ai/zero123plus-v1.2")


# Full size: every published name has its place, and every place a name


def unet_table(widths: tuple[int, ...], context: int, layers: int = 2) -> Table:
    """Stable Diffusion 2's UNet with 4 channels in and out, as `diffusers` writes it, out of the facts' section 4.2."""
    time = 4 * widths[0]
    table: Table = {}

    def resnet(front: str, before: int, after: int) -> None:
        table.update(with_endings([f"{front}.norm1"], (before,), (before,)))
        table.update(with_endings([f"{front}.conv1"], (after, before, 3, 3), (after,)))
        table.update(with_endings([f"{front}.time_emb_proj"], (after, time), (after,)))
        table.update(with_endings([f"{front}.norm2"], (after,), (after,)))
        table.update(with_endings([f"{front}.conv2"], (after, after, 3, 3), (after,)))
        if before != after:
            table.update(with_endings([f"{front}.conv_shortcut"], (after, before, 1, 1), (after,)))

    def attention(front: str, width: int) -> None:
        block = f"{front}.transformer_blocks.0"
        norms = [f"{front}.norm", *(f"{block}.norm{i}" for i in (1, 2, 3))]
        table.update(with_endings(norms, (width,), (width,)))
        # use_linear_projection: matrices, not 1 x 1 convolutions.
        table.update(with_endings([f"{front}.proj_in", f"{front}.proj_out"], (width, width), (width,)))
        table.update(with_endings([f"{block}.attn1.to_{x}" for x in "qkv"], (width, width), None))
        table.update(with_endings([f"{block}.attn2.to_q"], (width, width), None))
        table.update(with_endings([f"{block}.attn2.to_{x}" for x in "kv"], (width, context), None))
        table.update(with_endings([f"{block}.attn{i}.to_out.0" for i in (1, 2)], (width, width), (width,)))
        table.update(with_endings([f"{block}.ff.net.0.proj"], (8 * width, width), (8 * width,)))
        table.update(with_endings([f"{block}.ff.net.2"], (width, 4 * width), (width,)))

    table.update(with_endings(["conv_in"], (widths[0], 4, 3, 3), (widths[0],)))
    table.update(with_endings(["time_embedding.linear_1"], (time, widths[0]), (time,)))
    table.update(with_endings(["time_embedding.linear_2"], (time, time), (time,)))
    skips, before, last = [widths[0]], widths[0], len(widths) - 1
    for level, width in enumerate(widths):
        for i in range(layers):
            resnet(f"down_blocks.{level}.resnets.{i}", before, width)
            if level < last:
                attention(f"down_blocks.{level}.attentions.{i}", width)
            before = width
            skips.append(width)
        if level < last:
            table.update(with_endings([f"down_blocks.{level}.downsamplers.0.conv"], (width, width, 3, 3), (width,)))
            skips.append(width)
    for i in (0, 1):
        resnet(f"mid_block.resnets.{i}", before, before)
    attention("mid_block.attentions.0", before)
    for level, width in enumerate(reversed(widths)):
        for i in range(layers + 1):
            resnet(f"up_blocks.{level}.resnets.{i}", before + skips.pop(), width)
            if level > 0:
                attention(f"up_blocks.{level}.attentions.{i}", width)
            before = width
        if level < last:
            table.update(with_endings([f"up_blocks.{level}.upsamplers.0.conv"], (width, width, 3, 3), (width,)))
    table.update(with_endings(["conv_norm_out"], (before,), (before,)))
    return table | with_endings(["conv_out"], (4, before, 3, 3), (4,))


def vae_table(widths: tuple[int, ...], old_names: bool, latent: int = 4) -> Table:
    """Stable Diffusion's VAE as `diffusers` writes it, out of the facts' section 4.3, or wrote its attentions once."""
    table: Table = {}
    names = ("query", "key", "value", "proj_attn") if old_names else ("to_q", "to_k", "to_v", "to_out.0")

    def resnet(front: str, before: int, after: int) -> None:
        table.update(with_endings([f"{front}.norm1"], (before,), (before,)))
        table.update(with_endings([f"{front}.conv1"], (after, before, 3, 3), (after,)))
        table.update(with_endings([f"{front}.norm2"], (after,), (after,)))
        table.update(with_endings([f"{front}.conv2"], (after, after, 3, 3), (after,)))
        if before != after:
            table.update(with_endings([f"{front}.conv_shortcut"], (after, before, 1, 1), (after,)))

    for half, layers, order, enters, leaves in (
        ("encoder", 2, widths, 3, 2 * latent),
        ("decoder", 3, widths[::-1], latent, 3),
    ):
        before = order[0]
        table.update(with_endings([f"{half}.conv_in"], (before, enters, 3, 3), (before,)))
        for level, width in enumerate(order):
            side, sampler = ("down", "downsamplers") if half == "encoder" else ("up", "upsamplers")
            for i in range(layers):
                resnet(f"{half}.{side}_blocks.{level}.resnets.{i}", before, width)
                before = width
            if level < len(order) - 1:
                front = f"{half}.{side}_blocks.{level}.{sampler}.0.conv"
                table.update(with_endings([front], (width, width, 3, 3), (width,)))
        deep, attention = widths[-1], f"{half}.mid_block.attentions.0"
        resnet(f"{half}.mid_block.resnets.0", deep, deep)
        resnet(f"{half}.mid_block.resnets.1", deep, deep)
        table.update(with_endings([f"{attention}.group_norm"], (deep,), (deep,)))
        table.update(with_endings([f"{attention}.{name}" for name in names], (deep, deep), (deep,)))
        table.update(with_endings([f"{half}.conv_norm_out"], (before,), (before,)))
        table.update(with_endings([f"{half}.conv_out"], (leaves, before, 3, 3), (leaves,)))
    table |= with_endings(["quant_conv"], (2 * latent, 2 * latent, 1, 1), (2 * latent,))
    return table | with_endings(["post_quant_conv"], (latent, latent, 1, 1), (latent,))


def clip_table(front: str, width: int, layers: int, mlp: int) -> Table:
    """A CLIP transformer's layers, as `transformers` writes them."""
    table: Table = {}
    for i in range(layers):
        layer = f"{front}encoder.layers.{i}"
        projections = [f"{layer}.self_attn.{x}_proj" for x in ("k", "v", "q", "out")]
        table |= with_endings(projections, (width, width), (width,))
        table |= with_endings([f"{layer}.layer_norm1", f"{layer}.layer_norm2"], (width,), (width,))
        table |= with_endings([f"{layer}.mlp.fc1"], (mlp, width), (mlp,))
        table |= with_endings([f"{layer}.mlp.fc2"], (width, mlp), (width,))
    return table


VISION_FULL = {
    **clip_table("vision_model.", 1280, 32, 5120),
    "vision_model.embeddings.class_embedding": (1280,),
    "vision_model.embeddings.position_ids": (1, 257),
    "vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14),
    "vision_model.embeddings.position_embedding.weight": (257, 1280),
    **with_endings(["vision_model.pre_layrnorm", "vision_model.post_layernorm"], (1280,), (1280,)),
    "visual_projection.weight": (1024, 1280),
}
TEXT_FULL = {
    **clip_table("text_model.", 1024, 23, 4096),
    "text_model.embeddings.position_ids": (1, 77),
    "text_model.embeddings.token_embedding.weight": (49408, 1024),
    "text_model.embeddings.position_embedding.weight": (77, 1024),
    **with_endings(["text_model.final_layer_norm"], (1024,), (1024,)),
}
FULL = {
    "unet": (PARTS["unet"], unet_table((320, 640, 1280, 1280), 1024), 865_910_724, {
        **UNET, "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
    }),
    **{
        f"vae, {age} names": (PARTS["vae"], vae_table((128, 256, 512, 512), age == "old"), 83_653_863, {
            **VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        })
        for age in ("new", "old")
    },
    "vision_encoder": (PARTS["vision_encoder"], VISION_FULL, 632_076_800, {
        **VISION, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "patch_size": 14, "projection_dim": 1024,
    }),
    "text_encoder": (TEXT, TEXT_FULL, 340_387_840, {
        **TEXT_SMALL, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "max_position_embeddings": 77, "vocab_size": 49408,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_and_places_are_one_to_one(name: str) -> None:
    part, table, count, values = FULL[name]
    with torch.device("meta"):
        wanted = {key: tuple(x.shape) for key, x in part.make(values).state_dict().items()}
    found = {key: part.keys(key) for key in table}
    kept = {ours: table[key] for key, ours in found.items() if isinstance(ours, str)}
    dropped = [key for key, ours in found.items() if isinstance(ours, Dropped)]
    assert kept == wanted
    assert len(kept) + len(dropped) == len(table)
    assert all(key.endswith("position_ids") for key in dropped)
    assert sum(math.prod(shape) for shape in kept.values()) == count


def test_the_unet_has_16_self_attentions_and_as_many_heads_as_its_config_says() -> None:
    values = FULL["unet"][3]
    with torch.device("meta"):
        unet: Any = PARTS["unet"].make(values)
    heads = [unet.get_submodule(name.removesuffix(".processor")).heads for name in unet.attn_processors]
    assert len(unet.attn_processors) == 32
    assert sorted(set(heads)) == [5, 10, 20]
