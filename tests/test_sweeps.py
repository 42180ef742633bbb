"""F3: many runs; one that fails leaves the others alone, and is tried again."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_many_processes import environment
from test_pretrain import ROOT, SMALL

from sfrik_jax import config as configs
from sfrik_jax import grids, sweeps
from sfrik_jax.__main__ import main
from sfrik_jax.errors import ConfigError, DiskFullError, OutputError, Preempted
from sfrik_jax.locks import Lock
from sfrik_jax.sweeps import board, running

QUICKSTART = str(ROOT / "configs" / "quickstart.py")
GRIDS = ["loss.weights=(1,),(1,40)", "model.embed_dim=64,128,256"]
NAMES = [f"weights-{w}_embed_dim-{q}" for w in ("1", "1-40") for q in (64, 128, 256)]

# In place of a training: notes that it ran, and ends as DIR/../codes.json has it.
STAND_IN = """
import json, os, pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
from sfrik_jax import config as configs
words = sys.argv[1:]
run = pathlib.Path(words[words.index("--workdir") + 1])
spec = words[words.index("--config") + 1]
texts = [w.removeprefix("--config.") for w in words if w.startswith("--config.")]
code = json.loads((run.parent / "codes.json").read_text()).get(run.name, 0)
with (run.parent / "ran.txt").open("a") as file:
    file.write(run.name + "\\n")
print("ran", run.name)
end = run.parent / "end.json"
latest = time.monotonic() + 120
while code == "waits" and time.monotonic() < latest:
    time.sleep(0.05)
    code = json.loads(end.read_text()) if end.exists() else code
    if code == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    code = 75 if stopped else code
    if stopped:
        print("saved")
if code == 0:
    (run / "config.json").write_text(configs.to_json(configs.load(spec, texts)))
    (run / "summary.json").write_text("{}")
sys.exit(code)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The directory of a sweep, with the stand-in beside it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def plan(texts=GRIDS, common=()) -> sweeps.Sweep:
    points = grids.product(map(grids.parse_grid, texts))
    return sweeps.Sweep(QUICKSTART, list(common), grids.named(points))


def carry_out(place: Path, codes: dict, **settings) -> dict[str, str]:
    (place / "codes.json").write_text(json.dumps(codes))
    program = [sys.executable, str(place.parent / "stand_in.py")]
    said: list[str] = []
    settings = {"jobs": 3, "say": said.append} | settings
    display = board.Lines(settings.pop("say"))
    return sweeps.carry_out(plan(), place, program=program, display=display, **settings)


