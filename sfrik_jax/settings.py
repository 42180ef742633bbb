"""Every setting of a run with its default, and the names that settings may take.

Plain values, nothing imported: a wrong setting is found before jax is loaded.
`config.py` makes a ConfigDict of these tables and `config_checks.py` checks values.
Numbers are those of the IN20% SFRIK run of the paper unless a comment says otherwise.
"""

from typing import Any

# The settings of each loss. The section `loss` of a run holds `method` and exactly
# the settings of that method. The number of weights is the truncation order L.
LOSS_DEFAULTS: dict[str, dict[str, Any]] = {
    "sfrik": {
        "weights": (1.0, 40.0, 40.0),  # b_1 … b_L of the kernel, or a name: rbf(2.5)
        "alignment_coeff": 4000.0,  # the squared difference is averaged over q too
        "mmd_coeff": 1.0,
        "regularize_all": True,  # MMD over all views, or over the anchors alone
    },
    "simclr": {"temperature": 0.15},
    "auh": {"alignment_coeff": 3000.0, "uniformity_coeff": 1.0, "scale": 2.5},
    "vicreg": {
        "invariance_coeff": 10.0,
        "variance_coeff": 10.0,
        "covariance_coeff": 1.0,
    },
    # The neighbours. Where no paper is named the numbers are ours, for q = 8192 and
    # n = 2048: the alignment, 0.488 ‖u - v‖², and the other term range over a few units
    # between good embeddings and none. They have not been tuned.
    "sigreg": {
        "alignment_coeff": 0.25,  # the mean of two views is half as far as the other
        "sigreg_coeff": 0.02,  # as in LeJEPA's minimal example
        "slices": 1024,
    },
    "sphere_slices": {
        "alignment_coeff": 4000.0,
        "sphere_slices_coeff": 0.02,
        "slices": 1024,
    },
    "gaussian_mmd": {
        "alignment_coeff": 0.25,  # not divided by lengths, so not 4000
        "gaussian_mmd_coeff": 10.0,
        "bandwidth": 1.0,  # of the kernel's variance, over q
    },
    "wasserstein": {"alignment_coeff": 4000.0, "wasserstein_coeff": 1.0},
    "vne": {"alignment_coeff": 4000.0, "vne_coeff": 1.0},
    "coding_rate": {
        "alignment_coeff": 4000.0,
        "coding_rate_coeff": 5e-4,  # the rate is 3118 at most
        "distortion": 0.2,  # as in public copies of EMP-SSL
    },
    "mmcr": {
        "mmcr_coeff": 1.0,
        "local_coeff": 0.0,
    },
    "barlow_twins": {
        "invariance_coeff": 1.0,
        "redundancy_coeff": 0.005,  # of the paper
    },
}

# What two-view recipes set, and in this order. Probabilities of blur and solarisation
# are those of view 1 and view 2.
_TWO_VIEWS: dict[str, Any] = {
    "crop_scale": (0.08, 1.0),  # share of the picture's area
    "flip_prob": 0.5,
    "jitter_prob": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.2,
    "hue": 0.1,
    "gray_prob": 0.2,
    "blur_prob": (1.0, 0.1),
    "solarize_prob": (0.0, 0.2),
    "normalization": "imagenet",
}
_ALL_JITTERED = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4}
_PLAIN = {"blur_prob": (0.0, 0.0), "solarize_prob": (0.0, 0.0)}
_MULTI_CROP: dict[str, Any] = {
    "flip_prob": 0.5,
    "jitter_prob": 0.8,
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "gray_prob": 0.2,
    "blur_prob": 0.5,
    "normalization": "imagenet",
}

# The settings of each recipe. The section `augment` of a run holds `recipe` and exactly
# the settings of that recipe. `data.image_size` is the side of the two views, of OBoW's
# original and of SwAV's large views.
RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "vicreg": _TWO_VIEWS,
    "simclr": _TWO_VIEWS
    | {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    | {"blur_prob": (0.5, 0.5), "solarize_prob": (0.0, 0.0)},
    "auh": _TWO_VIEWS
    | _ALL_JITTERED
    | _PLAIN
    | {"jitter_prob": 1.0, "normalization": "stl10"},
    "small": _TWO_VIEWS | _PLAIN | {"crop_scale": (0.25, 1.0)},
    "obow": {
        "resize": 256,  # short side of the original, whose centre is a view
        "crop_count": 2,
        "crop_size": 160,
        "crop_scale": (0.08, 0.6),
        "patch_count": 5,  # of the nine of a grid
        "patch_size": 96,
        "patch_image_size": 256,  # side of the picture that patches are cut from
        "patch_scale": (0.6, 1.0),
        **_MULTI_CROP,
        **_ALL_JITTERED,
    },
    "swav": {
        "large_count": 2,
        "large_scale": (0.14, 1.0),
        "small_count": 6,
        "small_size": 96,
        "small_scale": (0.05, 0.14),
        **_MULTI_CROP,
    },
}

# Recipes of more than two views, which SFRIK alone takes.
MULTI_CROP = ("obow", "swav")
# Pixels by which OBoW shifts each patch.
PATCH_SHIFT = 24

