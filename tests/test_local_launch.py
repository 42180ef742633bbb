"""launch/local.sh's supervisor, with small programs in place of training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfrik_jax.processes import local

ROOT = Path(__file__).parents[1]

# What a process does: argv[1] is a folder, argv[2:] the code of each round, or "stop".
# It says what it was told, and makes the checkpoint of a round whose word has a +.
PROGRAM = """
import os, pathlib, signal, sys, time
folder, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
index = os.environ["SFRIK_PROCESS_INDEX"]
place = [os.environ[f"SFRIK_{name}"] for name in ("COORDINATOR", "PROCESS_COUNT")]
rounds = folder / f"rounds{index}"
with rounds.open("a") as file:
    file.write(" ".join([*place, os.environ["JAX_NUM_CPU_DEVICES"]]) + "\\n")
number = len(rounds.read_text().splitlines())
word = words[min(number, len(words)) - 1]
if word.startswith("+"):
    (folder / "checkpoints" / str(number)).mkdir(parents=True, exist_ok=True)
    word = word[1:]
if word == "stop":
    def stop(received, frame):
        print("got", signal.Signals(received).name, flush=True)
        sys.exit(75)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(each, stop)
    (folder / f"ready{index}").touch()
    time.sleep(60)
if word == "kill" and index == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "kill":
    time.sleep(0.3)
    sys.exit(76)
print("end of", index, flush=True)
sys.exit(int(word))
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Supervises two processes that end as the words say, round by round."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(local, "PROGRAM", (sys.executable, str(program)))
    before = {number: signal.getsignal(number) for number in local.SIGNALS}

    def run(*words: str, restarts: int = 3) -> tuple[int, int]:
        code = local.supervise(2, 4, restarts, [str(tmp_path), *words], tmp_path)
        return code, len((tmp_path / "rounds0").read_text().splitlines())

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_job_that_ends_well_runs_once(launch, tmp_path, capfd):
    assert launch("0") == (0, 1)
    first, second = ((tmp_path / f"rounds{i}").read_text().split() for i in range(2))
    assert first == second
    host, _, port = first[0].partition(":")
    assert host == "127.0.0.1" and port.isdecimal()
    assert first[1:] == ["2", "4"]
    said = capfd.readouterr()
    assert said.out == "end of 0\n"
    assert said.err == "[1] end of 1\n"


@pytest.mark.parametrize("code", ["2", "65", "73", "78", "1"])
def test_errors_that_a_restart_does_not_mend_end_it(launch, code):
    assert launch(code) == (int(code), 1)


def test_a_killed_process_and_a_preempted_job_start_again(launch, capfd):
    assert launch("kill", "75", "0") == (0, 3)
    said = capfd.readouterr().err
    assert "process 1 ended by SIGKILL" in said
    assert "code 76 at the checkpoint of step 0; restart 1" in said


def test_three_restarts_without_a_newer_checkpoint_are_enough(launch, capfd):
    assert launch("76") == (76, 4)
    assert "no newer checkpoint after 3 restarts" in capfd.readouterr().err


def test_a_newer_checkpoint_counts_anew(launch):
    assert launch("+76", "76", "+76", "76", "0", restarts=2) == (0, 5)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], 0),
        ([-9, 76], 76),
        ([-9, -6], 137),
        ([76, 65], 65),
        ([75, 75], 75),
        ([0, 3], 3),
    ],
)
def test_the_code_of_a_job_is_that_of_its_cause(codes, expected):
    assert local.job_code(codes) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_all_and_nothing_starts_again(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    code = (
        "import sys; from pathlib import Path; from sfrik_jax.processes import local\n"
        f"local.PROGRAM = (sys.executable, {str(program)!r})\n"
        f"folder = {str(tmp_path)!r}\n"
        "sys.exit(local.supervise(2, 1, 3, [folder, 'stop'], Path(folder)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"ready{i}").exists() for i in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert f"got {number.name}" in out
    assert f"[1] got {number.name}" in err
    assert len((tmp_path / "rounds0").read_text().splitlines()) == 1


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_hangup_that_is_ignored_stays_so(launch, handler):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert launch("0") == (0, 1)
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert ignored == (handler == signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_script_hands_its_words_to_the_supervisor(tmp_path):
    """In a copy of the tree with an interpreter in place of an installation."""
    tree = tmp_path / "tree"
    (tree / "launch").mkdir(parents=True)
    for name in ("local.sh", "environment.sh"):
        (tree / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    (tree / "requirements.txt").write_text("")
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -V ] && exec python3 -V\necho "ran $*"\n')
    python.chmod(0o755)
    wanted = subprocess.run(
        ["bash", "-c", "python3 -V; echo jax; cat requirements*.txt"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (tree / ".venv" / "installed-requirements.txt").write_text(wanted)
    said = subprocess.run(
        ["bash", str(tree / "launch" / "local.sh"), "2", "--devices", "2", "--", "x"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHON": "python3"},
    ).stdout
    assert said == "ran -m sfrik_jax.processes.local 2 --devices 2 -- x\n"


def test_the_command_line_names_the_run_directory(monkeypatch):
    seen = []
    monkeypatch.setattr(local, "supervise", lambda *words: seen.append(words) or 0)
    command = ["pretrain", "--config", "configs/quickstart.py"]
    assert local.main(["2", "--devices", "3", "--", *command]) == 0
    assert local.main(["4", "--", *command, "--workdir", "elsewhere"]) == 0
    assert seen == [
        (2, 3, 3, command, Path("runs/quickstart")),
        (4, 1, 3, [*command, "--workdir", "elsewhere"], Path("elsewhere")),
    ]
