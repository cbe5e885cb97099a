"""Rings and the trainer of the embedded view generator: do they speak of one place, does it resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from lrm.tiny import TinyConfig, TinyLRM, project_points
from multiview.cameras import project
from multiview.errors import SettingsError, WeightsError
from multiview.ring import ring_cameras
from multiview.tinyviews import TinyViewsConfig, TinyViewsNetwork, save_network
from train.batches import Augment, PackedData, PointCounts, transformed, upright_frame
from train.batches import make_batch as make_object_batch
from train.guards import GuardConfig
from train.made import main as made
from train.multiview import (
    RingData,
    ViewsTrainConfig,
    ViewsTrainer,
    gradient_energy,
    main,
    read_views_recipe,
    validate,
    view_scores,
    views_loss,
    write_preview,
)
from train.prepare import main as prepare
from train.render import crop_camera
from train.rings import main as rings
from train.rings import ring_truth
from train.ringviews import RingViews, spoilt
from train.tinyviews import RingBatches, RowChoice
from train.trainer import start

ROOT = Path(__file__).resolve().parents[2]
TINY = TinyConfig(
    image_size=32, stem=(8, 8, 16, 16), width=16, heads=1, layers=1, lift_side=4, lift_channels=8, seed_channels=8,
    side_channels=(8, 8), front_channels=(8, 8, 8), plane_channels=8, decoder_width=16,
)  # fmt: skip
COUNTS = PointCounts(uniform=40, near=24, free=20, surface=40)
SMALL = TinyViewsConfig(channels=(8, 16, 16), head_width=8, embedding=16)
QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))


def box_mesh(size: tuple[float, float, float]) -> Mesh:
    unit = (np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) - 0.5) * size
    faces = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    return Mesh(unit, faces, np.tile([0.8, 0.3, 0.2], (8, 1)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes, packed; meshes, data, a random reconstruction model and rings in one folder."""
    folder = tmp_path_factory.mktemp("rings")
    write_mesh(box_mesh((1, 0.4, 0.6)), folder / "meshes" / "flat.glb")
    write_mesh(box_mesh((0.3, 0.3, 1)), folder / "meshes" / "tall.glb")
    TinyLRM.random(TINY).save(folder / "model")
    small = ["--views", "2", "--image-size", "32", "--points", "400", "--surface", "64"]
    assert prepare([str(folder / "meshes"), "-o", str(folder / "data"), *small]) == 0
    assert rings([str(folder / "data"), "-o", str(folder / "rings"), "--meshes", str(folder / "meshes"),
                  "--model", str(folder / "model")]) == 0  # fmt: skip
    return folder


def test_a_row_for_each_photo_with_the_truth_where_the_cameras_see_it(packed: Path) -> None:
    data, source = RingData(packed / "rings"), PackedData(packed / "data")
    assert data.rows == 4
    assert data.arrays["rings"].shape == (4, 6, 64, 64, 4) and data.arrays["sketches"].shape == (4, 6, 64, 64, 5)
    for index in range(4):
        row, view = data.arrays["sources"][index]
        frame = upright_frame(source.arrays["cameras"][row, view], centred=True)
        surface = torch.from_numpy(transformed(frame, source.arrays["surface"][row].astype(np.float32)))
        pixels = (project(ring_cameras(), surface)[0] * 64).clamp(0, 63).long()
        alpha = torch.from_numpy(data.arrays["rings"][index, ..., 3].copy())
        for v in range(6):
            grown = torch.nn.functional.max_pool2d((alpha[v] > 0).float()[None], 3, 1, 1)[0]
            assert grown[pixels[v, :, 1], pixels[v, :, 0]].all()


def test_the_ring_of_a_level_centred_camera_shows_the_object_itself() -> None:
    from train.objects import normalized

    mesh = box_mesh((0.4, 0.8, 1.0))
    obj = normalized("box", np.asarray(mesh.vertices), np.asarray(mesh.faces), np.full((8, 3), 128, np.uint8))
    frame = upright_frame(crop_camera(obj.vertices, 0.0, 0.0, 50.0).as_row(), centred=True)
    alpha = ring_truth(obj, frame)[..., 3] > 127
    widths = [int(a.any(0).sum()) for a in alpha]
    assert widths[3] == pytest.approx(0.8 * 1.7 / (2 * (3.3 - 0.34) * np.tan(np.deg2rad(20))) * 64, abs=1.5)
    assert widths[1] == widths[5] and widths[2] == widths[4]