def ran(place: Path) -> list[str]:
    """The runs that were started since this was asked last."""
    path = place / "ran.txt"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(names)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optim.base_lr=1,2", ["1", "2"]),
        ("loss.weights=(1,), (1,40)", ["(1,)", "(1,40)"]),
        ("data.train_split=train[:64],train[64:]", ["train[:64]", "train[64:]"]),
        ("data.name='a,b','c'", ["'a,b'", "'c'"]),
        (
            "loss.weights=(1,),(1,40),rbf(2.5, order=4)",
            ["(1,)", "(1,40)", "rbf(2.5, order=4)"],
        ),
    ],
)
def test_values_are_parted_by_commas_outside_of_brackets(text, values):
    assert grids.parse_grid(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize("text", ["seed", "seed=", "seed=1,", "seed=1,1", "seed=,"])
def test_a_grid_that_means_nothing_is_refused(text):
    with pytest.raises(ConfigError, match=r"--grid seed"):
        grids.parse_grid(text)


def test_a_run_is_called_after_what_it_sets():
    assert [run.name for run in plan().runs] == NAMES
    assert plan().runs[1].overrides == {
        "loss.weights": "(1,)",
        "model.embed_dim": "128",
    }
    # Settings of one last word have their whole names; names are plain and differ.
    [run] = plan(["data.image_size=32", "eval.image_size=48"]).runs
    assert run.name == "data.image_size-32_eval.image_size-48"
    split = plan(["data.train_split=train[:8],train[8:],/../$x"]).runs
    names = [run.name for run in split]
    assert len(set(names)) == 3
    assert names[2] == "train_split-..-x"
    assert all(name.startswith("train_split-train-8_") for name in names[:2])
    # A grid that grows leaves the names of its runs alone.
    assert plan(["seed=-1"]).runs[0] == plan(["seed=-1,1"]).runs[0]
    assert [run.name for run in plan(["seed=-1,1"]).runs] == ["seed--1", "seed-1"]
    [long] = plan([f"data.path={'x' * 300}"]).runs
    assert len(long.name) < 120
    with pytest.raises(ConfigError, match="seed is there twice"):
        plan(["seed=1", "seed=2"])


def test_f3_one_of_six_fails_and_is_tried_again_alone(place, capsys):
    states = carry_out(place, {NAMES[2]: 70})
    assert states == {name: "done" for name in NAMES} | {NAMES[2]: "failed (code 70)"}
    assert ran(place) == sorted(NAMES)
    assert (place / NAMES[2] / "log.txt").read_text() == f"ran {NAMES[2]}\n"
    stored = json.loads((place / "sweep.json").read_text())
    assert {run["name"]: run["state"] for run in stored["runs"]} == states
    assert stored["runs"][0]["overrides"]["loss.weights"] == "(1,)"
    assert set(carry_out(place, {}).values()) == {"done"}
    assert ran(place) == [NAMES[2]]
    # Of other settings none is done.
    (place / NAMES[0] / "config.json").write_text(configs.to_json(configs.default()))
    carry_out(place, {})
    assert ran(place) == [NAMES[0]]


def test_f3_a_wrong_setting_of_one_run_starts_none(place, capsys):
    words = ["sweep", "--config", QUICKSTART, "--workdir", str(place / "new")]
    assert main([*words, "--grid", "seed=1,2", "--grid", "model.width=8,0"]) == 2
    said = capsys.readouterr().err
    assert "run seed-1_width-0: model.width=0: it must be at least 1" in said
    assert main([*words, "--grid", "sed=1,2"]) == 2
    assert "did you mean seed?" in capsys.readouterr().err
    assert main([*words, "--grid", "seed=1", "--jobs", "0"]) == 2
    assert not (place / "new").exists()


def test_f3_a_directory_has_one_sweep(place):
    refused = pytest.raises(OutputError, match=f"pid {os.getpid()}")
    with Lock(place / "lock", "it", "wait"), refused:
        carry_out(place, {})
    assert ran(place) == []


def test_f3_a_signal_is_handed_on_and_the_rest_waits(place):
    """To two of the six at a time; the next call does what is left."""
    codes = dict.fromkeys(NAMES[1:], "waits")
    said: list[str] = []

    def signal_when_two_run() -> None:
        path = place / "ran.txt"
        while not path.exists() or len(path.read_text().split()) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_two_run, daemon=True).start()
    with pytest.raises(Preempted, match="the same command goes on"):
        carry_out(place, codes, jobs=2, say=said.append)
    stored = json.loads((place / "sweep.json").read_text())
    assert [run["state"] for run in stored["runs"]] == (
        ["done", "stopped", "stopped", "waiting", "waiting", "waiting"]
    )
    assert said[0] == f"sweep: {NAMES[0]} running (0 of 6 done)"
    ran(place)
    assert set(carry_out(place, {}, jobs=6).values()) == {"done"}
    assert ran(place) == sorted(NAMES[1:])


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "done"),
        (75, "stopped"),
        (76, "stopped (code 76)"),
        (78, "failed (code 78)"),
        (-9, "stopped (SIGKILL)"),
    ],
)
def test_f3_the_state_tells_how_a_run_ended(code, state):
    assert running.state_of(code) == state


@pytest.mark.parametrize("ignored", [True, False])
def test_f3_a_hangup_stops_a_sweep_unless_it_is_ignored(place, ignored):
    """As under nohup. It comes while a run is started, which is told of it."""
    sent: list[str] = []

    def say(line: str) -> None:
        if "running" in line and not sent:
            sent.append(line)
            os.kill(os.getpid(), signal.SIGHUP)

    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    before = signal.signal(signal.SIGHUP, handler)
    try:
        if ignored:
            assert set(carry_out(place, {}, say=say).values()) == {"done"}
        else:
            with pytest.raises(Preempted):
                carry_out(place, dict.fromkeys(NAMES, "waits"), say=say)
        assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
    stored = json.loads((place / "sweep.json").read_text())
    states = [run["state"].partition(" (")[0] for run in stored["runs"]]
    assert states == ["done"] * 6 if ignored else ["stopped", *["waiting"] * 5]