DEFAULTS: dict[str, Any] = {
    "job": "pretrain",  # the jobs of evaluation have trees of their own
    "seed": 0,
    "init_from": "",  # safetensors of a backbone to start from; "" = random weights
    "data": {
        "source": "tfds",
        "name": "fashion_mini",  # of the TFDS data set
        "path": "",  # TFDS data_dir ("" = its default), or the folder of pictures
        "train_split": "train",
        "subset": "",  # a part of that split, see data.subset_setting; "" = all
        "image_size": 224,  # side of the views
        "batch_size": 2048,  # global: over all devices
        "residence": "auto",  # the whole set on the device, or batches from the host
        "workers": 0,  # that decode; 0 = one for each core
        "worker_type": "auto",  # threads up to four of them, then processes
        "resample": "exact",  # Pillow's result, or a faster one near it
        "on_error": "raise",  # at a bad picture, or "skip"
        "max_bad": -1,  # pictures that may be bad; -1 = max(100, one in a thousand)
    },
    "augment": {"recipe": "vicreg", **RECIPE_DEFAULTS["vicreg"]},
    "model": {
        "backbone": "resnet18",
        "width": 64,  # channels of the stem; 64 = the standard network
        "stem": "imagenet",  # 7x7 and pooling, or 3x3 for pictures up to 64 px
        "hidden_dims": (8192, 8192),
        "embed_dim": 8192,  # q
        "dtype": "bfloat16",
    },
    "loss": {"method": "sfrik", **LOSS_DEFAULTS["sfrik"]},
    "optim": {
        "name": "lars",
        "base_lr": 1.2,  # the peak rate is base_lr * batch_size / 256
        "weight_decay": 1e-6,
        "momentum": 0.9,
        "trust_coefficient": 1e-3,
        "epochs": 100,
        "warmup_epochs": 10.0,
    },
    "mesh": {
        "data": -1,  # devices along the batch; -1 = all that are left
        "model": 1,  # devices along wide layers
        "projector": "replicated",  # or its columns split over "data" or "model"
    },
    "step": {
        "remat": "none",  # what is computed again: less memory, more arithmetic
        "micro_batches": 1,  # passes over parts of a batch; the loss is the whole's
        "reduce_dtype": "float32",  # in which the devices' gradients are added up
        "deterministic_reduce": 0,  # parts of the batch in a fixed order; 0 = not fixed
        "nonfinite": "raise",  # at a loss or a gradient that is not finite, or "skip"
        "max_skipped": 5,  # updates in a row that may be skipped
    },
    "processes": {
        "join_seconds": 300,  # how long the first waits for the others
        "heartbeat_seconds": 30,  # after which a silent process counts as dead
        "hang_seconds": -1,  # for a step; -1 = ten median ones, at least 60; 0 = any
        "grace_seconds": 60,  # from a signal to the end, whether all is saved or not
    },
    "checkpoint": {
        "every_steps": 500,
        "keep": 3,
        "milestone_epochs": 0,  # every so many epochs one is kept for good; 0 = none
    },
    "eval": {
        "train_split": "",  # what probes are fitted on; "" = data.train_split
        "train_subset": "",  # "" = data.subset if train_split is "" too, else all
        "test_split": "test",
        "test_subset": "",
        "image_size": 224,  # side of the evaluated pictures: the centre
        "resize": 256,  # of pictures whose short side has this length
        "every_epochs": 10,  # 0 = only at the end
        "knn_k": 20,
        "knn_temperature": 0.07,
        "probe_epochs": 100,
        "probe_batch_size": 256,
        "probe_learning_rates": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        "probe_weight_decay": 1e-6,
        "baselines": False,  # pixels, colour histogram and random initialisation
    },
    "log": {"every_steps": 50},
    "profile": {"first_step": 0, "last_step": 0},  # 0 and 0 = no profile
}

# Tests hold these against the tables of the code: models.BACKBONES, losses.METHODS,
# data.views.RECIPES.
CHOICES: dict[str, tuple[str, ...]] = {
    "job": (
        "pretrain",
        "linear",
        "finetune",
        "features",
        "knn",
        "logreg",
        "voc_svm",
        "gauges",
    ),
    "data.source": ("tfds", "folder"),
    "augment.recipe": tuple(RECIPE_DEFAULTS),
    "augment.normalization": ("imagenet", "stl10"),
    "data.residence": ("auto", "device", "host"),
    "data.resample": ("exact", "fast"),
    "data.method": ("bilinear", "bicubic"),
    "features.dtype": ("float32", "float16"),
    "logreg.solver": ("sgd", "lbfgs"),
    "data.worker_type": ("auto", "thread", "process"),
    "data.on_error": ("raise", "skip"),
    "model.backbone": (
        "resnet14",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet50x2",
    ),
    "model.stem": ("imagenet", "small"),
    "model.dtype": ("bfloat16", "float32", "float64"),
    "mesh.projector": ("replicated", "data", "model"),
    "step.remat": ("none", "convolutions", "blocks"),
    "step.reduce_dtype": ("float32", "bfloat16"),
    "step.nonfinite": ("raise", "skip"),
    "loss.method": tuple(LOSS_DEFAULTS),
    "optim.name": ("lars", "adamw", "sgd"),
}

# The sections whose settings depend on a name: section -> (that name's key, settings).
VARIANTS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "augment": ("augment.recipe", RECIPE_DEFAULTS),
    "loss": ("loss.method", LOSS_DEFAULTS),
}

# Settings of several numbers that may be a text which names them, such as this one.
NAMED_NUMBERS = {"loss.weights": "rbf(2.5)"}  # see kernel_presets

# Keys, or sections ending in a dot, that a resumed run may change: they touch neither
# the weights nor the order of the data.
RESUME_FREE = (
    "log.",
    "profile.",
    "eval.",
    "checkpoint.",
    "mesh.",
    "step.remat",
    "step.nonfinite",
    "step.max_skipped",
    "processes.",
    "weights",
    "data.workers",
    "data.worker_type",
    "data.on_error",
    "data.max_bad",
)

# Keys, or sections ending in a dot, that no flag lets a resumed run change: the state
# that is stored would have other tensors.
RESUME_NEVER = ("job", "model.", "optim.name")
