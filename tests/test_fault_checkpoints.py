"""Faults of checkpoints, by the ids of docs/reliability.md: C, D, K3, K4, P1 and S1.

They are injected from outside, into the files of real checkpoints. Whole runs that are
killed are in test_fault_kills.py.
"""

import contextlib
import errno
import gc
import json
import os
import random
import re
import resource
import shutil
import subprocess
import time
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from states import abstract, bits, opened, placed, state_of

from sfrik_jax import metrics
from sfrik_jax.checkpoint import Checkpoints, description, manifest, room
from sfrik_jax.errors import (
    CorruptInputError,
    DiskFullError,
    MismatchError,
    MissingInputError,
    OutputError,
)

GOLDEN = Path(__file__).parent / "golden"

# A collection may come before the fixture's own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A directory with steps 10 and 20, to be copied."""
    path = tmp_path_factory.mktemp("stored") / "checkpoints"
    with opened(path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), wait=True)
    return path


@pytest.fixture
def copied(stored, tmp_path):
    yield shutil.copytree(stored, tmp_path / "checkpoints")
    # Orbax leaves coroutines behind when a read fails; they warn when collected.
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


def files_of(directory: Path) -> list[Path]:
    """All files below a directory."""
    return sorted(p for p in directory.rglob("*") if p.is_file())


