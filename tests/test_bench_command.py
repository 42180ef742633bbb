"""Wrong command lines of the benches end in one line, before anything is measured."""

import importlib
import json
import sys

import pytest

from bench import command
from sfrik_jax.errors import CorruptInputError


def call(monkeypatch, capsys, bench, *words):
    """Exit code and stderr of a bench in this process."""
    monkeypatch.setattr(sys, "argv", [f"{bench}.py", *map(str, words)])
    # What else the benches leave in the environment goes with the test.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with pytest.raises(SystemExit) as ended:
        command.run(importlib.import_module(f"bench.{bench}").main)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("bench", "words"),
    [
        ("loss", "--q 0"),
        ("loss", "--q 8,x"),
        ("loss", "--rounds 0"),
        ("step", "--fed foo"),
        ("step", "--batch -8"),
        ("step", "--dtype float99"),
        ("step", "--seconds nan"),
        ("step", "--workers -1"),
        ("roofline", "--size 0"),
        ("roofline", "--dtype float99"),
        ("convolutions", "--images 0"),
        ("input", "--pictures 0"),
        ("knn", "--k 10,0"),
        ("heads", "--heads two"),
        ("memory", "--q 0"),
        ("comm", "--devices 0"),
    ],
)
def test_a_wrong_value_is_one_line(monkeypatch, capsys, bench, words):
    code, line = call(monkeypatch, capsys, bench, *words.split())
    option, value = words.split()
    assert (code, line.count("\n")) == (2, 1)
    assert line.startswith(f"error: argument {option}: ")
    assert value.split(",")[-1] in line


@pytest.mark.parametrize("option", ["--json", "--profile"])
def test_an_output_that_cannot_be_is_told_at_once(
    monkeypatch, capsys, tmp_path, option
):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.json"
    code, line = call(monkeypatch, capsys, "step", option, path)
    assert (code, line.count("\n")) == (73, 1)
    assert f"{tmp_path / 'file'} is a file" in line
    wrong = {"--json": tmp_path, "--profile": tmp_path / "file"}[option]
    code, line = call(monkeypatch, capsys, "step", option, wrong)
    assert (code, line.count("\n")) == (73, 1)


def test_folders_of_an_output_are_made(tmp_path):
    path = tmp_path / "no" / "such" / "x.json"
    assert command.json_file(str(path)) == path
    command.write_json(path, [{"arm": "ours"}])
    assert json.loads(path.read_text()) == [{"arm": "ours"}]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CorruptInputError("two\nlines"), 65, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_end_with_their_code_and_a_line(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        command.run(main)
    assert (ended.value.code, capsys.readouterr().err) == (code, line)
