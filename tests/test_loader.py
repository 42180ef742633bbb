"""The batch is a function of (seed, step), however it comes about."""

import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sfrik_jax.data import decode, loader, photos, sources, views
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.mesh import make_mesh

ROOT = Path(__file__).parents[1]
TWO_VIEWS = views.build(16, recipe="vicreg")


@pytest.fixture
def arrays():
    """50 colour images of 20 x 24 pixels, labelled."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 20, 24, 3), np.uint8)
    return sources.ArraySource(pixels, np.arange(50) % 5)


@pytest.fixture(scope="session")
def patch_folder(tmp_path_factory):
    """JPEG files of many sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "PER_CLASS", {"train": 3, "test": 2})
        return photos.write_folder(tmp_path_factory.mktemp("patches"))


def make(source, residence="host", **settings):
    defaults: dict[str, Any] = {"batch_size": 8, "seed": 3, "workers": 1}
    settings = defaults | settings
    return TrainLoader(source, TWO_VIEWS, residence=residence, **settings)


def take(batches, count):
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("residence", ["host", "device"])
def test_batches_have_the_agreed_shapes(arrays, residence):
    batch = make(arrays, residence).batch(7)
    shapes = {name: jax.tree.map(np.shape, value) for name, value in batch.items()}
    if residence == "host":
        assert shapes == {"index": (8,), "epoch": (), "views": ((8, 2, 16, 16, 3),)}
        assert batch["views"][0].dtype == np.uint8
    else:
        assert shapes == {
            "index": (8,),
            "epoch": (),
            "images": (50, 20, 24, 3),
            "boxes": (8, 2, 4),
        }
        assert batch["images"].dtype == np.uint8
        assert batch["boxes"].dtype == np.int32
    assert batch["index"].dtype == batch["epoch"].dtype == np.int32
    assert batch["epoch"] == 1


def test_an_epoch_sees_every_image_at_most_once(arrays):
    batches = make(arrays)
    assert batches.steps_per_epoch == 6
    for epoch in range(2):
        steps = range(6 * epoch, 6 * epoch + 6)
        seen = np.concatenate([batches.indices(step) for step in steps])
        assert len(np.unique(seen)) == 48
        order = views.permutation(3, epoch, 50)
        np.testing.assert_array_equal(seen, order[:48])


@pytest.mark.parametrize("residence", ["host", "device"])
@pytest.mark.parametrize("first_step", [0, 4])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_step_is_the_same_alone_and_in_iteration(
    arrays, residence, first_step, workers
):
    batches = make(arrays, residence, workers=workers, batch_size=20)
    alone = make(arrays, residence, batch_size=20)
    for step, batch in enumerate(take(batches.iterate(first_step), 4), first_step):
        assert_same(batch, alone.batch(step))


def test_steps_of_jpeg_files_are_the_same_alone_and_in_iteration(patch_folder):
    source = sources.FolderSource(patch_folder)
    batches = make(source, workers=4, batch_size=17)
    for step, batch in enumerate(take(batches.iterate(1), 3), 1):
        assert_same(batch, make(source, batch_size=17).batch(step))


def test_host_views_are_the_crops_of_the_device_boxes(arrays):
    on_host, on_device = make(arrays).batch(9), make(arrays, "device").batch(9)
    np.testing.assert_array_equal(on_host["index"], on_device["index"])
    np.testing.assert_array_equal(on_device["images"], arrays.images)
    for row, i in enumerate(on_host["index"]):
        for number in range(2):
            box = np.asarray(on_device["boxes"][row, number])
            want = decode.resized_crop(arrays.images[int(i)], box, 16, "bicubic")
            got = on_host["views"][0][row, number]
            np.testing.assert_array_equal(got, want)


def test_views_of_unequal_size_come_in_groups(arrays):
    recipe = (views.View(16), views.View(16), views.View(8, scale=(0.05, 0.14)))
    batches = TrainLoader(arrays, recipe, batch_size=4, seed=0, residence="host")
    shapes = [group.shape for group in batches.batch(0)["views"]]
    assert shapes == [(4, 2, 16, 16, 3), (4, 1, 8, 8, 3)]


def test_fast_resampling_is_close_to_exact(patch_folder):
    source = sources.FolderSource(patch_folder)
    exact = make(source).batch(0)["views"][0].astype(int)
    fast = make(source, resample="fast").batch(0)["views"][0].astype(int)
    assert 0 < abs(exact - fast).mean() < 5


def test_the_view_chooses_the_filter(arrays):
    recipe = (replace(TWO_VIEWS[0], method="bilinear"),)
    batches = TrainLoader(arrays, recipe, batch_size=2, seed=0, residence="host")
    batch = batches.batch(0)
    boxes = TrainLoader(arrays, recipe, batch_size=2, seed=0).batch(0)["boxes"]
    image = arrays.images[int(batch["index"][0])]
    want = decode.resized_crop(image, np.asarray(boxes[0, 0]), 16, "bilinear")
    np.testing.assert_array_equal(batch["views"][0][0, 0], want)