def flip_bit_of(path: Path, offset: int, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(bytes(content))


def restored(directory: Path):
    with opened(directory) as checkpoints:
        return checkpoints.restore(abstract(state_of(0)))


def assert_falls_back(directory: Path, reason: str, caplog) -> None:
    """Step 10 is taken, step 20 is renamed and kept, and one line says so."""
    assert bits(restored(directory)) == bits(state_of(10))
    [line] = [r.getMessage() for r in caplog.records if "CORRUPT" in r.getMessage()]
    assert re.fullmatch(
        rf"SFRIK-CKPT-CORRUPT step 20: .*{reason}.*; using step 10", line
    )
    assert (directory / "20.corrupt").is_dir() and not (directory / "20").exists()


def test_c1_each_of_thousands_of_flipped_bits_is_noticed(copied):
    """200 places in every file; those that no file is noticed of are listed."""
    newest, rng, flipped = copied / "20", random.Random(1), 0
    unnoticed = set()
    for path in files_of(newest):
        content = path.read_bytes()
        for _ in range(200 if content else 0):
            flip_bit_of(path, rng.randrange(len(content)), rng.randrange(8))
            flipped += 1
            if not manifest.problem(newest):
                unnoticed.add(path.relative_to(newest).as_posix())
            path.write_bytes(content)
    assert flipped >= 1000
    assert unnoticed <= set(manifest.HARMLESS)
    assert manifest.problem(newest) == ""


@pytest.mark.parametrize("name", manifest.HARMLESS)
def test_c1_what_the_manifest_leaves_out_is_never_read(copied, name):
    (copied / "20" / name).write_bytes(b"\xff" * 9)
    assert bits(restored(copied)) == bits(state_of(20))


def test_c1_a_flipped_bit_falls_back(copied, caplog):
    path = max(files_of(copied / "20"), key=lambda p: p.stat().st_size)
    flip_bit_of(path, 1000, 3)
    damaged = path.read_bytes()
    assert_falls_back(copied, "sha256 mismatch", caplog)
    kept = copied / "20.corrupt" / path.relative_to(copied / "20")
    assert kept.read_bytes() == damaged


def test_c1_a_value_that_was_wrong_before_it_was_written_is_noticed_by_its_leaf(
    copied, caplog
):
    """Between the device and the file: the files are as they were written."""
    path = max(files_of(copied / "20"), key=lambda p: p.stat().st_size)
    value = np.asarray(state_of(20).moments[0]).tobytes()
    flip_bit_of(path, path.read_bytes().index(value) + 17, 3)
    (copied / "20" / manifest.NAME).unlink()
    manifest.write(copied / "20")
    assert_falls_back(copied, re.escape("leaf .moments[0] digest mismatch"), caplog)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "a link to itself": _loop,
    "a pipe": _pipe,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_c2_each_file_damaged_is_noticed(copied, what):
    newest = copied / "20"
    listed = [p for p in files_of(newest) if p.name not in manifest.HARMLESS]
    for path in listed:
        content = path.read_bytes()
        DAMAGE[what](path)
        changed = (
            path.is_symlink() or not path.is_file() or path.read_bytes() != content
        )
        assert bool(manifest.problem(newest)) == changed, path
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert manifest.problem(newest) == ""


@pytest.mark.parametrize("what", ["truncated", "deleted", "a link to itself"])
def test_c2_a_damaged_file_falls_back(copied, what, caplog):
    DAMAGE[what](copied / "20" / "state" / "manifest.ocdbt")
    assert_falls_back(copied, "state/manifest.ocdbt", caplog)


def test_c2_an_empty_directory_with_the_name_of_a_step_falls_back(copied, caplog):
    shutil.rmtree(copied / "20")
    (copied / "20").mkdir()
    assert_falls_back(copied, "manifest.json is missing", caplog)


def test_c2_a_file_that_nobody_may_read_falls_back(copied, caplog):
    (copied / "20" / "meta" / "metadata").chmod(0)
    if os.geteuid() == 0:  # whom no permission stops: as another user
        for path in (copied, *copied.rglob("*")):
            os.chown(path, 65534, 65534)
        for path in copied.parents:
            if "pytest-" in str(path):
                path.chmod(0o777)
        os.seteuid(65534)
    try:
        assert_falls_back(copied, "cannot be read .Permission denied", caplog)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_c2_a_new_file_is_noticed(copied, caplog):
    (copied / "20" / "state" / "new").write_text("?")
    assert_falls_back(copied, "state/new is new", caplog)


def test_c1_damage_to_the_same_step_twice_keeps_both(copied):
    for _ in range(2):
        (copied / "20" / "meta" / "metadata").write_bytes(b"")
        with opened(copied) as checkpoints:
            assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(
                state_of(10)
            )
            checkpoints.save(20, state_of(20), wait=True)
            assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(
                state_of(20)
            )
    names = {p.name for p in copied.iterdir() if p.is_dir()}
    assert names >= {"10", "20", "20.corrupt", "20.corrupt2"}


def test_c3_all_damaged_is_65_with_each_reason_and_no_fresh_start(copied):
    (copied / "20" / "meta" / "metadata").unlink()
    (copied / "10" / manifest.NAME).write_text("{")
    for _ in range(2):  # the second start neither
        with pytest.raises(CorruptInputError) as caught:
            restored(copied)
        assert caught.value.code == 65
        assert "step 20: file meta/metadata is missing" in str(caught.value)
        assert "step 10: manifest.json cannot be read" in str(caught.value)
    # The disk may be to blame, and not they: when it is mended, the run goes on.
    assert {p.name for p in copied.iterdir()} == {"10", "20"}
    shutil.rmtree(copied / "20")
    (copied / "10").rename(copied / "10.corrupt")
    with pytest.raises(CorruptInputError, match=r"10\.corrupt"):
        restored(copied)


def test_c3_what_cannot_be_read_for_a_while_is_whole_again(copied, monkeypatch):
    def fail(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "manifest.json")

    with monkeypatch.context() as patch, pytest.raises(CorruptInputError):
        patch.setattr(manifest, "_opened", fail)
        restored(copied)
    assert bits(restored(copied)) == bits(state_of(20))


def test_c4_a_reader_beside_a_run_takes_what_has_come_meanwhile(copied, monkeypatch):
    """Step 20 is deleted while it is read, and 30 is there."""
    problem = manifest.problem

    def delete(directory: Path) -> str:
        if directory.name == "20":
            (copied / "20").rename(copied / "30")
        return problem(directory)

    monkeypatch.setattr(manifest, "problem", delete)
    shutil.rmtree(copied / "10")
    with Checkpoints(copied, read_only=True) as checkpoints:
        found = checkpoints.restore(abstract(state_of(0)))
        assert bits(found) == bits(state_of(20))
        (copied / "30").rename(copied / "20")
        with pytest.raises(MissingInputError):
            checkpoints.restore(abstract(state_of(0)), 20)


def test_c5_a_checkpoint_of_an_earlier_version_comes_back_bit_for_bit(tmp_path):
    """Stored with this program's first format; the values are `state_of(20)`."""
    directory = shutil.copytree(GOLDEN / "checkpoints", tmp_path / "checkpoints")
    assert bits(restored(directory)) == bits(state_of(20))


def test_c5_one_of_another_format_names_both_versions(copied):
    path = copied / "20" / "meta" / "metadata"
    meta = description.checked(json.loads(path.read_text()))
    meta["format"], meta["versions"]["sfrik_jax"] = 99, "9.9"
    meta["check"] = manifest.check_sum(meta)
    path.write_text(json.dumps(meta))
    manifest.write(copied / "20")
    with pytest.raises(MismatchError) as caught:
        restored(copied)
    assert caught.value.code == 78
    assert "format 99" in str(caught.value) and "sfrik_jax 9.9" in str(caught.value)
    assert f"sfrik_jax {description.VERSION}" in str(caught.value)
    assert (copied / "20").is_dir()


def changed(change):
    state = abstract(state_of(0))
    change(state.params)
    return state


S1 = {
    "float32 into bfloat16": (
        lambda p: p.update(kernel=jax.ShapeDtypeStruct((16, 24), jnp.bfloat16)),
        ".params['kernel'] is float32[16,24] on the disk, bfloat16[16,24] is expected",
    ),
    "bfloat16 into float32": (
        lambda p: p.update(half=jax.ShapeDtypeStruct((8, 24), jnp.float32)),
        ".params['half'] is bfloat16[8,24] on the disk, float32[8,24] is expected",
    ),
    "bool into float": (
        lambda p: p.update(mask=jax.ShapeDtypeStruct((16,), jnp.float32)),
        ".params['mask'] is bool[16] on the disk, float32[16] is expected",
    ),
    "another shape": (
        lambda p: p.update(odd=jax.ShapeDtypeStruct((9,), jnp.float32)),
        ".params['odd'] is float32[8] on the disk, float32[9] is expected",
    ),
    "a missing leaf": (
        lambda p: p.update(new=jax.ShapeDtypeStruct((2,), jnp.float32)),
        ".params['new'] is nothing on the disk, float32[2] is expected",
    ),
    "one leaf more": (
        lambda p: p.pop("mask"),
        ".params['mask'] is bool[16] on the disk, no such leaf is expected",
    ),
}


@pytest.mark.parametrize("what", S1)
def test_s1_another_shape_or_type_is_78_and_nothing_is_renamed(copied, what):
    change, said = S1[what]
    with opened(copied) as checkpoints, pytest.raises(MismatchError) as caught:
        checkpoints.restore(changed(change))
    assert caught.value.code == 78 and said in str(caught.value)
    assert {p.name for p in copied.iterdir()} == {"10", "20"}


# --- Disks --------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(path)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here ({made.stderr.strip()})")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def big(step: int) -> dict:
    """Of 4 MB that do not compress."""
    values = np.random.default_rng(step).standard_normal((1000, 1000))
    return {"x": jnp.asarray(values, jnp.float32)}


def fill(path: Path, left: int) -> Path:
    """Takes all of a disk but some bytes."""
    filler = path / "filler"
    with filler.open("wb") as file:
        file.write(bytes(room.free_bytes(path) - left))
    return filler


def test_d1_a_full_disk_is_74_with_bytes_and_leaves_what_there_was(small_disk, caplog):
    with (
        pytest.raises(DiskFullError) as caught,
        opened(small_disk / "c") as checkpoints,
    ):
        checkpoints.save(10, big(10), wait=True)
        fill(small_disk, 2_000_000)
        checkpoints.save(20, big(20), wait=True)
    assert caught.value.code == 74
    said = str(caught.value)
    assert "step 20" in said and "5.1 MB needed, 2.0 MB free" in said
    assert "step 10 is kept" in said
    assert caplog.text.count("tried once more") == 1
    assert {p.name for p in (small_disk / "c").iterdir()} == {"10"}
    with opened(small_disk / "c") as checkpoints:
        assert bits(checkpoints.restore(abstract(big(0)))) == bits(big(10))


def test_d1_room_that_comes_back_is_used_by_the_next_step(small_disk):
    with opened(small_disk / "c") as checkpoints:
        checkpoints.save(10, big(10), wait=True)
        filler = fill(small_disk, 2_000_000)
        checkpoints.save(20, big(20))
        end = time.monotonic() + 30
        while not checkpoints.failed():
            assert time.monotonic() < end
        assert {p.name for p in (small_disk / "c").iterdir()} == {"10"}
        filler.unlink()
        checkpoints.save(21, big(21))
        assert not checkpoints.failed()  # it is on its way
        checkpoints.save(21, big(21), wait=True)
        assert not checkpoints.failed()
        assert checkpoints.steps() == [10, 21]
        assert bits(checkpoints.restore(abstract(big(0)))) == bits(big(21))


def test_d1_a_run_that_the_disk_cannot_hold_does_not_begin(small_disk):
    with opened(small_disk / "c", keep=2) as checkpoints:
        with pytest.raises(DiskFullError) as caught:
            checkpoints.require_room(abstract(big(0)))
        assert "needed for 3 checkpoints of 5.1 MB" in str(caught.value)
        checkpoints.save(10, big(10), wait=True)
        with pytest.raises(DiskFullError):
            checkpoints.require_room(abstract(big(0)), milestones=1)
        small = {"x": jax.ShapeDtypeStruct((10,), jnp.float32)}
        checkpoints.require_room(small)


@pytest.mark.parametrize("point", ["before_save", "in_save"])
def test_d1_one_refusal_is_got_over(tmp_path, arm, point, caplog):
    arm(f"{point}:20=enospc:1")
    with opened(tmp_path / "c") as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), wait=True)
        assert checkpoints.steps() == [10, 20]
    assert "tried once more" in caplog.text


