"""Run directories and data on file systems that do less than a local disk."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_pretrain import ROOT, SMALL

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


def test_a_claim_without_a_sign_of_life_is_taken_over(tmp_path, no_locks):
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
    with pytest.raises(ConfigError, match=r"data\.path is an address"):
        configs.validate(configs.load(config, [f"data.path={place}"]))