def test_meshes_that_are_not_there_are_named_and_skipped(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert rings([str(packed / "data"), "-o", str(tmp_path / "out"), "--meshes", str(tmp_path / "none"),
                  "--model", str(packed / "model")]) == 0  # fmt: skip
    told = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert told["rows"] == 0 and len(told["skipped"]) == 2 and "no mesh flat" in told["skipped"][0]


def config(packed: Path, **changes: Any) -> ViewsTrainConfig:
    usual = ViewsTrainConfig(
        data=(str(packed / "rings"),), steps=4, batch_size=2, warmup_steps=1, precision="no", network=SMALL,
        log_every=1, save_every=2, val_every=1000,
    )  # fmt: skip
    return replace(usual, **changes)


def test_the_step_and_the_retry_decide_all_that_is_in_a_batch(packed: Path) -> None:
    maker = RingBatches(config(packed), (0, 1))
    first, again, other, retried = maker(3), maker(3), maker(4), maker(3, 1)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.rings, again.rings)
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.noise, retried.noise)


def test_two_processes_share_the_batch_that_one_has(packed: Path) -> None:
    chosen = config(packed, batch_size=3, rehearsal=(str(packed / "rings"),), rehearsal_share=0.5)
    whole = RingBatches(chosen, (0, 1))(5)
    parts = [RingBatches(chosen, (rank, 2))(5) for rank in range(2)]
    for name, value in vars(whole).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)


def test_rows_that_are_asked_for_the_mean_get_no_noise_and_blank_ones_no_photo(packed: Path) -> None:
    mean = RingBatches(config(packed, regress_share=1.0), (0, 1))(0)
    assert (mean.noise == 0).all() and (mean.time == 1).all() and (mean.camera[:, 2] == 0).all()
    blank = RingBatches(config(packed, regress_share=0.0, blank_share=1.0), (0, 1))(0)
    assert (
        (blank.photo == 0).all() and (blank.sketches[:, :, 3] == -1).all() and (blank.camera[:, [0, 1, 3]] == 0).all()
    )


def test_a_rows_pictures_are_mirrored_and_recoloured_alike(packed: Path) -> None:
    data = RingData(packed / "rings")
    plain, changed = RowChoice(data, 1).read(), RowChoice(data, 1, mirror=True, channels=(2, 0, 1)).read()
    assert torch.equal(changed["photo"], plain["photo"][[2, 0, 1, 3]].flip(-1))
    # Ring view 1 is on the right, 5 on the left.
    assert torch.equal(changed["rings"][1], plain["rings"][5][[2, 0, 1, 3]].flip(-1))
    assert torch.equal(changed["sketches"][1], plain["sketches"][5][[2, 0, 1, 3, 4]].flip(-1))
    assert torch.equal(changed["camera"], plain["camera"])


def test_the_parts_of_the_loss_add_up_to_it(packed: Path) -> None:
    batch = RingBatches(config(packed, batch_size=8, regress_share=0.5), (0, 1))(0)
    torch.manual_seed(0)
    network = TinyViewsNetwork(SMALL)
    total, parts = views_loss(network, SMALL, batch)
    assert (batch.camera[:, 2] == 0).any() and (batch.camera[:, 2] == 1).any()
    assert total.item() == pytest.approx(parts["regress"].item() + parts["denoise"].item(), rel=1e-5)


def test_a_mirrored_row_is_the_mirrored_object(packed: Path) -> None:
    from train.rings import RingSettings, packed_object

    settings = RingSettings(str(packed / "data"), "", 1, 0, {"flat": packed / "meshes" / "flat.glb"})
    obj = packed_object("flat", settings)
    lopsided = replace(obj, vertices=obj.vertices + 0.2 * obj.vertices[:, [1]] * np.array([1, 0, 1], np.float32))
    frame = upright_frame(crop_camera(lopsided.vertices, 0.0, 20.0, 3.0).as_row(), centred=False)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    plain, mirrored = ring_truth(lopsided, frame), ring_truth(lopsided, flip @ frame)
    from multiview.ring import mirrored_order

    expected = plain[mirrored_order().numpy()][:, :, ::-1]
    assert np.mean(np.abs(expected.astype(int) - mirrored.astype(int)) > 8) < 0.01
    assert np.mean(np.abs(plain.astype(int) - mirrored.astype(int)) > 8) > 0.03


