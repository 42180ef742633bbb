"""Decoding in processes: the batches of threads, and what a lost process does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sfrik_jax import loop
from sfrik_jax.data import builders, loader, opening, photos, pipeline, sources, views
from sfrik_jax.data.bad_pictures import BadPictures
from sfrik_jax.data.loader import TrainLoader
from sfrik_jax.data.tfds_source import TfdsSource
from sfrik_jax.errors import BadPictureError, ConfigError, Preempted, WorkerError
from sfrik_jax.interrupts import Stop

ROOT = Path(__file__).parents[1]
RECIPES = {
    "vicreg": views.build(32, recipe="vicreg"),
    "swav": views.build(32, recipe="swav", small_size=16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 JPEG files of many sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "PER_CLASS", {"train": 5, "test": 2})
        return photos.write_folder(tmp_path_factory.mktemp("patches"))


def make(folder, worker_type, *, recipe="vicreg", workers=2, **settings):
    return TrainLoader(
        sources.FolderSource(folder),
        RECIPES[recipe],
        batch_size=24,
        seed=5,
        residence="host",
        workers=workers,
        worker_type=worker_type,
        **settings,
    )


def take(batches, count):
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def children():
    """Numbers of the decoding processes."""
    found = multiprocessing.active_children()
    return [p.pid for p in found if p.pid is not None and "grain" in p.name]


@pytest.mark.parametrize("recipe", RECIPES)
def test_processes_make_the_batches_of_threads(folder, recipe):
    # 24 pictures are a chunk of 16 and one of 8, in two processes.
    found = take(make(folder, "process", recipe=recipe).iterate(2), 4)
    wanted = take(make(folder, "thread", recipe=recipe).iterate(2), 4)
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not children()


def test_a_bad_picture_is_named_and_replaced_as_by_threads(folder, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    source = sources.FolderSource(copy)
    broken = Path(source.name(3))
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(BadPictureError) as caught:
        take(make(copy, "process").iterate(), 4)
    assert caught.value.id == str(broken)
    runs = []
    for worker_type in ("process", "thread"):
        bad = BadPictures(len(source), seed=5, on_error="skip")
        bad.save = [].append  # a door to the run directory, which stays here
        runs.append(take(make(copy, worker_type, bad=bad).iterate(), 4))
        assert list(bad.noted) == [str(broken)]
    for one, other in zip(*runs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_killed_process_ends_the_run_with_76(folder):
    batches = make(folder, "process").iterate()
    next(batches)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(WorkerError, match="a decoding process ended") as caught:
        take(batches, 100)
    assert caught.value.code == 76


def test_processes_leave_signals_to_the_run(folder):
    # A terminal sends Ctrl-C to all of its processes, a scheduler SIGTERM.
    batches = make(folder, "process").iterate()
    next(batches)
    assert len(children()) == 2
    for name in (signal.SIGINT, signal.SIGTERM):
        for child in children():
            os.kill(child, name)
    assert len(take(batches, 20)) == 20


def test_processes_end_with_a_run_that_is_killed(folder):
    code = """
        import multiprocessing, os, signal, sys
        from sfrik_jax.data import loader, sources, views

        if __name__ == "__main__":
            batches = loader.TrainLoader(
                sources.FolderSource(sys.argv[1]), views.build(32, recipe="vicreg"),
                batch_size=24, seed=5, workers=2, worker_type="process",
            ).iterate()
            next(batches)
            print(*[p.pid for p in multiprocessing.active_children()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    program = Path(folder).parent / "killed.py"
    program.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, program, folder],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_auto_takes_processes_from_five_workers_on(folder, monkeypatch):
    seen = []

    def in_order(task, count, **settings):
        seen.append(settings["processes"])
        return iter(())

    monkeypatch.setattr(pipeline, "in_order", in_order)
    for workers in (4, 5):
        make(folder, "auto", workers=workers)._host_batches(0, 1)
    make(folder, "auto", workers=5)._host_batches(0, 1, alone=True)
    assert seen == [False, True, False]


def test_too_little_shared_memory_is_told(folder, monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "shared_memory_free", lambda: 2**20)
    with pytest.raises(ConfigError, match=r"0 MiB|1 MiB are free.*--shm-size"):
        next(make(folder, "process", workers=64).iterate())
    next(make(folder, "auto", workers=64).iterate())
    assert "Threads decode, at a fraction of the speed: 64" in caplog.text


class Held(sources.FolderSource):
    """A source with a lock, which cannot be sent to another process."""

    def __init__(self, path):
        super().__init__(path)
        self.lock = threading.Lock()


def test_a_source_that_cannot_be_sent_is_read_by_threads(folder, caplog):
    settings = {"batch_size": 24, "seed": 5, "residence": "host", "workers": 5}
    both = [Held(folder), RECIPES["vicreg"]]
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        next(TrainLoader(*both, worker_type="process", **settings).iterate())
    batch = next(TrainLoader(*both, **settings).iterate())
    assert "the source cannot be sent to other processes" in caplog.text
    want = make(folder, "thread").batch(0)
    jax.tree.map(np.testing.assert_array_equal, batch, want)


def test_pictures_in_memory_are_not_copied_to_processes(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 40, 3), np.uint8)
    source = sources.ArraySource(pixels)
    monkeypatch.setattr(pipeline, "cannot_be_sent", lambda task: "asked")
    settings = {"batch_size": 24, "seed": 5, "residence": "host", "workers": 8}
    next(TrainLoader(source, RECIPES["vicreg"], **settings).iterate())


def test_only_known_worker_types_pass(folder):
    with pytest.raises(ConfigError, match=r"data\.worker_type='fork'"):
        make(folder, "fork")
    assert loader.WORKER_TYPES == ("auto", "thread", "process")


def test_a_prepared_set_is_read_by_processes(tmp_path):
    builders.prepare("fashion_mini", tmp_path)
    whole = TfdsSource("fashion_mini", str(tmp_path), "train[:60]")
    source = opening.subset_of(whole, "fraction:0.9", seed=1)
    settings = {"batch_size": 24, "seed": 5, "residence": "host", "workers": 2}
    by_type = [
        take(
            TrainLoader(source, RECIPES["vicreg"], worker_type=t, **settings).iterate(),
            3,
        )
        for t in ("process", "thread")
    ]
    for one, other in zip(*by_type, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_signal_that_ended_the_workers_too_is_a_stop():
    def lost():
        raise WorkerError("a decoding process ended")
        yield

    stop = Stop()
    with pytest.raises(WorkerError):
        loop.next_batch(lost(), stop)
    stop.requested = True
    with pytest.raises(Preempted, match="run the same command again"):
        loop.next_batch(lost(), stop)
