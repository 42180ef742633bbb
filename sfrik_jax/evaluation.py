"""The evaluation of a run: during training, and what it leaves behind at the end."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import metrics, processes, weights
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.opening import open_source, subset_of
from sfrik_jax.data.sources import Source
from sfrik_jax.data.subset_setting import probe_data
from sfrik_jax.data.views import View
from sfrik_jax.encoding import encoder, local_copy
from sfrik_jax.errors import ConfigError, MissingInputError
from sfrik_jax.evaluators import (
    Settings,
    baselines,
    evaluate_features,
    features,
    pictures,
)
from sfrik_jax.image_set import BATCH_SIZE, ImageSet
from sfrik_jax.models.resnet import ResNet
from sfrik_jax.processes import rows
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.summary import show
from sfrik_jax.train_state import TrainState, backbone_variables

log = logging.getLogger("sfrik")

# Images that the picture of nearest neighbours chooses from.
GALLERY = 5_000
QUERIES = 500

Results = dict[str, float]


class Evaluation:
    """kNN and linear probe of a backbone on the labelled splits of a run.

    Of several processes each encodes its share of the pictures; the first one computes
    and tells the others, which wait without a device.

    Args:
      view: whose normalisation the evaluation uses.
      source: the training pictures. Reading the labels and names of a TFDS split takes
        as long as reading its pictures, so what is known of this one is used again.
      bad: what becomes of bad pictures that the probes learn from. One to test on
        always raises: a figure is of all test pictures.

    Raises:
      CorruptInputError: a label is out of range, or there is one class alone, as far as
        `ImageSet.check_labels` tells.
      MissingInputError, ConfigError: a split of a TFDS data set or a subset is not
        there, or smaller than eval.knn_k. A folder of pictures without labels or
        without a test split is not evaluated.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        backbone: ResNet,
        view: View,
        source: Source,
        bad: BadPictures | None = None,
    ) -> None:
        # Each process encodes by itself: no device waits for another host's pictures.
        self._config, self._mesh, self._bad = config, mesh.local_mesh, bad
        # The last step's accuracies serve its line of metrics and the summary.
        self._newest: Results = {}
        self._newest_step = -1
        self._normalization = {"mean": view.mean, "std": view.std}
        split, subset = probe_data(configs.flatten(config))
        whole = self._open(split, source.whole)
        self._train = self._images(whole, subset, "eval.train_subset", bad)
        self._test = None
        try:
            whole = self._open(config.eval.test_split, source.whole)
        except MissingInputError:
            if config.data.source != "folder":
                raise
        else:
            subset = config.eval.test_subset
            self._test = self._images(whole, subset, "eval.test_subset")
        self.labelled = (
            self._train.labelled and self._test is not None and self._test.labelled
        )
        if not self.labelled:
            log.warning("no labelled train and test split: accuracies are left out")
        else:
            assert self._test is not None
            self._train.check_labels(least_classes=2)
            self._test.check_labels(least_classes=1)
        count, k = len(self._train.source), config.eval.knn_k
        if self.labelled and k > count:
            raise ConfigError(
                f"eval.knn_k={k} is more than the {count} images that kNN learns from; "
                f"use at most {count}"
            )
        # As JSON gives it back, so that a stored one can be compared.
        protocol = {k: v for k, v in config.eval.items() if k != "every_epochs"}
        self.protocol = json.loads(json.dumps(protocol))
        self._backbone = backbone

    def run(self, state: TrainState) -> Results:
        """Accuracies in % by protocol name; nothing where the data has no labels."""
        if not self.labelled:
            return {}
        step = int(state.step)
        if step != self._newest_step:
            found = self._accuracies(*self._features(self._variables(state)))
            self._newest, self._newest_step = found, step
        return self._newest

    def finish(
        self,
        run: RunDirectory,
        state: TrainState,
        random_state: Callable[[], TrainState],
        about: Mapping[str, Any],
        check: Callable[[str], None],
    ) -> None:
        """Writes backbone.safetensors, pictures/neighbours.png and summary.json.

        Args:
          about: what the summary says of the training.
          check: raises where a stop was asked for; called between the parts.
        """
        variables = self._variables(state)
        summary: dict[str, Any] = processes.from_first(
            lambda: self._export(run, variables)
        )
        if self.labelled:
            _say("the pretrained network")
            summary |= self.run(state)
            check("in the evaluation")
            if self._config.eval.baselines:
                _say("the untrained network, pixels and colour histograms")
                summary |= self._baselines(random_state())
                check("in the evaluation")
        if self._bad is not None:
            self._bad.share()
        for images_of in filter(None, (self._train, self._test)):
            images_of.settle()
        check("before its summary")
        if processes.first():
            self._draw_neighbours(run, variables)
            self._write_summary(run, summary, int(state.step), about)
        processes.barrier()

    def pictures(self, count: int) -> np.ndarray:
        """The first ones to test on, or to learn from; uint8 [<= count, S, S, 3]."""
        return (self._test or self._train).first(count)

    def _variables(self, state: TrainState) -> Any:
        """The backbone's, whole on each device of this process."""
        return local_copy(backbone_variables(state), self._mesh)

    def _export(self, run: RunDirectory, variables: Any) -> dict[str, str]:
        """Writes the backbone; the hashes of the file and of the weights."""
        about = weights.describe(
            self._config.model, self._config.eval, self._normalization
        )
        path = run.path / "backbone.safetensors"
        return {
            "weights_sha256": weights.save(path, variables, about),
            # As the records of evaluation commands state it, whatever file they read.
            "backbone_sha256": weights.fingerprint(variables, about["arch"]),
        }

    def _write_summary(
        self,
        run: RunDirectory,
        summary: dict[str, Any],
        steps: int,
        about: Mapping[str, Any],
    ) -> None:
        rates = [
            row.get("time/views_per_second") for row in metrics.read_rows(run.path)
        ]
        rates = [rate for rate in rates if rate is not None]
        summary |= {
            **about,
            "views_per_second": round(float(np.median(rates)), 1) if rates else None,
            "steps": steps,
            "seed": self._config.seed,
            "train_images": len(self._train.source) - self._train.left_out,
            "train_images_left_out": self._train.left_out,
            "bad_pictures": 0 if self._bad is None else len(self._bad.noted),
            "test_images": len(self._test.source) if self._test else 0,
            "train_subset": self._train.source.subset,
            "test_subset": self._test.source.subset if self._test else None,
            "protocol": self.protocol,
        }
        run.write_json("summary.json", summary)
        show(summary)

    def _open(self, split: str, training: Source) -> Source:
        data = self._config.data
        if split == data.train_split:
            return training
        return open_source(
            source=data.source, name=data.name, path=data.path, split=split
        )

    def _images(
        self, whole: Source, subset: str, key: str, bad: BadPictures | None = None
    ) -> ImageSet:
        settings, data = self._config.eval, self._config.data
        return ImageSet(
            subset_of(whole, subset, seed=self._config.seed, key=key),
            image_size=settings.image_size,
            resize=settings.resize,
            workers=data.workers,
            bad=bad,
        )

    def _features(self, variables: Any) -> tuple[np.ndarray, np.ndarray]:
        assert self._test is not None
        return self._of_all(
            lambda images_of: self._extract(variables, images_of.batches())
        )

    def _of_all(
        self, features_of: Callable[[ImageSet], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the pictures to learn from and to test on, of all processes."""
        found = []
        for images_of in (self._train, self._test):
            assert images_of is not None
            few = np.zeros((0,), np.float32)  # pictures than processes
            made = features_of(images_of) if len(images_of) else few
            found.append(rows.concatenated(made))
            images_of.settle()
        return found[0], found[1]

    def _extract(self, variables: Any, batches: Iterator[np.ndarray]) -> np.ndarray:
        parts = self._mesh.shape[mesh_lib.DATA]
        encode = encoder(self._backbone, variables, self._mesh, **self._normalization)
        return features.extract(
            encode, batches, batch_size=-(-BATCH_SIZE // parts) * parts
        )

    def _accuracies(self, train: np.ndarray, test: np.ndarray) -> Results:
        return processes.from_first(lambda: self._computed(train, test))

    def _computed(self, train: np.ndarray, test: np.ndarray) -> Results:
        num_classes, labels = self._train.source.num_classes, self._train.labels
        test_labels = self._test.labels if self._test else None
        assert num_classes and labels is not None and test_labels is not None
        e = self._config.eval
        settings = Settings(
            num_classes=num_classes,
            knn_k=e.knn_k,
            knn_temperature=e.knn_temperature,
            probe_epochs=e.probe_epochs,
            probe_batch_size=e.probe_batch_size,
            probe_learning_rates=e.probe_learning_rates,
            probe_weight_decay=e.probe_weight_decay,
        )
        return dict(evaluate_features(train, labels, test, test_labels, settings))

    def _baselines(self, random: TrainState) -> Results:
        """The same evaluation of the untrained network, of pixels and of colours."""
        sets = {"random_init": self._features(self._variables(random))}
        for name, function in (
            ("pixels", baselines.pixels),
            ("color_histogram", baselines.color_histogram),
        ):
            sets[name] = self._of_all(partial(_made, function))
        return {
            f"{name}_{key}": value
            for name, (train, test) in sets.items()
            for key, value in self._accuracies(train, test).items()
        }

    def _draw_neighbours(self, run: RunDirectory, variables: Any) -> None:
        """Test images, or the first training images, beside their neighbours."""
        gallery, labels = self._train.first(GALLERY), self._train.labels
        if self._test is not None:
            queries, query_labels = self._test.first(QUERIES), self._test.labels
        else:
            cut = min(QUERIES, len(gallery) // 10 + 1)
            queries, gallery = gallery[:cut], gallery[cut:]
            query_labels = None if labels is None else labels[:cut]
            labels = None if labels is None else labels[cut:]
        pictures.neighbours(
            gallery,
            queries,
            self._extract(variables, iter([gallery])),
            self._extract(variables, iter([queries])),
            run.path / "pictures" / "neighbours.png",
            train_labels=labels,
            test_labels=query_labels,
        )


def _made(function: Callable[[np.ndarray], np.ndarray], images: ImageSet) -> np.ndarray:
    return np.concatenate([function(each) for each in images.batches()])


def _say(what: str) -> None:
    if processes.first():
        print(f"evaluating {what}", file=sys.stderr, flush=True)
