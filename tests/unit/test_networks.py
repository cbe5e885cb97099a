"""What view generators of diffusers share: moving, slicing, views per pass, and the account of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.memory import LiveBytes
from multiview import networks, syncdreamervolumes
from multiview.errors import SettingsError
from multiview.generator import is_ddim, make_scheduler, set_timesteps
from multiview.ldm import UNetSizes, VaeSizes, make_unet, make_vae
from multiview.networks import NetworkGenerator, plan_memory, unet_numbers, use_plan, vae_numbers
from multiview.syncdreamervolumes import DepthLayer, VolumeNetwork, VolumeSizes, volume_numbers, world_to_views
from multiview.zero123plus import _UNET_NUMBERS, attend_to_reference
from tests.small_generators import SMALL, build_small

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def counted(make: Callable[[], Any], run: Callable[[Any], Any]) -> int:
    """The most numbers that are alive at once while ``run`` works, beside the network's weights."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = make().eval().requires_grad_(False)
        with LiveBytes(network) as live:
            run(network)
    return live.most // 4


def close(estimate: float, truth: int) -> bool:
    """An account may be too high by a tenth, and hardly too low: 3 % are well inside the spare room of plans."""
    return 0.97 <= estimate / truth <= 1.1


# A fifth of the published widths: what counts is how many tensors of which level are alive, which widths do not change.


def test_what_the_unet_keeps_is_as_counted() -> None:
    sizes = UNetSizes(channels=(64, 128, 256, 256))
    with torch.device("meta"):
        unet = make_unet(sizes)

    def run(network: Any) -> None:
        tokens = torch.zeros(2, 1, 768)
        network(torch.zeros(2, 8, 32, 32), torch.tensor(5), encoder_hidden_states=tokens, return_dict=False)

    assert close(unet_numbers(unet, 2, 32), counted(lambda: make_unet(sizes), run))
    assert unet_numbers(unet, 8, 32) == pytest.approx(4 * unet_numbers(unet, 2, 32), abs=4)


def test_what_the_autoencoder_keeps_is_as_counted() -> None:
    sizes = VaeSizes(channels=(32, 64, 128, 128))
    with torch.device("meta"):
        vae = make_vae(sizes)
    decoded = counted(lambda: make_vae(sizes), lambda net: net.decode(torch.zeros(2, 4, 32, 32), return_dict=False))
    assert close(vae_numbers(vae, decoded_pixels=2 * 256**2), decoded)
    encoded = counted(lambda: make_vae(sizes), lambda net: net.encode(torch.zeros(1, 3, 256, 256)))
    assert close(vae_numbers(vae, encoded_pixels=256**2), encoded)


def test_what_syncdreamers_volumes_keep_is_as_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, poses = VolumeSizes(), world_to_views()
    monkeypatch.setattr(syncdreamervolumes, "world_to_views", lambda: poses)

    def spatial(network: VolumeNetwork) -> None:
        network.spatial_volume(torch.zeros(16, 4, 32, 32), torch.tensor([5]), torch.zeros(16, 4))

    grid = volume_numbers(VolumeSizes(depth_planes=1), 1)
    assert close(grid, counted(lambda: VolumeNetwork(sizes), spatial))

    def look(layer: DepthLayer) -> None:
        layer(torch.zeros(4, 320, 32, 32), torch.zeros(2, 64, 48, 32, 32))

    # The layer's own, without the volumes at the three coarser scales.
    coarser = 2 * 64 * 48 * 32**2 * (2 / 8 + 4 / 64 + 8 / 512)
    assert close(volume_numbers(sizes, 2) - coarser, counted(lambda: DepthLayer(320, 64), look))


def test_what_zero123plus_keeps_is_as_counted() -> None:
    def make() -> Any:
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel(
            block_out_channels=(64, 128, 256, 256), in_channels=4, out_channels=4, attention_head_dim=[1, 2, 4, 4],
            cross_attention_dim=64, use_linear_projection=True,
        )  # fmt: skip
        attend_to_reference(unet)
        return unet

    def run(unet: Any) -> None:
        memory: dict[str, Tensor] = {}
        prompt, kept = torch.zeros(1, 77, 64), {"memory": memory, "write": True}
        unet(torch.zeros(1, 4, 64, 64), torch.tensor(5), prompt, cross_attention_kwargs=kept)
        unet(torch.zeros(1, 4, 120, 80), torch.tensor(5), prompt, cross_attention_kwargs={"memory": memory})

    assert close(_UNET_NUMBERS * 64 * (64**2 + 120 * 80), counted(make, run))


# Plans


@pytest.fixture
def model() -> NetworkGenerator:
    """A small Zero123 that is told to run on a GPU and never moved there."""
    made = build_small("zero123")
    made.device = GPU
    return made


def test_a_plan_makes_fewer_views_together_before_it_moves_networks(model: NetworkGenerator) -> None:
    at_once, one = model.needs_bytes(None, False), model.needs_bytes(1, False)
    moved = model.needs_bytes(1, True)
    assert moved < one < at_once
    plans = [plan_memory(model, limit) for limit in (at_once, at_once - 1, one, one - 1, moved)]
    assert [(plan.offload, plan.view_batch_size) for plan in plans[::2]] == [(False, None), (False, 1), (True, 1)]
    assert plans[1].view_batch_size == 4 and plans[3].offload
    with pytest.raises(SettingsError, match=r"zero123-small needs about .* GB on cuda .*one after the other.*bf16"):
        plan_memory(model, moved - 1)


