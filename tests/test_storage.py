"""Run directories and data on file systems that do less than a local disk."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_pretrain import ROOT, SMALL, finish, logged, start

from sfrik_jax import config as configs
from sfrik_jax import locks, metrics
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError, OutputError
from sfrik_jax.locks import Claim, Lock

SHM = Path("/dev/shm")
WORDS = ("the run", "wait for it")


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, whose claims are quick."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "STALE", 0.5)
    monkeypatch.setattr(locks, "SETTLE", 0.05)


def test_where_there_are_no_locks_a_claim_keeps_others_out(tmp_path, no_locks):
    path = tmp_path / "lock"
    with Lock(path, *WORDS):
        held = f"the run is locked by {os.uname().nodename} pid {os.getpid()} since 2"
        with pytest.raises(OutputError, match=held):
            Lock(path, *WORDS)
    assert not (tmp_path / "lock.claim").exists()
    Lock(path, *WORDS).close()


def test_d4_a_claim_without_a_sign_of_life_is_taken_over(tmp_path, no_locks):
    path = tmp_path / "claim"
    path.write_text("gone pid 1 since 2026-01-01 00:00:00 0123456789abcdef 7\n")
    new = Claim(path, *WORDS)
    with pytest.raises(OutputError, match="is locked by"):
        Claim(path, *WORDS)
    # One that was taken for dead leaves the new claim alone.
    path.write_text("other pid 2 since 2026-01-02 00:00:00 fedcba9876543210 0\n")
    new.close()
    assert path.read_text().startswith("other pid 2")


def test_a_claim_is_never_seen_empty(tmp_path, no_locks, monkeypatch):
    """An empty file would be taken for none, and a second run would begin."""
    monkeypatch.setattr(locks, "BEAT", 0.001)
    path = tmp_path / "claim"
    claim = Claim(path, *WORDS)
    texts = {path.read_text()[:20] for _ in range(3000)}
    claim.close()
    assert len(texts) == 1 and texts != {""}


def test_of_several_that_claim_at_once_one_gets_it(tmp_path, no_locks):
    def attempt(_):
        try:
            return Claim(tmp_path / "claim", *WORDS)
        except OutputError:
            return None

    with ThreadPoolExecutor(8) as pool:
        held = [claim for claim in pool.map(attempt, range(8)) if claim is not None]
    assert len(held) == 1
    held[0].close()


def test_another_refusal_of_the_file_system_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        Lock(tmp_path / "lock", *WORDS)
    assert not (tmp_path / "lock.claim").exists()


def test_a_run_and_its_data_live_on_another_file_system(data_dir, monkeypatch):
    if (
        not SHM.is_dir()
        or SHM.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev
    ):
        pytest.skip("/dev/shm is no file system of its own here")
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        data, run = Path(folder, "data"), Path(folder, "runs", "run")
        shutil.copytree(data_dir, data)
        words = ["pretrain", "--config", str(ROOT / "configs" / "quickstart.py")]
        words += ["--workdir", str(run)]
        words += [f"--config.{each}" for each in (*SMALL, f"data.path={data}")]
        words += ["--config.mesh.data=1", "--config.optim.epochs=1"]
        assert main(words) == 0
        rows = metrics.read_rows(run)
        assert [r["step"] for r in rows if "train/loss" in r] == [1, 2, 3, 4]
        assert json.loads((run / "summary.json").read_text())["steps"] == 4
        assert (run / "backbone.safetensors").exists()
        # Another name of the place, as where it is mounted elsewhere, is the same run.
        link = Path(folder, "mounted")
        link.symlink_to(run.parent)
        words[words.index(str(run))] = str(link / "run")
        sessions = (run / "run.json").read_text()
        assert main(words) == 0
        assert (run / "run.json").read_text() == sessions


@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://me:secret@host/run"])
def test_a_bucket_is_refused_before_anything_is_made(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs" / "quickstart.py")
    assert main(["pretrain", "--config", config, "--workdir", place]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --workdir is an address ({place[:5]}…)")
    assert said.count("\n") == 1
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        ConfigError, match=r"data\.path (is|holds .* in) an address"
    ) as no:
        configs.validate(configs.load(config, [f"data.path={place}"]))
    assert "secret" not in str(no.value)


# The command without root's right to write everywhere, which a process that root starts
# has for as long as it is in the bounding set (PR_CAPBSET_DROP of prctl).
OBEDIENT = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "sfrik_jax", *sys.argv[1:]])
"""


@contextlib.contextmanager
def read_only_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs mounted read-only; who may not mount gets /proc, which takes no file."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        yield Path("/proc/self")
        return
    try:
        assert os.statvfs(folder).f_flag & os.ST_RDONLY
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused_at_once(
    workdir: Path, words: str, program: tuple[str, ...] = ("-m", "sfrik_jax")
) -> None:
    """The real command ends with 73 and one line in less than five seconds."""
    config = str(ROOT / "configs" / "quickstart.py")
    command = ["pretrain", "--config", config, "--workdir", str(workdir)]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *program, *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = time.monotonic() - begin
    assert (done.returncode, done.stdout) == (73, "")
    assert done.stderr.startswith(f"error: --workdir {workdir}")
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert seconds < 5


def test_d2_a_read_only_disk_is_told_at_once(tmp_path):
    with read_only_disk(tmp_path / "disk") as disk:
        refused_at_once(disk / "runs" / "run", "no permission to write")


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_d2_a_directory_without_permission_is_told_at_once(tmp_path, mode):
    """By permissions alone: root gives up its right to pass over them."""
    folder = tmp_path / "runs"
    folder.mkdir(mode=mode)
    try:
        refused_at_once(folder / "run", "no permission", ("-c", OBEDIENT))
    finally:
        folder.chmod(0o700)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "runs/run"])
def test_d2_a_file_in_the_way_is_told_at_once(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("precious")
    refused_at_once(file / below, "is a file; name")
    assert file.read_text() == "precious"


def test_d2_a_link_to_nowhere_is_told_at_once(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    refused_at_once(link / "run", "is a link to nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("other", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_d2_a_directory_that_is_removed_while_the_run_writes_ends_it(
    tmp_path, data_dir, other
):
    """Deleted, or with another one in its place, as of a disk that is mounted anew."""
    run = tmp_path / "run"
    own = [*SMALL, f"data.path={data_dir}", "optim.epochs=2000", "mesh.data=1"]
    process = start(run, own)
    while process.poll() is None and not logged(run, "train/loss"):
        time.sleep(0.02)
    run.rename(tmp_path / "gone")
    if other:
        run.mkdir()
    said = finish(process, code=73)
    assert f"error: --workdir {run} was removed while the run wrote there" in said
    # What Orbax was writing meanwhile may be there, and nothing to go on from.
    assert not (run / "config.json").exists()
    assert (tmp_path / "gone" / "config.json").exists()
