"""Passwords and tokens never reach a file of a run, a log or a message (X5)."""

import json
import logging
import os
import subprocess
import sys

import pytest
from test_pretrain import ROOT, SMALL

from sfrik_jax import redaction
from sfrik_jax.__main__ import main

PASSWORD = "correct-horse"
ADDRESS = f"https://someone:{PASSWORD}@example.org/set?x=1"
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "AWS_SECRET_ACCESS_KEY": 'quotes"and\\slashes/in+it',
}
ENVIRONMENT = SECRETS | {"HTTPS_PROXY": f"http://me:{PASSWORD}@proxy.example.org:3128"}
WORDS = (*SECRETS.values(), PASSWORD)

# A configuration with an argument, which is part of the command line.
CONFIG = f"""
import os
import runpy

def get_config(address):
    assert {PASSWORD!r} in address and os.environ["HF_TOKEN"]
    if address.endswith("/fail"):
        raise Odd(f"no access to {{address}} with {{os.environ['HF_TOKEN']}}")
    return runpy.run_path({str(ROOT / "configs" / "quickstart.py")!r})["get_config"]()

class Odd(Exception):
    pass
"""


def forms(word: str) -> list[bytes]:
    """As it is, as JSON writes it and as Python does."""
    return [word.encode(), json.dumps(word)[1:-1].encode(), repr(word)[1:-1].encode()]


def holds_none(content: bytes, where: object) -> None:
    for word in WORDS:
        assert not any(form in content for form in forms(word)), (where, word[:4])


def run(words: list[str], **more: str) -> tuple[int, str]:
    """The real command with secrets about: exit code, and all that it prints."""
    cache = os.environ.get("SFRIK_TEST_CACHE", str(ROOT / ".cache"))
    environment = {
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
        "JAX_PLATFORMS": "cpu",
        **ENVIRONMENT,
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-m", "sfrik_jax", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    holds_none(said.encode(), "what it prints")
    return done.returncode, said


def test_x5_no_secret_is_in_anything_that_a_run_leaves(tmp_path, data_dir):
    """A run that crashes, goes on, and is exported: each file of it is searched."""
    config = tmp_path / "with_argument.py"
    config.write_text(CONFIG)
    workdir = tmp_path / "run"
    words = ["pretrain", "--config", f"{config}:{ADDRESS}", "--workdir", str(workdir)]
    small = [*SMALL, f"data.path={data_dir}", "mesh.data=1"]
    words += [f"--config.{override}" for override in small]
    faults = {"SFRIK_TESTING": "1", "SFRIK_FAULTS": "step:6=raise"}
    code, said = run(words, **faults)
    assert code == 1 and "InjectedError" in said
    code, said = run(words)
    assert code == 0, said
    code, said = run(["report", str(workdir)])
    assert code == 0, said
    files = [path for path in workdir.rglob("*") if path.is_file()]
    for path in files:
        holds_none(path.read_bytes(), path)
    names = {path.name for path in files}
    assert {"config.json", "run.json", "metrics.jsonl", "report.html"} <= names
    assert any("checkpoints" in path.parts for path in files)
    # The address itself was stored, so that there was something to hide.
    command = json.loads((workdir / "run.json").read_text())["sessions"][0]["command"]
    assert f"{config}:https://***@example.org/set?x=1" in command


def test_x5_a_traceback_hides_what_a_library_quotes(tmp_path):
    config = tmp_path / "with_argument.py"
    config.write_text(CONFIG)
    code, said = run(["config", "show", "--config", f"{config}:{ADDRESS}/fail"])
    assert code == 1
    assert "Odd: no access to https://***@example.org/set?x=1/fail with ***" in said


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "--config", ADDRESS],
        ["pretrain", "--config", f"configs/quickstart.py:{ADDRESS}"],
        ["pretrain", "--config", "configs/quickstart.py", "--workdir", ADDRESS],
        ["pretrain", "--config", "configs/quickstart.py", "--confog", ADDRESS],
        ["data", "check", "--folder", ADDRESS],
        ["import", ADDRESS, "--out", "x.safetensors"],
        ["import", "x.pth", "--out", f"x/{ADDRESS}/x.safetensors"],
        ["export", ADDRESS, "--out", "x"],
        ["report", ADDRESS],
        ["config", "diff", ADDRESS, "configs/quickstart.py"],
        [SECRETS["HF_TOKEN"]],
    ],
)
def test_x5_an_error_hides_what_was_typed(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert main(words) != 0
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    holds_none((out + err).encode(), words)


@pytest.mark.parametrize("key", ["init_from", "data.path", "data.train_split"])
@pytest.mark.parametrize("value", [ADDRESS, SECRETS["HF_TOKEN"]])
def test_x5_a_setting_that_holds_a_secret_is_refused(
    tmp_path, monkeypatch, capsys, key, value
):
    """It would be stored in config.json, which has to be read back as it is."""
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    config = str(ROOT / "configs" / "quickstart.py")
    words = ["pretrain", "--config", config, "--workdir", str(tmp_path / "run")]
    assert main([*words, f"--config.{key}={value}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {key} holds a password or a token")
    holds_none((out + err).encode(), key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("https:/u:p@h/x", "https:/***@h/x"),  # as a path writes it
        ("s3+https://token@h", "s3+https://***@h"),
        ("ssh://u:p@h, ftp://v:q@i", "ssh://***@h, ftp://***@i"),
        ("http://u:p@ss@h", "http://***@h"),
        ("https://h/x@y", "https://h/x@y"),
        ('{"a": "https://h", "b": "me@h"}', '{"a": "https://h", "b": "me@h"}'),
        ("C:/me@h train[:64] --a=b", "C:/me@h train[:64] --a=b"),
    ],
)
def test_x5_addresses_lose_their_passwords_alone(text, want):
    assert redaction.redact(text) == want


def test_x5_variables_are_secret_by_their_name_and_not_if_they_name_a_file(
    monkeypatch,
):
    for name, value in (
        ("MY_API_KEY", "secret-one"),
        ("my_password", "secret-one-and-more"),
        ("SHORT_TOKEN", "none"),
        ("SOME_TOKEN", "/run/secrets/token"),
        ("KEYBOARD", "layout-one"),
    ):
        monkeypatch.setenv(name, value)
    text = "secret-one-and-more secret-one none /run/secrets/token layout-one"
    assert redaction.redact(text) == "*** *** none /run/secrets/token layout-one"


def test_x5_a_warning_is_redacted_too(caplog):
    redaction.install()
    redaction.install()
    logger = logging.getLogger("sfrik")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING, logger="sfrik"):
        logger.warning("cannot reach %s", ADDRESS)
    assert caplog.messages == ["cannot reach https://***@example.org/set?x=1"]
