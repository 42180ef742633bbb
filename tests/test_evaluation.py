"""The evaluation counts every picture once, however many devices share the work."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_in_voc

from sfrik_jax import augment, evaluation, image_set, pretrain
from sfrik_jax import config as configs
from sfrik_jax.evaluators import knn
from sfrik_jax.train_state import backbone_variables

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
# No number of devices divides 203 or 101, nor does the batch of the evaluation.
TRAIN, TEST, BATCH_SIZE = 203, 101, 30


@pytest.fixture
def settings(data_dir):
    return [
        f"data.path={data_dir}",
        f"data.train_split=train[:{TRAIN}]",
        f"eval.test_split=test[:{TEST}]",
        "data.batch_size=16",
        "model.width=4",
        "model.hidden_dims=(16,)",
        "model.embed_dim=16",
        "eval.image_size=32",
        "eval.resize=32",
        "eval.knn_k=5",
        "eval.probe_epochs=2",
    ]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_test_picture_counts_once_on_any_number_of_devices(
    settings, devices, monkeypatch
):
    # Small enough for several batches, of which the last one is not full.
    monkeypatch.setattr(evaluation, "BATCH_SIZE", BATCH_SIZE)
    monkeypatch.setattr(image_set, "BATCH_SIZE", BATCH_SIZE)
    passed = {}
    accuracies_of = evaluation.evaluate_features

    def watch(train, train_labels, test, test_labels, protocol):
        passed["train"], passed["test"] = (train, train_labels), (test, test_labels)
        return accuracies_of(train, train_labels, test, test_labels, protocol)

    monkeypatch.setattr(evaluation, "evaluate_features", watch)
    job = pretrain.build(configs.load(QUICKSTART, [*settings, f"mesh.data={devices}"]))
    assert job.mesh.size == devices
    made = evaluation.Evaluation(
        job.config, job.mesh, job.model.backbone, job.views[0], job.source
    )
    state = job.random_state()
    results = made.run(state)

    # All pictures at once on one device, not cut into batches and not filled up.
    variables, view = jax.device_get(backbone_variables(state)), job.views[0]
    whole = {}
    for name, images_of, count in (
        ("train", made._train, TRAIN),
        ("test", made._test, TEST),
    ):
        assert images_of is not None
        features, labels = passed[name]
        pixels = np.concatenate(list(images_of.batches()))
        assert len(np.unique(pixels, axis=0)) == len(pixels) == count
        inputs = augment.normalize(jnp.asarray(pixels), view.mean, view.std)
        want = np.asarray(jax.jit(job.model.backbone.apply)(variables, inputs))
        assert features.shape == want.shape
        np.testing.assert_allclose(features, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(labels, images_of.source.labels)
        whole[name] = want, labels
    right = results["linear_top1"] * TEST / 100
    assert right == pytest.approx(round(right), abs=1e-4)
    votes = knn.classify(
        *whole["train"], *whole["test"], k=5, temperature=0.07, num_classes=10
    )
    # The last bits of its features may turn one picture.
    assert results["knn5_top1"] == pytest.approx(votes["top1"], abs=100.1 / TEST)


def test_a_set_of_several_labels_is_not_evaluated(tmp_path, settings, caplog):
    stand_in_voc.prepare(tmp_path)
    changed = [
        "data.name=voc/2007",
        "data.train_split=train",
        "eval.test_split=test",
        "mesh.data=1",
    ]
    job = pretrain.build(
        configs.load(
            QUICKSTART,
            [*settings, *changed, f"data.path={tmp_path}", "data.batch_size=6"],
        )
    )
    with caplog.at_level("WARNING", logger="sfrik"):
        made = evaluation.Evaluation(
            job.config, job.mesh, job.model.backbone, job.views[0], job.source
        )
    assert not made.labelled and made.run(job.random_state()) == {}
    (warning,) = caplog.messages
    assert "no labelled train and test split" in warning
