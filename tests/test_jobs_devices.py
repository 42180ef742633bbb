"""The jobs on 1, 2 and 8 devices and on two processes give the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tiny_jobs
from conftest import CACHE

from sfrik_jax import config as configs
from sfrik_jax.feature_set import FeatureSet
from sfrik_jax.jobs import finetune, linear, runner
from sfrik_jax.jobs.bench import open_bench
from sfrik_jax.processes import local

ROOT = Path(__file__).parents[1]
DEVICES = (1, 2, 8)
JOBS = {"linear": linear, "finetune": finetune}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_jobs.backbone_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def settings(data_dir, weights):
    """Settings of a job with overrides."""
    return lambda job, *overrides: tiny_jobs.settings(
        job, data_dir, weights, *overrides
    )


@pytest.mark.parametrize(
    "job", ["linear", pytest.param("finetune", marks=pytest.mark.slow)]
)
def test_three_steps_and_figures_are_the_same_on_any_number_of_devices(settings, job):
    rates = {
        "linear": ["probe.learning_rates=(0.001,0.0001)"],
        "finetune": [
            "finetune.backbone_learning_rate=0.0001",
            "finetune.head_learning_rate=0.001",
        ],
    }
    found = {}
    for devices in DEVICES:
        bench = open_bench(settings(job, f"mesh.data={devices}", *rates[job]))
        assert bench.mesh.size == devices
        recipe = JOBS[job].recipe(bench)
        state = recipe.first()
        for step in range(3):
            state, _ = recipe.step(state, bench.loader.batch(step))
        assert len(jax.tree.leaves(state)[0].sharding.device_set) == devices
        scored = recipe.evaluate(state, "test", None)
        counts = [each.confusion.tolist() for each in scored.counts]
        found[devices] = jax.device_get(state), counts, scored.loss
    state, counts, loss = found[1]
    assert np.sum(counts[0]) == tiny_jobs.TEST
    for devices in DEVICES[1:]:
        chex.assert_trees_all_close(found[devices][0], state, rtol=1e-4, atol=1e-5)
        assert found[devices][1] == counts
        np.testing.assert_allclose(found[devices][2], loss, rtol=1e-4)


# Shards of 7 leave the last one short, and no number of devices divides a batch of 5.
SHARDS = (
    "features.shard_rows=7",
    "features.batch_size=5",
    "data.train_split=train[:40]",
)


def stored(workdir):
    """The feature sets that a job made, by part."""
    record = json.loads((workdir / "eval" / "features.json").read_text())
    assert record["figures"]["features/dimension"] == 128
    return {part: FeatureSet(place) for part, place in record["places"].items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() == {"train", "val", "test"}
    for part in ours:
        ours[part].verify()
        assert ours[part].names == theirs[part].names
        np.testing.assert_array_equal(ours[part].labels, theirs[part].labels)
        np.testing.assert_allclose(ours[part][:], theirs[part][:], rtol=1e-5, atol=1e-5)


def test_features_are_the_same_on_any_number_of_devices(settings, tmp_path):
    found = {}
    for devices in DEVICES:
        workdir = tmp_path / str(devices)
        config = settings("features", f"mesh.data={devices}", *SHARDS)
        runner.run(config, workdir, "features")
        found[devices] = stored(workdir)
    for devices in DEVICES[1:]:
        assert_same(found[devices], found[1])


# One process of two, of two devices each, with the words of the command line.
PROCESS = """
import sys
from sfrik_jax.__main__ import main
from sfrik_jax.feature_set import FeatureWriter
write_shard = FeatureWriter.write_shard
def telling(self, number, blocks):
    print("MADE", self.path.name.partition("-")[0], number)
    write_shard(self, number, blocks)
FeatureWriter.write_shard = telling
sys.exit(main(sys.argv[1:]))
"""


def two_processes(words):
    """Runs a command in two processes of one job; what each has printed."""
    port = local.free_port()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *words],
            cwd=ROOT,
            env=environment | local.environment(i, 2, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, said, strict=True):
        assert process.returncode == 0, out + err
        assert "Traceback" not in err
    return [out for out, _ in said]


def test_two_processes_share_the_shards_and_the_first_one_tells(settings, tmp_path):
    config = settings("features", *SHARDS)
    runner.run(config, tmp_path / "one", "features")
    stated = tmp_path / "config.json"
    stated.write_text(configs.to_json(config))
    words = ["features", "--config", str(stated), "--workdir", str(tmp_path / "two")]
    first, second = two_processes([*words, "--config.mesh.data=-1"])
    for said, rest in ((first, 0), (second, 1)):
        made = [line.split()[1:] for line in said.splitlines() if "MADE" in line]
        assert made == [
            [part, str(number)]
            for part, count in (("train", 6), ("val", 6), ("test", 8))
            for number in range(rest, count, 2)
        ]
    assert "features/dimension" in first and "features/dimension" not in second
    assert_same(stored(tmp_path / "two"), stored(tmp_path / "one"))
