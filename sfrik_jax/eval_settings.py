"""Every setting of the evaluation jobs with its default, as `settings.py` has a run's.

Numbers are those of the paper's protocols on ImageNet unless a comment says otherwise.
Each job has a tree of its own: what it does not have cannot be set.
"""

from typing import Any

from sfrik_jax.settings import DEFAULTS

# The pictures of all jobs. Settings are chosen on the pictures of `val_split`, the
# figure is of those of `test_split`, and they have no picture in common.
_DATA: dict[str, Any] = {
    "source": "tfds",
    "name": "imagenet2012",
    "path": "",
    "train_split": "train",
    "train_subset": "",
    "val_split": "",  # "" = none: nothing can be chosen
    "val_subset": "",
    "test_split": "validation",  # "" = none: tuning goes on
    "test_subset": "",
    "image_size": 0,  # side of the pictures: the centre; 0 = as the weights say
    "resize": 0,  # of pictures whose short side has this length; 0 = likewise
    "method": "bilinear",  # of resizing
    "workers": 0,
}
_COMMON: dict[str, Any] = {
    "seed": 0,
    "weights": "",  # run directory, checkpoint, .safetensors or PyTorch's .pth
    "model": {"dtype": "float32"},  # of the backbone's arithmetic
}
_TRAINED: dict[str, Any] = {
    "mesh": {"data": -1, "model": 1},
    "checkpoint": {"every_steps": 500, "keep": 2},
    "log": {"every_steps": 50},
}
# Crops to train on. A picture that is bad ends the job: another in its place would
# have another label.
_CROPS: dict[str, Any] = {
    "batch_size": 256,  # global: over all devices
    "crop_scale": (0.08, 1.0),  # share of the picture's area
    "flip_prob": 0.5,
    "residence": "auto",
    "worker_type": "auto",
    "resample": "exact",
}
# Pictures of which features are made; a bad one may be left out of the train split.
_FEATURES: dict[str, Any] = {
    **_COMMON,
    "data": _DATA | {"method": "bicubic", "on_error": "raise", "max_bad": -1},
    "features": {
        "batch_size": 256,
        "dtype": "float32",  # as stored; float16 takes half the space
        "shard_rows": 65_536,  # pictures in a file
    },
    "mesh": {"data": -1, "model": 1},
}

JOBS: dict[str, dict[str, Any]] = {
    "pretrain": DEFAULTS,
    "linear": {
        "job": "linear",
        **_COMMON,
        "data": _DATA | _CROPS,
        "probe": {
            "learning_rates": (0.4,),  # one head for each rate and decay, side by side
            "weight_decays": (1e-6,),
            "momentum": 0.9,
            "epochs": 100,
            "val_every_epochs": 10,  # 0 = only at the end
        },
        **_TRAINED,
    },
    "finetune": {
        "job": "finetune",
        **_COMMON,
        "data": _DATA | _CROPS,
        "finetune": {
            "backbone_learning_rate": 0.02,  # of 10 %; 1 %: 0.004 and 1.0
            "head_learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "epochs": 20,
            "val_every_epochs": 5,
        },
        **_TRAINED,
    },
    "features": {"job": "features", **_FEATURES},
    "knn": {
        "job": "knn",
        **_FEATURES,
        "knn": {"k": (10, 20, 100, 200), "temperature": 0.07},
    },
    "logreg": {
        "job": "logreg",
        **_FEATURES,
        "logreg": {
            "solver": "sgd",  # the original's recipe, or lbfgs
            "learning_rates": (0.4,),  # of sgd
            "weight_decays": (1e-6,),
            "momentum": 0.9,
            "epochs": 100,
            "batch_size": 256,
            "l2": (1e-6,),  # of lbfgs: of the mean cross-entropy
            "max_iterations": 1_000,
            "tolerance": 1e-5,  # of the gradient's norm
            "standardize": False,
        },
    },
    "voc_svm": {
        "job": "voc_svm",
        **_FEATURES,
        "svm": {
            "costs": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
            "low_shot": (1, 2, 4, 8, 16, 32, 64, 96),  # images of each class; () = none
            "low_shot_samples": 5,
            "low_shot_cost": 1.0,  # too few images to choose one
        },
    },
    "gauges": {
        "job": "gauges",
        **_FEATURES,
        "data": _FEATURES["data"] | {"test_split": ""},
        "augment": DEFAULTS["augment"],
        "gauges": {"images": 4_096},
    },
}
