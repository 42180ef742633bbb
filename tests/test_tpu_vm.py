"""launch/tpu_vm.sh: a stand-in for gcloud runs what it is given on two "hosts"."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ["--config", "c.py", "--workdir", "/shared/run"]

# Notes its words and does what they ask for in a folder for each host. A host whose
# folder has a file `drop` loses its connection: 255, as ssh ends then.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
words, hosts = sys.argv[1:], pathlib.Path(os.environ["HOSTS"])
with (hosts / "calls").open("a") as file:
    print(json.dumps(words), file=file)
assert words[:3] == ["compute", "tpus", "tpu-vm"]
option = dict(word.split("=", 1) for word in words if word.startswith("--"))
chosen = ["0", "1"] if option["--worker"] == "all" else [option["--worker"]]
homes = [hosts / each for each in chosen]
if words[3] == "scp":
    for home in homes:
        shutil.copy(words[4], home / words[5].removeprefix("slice:"))
    sys.exit()
running = [
    subprocess.Popen(
        option["--command"], shell=True, executable="/bin/bash", cwd=home,
        env=os.environ | {"HOME": str(home)}, start_new_session=True,
    )
    for home in homes
]
codes = []
for home, each in zip(homes, running):
    if "tpu_worker" in option["--command"] and (home / "drop").exists():
        (home / "drop").unlink()
        while not (home / "starts").exists():
            pass
        os.killpg(each.pid, 9)
        each.wait()
        codes.append(255)
    else:
        codes.append(each.wait())
sys.exit(next((code for code in codes if code), 0))
"""

# A Python that makes environments of itself; as the program it notes its words and ends
# as the first line of `plan` says, which it takes away.
PYTHON = """#!/bin/bash
case "$*" in
  -V) echo Python 3.11.0 ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip"*) echo "$*" >>"$HOME/installed" ;;
  "-m sfrik_jax"*)
    printf '%s\\0' "$@" >"$HOME/words"
    end=$(head -n 1 "$HOME/plan"); sed -i 1d "$HOME/plan"
    trap 'echo stopped >>"$HOME/said"; exit 75' USR1
    echo start >>"$HOME/starts"
    echo "output of $(basename "$HOME")"
    while [ "$end" = wait ] && [ ! -f "$HOME/go" ]; do sleep 0.02; done
    case $end in SIG*) kill -s "${end#SIG}" $$ ;; wait) exit 0 ;; esac
    exit "$end" ;;
esac
"""