def test_f3_an_error_of_the_sweep_lets_its_runs_save(place):
    def say(line: str) -> None:
        if f"{NAMES[1]} running" in line:
            while not (place / "ran.txt").exists():
                time.sleep(0.05)
            raise RuntimeError("the sweep itself")

    with pytest.raises(RuntimeError, match="the sweep itself"):
        carry_out(place, {NAMES[0]: "waits"}, say=say)
    log = (place / NAMES[0] / "log.txt").read_text()
    assert log == f"ran {NAMES[0]}\nsaved\n"
    assert ran(place) == [NAMES[0]]


@pytest.mark.parametrize("by", ["signal", "error"])
def test_f3_a_run_that_takes_no_signal_is_killed_after_its_grace(place, by):
    words = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    words += "; print('deaf', flush=True); time.sleep(60)"
    log = place / NAMES[0] / "log.txt"

    def signal_when_it_is_deaf() -> None:
        while not log.exists() or not log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    class Failing(board.Lines):
        def show(self, states, directory):
            if by == "error" and log.exists() and log.read_text():
                raise RuntimeError("no table")

    if by == "signal":
        threading.Thread(target=signal_when_it_is_deaf, daemon=True).start()
    states = plan().board(place, Failing(lambda _: None))
    commands = {NAMES[0]: [sys.executable, "-c", words]}
    begun = time.monotonic()
    with pytest.raises(Preempted if by == "signal" else RuntimeError):
        running.run_all(commands, place, states, 1, 0.3, lambda _: False)
    assert time.monotonic() - begun < 50  # of the 60 that it sleeps
    assert not running.is_left_behind(place / NAMES[0])
    if by == "signal":
        assert states.states[NAMES[0]] == "stopped (SIGKILL)"


@pytest.mark.parametrize("again", [False, True])
def test_f3_three_signals_at_once_are_one_and_a_later_one_ends_at_once(place, again):
    """The run has a real stop: a second signal costs it its save."""
    words = """
import sys, time
from sfrik_jax.interrupts import Stop
with Stop(60) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(10 if sys.argv[1:] else 1)
    print("saved", flush=True)
raise SystemExit(75)
"""
    log = place / NAMES[0] / "log.txt"

    def signal_when_it_is_ready() -> None:
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.05)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.005)
        while again and "asked" not in log.read_text():
            time.sleep(0.05)
        if again:
            time.sleep(0.5)  # later than what comes together
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=signal_when_it_is_ready, daemon=True).start()
    states = plan().board(place, board.Lines(lambda _: None))
    commands = {NAMES[0]: [sys.executable, "-c", words, *["waits"] * again]}
    with pytest.raises(Preempted):
        running.run_all(commands, place, states, 1, 30.0, lambda _: False)
    lines = log.read_text().splitlines()
    assert ("saved" in lines) is not again
    assert any(line.startswith("stopped at once") for line in lines) is again
    assert states.states[NAMES[0]] == "stopped"


@pytest.mark.parametrize("error", [DiskFullError("full"), OutputError("gone")])
def test_f3_a_note_that_cannot_be_kept_ends_no_run(place, monkeypatch, error):
    written: list[Path] = []
    lines: list[str] = []

    def write_whole(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) > 1:
            raise error

    def say(line: str) -> None:
        lines.append(line)
        raise OSError(errno.EIO, "no terminal")

    monkeypatch.setattr(board, "write_whole", write_whole)
    assert set(carry_out(place, {}, say=say, jobs=6).values()) == {"done"}
    assert f"sweep: {error}; the runs go on" in lines


def test_f3_a_run_that_a_killed_sweep_has_left_behind_goes_on(place):
    (place / NAMES[0]).mkdir()
    with Lock(place / NAMES[0] / "lock", "it", "wait"):
        states = carry_out(place, {}, jobs=6)
    assert states == {name: "done" for name in NAMES} | {NAMES[0]: "running elsewhere"}
    assert ran(place) == sorted(NAMES[1:])
    assert set(carry_out(place, {}).values()) == {"done"}


