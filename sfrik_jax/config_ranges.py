"""Which numbers each setting may have. Plain values, nothing imported.

`RANGES` gives for a setting the test of a number and the words for it.
"""

from collections.abc import Callable

Range = tuple[Callable[[float], bool], str]


def at_least(low: float) -> Range:
    """The numbers from `low` on."""
    return lambda value: value >= low, f"at least {low}"


def above(low: float) -> Range:
    """The numbers greater than `low`."""
    return lambda value: value > low, f"above {low}"


def fraction() -> Range:
    """The numbers from 0 to just below 1."""
    return lambda value: 0 <= value < 1, "at least 0 and below 1"


def between(low: float, high: float) -> Range:
    """The numbers from `low` to `high`."""
    return lambda value: low <= value <= high, f"between {low} and {high}"


def probability() -> Range:
    """The numbers from 0 to 1."""
    return between(0, 1)


def share() -> Range:
    """The numbers above 0 and up to 1."""
    return lambda value: 0 < value <= 1, "above 0 and at most 1"


# For a tuple the range holds for each entry. A method has only some of the loss's keys.
RANGES: dict[str, Range] = {
    "seed": at_least(0),
    "data.image_size": at_least(8),
    "eval.image_size": at_least(8),
    "eval.resize": at_least(8),
    "data.batch_size": at_least(2),
    "data.workers": at_least(0),
    "data.max_bad": at_least(-1),
    "augment.crop_scale": share(),
    "augment.patch_scale": share(),
    "augment.large_scale": share(),
    "augment.small_scale": share(),
    "augment.flip_prob": probability(),
    "augment.jitter_prob": probability(),
    "augment.gray_prob": probability(),
    "augment.blur_prob": probability(),
    "augment.solarize_prob": probability(),
    "augment.brightness": at_least(0),
    "augment.contrast": at_least(0),
    "augment.saturation": at_least(0),
    "augment.hue": between(0, 0.5),
    "augment.resize": at_least(8),
    "augment.crop_size": at_least(8),
    "augment.patch_size": at_least(8),
    "augment.patch_image_size": at_least(8),
    "augment.small_size": at_least(8),
    "augment.crop_count": at_least(0),
    "augment.patch_count": between(0, 9),
    "augment.large_count": at_least(1),
    "augment.small_count": at_least(0),
    "model.width": at_least(1),
    "model.hidden_dims": at_least(1),
    "model.embed_dim": at_least(2),
    "loss.weights": at_least(0),
    "loss.alignment_coeff": at_least(0),
    "loss.mmd_coeff": at_least(0),
    "loss.temperature": above(0),
    "loss.uniformity_coeff": at_least(0),
    "loss.scale": above(0),
    "loss.invariance_coeff": at_least(0),
    "loss.variance_coeff": at_least(0),
    "loss.covariance_coeff": at_least(0),
    "loss.sigreg_coeff": at_least(0),
    "loss.sphere_slices_coeff": at_least(0),
    "loss.slices": at_least(1),
    "loss.gaussian_mmd_coeff": at_least(0),
    "loss.bandwidth": above(0),
    "loss.wasserstein_coeff": at_least(0),
    "loss.vne_coeff": at_least(0),
    "loss.coding_rate_coeff": at_least(0),
    "loss.distortion": above(0),
    "loss.mmcr_coeff": at_least(0),
    "loss.local_coeff": at_least(0),
    "loss.redundancy_coeff": at_least(0),
    "optim.base_lr": above(0),
    "optim.weight_decay": at_least(0),
    "optim.momentum": fraction(),
    "optim.trust_coefficient": above(0),
    "optim.epochs": at_least(1),
    "optim.warmup_epochs": at_least(0),
    "mesh.model": at_least(1),
    "step.micro_batches": at_least(1),
    "step.deterministic_reduce": at_least(0),
    "step.max_skipped": at_least(1),
    "processes.join_seconds": at_least(1),
    "processes.heartbeat_seconds": at_least(1),
    "processes.hang_seconds": at_least(-1),
    "processes.grace_seconds": at_least(1),
    "checkpoint.every_steps": at_least(1),
    "checkpoint.keep": at_least(2),
    "checkpoint.milestone_epochs": at_least(0),
    "eval.every_epochs": at_least(0),
    "eval.knn_k": at_least(1),
    "eval.knn_temperature": above(0),
    "eval.probe_epochs": at_least(1),
    "eval.probe_batch_size": at_least(1),
    "eval.probe_learning_rates": above(0),
    "eval.probe_weight_decay": at_least(0),
    "data.crop_scale": share(),
    "data.flip_prob": probability(),
    "probe.learning_rates": above(0),
    "probe.weight_decays": at_least(0),
    "probe.momentum": fraction(),
    "probe.epochs": at_least(1),
    "probe.val_every_epochs": at_least(0),
    "finetune.backbone_learning_rate": at_least(0),
    "finetune.head_learning_rate": above(0),
    "finetune.momentum": fraction(),
    "finetune.weight_decay": at_least(0),
    "finetune.epochs": at_least(1),
    "finetune.val_every_epochs": at_least(0),
    "features.batch_size": at_least(1),
    "features.shard_rows": at_least(1),
    "knn.k": at_least(1),
    "knn.temperature": above(0),
    "logreg.learning_rates": above(0),
    "logreg.weight_decays": at_least(0),
    "logreg.momentum": fraction(),
    "logreg.epochs": at_least(1),
    "logreg.batch_size": at_least(1),
    "logreg.l2": above(0),
    "logreg.max_iterations": at_least(1),
    "logreg.tolerance": above(0),
    "svm.costs": above(0),
    "svm.low_shot": at_least(1),
    "svm.low_shot_samples": at_least(1),
    "svm.low_shot_cost": above(0),
    "gauges.images": at_least(2),
    "log.every_steps": at_least(1),
    "profile.first_step": at_least(0),
    "profile.last_step": at_least(0),
}

# Of the evaluation jobs, where it is another: what the weights say may stand for it.
_AS_STATED: Range = (lambda value: value == 0 or value >= 8, "0 or at least 8")
EVAL_RANGES: dict[str, Range] = {
    **RANGES,
    "data.image_size": _AS_STATED,
    "data.resize": _AS_STATED,
}
