"""The evaluation of a run: during training, and what it leaves behind at the end."""

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import mesh as mesh_lib
from sfrik_jax import metrics, weights
from sfrik_jax.data.bad_pictures import FILE as BAD_PICTURES
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.opening import open_source, subset_of
from sfrik_jax.data.sources import Source
from sfrik_jax.data.subset_setting import probe_data
from sfrik_jax.data.views import View
from sfrik_jax.encoding import encoder
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
from sfrik_jax.rundir import RunDirectory
from sfrik_jax.train_state import TrainState, backbone_variables

log = logging.getLogger("sfrik")

# Images that the picture of nearest neighbours chooses from.
GALLERY = 5_000
QUERIES = 500

Results = dict[str, float]


class Evaluation:
    """kNN and linear probe of a backbone on the labelled splits of a run.

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
        self._config, self._mesh, self._bad = config, mesh, bad
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
            features_of = self._features(backbone_variables(state))
            self._newest, self._newest_step = self._accuracies(*features_of), step
        return self._newest

    def finish(
        self,
        run: RunDirectory,
        state: TrainState,
        random_state: Callable[[], TrainState],
        seconds: float,
        check: Callable[[str], None],
    ) -> None:
        """Writes backbone.safetensors, pictures/neighbours.png and summary.json.

        Args:
          check: raises where a stop was asked for; called between the parts.
        """
        variables = backbone_variables(state)
        path = run.path / "backbone.safetensors"
        summary: dict[str, Any] = {}
        about = weights.describe(
            self._config.model, self._config.eval, self._normalization
        )
        summary["weights_sha256"] = weights.save(path, variables, about)
        # As the records of evaluation commands state it, whatever file they read.
        summary["backbone_sha256"] = weights.fingerprint(variables, about["arch"])
        if self.labelled:
            _say("the pretrained network")
            summary |= self.run(state)
            check("in the evaluation")
            if self._config.eval.baselines:
                _say("the untrained network, pixels and colour histograms")
                summary |= self._baselines(random_state())
                check("in the evaluation")
        self._draw_neighbours(run, variables)
        rates = [
            row.get("time/views_per_second") for row in metrics.read_rows(run.path)
        ]
        rates = [rate for rate in rates if rate is not None]
        summary |= {
            "train_seconds": round(seconds, 1),
            "views_per_second": round(float(np.median(rates)), 1) if rates else None,
            "steps": int(state.step),
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
        print_summary(summary)

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
        return self._extract(variables, self._train.batches()), self._extract(
            variables, self._test.batches()
        )

    def _extract(self, variables: Any, batches: Iterator[np.ndarray]) -> np.ndarray:
        parts = self._mesh.shape[mesh_lib.DATA]
        encode = encoder(self._backbone, variables, self._mesh, **self._normalization)
        return features.extract(
            encode, batches, batch_size=-(-BATCH_SIZE // parts) * parts
        )

    def _accuracies(self, train: np.ndarray, test: np.ndarray) -> Results:
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
        assert self._test is not None
        sets = {"random_init": self._features(backbone_variables(random))}
        for name, function in (
            ("pixels", baselines.pixels),
            ("color_histogram", baselines.color_histogram),
        ):
            train, test = (
                np.concatenate([function(images) for images in images_of.batches()])
                for images_of in (self._train, self._test)
            )
            sets[name] = (train, test)
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


def _say(what: str) -> None:
    print(f"evaluating {what}", file=sys.stderr, flush=True)


ENCODERS = {
    "": "pretrained",
    "random_init_": "random initialisation",
    "pixels_": "pixels",
    "color_histogram_": "colour histogram",
}


def print_summary(summary: Mapping[str, Any]) -> None:
    """The table of encoders on the standard output."""
    names = [key for key in summary if key.startswith("knn") and key.endswith("top1")]
    if names:
        print(f"{'':24s}{'linear top-1':>14s}{names[0].replace('_', ' '):>14s}   (%)")
        for prefix, title in ENCODERS.items():
            if f"{prefix}linear_top1" in summary:
                linear, knn = (
                    summary[f"{prefix}{n}"] for n in ("linear_top1", names[0])
                )
                print(f"{title:24s}{linear:14.1f}{knn:14.1f}")
    if summary["bad_pictures"]:
        print(
            f"{summary['bad_pictures']} bad pictures, replaced in training; "
            f"{summary['train_images_left_out']} left out of what the probes learn "
            f"from; see {BAD_PICTURES}"
        )
    print(
        f"{summary['steps']} steps in {summary['train_seconds']:.0f} s, "
        f"{summary['views_per_second'] or 0:,.0f} views/s"
    )
