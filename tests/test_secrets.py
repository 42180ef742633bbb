"""Passwords and tokens never reach a file of a run, a log or a message (X5)."""

import json
import logging
import os
import subprocess
import sys

import pytest
from test_pretrain import ROOT, SMALL

from sfrik_jax import config as configs
from sfrik_jax import redaction
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError, CorruptInputError
from sfrik_jax.rundir import RunDirectory

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
    held = "in an address" if value == ADDRESS else "the value of the variable HF_TOKEN"
    assert err.startswith(f"error: {key} holds ") and f"{held}, which would" in err
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
        ("https://me:pa/ss@h/x", "https://***@h/x"),
        ("https://me:12@h", "https://***@h"),
        ("https://h:8080/x@y", "https://h:8080/x@y"),
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
        ("SOME_TOKEN", __file__),
        ("KEYBOARD", "layout-one"),
    ):
        monkeypatch.setenv(name, value)
    text = f"secret-one-and-more secret-one none {__file__} layout-one"
    assert redaction.redact(text) == f"*** *** none {__file__} layout-one"


def test_x5_a_secret_may_begin_as_a_path_end_with_a_line_and_have_several(
    monkeypatch,
):
    key = "-----BEGIN KEY-----\nAbCd/EfGh+\n-----END KEY-----"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEf\n")
    monkeypatch.setenv("MY_PRIVATE_KEY", f"{key}\n")
    monkeypatch.setenv("ODD_SECRET", "both'and\"of\\them")
    assert redaction.redact("/bPxRfiCYEXAMPLEKEY hf_AbCdEf.") == "*** ***."
    assert redaction.redact(f"a {key} b {json.dumps(key)}") == 'a *** b "***"'
    odd = os.environ["ODD_SECRET"]
    assert redaction.redact(f"{odd} {json.dumps(odd)} {odd!r}") == "*** \"***\" '***'"


def test_x5_an_error_with_a_key_of_several_lines_is_redacted(monkeypatch, capsys):
    monkeypatch.setenv("MY_PRIVATE_KEY", "first line\nsecond line\n")
    assert main(["report", "no/first line\nsecond line"]) == 66
    assert "line" not in capsys.readouterr().err


def test_x5_plain_words_and_short_values_are_no_secrets(monkeypatch):
    values = {"DB_PASSWORD": "imagenet", "A_TOKEN": "Config", "B_TOKEN": "ab1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert redaction.redact("imagenet2012 Config ab1") == "imagenet2012 Config ab1"
    own = [f"data.path={ROOT}", "data.name=imagenet2012"]
    config = configs.load(str(ROOT / "configs" / "quickstart.py"), own)
    configs.validate(config)
    monkeypatch.setenv("DB_PASSWORD", "imagenet2")
    with pytest.raises(ConfigError, match=r"data\.name holds .* variable DB_PASSWORD,"):
        configs.validate(config)


def test_x5_only_texts_of_a_stored_file_are_redacted(tmp_path, monkeypatch):
    """Keys and numbers stay, so that the file is read back."""
    monkeypatch.setenv("DB_PASSWORD", "123456")
    config = configs.default()
    with RunDirectory(tmp_path, config) as run:
        about = {"index": [1, 1234567], "123456": {"a": "x 123456"}, "b": ("123456",)}
        run.write_json("some.json", about)
        stored = run.read_json("some.json")
    want = {"index": [1, 1234567], "123456": {"a": "x ***"}, "b": ["***"]}
    assert stored == want


@pytest.mark.parametrize("content", ["", '{"data_fingerprint": "ab', "[1]", "\xff"])
def test_a_damaged_note_of_a_run_is_refused_and_of_others_begins_anew(
    tmp_path, content
):
    for name in ("run.json", "summary.json"):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with RunDirectory(tmp_path, configs.default()) as run:
        with pytest.raises(CorruptInputError, match=r"run\.json is damaged .* delete"):
            run.agree_on_data("0" * 64)
        assert run.read_json("summary.json") == {}
        assert (tmp_path / "run.json").read_bytes() == content.encode("latin-1")
        (tmp_path / "run.json").unlink()
        run.agree_on_data("0" * 64)


def test_x5_a_warning_is_redacted_too(caplog):
    redaction.install()
    redaction.install()
    logger = logging.getLogger("sfrik")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING, logger="sfrik"):
        logger.warning("cannot reach %s", ADDRESS)
    assert caplog.messages == ["cannot reach https://***@example.org/set?x=1"]