def test_a_photo_with_its_ring_and_its_points_speak_of_one_place(packed: Path) -> None:
    source, rng = RingViews(packed / "rings"), np.random.default_rng(0)
    for _ in range(6):
        one = source.sample(rng, 4, COUNTS, 32, 1.6, Augment(), True)
        assert one["images"].shape == (4, 4, 32, 32) and one["target"].shape == (4, 32, 32)
        projections = torch.cat([one["projections"], one["target_projection"][None]])
        pixels = project_points(projections, one["surface"][None].expand(5, -1, 3)) * torch.tensor([1.0, -1.0])
        cells = ((pixels + 1) / 2 * 32).long().clamp(0, 31)
        pictures = torch.cat([one["images"], one["target"][None]])[:, 3:]
        grown = torch.nn.functional.max_pool2d((pictures > 0.05).float(), 5, 1, 2)[:, 0]
        shares = [float(g[c[:, 1], c[:, 0]].mean()) for g, c in zip(grown[1:], cells[1:], strict=True)]
        assert min(shares) > 0.9  # the photo's own camera may be the guessed one
        assert (one["occupancy"][: COUNTS.uniform] > 0).any()


def test_rings_and_packed_objects_go_into_one_batch(packed: Path) -> None:
    sources = [(RingViews(packed / "rings"), 0.5), (PackedData(packed / "data"), 0.5)]
    for views in (1, 3):
        batch = make_object_batch(
            sources, seed=0, step=5, batch_size=6, views=views, counts=COUNTS, image_size=32, scene_radius=1.6,
            augment=Augment(), known=0.3, target=True,
        )  # fmt: skip
        assert batch.images.shape == (6, views, 4, 32, 32) and batch.points.shape == (6, 84, 3)


def test_spoilt_views_are_near_the_true_ones_and_not_the_same() -> None:
    views = torch.zeros(6, 4, 64, 64)
    views[:, :, 16:48, 16:48] = 0.8
    bad = spoilt(views, np.random.default_rng(0))
    assert bad.min() >= 0 and bad.max() <= 1
    assert 1e-4 < (bad[:, 3] - views[:, 3]).abs().mean() < 0.1


def test_made_rings_are_drawn_for_every_row_and_then_shown(packed: Path, tmp_path: Path) -> None:
    save_network(TinyViewsNetwork(SMALL), tmp_path / "model")
    rings_ = tmp_path / "rings"
    shutil.copytree(packed / "rings", rings_)
    for steps in ("0", "2"):
        assert made([str(rings_), "--model", str(tmp_path / "model"), "--steps", steps, "--device", "cpu"]) == 0
        drawn = np.load(rings_ / "made.npy")
        assert drawn.shape == (4, 6, 64, 64, 4)
        if steps == "0":  # an untrained network leaves the sketches as they are
            told = RingData(rings_).arrays["sketches"]
            assert np.abs(drawn[..., 3].astype(int) - told[..., 3]).max() <= 1
    source = RingViews(rings_)
    assert source.made is not None
    source._shown(0, torch.zeros(6, 4, 64, 64), np.random.default_rng(0))
    assert not list(rings_.glob("*.part"))
    with pytest.raises(SettingsError, match="--steps 2000"):
        made([str(rings_), "--model", str(tmp_path / "model"), "--steps", "2000"])


def test_a_row_is_learned_by_heart(packed: Path, tmp_path: Path) -> None:
    chosen = config(
        packed, steps=40, batch_size=2, regress_share=0.5, blank_share=0.0, mirror=0.0, swap=0.0, learning_rate=1e-2,
        log_every=40, save_every=1000,
    )  # fmt: skip
    trainer = ViewsTrainer(chosen, tmp_path)
    batch = trainer.maker(10**6)
    with torch.no_grad():
        before = views_loss(trainer.inner, SMALL, batch)[0].item()
    trainer.run()
    with torch.no_grad():
        after = views_loss(trainer.inner, SMALL, batch)[0].item()
    assert after < 0.85 * before


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(packed: Path, tmp_path: Path) -> None:
    start(ViewsTrainer(config(packed), tmp_path / "whole"))
    trainer = ViewsTrainer(config(packed), tmp_path / "broken")
    for step in range(2):
        trainer.train_step(trainer.maker(step))
    trainer.save()
    resumed = ViewsTrainer(config(packed), tmp_path / "broken")
    assert resumed.resume() and resumed.step == 2
    resumed.run()
    whole = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["network"]
    broken = torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["network"]
    assert all(torch.allclose(whole[key], broken[key], atol=1e-6) for key in whole)