def test_small_sets_of_one_shape_live_on_the_device(arrays, patch_folder, monkeypatch):
    assert make(arrays, "auto").resident
    assert not make(sources.FolderSource(patch_folder), "auto").resident
    monkeypatch.setattr(loader, "MAX_RESIDENT_BYTES", arrays.images.nbytes - 1)
    assert not make(arrays, "auto").resident


def test_resident_images_are_one_buffer_in_all_steps(arrays):
    first, second = take(make(arrays, "device").iterate(0), 2)
    assert first["images"] is second["images"]


def test_images_of_many_sizes_are_not_taken_to_the_device(patch_folder):
    with pytest.raises(ConfigError, match=r"needs images of one size; .* use 'host'"):
        make(sources.FolderSource(patch_folder), "device")


@pytest.mark.parametrize("residence", ["host", "device"])
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_mesh_shards_the_batch_and_changes_nothing(arrays, residence, devices):
    mesh = make_mesh(data=devices)
    batch = take(make(arrays, residence, mesh=mesh).iterate(5), 1)[0]
    assert_same(batch, make(arrays, residence).batch(5))
    for name, value in batch.items():
        spec = P() if name in ("epoch", "images") else P("data")
        for array in jax.tree.leaves(value):
            assert array.sharding.spec == spec
            assert array.sharding.mesh == mesh


def test_settings_that_do_not_fit_are_refused(arrays):
    for size in (0, 51):
        with pytest.raises(ConfigError, match=rf"batch_size={size} does not fit"):
            make(arrays, batch_size=size)
    with pytest.raises(ConfigError, match=r"leaves 1 images over on 8 devices"):
        make(arrays, batch_size=9, mesh=make_mesh(data=8))
    with pytest.raises(ConfigError, match=r"data\.residence='disk'"):
        make(arrays, "disk")
    with pytest.raises(ConfigError, match=r"data\.resample='best'"):
        make(arrays, resample="best")


def test_a_broken_picture_is_named_when_its_batch_is_due(tmp_path, patch_folder):
    for path in sorted(patch_folder.glob("train/*/0000.jpg")):
        (tmp_path / f"{path.parent.name}.jpg").write_bytes(path.read_bytes())
    (tmp_path / "moon.jpg").write_bytes(b"not a picture")
    source = sources.FolderSource(tmp_path)
    broken = source.files.index("moon.jpg")
    batches = make(source, batch_size=4)
    due = next(step for step in range(4) if broken in batches.indices(step))
    iterator = batches.iterate(0)
    for _ in range(due):
        next(iterator)
    with pytest.raises(CorruptInputError, match=r"moon\.jpg reason=cannot be decoded"):
        next(iterator)
    with pytest.raises(CorruptInputError, match=r"moon\.jpg reason=cannot be decoded"):
        make(source, batch_size=4).batch(due)


def grain_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain")]


@pytest.mark.parametrize("stop", ["close", "drop"])
def test_a_stopped_iterator_leaves_no_thread(arrays, stop):
    iterator = make(arrays, workers=2).iterate(0)
    next(iterator)
    assert grain_threads()
    if stop == "close":
        iterator.close()
    del iterator
    deadline = time.monotonic() + 5
    while grain_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not grain_threads()


def run_python(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_a_program_that_forgets_to_close_ends(patch_folder, worker_type):
    code = """
        import sys
        from sfrik_jax.data import loader, sources, views
        source = sources.FolderSource(sys.argv[1])
        pair = views.build(32, recipe="vicreg")
        batches = loader.TrainLoader(
            source, pair, batch_size=16, seed=0, workers=2, worker_type=sys.argv[2]
        )
        iterator = batches.iterate()
        print(next(iterator)["epoch"])
    """
    process = run_python(code, str(patch_folder), worker_type)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "0\n", "")


TWO_PROCESSES = """
    import sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    port, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(
        f"localhost:{port}", 2, rank, coordinator_bind_address=f"127.0.0.1:{port}"
    )
    import numpy as np
    from jax.experimental import multihost_utils
    from sfrik_jax.data import loader, sources, views
    from sfrik_jax.mesh import make_mesh
    read = []
    class Watched(sources.FolderSource):
        def read(self, i):
            read.append(i)
            return super().read(i)
    pair = views.build(16, recipe="vicreg")
    batches = loader.TrainLoader(
        Watched(folder), pair, batch_size=8, seed=3, mesh=make_mesh()
    )
    batch = batches.batch(2)
    whole = multihost_utils.process_allgather(batch, tiled=True)
    if rank == 0:
        np.savez(sys.argv[4], index=whole["index"], views=whole["views"][0], read=read)
    jax.distributed.shutdown()
"""


def test_two_processes_read_half_each_and_make_the_same_batch(patch_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = str(tmp_path / "batch.npz")
    processes = [
        run_python(TWO_PROCESSES, port, rank, str(patch_folder), out) for rank in "01"
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    want = make(sources.FolderSource(patch_folder)).batch(2)
    with np.load(out, allow_pickle=False) as got:
        np.testing.assert_array_equal(got["index"], want["index"])
        np.testing.assert_array_equal(got["views"], want["views"][0])
        assert sorted(got["read"]) == sorted(np.asarray(want["index"])[:4].tolist())