def test_d2_a_disk_that_fails_otherwise_is_73(tmp_path, arm):
    arm("before_save=eio:9")
    with pytest.raises(OutputError) as caught, opened(tmp_path / "c") as checkpoints:
        checkpoints.save(10, state_of(10), wait=True)
    assert caught.value.code == 73 and "Input/output error" in str(caught.value)


@contextlib.contextmanager
def longest_file(size: int):
    """This process may write no longer file for a while; no root is needed for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_d1_what_the_system_refuses_in_the_words_of_tensorstore(tmp_path, caplog):
    with pytest.raises(DiskFullError) as caught, opened(tmp_path / "c") as checkpoints:
        checkpoints.save(10, big(10), wait=True)
        with longest_file(1_000_000):
            checkpoints.save(20, big(20), wait=True)
    assert "step 20 does not fit" in str(caught.value)
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"10"}


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE])
def test_d2_an_error_of_the_disk_in_the_words_of_tensorstore(number):
    words = f"DATA_LOSS: Failed to write 9 bytes to file 4 [os_error_code='{number}']"
    about = room.of_the_disk(ValueError(words))
    assert about is not None and about.errno == number and not room.is_full(about)
    assert room.told(about, 3, Path("c"), 9, "none is stored").code == 73
    assert room.of_the_disk(ValueError("no such leaf")) is None


def test_d3_rows_that_the_disk_refuses_come_later(tmp_path, arm, caplog):
    arm("metrics=enospc:5")
    with metrics.Writer(tmp_path) as writer:
        for step in range(1, 9):
            writer.write(step, 0.0, {"train/loss": step})
            if step == 4:
                assert metrics.read_rows(tmp_path) == []
    assert [row["step"] for row in metrics.read_rows(tmp_path)] == list(range(1, 9))
    assert caplog.text.count("cannot be written (No space left on device)") == 1


def test_d3_rows_half_written_go_again_whole(small_disk, caplog):
    with metrics.Writer(small_disk) as writer:
        writer.write(1, 0.0, {"a": 1.0})
        filler = fill(small_disk, 0)
        # What is left of the page of the file takes a part of the rows.
        for step in range(2, 200):
            writer.write(step, 0.0, {"train/loss": 1 / 3, "train/alignment": 1 / 7})
        assert len(metrics.read_rows(small_disk)) < 199
        filler.unlink()
        writer.flush()
        assert [r["step"] for r in metrics.read_rows(small_disk)] == list(range(1, 200))
    assert caplog.text.count("training goes on") == 1


# --- Kills --------------------------------------------------------------------------


def image_of(directory: Path, target: Path) -> Path:
    """What a kill at this moment would leave: a copy while saves go on."""
    target.mkdir(parents=True)
    for folder, folders, names in os.walk(directory):
        here = target / Path(folder).relative_to(directory)
        for name in folders:
            (here / name).mkdir(parents=True, exist_ok=True)
        for name in names:
            # Renamed or removed meanwhile: a kill would have met it before or after.
            with contextlib.suppress(OSError):
                shutil.copyfile(Path(folder, name), here / name)
    return target


def test_k3_what_kills_left_in_the_middle_of_saves_is_removed(copied, caplog):
    for step in (30, 40):
        shutil.copytree(copied / "20", copied / f"{step}.orbax-checkpoint-tmp")
    shutil.copytree(copied / "10", copied / "5.deleting")
    with opened(copied) as checkpoints:
        assert checkpoints.steps() == [10, 20]
    assert {p.name for p in copied.iterdir()} == {"10", "20"}
    for step in (30, 40):
        assert f"removed {copied / str(step)}.orbax-checkpoint-tmp" in caplog.text


def test_k4_a_kill_while_the_oldest_are_deleted_leaves_no_half(tmp_path, arm):
    """The name goes first; `raise` leaves the directory as a kill would."""
    arm("delete:10=raise")
    with (
        pytest.raises(Exception, match="raise at delete"),
        opened(tmp_path, keep=2) as checkpoints,
    ):
        for step in (10, 20, 30):
            checkpoints.save(step, state_of(step), wait=True)
    assert {p.name for p in tmp_path.iterdir()} == {"10.deleting", "20", "30"}
    with opened(tmp_path, keep=2) as checkpoints:
        assert bits(checkpoints.restore(abstract(state_of(0)))) == bits(state_of(30))
    assert {p.name for p in tmp_path.iterdir()} == {"20", "30"}


def test_k3_sessions_that_end_after_one_save_each_do_not_pile_up(tmp_path, arm):
    for step in range(10, 60, 10):
        arm(f"after_commit:{step}=raise")
        with (
            pytest.raises(Exception, match="raise at after_commit"),
            opened(tmp_path, keep=2) as checkpoints,
        ):
            checkpoints.save(step, state_of(step), wait=True)
        assert len(list(tmp_path.iterdir())) <= 3
    assert {p.name for p in tmp_path.iterdir()} == {"30", "40", "50"}


def test_k4_two_are_there_whenever_a_third_is_written(tmp_path):
    with opened(tmp_path, keep=2) as checkpoints:
        for step in range(10, 60, 10):
            checkpoints.save(step, state_of(step))
            stored = [
                s
                for s in checkpoints.steps()
                if not manifest.problem(tmp_path / str(s))
            ]
            assert len(stored) >= min(2, step // 10 - 1)


# --- A random life ------------------------------------------------------------------

EVENTS = {"step": 8, "save": 6, "kill": 2, "corrupt": 1, "restart": 1, "devices": 1}


class Life:
    """A run's checkpoints through random events, and the model of what must hold.

    Attributes:
      safe: the steps that were saved to the end, are within the newest two, and were
        not damaged since.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.rng, self.root, self.images = random.Random(seed), root, 0
        self.devices, self.lost = 1, 0
        self._begin(root / "0")

    def _begin(self, directory: Path) -> None:
        self.directory, self.step = directory, 0
        self.safe: set[int] = set()
        self.damaged: set[int] = set()
        self.saving: int | None = None
        self.checkpoints = opened(directory, keep=2)

    def live(self, event: str) -> None:
        """One event."""
        getattr(self, f"_{event}")()

    def _step(self) -> None:
        self.step += 1

    def _save(self) -> None:
        wait = self.rng.random() < 0.3
        self.checkpoints.save(
            self.step, placed(state_of(self.step), self.devices), wait=wait
        )
        self._committed(self.saving)
        self.saving = None if wait else self.step
        if wait:
            self._committed(self.step)

    def _committed(self, step: int | None) -> None:
        if step is not None and step not in self.damaged:
            self.safe.add(step)
        self.safe &= set(sorted(self.checkpoints.steps())[-2:])

    def _corrupt(self) -> None:
        stored = [s for s in self.checkpoints.steps() if s != self.saving]
        if not stored:
            return
        step = self.rng.choice(stored)
        path = self.rng.choice(
            [
                p
                for p in files_of(self.directory / str(step))
                if p.name not in manifest.HARMLESS and p.stat().st_size
            ]
        )
        flip_bit_of(
            path, self.rng.randrange(path.stat().st_size), self.rng.randrange(8)
        )
        self.safe.discard(step)
        self.damaged.add(step)

    def _kill(self) -> None:
        self.images += 1
        image = image_of(self.directory, self.root / str(self.images))
        self.checkpoints.__exit__(None, None)
        shutil.rmtree(self.directory)
        self.directory = image
        self._go_on()

    def _restart(self) -> None:
        self.checkpoints.__exit__(None, None)
        if self.saving is not None:
            self._committed(self.saving)
        self._go_on()

    def _devices(self) -> None:
        self.devices = self.rng.choice([1, 2, 8])
        self._restart()

    def _go_on(self) -> None:
        """Restores, and holds what comes back against the model."""
        self.saving = None
        self.checkpoints = opened(self.directory, keep=2)
        self.safe &= set(self.checkpoints.steps())
        try:
            state = self.checkpoints.restore(
                abstract(placed(state_of(0), self.devices))
            )
        except CorruptInputError:
            assert not self.safe and self.damaged
            self.lost += 1
            self.images += 1
            self._begin(self.root / str(self.images))
            return
        if state is None:
            assert not self.safe
            self.step = 0
            return
        step = int(state.step)
        assert step not in self.damaged
        assert step >= max(self.safe, default=0)
        assert bits(state) == bits(state_of(step))
        self.step, self.safe = step, self.safe | {step}
        self.damaged = {s for s in self.damaged if s < step}


def test_p1_a_random_life_never_loses_a_verified_checkpoint(tmp_path):
    seed = int(os.environ.get("SFRIK_TEST_SEED", "20261123"))
    life, lived = Life(tmp_path, seed), Counter()
    for event in life.rng.choices(list(EVENTS), list(EVENTS.values()), k=200):
        life.live(event)
        lived[event] += 1
    life.live("restart")
    life.checkpoints.__exit__(None, None)
    assert min(lived[event] for event in EVENTS) >= 3, (seed, lived)
