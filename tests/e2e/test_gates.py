"""Gates of the embedded model's form: it must be able to learn one object, and sixteen, nearly by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.tiny import TinyConfig
from train.batches import Augment, PackedData, PointCounts
from train.lrm import TrainConfig, Trainer, val_iou
from train.objects import TrainingObject
from train.prepare import PrepareSettings, pack, prepare_object
from train.shapes import FAMILIES, make_object

GATE_NETWORK = TinyConfig(
    image_size=64,
    stem=(24, 48, 64, 96),
    width=96,
    heads=3,
    layers=2,
    side_channels=(48, 48),
    front_channels=(48, 48, 24),
    plane_channels=24,
)


def train_on(count: int, steps: int, folder: Path) -> float:
    """Train from scratch on one view each of ``count`` procedural objects of different families; IoU on those views."""
    settings = PrepareSettings(views=1, image_size=64, points=32768, surface=4096)
    families = list(FAMILIES)[:: max(1, len(FAMILIES) // count)][:count]
    shapes = [make_object(family, np.random.default_rng(i)) for i, family in enumerate(families)]
    objects = [TrainingObject(f"{i}-{s.family}", s.vertices, s.faces, s.colors) for i, s in enumerate(shapes)]
    pack((prepare_object(o, settings) for o in objects), count, folder / "data", settings)
    plain = Augment(lit=0, mirror=0, swap=0, exposure=0, ragged=0)
    config = TrainConfig(
        data=(str(folder / "data"),),
        steps=steps,
        batch_size=min(16, count * 4),
        learning_rate=3e-3,
        warmup_steps=30,
        ema_decay=0.98,
        counts=PointCounts(uniform=1536, near=1536, free=128, surface=256),
        several_views=0.0,
        known_camera=1.0,
        rendered_share=0.0,
        precision="bf16",
        log_every=100,
        network=GATE_NETWORK,
        augment=plain,
        save_every=10**6,
    )
    trainer = Trainer(config, folder)
    trainer.run()
    return val_iou(trainer.average, PackedData(folder / "data"))["val_iou_known"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_object_above_0_95(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert train_on(1, 600, tmp_path) > 0.95


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixteen_objects_above_0_9(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert train_on(16, 800, tmp_path) > 0.9
