"""The data of a configuration, its memory, and a run of two steps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from sfrik_jax import config as configs
from sfrik_jax import pretrain
from sfrik_jax.checkpoint import Checkpoints, room
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.opening import open_source
from sfrik_jax.data.sources import Source
from sfrik_jax.doctor.devices import memory as device_memory
from sfrik_jax.doctor.findings import Context, Finding, failed, ok, warning
from sfrik_jax.doctor.places import trial_folder
from sfrik_jax.errors import MachineError, MissingInputError
from sfrik_jax.planning import plan as plans

NONE = "no --config was given"
STEPS = 2
QUICK = "jax_disable_most_optimizations"


def data(context: Context) -> Finding:
    """The sets of the configuration open, and their first and last pictures decode.

    What a run puts up with is told: bad pictures that it skips, and a folder without
    pictures to test on.
    """
    if context.config is None:
        return ok(f"not looked at: {NONE}")
    config, d, seed = context.config, context.config.data, context.config.seed
    own = {"source": d.source, "name": d.name, "path": d.path}
    train = open_source(**own, split=d.train_split, subset=d.subset, seed=seed)
    configs.validate(
        config, num_examples=len(train), num_devices=configs.device_count()
    )
    bad = BadPictures(len(train), seed=seed, on_error=d.on_error, max_bad=d.max_bad)
    size = _decoded(train, bad)
    words = f"{len(train):,} pictures to train on, "
    try:
        test = open_source(**own, split=config.eval.test_split)
    except MissingInputError:
        if d.source != "folder":
            raise
        words += "none to test on, so no accuracies"
    else:
        size = _decoded(test, BadPictures(len(test), may_skip=False))
        words += f"{len(test):,} pictures to test on"
    words += ", the last of {} x {} px; fingerprint ".format(*size)
    words += train.fingerprint[:12]
    if bad.noted:
        id, reason = next(iter(bad.noted.items()))
        remedy = "it is skipped, as data.on_error says; sfrik data check finds all"
        return warning(f"{words}; {id} is bad ({reason})", remedy)
    return ok(words)


def _decoded(source: Source, bad: BadPictures) -> tuple[int, int]:
    """Height and width of the last picture; the first is decoded too."""
    size = (0, 0)
    for i in (0, len(source) - 1):
        (height, width, _), found = bad.good(source, i, lambda p: p.rgb().shape)
        bad.note(found)
        size = (height, width)
    return size


def memory(context: Context) -> Finding:
    """The step of the configuration, as it is counted, fits into a device."""
    if context.config is None:
        return ok(f"not counted: {NONE}")
    if context.config.step.deterministic_reduce:
        return ok("not counted: plan does not with step.deterministic_reduce")
    count = configs.device_count()
    # The fake devices of a CPU share its memory.
    free = device_memory() // (count if jax.default_backend() == "cpu" else 1)
    peak = context.traced.peak().bytes
    words = (
        f"a step is counted at {room.words(peak)} of the {room.words(free)} of a device"
    )
    if peak <= plans.USABLE * free:
        return ok(words)
    remedy = plans.Remedies(context.config, count).for_memory(free)
    if remedy is None:
        return warning(words, "take more devices, or a smaller data.batch_size")
    changes, smaller = remedy
    return warning(words, f"set {' '.join(changes)}, counted at {room.words(smaller)}")


def training(context: Context) -> Finding:
    """Two steps of a tiny net, saved and restored: the same bits."""
    with trial_folder(context) as folder, quick_compilation():
        config = tiny(folder / "pictures", configs.device_count())
        job = pretrain.build(config)
        state = job.random_state()
        for step in range(STEPS):
            state, scalars = job.step(state, job.loader.batch(step))
        loss = float(scalars["train/loss"])
        if not np.isfinite(loss):
            return failed(
                f"the loss of a tiny net is {loss} after {STEPS} steps",
                "update the driver and jax, or try JAX_PLATFORMS=cpu",
                MachineError.code,
            )
        place = folder / "checkpoints"
        with Checkpoints(place, keep=2) as checkpoints:
            checkpoints.save(STEPS, state, wait=True)
        with Checkpoints(place, keep=2) as checkpoints:
            restored = checkpoints.restore(job.state)
        if other := differing(state, restored):
            return failed(
                f"{other[0]} and {len(other) - 1} more come back from a checkpoint "
                "with other bits",
                "check the memory and the disk of this machine, or name another disk "
                "with --workdir",
                MachineError.code,
            )
    return ok(
        f"a tiny net took {STEPS} steps, was saved and restored, with the same bits in "
        f"{len(jax.tree.leaves(state))} arrays"
    )


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Programs that run for a moment are not worth the time of the optimiser."""
    before = jax.config.read(QUICK)
    jax.config.update(QUICK, True)
    try:
        yield
    finally:
        jax.config.update(QUICK, before)


def tiny(pictures: Path, num_devices: int) -> ConfigDict:
    """A configuration of seconds, whose pictures are written to a folder."""
    config = configs.default()
    config.data.source, config.data.path = "folder", str(pictures)
    config.data.batch_size = count = 2 * num_devices
    config.data.image_size = 32
    config.augment = configs.augment_section("small")
    config.model.backbone, config.model.width = "resnet14", 4
    config.model.stem, config.model.dtype = "small", "float32"
    config.model.hidden_dims, config.model.embed_dim = (16,), 16
    config.optim.epochs, config.optim.warmup_epochs = STEPS, 0.0
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        (pictures / f"{number}.ppm").write_bytes(b"P6 32 32 255\n" + pixels.tobytes())
    return config


def differing(state: object, restored: object) -> list[str]:
    """Paths of leaves that are not bit for bit the same."""
    before, _ = jax.tree_util.tree_flatten_with_path(state)
    after, _ = jax.tree_util.tree_flatten_with_path(restored)
    return [
        jax.tree_util.keystr(path)
        for (path, a), (other, b) in zip(before, after, strict=True)
        if path != other or np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