@pytest.mark.parametrize("ends", [True, False])
def test_f3_what_a_killed_sweep_left_behind_takes_a_slot_until_its_end(place, ends):
    """From its first moment, before it has locked its directory, and it is waited for.

    One that comes to its end is done; one that is killed is started again.
    """
    codes = json.dumps({NAMES[0]: "waits"})
    (place / "codes.json").write_text(codes)
    words = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from test_sweeps import carry_out
carry_out(Path({str(place)!r}), {codes}, jobs=1)
"""
    with subprocess.Popen([sys.executable, "-c", words], env=environment()) as first:
        path = place / "ran.txt"
        while not path.exists() or not path.read_text():
            assert first.poll() is None
            time.sleep(0.05)
        first.kill()
    assert ran(place) == NAMES[:1]
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if f"{NAMES[0]} running elsewhere" in line:
            assert running.is_left_behind(place / NAMES[0])
            made = place / "making.json"
            made.write_text(json.dumps(0 if ends else "killed"))
            made.rename(place / "end.json")

    assert carry_out(place, {}, jobs=1, say=say) == dict.fromkeys(NAMES, "done")
    assert f"sweep: {NAMES[0]} running elsewhere (0 of 6 done)" in said
    assert sum("running (" in line for line in said) == (5 if ends else 6)
    assert ran(place) == sorted(NAMES[1:] if ends else NAMES)


def test_f3_what_ended_elsewhere_in_the_meantime_is_done(place):
    first = place / NAMES[0]
    first.mkdir()
    lock = Lock(first / "lock", "it", "wait")

    def say(line: str) -> None:
        if f"{NAMES[-1]} running" in line:
            spec, texts = plan().spec, plan().runs[0].texts()
            stored = configs.to_json(configs.load(spec, texts))
            (first / "config.json").write_text(stored)
            (first / "summary.json").write_text("{}")
            lock.close()

    states = carry_out(place, {}, jobs=1, say=say)
    assert states == dict.fromkeys(NAMES, "done")
    assert ran(place) == sorted(NAMES[1:])


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        (["done", "stopped (code 76)", "stopped"], 75, "b, c stopped before the end"),
        (["done", "stopped (SIGKILL)", "failed (code 65)"], 1, "1 of 3 runs: c failed"),
        (["stopped", "running elsewhere", "done"], 73, "b in "),
        (["done"] * 3, 0, ""),
    ],
)
def test_f3_the_code_tells_whether_the_same_command_just_goes_on(
    place, monkeypatch, capsys, states, code, words
):
    found = dict(zip("abc", states, strict=True))
    monkeypatch.setattr(sweeps, "carry_out", lambda *_, **__: found)
    command = ["sweep", "--config", QUICKSTART, "--workdir", str(place)]
    assert main([*command, "--grid", "seed=1,2,3"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_f3_six_trainings_of_which_one_diverges(tmp_path, data_dir):
    place = tmp_path / "sweep"
    common = [*SMALL, f"data.path={data_dir}", "optim.name=sgd", "eval.probe_epochs=1"]
    common += ["optim.epochs=2", "mesh.data=1"]
    words = ["sweep", "--config", QUICKSTART, "--workdir", str(place), "--jobs=2"]
    words += ["--grid", "optim.base_lr=0.001,0.002,1e30", "--grid", "seed=0,1"]
    words += [f"--config.{text}" for text in common]
    command = [sys.executable, "-m", "sfrik_jax", *words]
    settings = {"cwd": ROOT, "env": environment(), "capture_output": True, "text": True}
    first = subprocess.run(command, check=False, **settings)
    assert first.returncode == 1, first
    [line] = first.stderr.splitlines()
    assert line.startswith("error: 2 of 6 runs: base_lr-1e30_seed-0 failed (code 70); ")
    done = sorted(place.glob("*/summary.json"))
    assert len(done) == 4
    times = [path.stat().st_mtime_ns for path in done]
    again = subprocess.run(command, check=False, **settings)
    assert again.returncode == 1
    assert "sweep: 4 of 6 runs are done already" in again.stdout
    assert "base_lr-0.001_seed-0 running" not in again.stdout
    assert again.stdout.count("base_lr-1e30_seed-0 running") == 1
    assert [path.stat().st_mtime_ns for path in done] == times