def test_pieces_change_nothing_and_the_rate_ends_at_two_hundredths(packed: Path, tmp_path: Path) -> None:
    for name, pieces in (("plain", 1), ("pieces", 2)):
        start(ViewsTrainer(config(packed, accumulate=pieces), tmp_path / name))
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "pieces"))
    assert all(torch.allclose(whole[key].float(), cut[key].float(), atol=2e-3) for key in whole)  # in fp16
    trainer = ViewsTrainer(config(packed), tmp_path / "rate")
    trainer.step = trainer.config.steps
    assert trainer.learning_rate() == pytest.approx(0.02 * trainer.config.learning_rate)


def test_guards_watch_the_generator(packed: Path, tmp_path: Path) -> None:
    guards = GuardConfig(preflight_steps=4, preflight_factor=0.999, probe_every=2, probe_size=2, input_after=0.0,
                         input_margin=100.0, forget_limit=-1.0)  # fmt: skip
    chosen = config(packed, guards=guards, rehearsal=(str(packed / "rings"),), learning_rate=1e-2)
    start(ViewsTrainer(chosen, tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "probe_rehearsal" in row] == [0, 2, 4]
    assert {row["alarm"] for row in rows if "alarm" in row} == {"input", "forgetting"}
    with pytest.raises(SettingsError, match="one object could not be learned by heart"):
        start(ViewsTrainer(replace(chosen, learning_rate=1e-12), tmp_path / "dull"))


def test_the_command_writes_a_model_that_loads(packed: Path, tmp_path: Path) -> None:
    recipe = ROOT / "train" / "recipes" / "tiny-views.yaml"
    sizes = [f"network.{k}={v}" for k, v in (("channels", "[8, 16, 16]"), ("head_width", 8), ("embedding", 16))]
    words = [
        f"data=[{packed / 'rings'}]",
        f"val={packed / 'rings'}",
        "steps=1",
        "batch_size=2",
        "precision='no'",
        *sizes,
    ]
    assert main(["--config", str(recipe), "-o", str(tmp_path / "run"), *words, *sizes]) == 0
    from multiview.tinyviews import TinyViews

    class Sketcher:
        image_size = 32

        def __call__(self, photo: torch.Tensor, elevation_deg: float) -> tuple[torch.Tensor, float]:
            return torch.zeros(6, 5, 64, 64), 4.5

    made = TinyViews.from_folder(tmp_path / "run" / "model", Sketcher())
    assert made.network.config.channels == (8, 16, 16)
    assert (tmp_path / "run" / "previews" / "000001.png").exists()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("val_drawn_silhouette_iou" in row for row in rows)


def test_scores_of_the_truth_are_perfect_and_of_a_shifted_view_are_not() -> None:
    truth = torch.zeros(2, 4, 16, 16)
    truth[:, :, 4:12, 4:12] = 1
    truth[:, 0] *= 0.5
    perfect, shifted = view_scores(truth, truth), view_scores(truth.roll(2, -1), truth)
    assert perfect["silhouette_iou"] == 1 and perfect["psnr"] == pytest.approx(60) and perfect["gradient_energy"] == 1
    assert shifted["silhouette_iou"] == pytest.approx(0.6) and shifted["gradient_energy"] == pytest.approx(1)


def test_gradient_energy_of_a_step_is_known() -> None:
    image = torch.zeros(1, 4, 4)
    image[:, :, 2:] = 1.0  # of 4 x 3 differences across four are 1, of those down none
    assert gradient_energy(image).item() == pytest.approx(1 / 3)


def test_validation_and_preview_leave_the_network_as_it_was(packed: Path, tmp_path: Path) -> None:
    network, data = TinyViewsNetwork(SMALL).eval(), RingData(packed / "rings")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = validate(network, data, steps=2)
    write_preview(network, data, tmp_path / "p.png", rows=2, steps=2)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert set(scores) == {
        f"val_{a}_{b}" for a in ("mean", "drawn") for b in ("silhouette_iou", "psnr", "gradient_energy")
    }


def test_wrong_recipes_and_data_are_named(packed: Path, tmp_path: Path) -> None:
    recipe = ROOT / "train" / "recipes" / "tiny-views.yaml"
    with pytest.raises(SettingsError, match="key=value"):
        read_views_recipe(recipe, ["steps"])
    with pytest.raises(WeightsError, match="stepps"):
        read_views_recipe(recipe, ["stepps=3"])
    with pytest.raises(SettingsError, match=r"python -m train\.rings"):
        RingData(tmp_path)
    with pytest.raises(SettingsError, match=r"data names no folder.*train\.rings"):
        read_views_recipe(recipe, ["data=[]"])