class Slice:
    """Two hosts, and a repository with our launch scripts to start from."""

    def __init__(self, folder: Path) -> None:
        self.hosts, self.source = folder / "hosts", folder / "a source"
        self.programs = folder / "bin"
        for each in (self.hosts / "0", self.hosts / "1", self.programs):
            each.mkdir(parents=True)
        self._program("gcloud", f"#!{sys.executable}\n{GCLOUD}")
        self._program("python3", PYTHON)
        shutil.copytree(ROOT / "launch", self.source / "launch")
        (self.source / "requirements.txt").write_text("jax\n")
        (self.source / "not_sent").touch()
        self._git("init", "--quiet")
        self._git("add", "launch", "requirements.txt")
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        self._git(*who, "commit", "--quiet", "--message=all")
        self.revision = self._git("rev-parse", "HEAD")

    def plan(self, *ends: str, host: str) -> None:
        (self.hosts / host / "plan").write_text("\n".join(ends) + "\n")

    def start(self, *words: str) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if k != "ACCELERATOR"}
        environment |= {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOSTS": str(self.hosts),
            "PAUSE": "0.1",
            "PYTHON": "python3",
        }
        return subprocess.Popen(
            ["bash", str(self.source / "launch" / "tpu_vm.sh"), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> subprocess.CompletedProcess:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def starts(self) -> list[int]:
        return [len(self.said("starts", host).splitlines()) for host in "01"]

    def said(self, name: str, host: str) -> str:
        path = self.hosts / host / name
        return path.read_text() if path.exists() else ""

    def calls(self) -> list[list[str]]:
        path = self.hosts / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)[3:] for line in lines]

    def _program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def _git(self, *words: str) -> str:
        command = ["git", "-C", str(self.source), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture
def slice_(tmp_path):
    made = Slice(tmp_path)
    yield made
    for host in "01":  # what runs in the background ends, also where a test failed
        (made.hosts / host / "go").touch()


def test_all_hosts_get_the_code_and_the_words_as_they_are(slice_):
    words = [*WORDS, '--config.data.name=it\'s "$HOME"; rm -rf *', "--config.x=a\nb"]
    for host in "01":
        slice_.plan("0", host=host)
    result = slice_.run("slice", "--zone", "us-a", "--project", "p", "--", *words)
    assert result.returncode == 0, result.stderr
    assert "output of 0" in result.stdout
    for host in "01":
        given = slice_.said("words", host).split("\0")[:-1]
        assert given == ["-m", "sfrik_jax", "pretrain", *words]
        assert "jax[tpu]" in slice_.said("installed", host)
        sent = slice_.hosts / host / "sfrik" / slice_.revision
        assert (sent / "launch" / "tpu_vm.sh").exists()
        assert not (sent / "not_sent").exists()
    copy, setup, start = slice_.calls()
    assert copy[0] == "scp"
    assert copy[2:] == [
        "slice:sfrik.tar.gz",
        "--worker=all",
        "--zone=us-a",
        "--project=p",
    ]
    for call in (setup, start):
        assert call[:3] == ["ssh", "slice", "--worker=all"]
        assert call[4:] == ["--zone=us-a", "--project=p"]


def test_a_lost_host_is_a_restart_of_all(slice_):
    slice_.plan("76", "0", host="0")
    slice_.plan("SIGKILL", "0", host="1")
    result = slice_.run("slice", "--", *WORDS)
    assert result.returncode == 0, result.stderr
    assert slice_.starts() == [2, 2]
    assert "exit code 76, newest checkpoint at step 0: starting again" in result.stdout


@pytest.mark.parametrize(("code", "starts"), [("65", 1), ("76", 4)])
def test_what_no_restart_mends_ends_it(slice_, code, starts):
    for host in "01":
        slice_.plan(*[code] * 5, host=host)
    result = slice_.run("slice", "--", *WORDS)
    assert result.returncode == int(code)
    assert slice_.starts() == [starts, starts]
    assert ("3 restarts without a checkpoint" in result.stderr) == (code == "76")


def test_a_lost_connection_finds_the_program_again(slice_):
    for host in "01":
        slice_.plan("wait", host=host)
        (slice_.hosts / host / "drop").touch()
    process = slice_.start("slice", "--", *WORDS)
    while len(slice_.calls()) < 4:  # copy, set up, start, and start again
        time.sleep(0.02)
    for host in "01":
        (slice_.hosts / host / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert slice_.starts() == [1, 1]


def test_ctrl_c_stops_the_program_when_it_has_saved(slice_):
    for host in "01":
        slice_.plan("wait", host=host)
    process = slice_.start("slice", "--", *WORDS)
    while slice_.starts() != [1, 1]:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert [slice_.said("said", host) for host in "01"] == ["stopped\n"] * 2
    assert slice_.starts() == [1, 1]


def test_a_dry_run_prints_the_commands(slice_):
    result = slice_.run("slice", "--dry-run", "--", *WORDS)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert [shlex.split(line)[4] for line in lines] == ["scp", "ssh", "ssh"]
    command = shlex.split(lines[2])[7].removeprefix("--command=")
    assert shlex.split(command)[-4:] == WORDS
    assert slice_.calls() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", *WORDS], "the NAME of the slice is missing"),
        (["slice", *WORDS], "--config is no option"),
        (["slice", "--", "--config", "c.py"], "--workdir DIR is missing"),
        (["slice", "--zone"], "--zone needs a value"),
        (["slice", "--ref", "nothing", "--", *WORDS], "--ref nothing is no commit"),
    ],
)
def test_a_wrong_command_line_ends_with_2(slice_, words, message):
    result = slice_.run(*words)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