def test_the_account_is_weights_and_the_hungriest_stage(model: NetworkGenerator) -> None:
    (network,) = model.networks
    weights = sum(4 * x.numel() for x in network.parameters()) + 8 * 5  # and CLIP's five position numbers
    most = max(stage.numbers for stage in model.stages(6))
    assert model.needs_bytes(None, False) == pytest.approx(1.1 * (weights + 4 * most), abs=2)
    assert model.needs_bytes(100, False) == model.needs_bytes(6, False)
    alone = max(
        sum(4 * x.numel() for part in stage.networks for x in part.parameters()) + 4 * stage.numbers
        for stage in model.stages(1)
    )
    assert model.needs_bytes(1, True) == pytest.approx(1.1 * alone, rel=1e-4)


def test_on_the_cpu_there_is_nothing_to_move_and_views_go_one_by_one() -> None:
    model = build_small("zero123")
    assert model.needs_bytes(None, False) == model.needs_bytes(1, True)
    plan = plan_memory(model, model.needs_bytes(None, True))
    assert plan == networks.MemoryPlan(False, None, plan.needs_bytes)
    assert [piece.stop for piece in model.pieces(3, 3)] == [1, 2, 3]


def test_views_per_pass_are_what_is_asked_for_or_what_was_planned(model: NetworkGenerator) -> None:
    assert [piece.stop for piece in model.pieces(5, 2)] == [2, 4, 5]
    assert [piece.stop for piece in model.pieces(5, None)] == [5]
    model.view_batch_size = 4
    assert [piece.stop for piece in model.pieces(5, None)] == [4, 5]
    assert [piece.stop for piece in model.pieces(5, 1)] == [1, 2, 3, 4, 5]


def test_a_plan_that_moves_networks_leaves_them_on_the_cpu(model: NetworkGenerator) -> None:
    use_plan(model, networks.MemoryPlan(True, 2, 0))
    assert model.offload and model.view_batch_size == 2 and model.device == GPU
    assert {x.device.type for one in model.networks for x in one.parameters()} == {"cpu"}
    # "All at once" was counted for the six views of then.
    use_plan(model, networks.MemoryPlan(True, None, 0))
    assert model.view_batch_size == 6


def test_full_size_generators_need_what_the_table_says() -> None:
    """The table's column is for fp32 on the CPU, with 0.7 GB for the libraries."""
    from multiview.syncdreamer import SyncDreamer, SyncDreamerNetwork, SyncDreamerSizes
    from multiview.zero123 import Zero123
    from multiview.zero123weights import Zero123Config, Zero123Network
    from trilift import registry

    with torch.device("meta"):
        made = {
            "zero123-xl": Zero123(Zero123Network(Zero123Config()), "zero123-xl"),
            "syncdreamer": SyncDreamer(SyncDreamerNetwork(SyncDreamerSizes())),
        }
    for name, model in made.items():
        model.device = CPU
        said = registry.find(name).memory_bytes
        assert said is not None and said - model.needs_bytes(None, False) / 1.1 == pytest.approx(0.7e9, abs=1e7)


# Moving and slicing


@pytest.mark.parametrize("name", ["zero123", "syncdreamer", "zero123plus"])
def test_all_generators_have_the_same_switches(name: str) -> None:
    model = build_small(name)
    assert model.to(dtype=torch.bfloat16) is model and model.dtype == torch.bfloat16
    model.to("cpu", torch.float32)
    assert model.dtype == torch.float32 and model.device == CPU
    model.set_scheduler("unipc")
    assert type(model.scheduler).__name__ == "UniPCMultistepScheduler"
    with pytest.raises(SettingsError, match="'euler'"):
        model.set_scheduler("euler")  # type: ignore[arg-type]
    before = {type(one).__name__ for one in model.denoiser.attn_processors.values()}
    model.enable_attention_slicing()
    sliced = [vars(one) for one in model.denoiser.attn_processors.values()]
    assert all(one.get("slice_size") or one.get("rows") for one in sliced)
    model.disable_attention_slicing()
    assert {type(one).__name__ for one in model.denoiser.attn_processors.values()} == before
    model.enable_model_cpu_offload("meta")
    assert model.offload and model.device.type == "meta"
    assert {x.device.type for one in model.networks for x in one.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["zero123", "zero123plus"])
def test_same_seed_same_bytes_and_views_per_pass_change_nothing(name: str) -> None:
    model = build_small(name)
    image = torch.rand(4, 40, 40, generator=torch.Generator().manual_seed(5))

    def made(**settings: Any) -> Tensor:
        views = model.generate(
            image, elevation_deg=5.0, generator=torch.Generator().manual_seed(1), num_inference_steps=2, **settings
        )
        return torch.cat([views.images, views.alpha], 1)

    first = made()
    assert torch.equal(made(), first) and torch.equal(made(view_batch_size=1), made(view_batch_size=16))


def test_a_thousand_steps_of_ddim_begin_at_999() -> None:
    scheduler = make_scheduler("ddim")
    for count, first, steps in ((1000, 999, 999), (999, 999, 999), (50, 981, 50), (1, 1, 1)):
        set_timesteps(scheduler, count, CPU)
        assert (int(scheduler.timesteps[0]), len(scheduler.timesteps), int(scheduler.timesteps[-1])) == (
            first,
            steps,
            1,
        )
        x = torch.ones(1, 4, 2, 2)
        assert torch.isfinite(scheduler.step(x, scheduler.timesteps[0], x).prev_sample).all()
    assert is_ddim(scheduler) and not is_ddim(make_scheduler("unipc"))
    assert set(SMALL) >= {"zero123", "syncdreamer", "zero123plus"}
