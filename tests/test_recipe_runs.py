"""Every recipe pretrains by the real command, on a prepared set and on a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sfrik_jax import metrics
from sfrik_jax.data import photos, views

ROOT = Path(__file__).parents[1]
# Sixteen classes, four pictures each: two batches of 32 in an epoch.
PER_CLASS = {"train": 4, "test": 2}
STEPS = 20
TINY = {
    "data.train_split": "train",
    "data.image_size": 32,
    "data.batch_size": 32,
    "model.backbone": "resnet18",
    "model.width": 8,
    "model.stem": "imagenet",
    "model.hidden_dims": "(64,)",
    "model.embed_dim": 64,
    "model.dtype": "float32",
    "optim.epochs": STEPS // 2,
    "optim.warmup_epochs": 1,
    "eval.train_split": "",
    "eval.test_split": "test",
    "eval.image_size": 32,
    "eval.resize": 32,
    "eval.every_epochs": 0,
    "eval.knn_k": 5,
    "eval.probe_epochs": 2,
    "eval.baselines": False,
    "log.every_steps": 1,
}
# recipe -> (the configuration, the loss, the settings that fit it to 32 px)
RUNS = {
    "vicreg": ("imagenet20.py", "vicreg", {}),
    "simclr": ("imagenet20.py:simclr", "simclr", {}),
    "auh": ("stl10.py", "auh", {}),
    "small": ("quickstart.py", "sfrik", {}),
    "obow": (
        "imagenet20.py:obow",
        "sfrik",
        {"resize": 36, "crop_size": 24, "patch_image_size": 48, "patch_size": 16},
    ),
    "swav": ("imagenet20.py:swav", "sfrik", {"small_size": 16}),
}


def run_command(*words: str) -> None:
    """`python -m sfrik_jax` on one device; it has to end with 0."""
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "sfrik_jax", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def photo_patches(tmp_path_factory) -> dict[str, object]:
    """Settings of the whole set, prepared by the command, of which 64 are taken."""
    path = tmp_path_factory.mktemp("tfds")
    run_command("data", "prepare", "photo_patches", "--data-dir", str(path))
    return {
        "data.source": "tfds",
        "data.name": "photo_patches",
        "data.path": path,
        "data.subset": f"per_class:{PER_CLASS['train']}",
        "eval.test_subset": f"per_class:{PER_CLASS['test']}",
    }


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> dict[str, object]:
    """Settings of a folder of JPEG files in the layout train/<class>/0000.jpg."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "PER_CLASS", PER_CLASS)
        path = photos.write_folder(tmp_path_factory.mktemp("folder"))
    return {"data.source": "folder", "data.path": path, "data.subset": ""}


# All twelve take minutes on a machine that has compiled none of them; these do not.
ALWAYS = [("vicreg", "photo_patches"), ("obow", "image_folder")]
EVERY = [
    (recipe, data) for recipe in RUNS for data in ("photo_patches", "image_folder")
]


@pytest.mark.parametrize(
    ("recipe", "data"),
    [
        pytest.param(*pair, marks=[] if pair in ALWAYS else pytest.mark.slow)
        for pair in EVERY
    ],
)
def test_a_recipe_trains_for_twenty_steps(recipe, data, request, tmp_path):
    config, method, sizes = RUNS[recipe]
    settings = TINY | request.getfixturevalue(data) | {"loss.method": method}
    settings |= {f"augment.{name}": size for name, size in sizes.items()}
    run = tmp_path / "run"
    words = ["pretrain", "--config", str(ROOT / "configs" / config)]
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    run_command(*words, "--workdir", str(run), *overrides)

    rows = [row for row in metrics.read_rows(run) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("train/loss", "train/gradient_norm", "z/std"):
        assert np.isfinite([row[name] for row in rows]).all(), name
    assert all(row["z/std"] > 0 for row in rows)
    recorded = json.loads((run / "config.json").read_text())
    augment = recorded["augment"]
    assert augment["recipe"] == recipe
    assert augment.items() >= sizes.items()
    assert recorded["loss"]["method"] == method
    assert recorded["data"]["resample"] == "exact"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["train_images"]) == (STEPS, 64)
    assert summary["test_images"] == 32
    # One column of the sheet for the source and one for each view of the recipe.
    count = views.num_views(views.build(32, recipe=recipe, **sizes))
    with Image.open(run / "pictures" / "views.png") as sheet:
        assert sheet.width > 32 * count


def test_every_recipe_is_run():
    assert RUNS.keys() == views.RECIPES.keys()
