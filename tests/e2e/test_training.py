"""Training through its real command line: it learns, it stops and goes on, and inference loads what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.tiny import TinyLRM
from multiview.errors import SettingsError, WeightsError
from train.lrm import main, read_recipe
from train.objects import TrainingObject
from train.prepare import PrepareSettings, pack, prepare_object
from train.shapes import random_object

NETWORK = {
    "image_size": 32,
    "stem": [8, 16, 16, 24],
    "width": 24,
    "heads": 3,
    "layers": 1,
    "side_channels": [16, 16],
    "front_channels": [16, 16, 8],
    "plane_channels": 8,
    "decoder_width": 32,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over two procedural objects, small enough for seconds."""
    folder = tmp_path_factory.mktemp("recipe")
    settings = PrepareSettings(views=3, image_size=32, points=2048, surface=256)
    shapes = [random_object(np.random.default_rng(i)) for i in range(2)]
    objects = [TrainingObject(f"o{i}", s.vertices, s.faces, s.colors) for i, s in enumerate(shapes)]
    pack((prepare_object(o, settings) for o in objects), 2, folder / "data", settings)
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "data": [str(folder / "data")],
                "val": str(folder / "data"),
                "steps": 6,
                "batch_size": 4,
                "counts": {"uniform": 128, "near": 128, "free": 32, "surface": 32},
                "warmup_steps": 2,
                "precision": "no",
                "log_every": 1,
                "val_every": 6,
                "save_every": 3,
                "network": NETWORK,
            }
        )
    )
    return path


def log_of(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_loss_falls_and_the_run_folder_is_what_inference_loads(recipe: Path, tmp_path: Path) -> None:
    assert main(["--config", str(recipe), "-o", str(tmp_path), "steps=40", "save_every=40", "learning_rate=0.003"]) == 0
    rows = log_of(tmp_path)
    assert rows[-1]["occupancy"] < 0.6 * rows[0]["occupancy"]
    # The last fifth also renders patches.
    assert [row["step"] for row in rows if "rendered" in row] == list(range(33, 41))
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == [f"{s:06d}.png" for s in range(6, 41, 6)] + [
        "000040.png"
    ]
    model = TinyLRM.from_folder(tmp_path / "model")
    assert model.image_size == 32
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training"] == {"steps": 40, "pictures": 160}
    assert torch.isfinite(model.reconstruct(torch.rand(1, 4, 32, 32))[0].field.density(torch.zeros(1, 3))).all()


def test_stop_and_resume_equals_straight_through(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--config", str(recipe), "-o", str(tmp_path / "straight")]) == 0

    from train import lrm

    plain_step = lrm.Trainer.train_step

    def dying_step(self: lrm.Trainer, batch: object) -> dict[str, float]:
        if self.step == 4:
            raise KeyboardInterrupt
        return plain_step(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(lrm.Trainer, "train_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        main(["--config", str(recipe), "-o", str(tmp_path / "broken")])
    monkeypatch.undo()
    assert main(["--config", str(recipe), "-o", str(tmp_path / "broken")]) == 0

    whole = TinyLRM.from_folder(tmp_path / "straight" / "model").network.state_dict()
    again = TinyLRM.from_folder(tmp_path / "broken" / "model").network.state_dict()
    assert max((whole[k] - again[k]).abs().max().item() for k in whole) < 1e-6
    assert [row["step"] for row in log_of(tmp_path / "broken")] == [1, 2, 3, 4, 4, 5, 6]


def test_worker_processes_change_nothing(recipe: Path, tmp_path: Path) -> None:
    assert main(["--config", str(recipe), "-o", str(tmp_path / "thread"), "steps=3"]) == 0
    assert main(["--config", str(recipe), "-o", str(tmp_path / "workers"), "steps=3", "workers=2"]) == 0
    losses = [[row["loss"] for row in log_of(tmp_path / run)] for run in ("thread", "workers")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# A machine lent for training has torch, numpy, safetensors and accelerate, with what these bring along.
BARE_MACHINE = """
import sys
from importlib.machinery import PathFinder
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from train.lrm import main
sys.exit(main(sys.argv[1:]))
"""
BLOCKED = (
    "PIL", "scipy", "trimesh", "mcubes", "rembg", "onnxruntime", "diffusers", "transformers", "gradio", "embreex",
    "igl", "fast_simplification", "skimage", "tensorboard", "matplotlib",
)  # fmt: skip


def test_the_trainer_runs_on_a_bare_machine(recipe: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code = BARE_MACHINE.replace("{BLOCKED}", repr(set(BLOCKED)))
    words = ["--config", str(recipe), "-o", str(tmp_path), "steps=2", "val_every=2", "rendered_share=0.5"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert (tmp_path / "previews" / "000002.png").exists()


def test_camera_alone_leaves_all_other_weights_as_they_were(recipe: Path, tmp_path: Path) -> None:
    assert main(["--config", str(recipe), "-o", str(tmp_path / "all"), "steps=2"]) == 0
    init = f"init={tmp_path / 'all' / 'model'}"
    words = ["train=camera", "steps=30", "batch_size=8", "learning_rate=0.003", "ema_decay=0.5", init]
    assert main(["--config", str(recipe), "-o", str(tmp_path / "camera"), *words]) == 0
    before = TinyLRM.from_folder(tmp_path / "all" / "model").network.state_dict()
    after = TinyLRM.from_folder(tmp_path / "camera" / "model").network.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.startswith("head.") for k in changed)
    rows = log_of(tmp_path / "camera")
    assert sum(r["camera"] for r in rows[-5:]) < 0.8 * sum(r["camera"] for r in rows[:5])


def test_recipe_errors_name_the_key_and_the_file(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"unknown key 'stepz'. Did you mean 'steps'"):
        read_recipe(recipe, ["stepz=3"])
    with pytest.raises(WeightsError, match=r"steps: expected int, found 'many'"):
        read_recipe(recipe, ["steps=many"])
    with pytest.raises(SettingsError, match="an override is written key=value"):
        read_recipe(recipe, ["steps"])
    with pytest.raises(SettingsError, match=r"missing\.yaml"):
        read_recipe(tmp_path / "missing.yaml")


def test_overrides_reach_nested_parts(recipe: Path) -> None:
    config = read_recipe(recipe, ["network.layers=2", "augment.mirror=0", "learning_rate=1e-4"])
    assert config.network.layers == 2
    assert config.augment.mirror == 0.0
    assert config.network.width == 24


def test_the_shipped_recipe_is_the_shipped_network() -> None:
    from lrm.tiny import TinyConfig

    assert read_recipe(Path(__file__).parents[2] / "train" / "recipes" / "tiny.yaml").network == TinyConfig()
