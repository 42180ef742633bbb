"""A SLURM of one controller and one node, for tests: real programs, private paths."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
# Debian keeps the daemons where a user's PATH does not look.
PATH = f"{os.environ['PATH']}:/usr/sbin"

# No cgroups, no accounting, four processors whatever the machine has. A requeued job
# waits until the credential of its last start expires: 5 s instead of 120.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=localhost CPUs=4 RealMemory=2000
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class CannotStart(Exception):
    """Why there is no SLURM on this machine, in one line."""


class Slurm:
    """Commands of a running SLURM, see `started`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *words: str, **keywords) -> str:
        """What a command says; one that fails fails the test."""
        environment = os.environ | self.environment
        environment |= keywords.pop("environment", {})
        done = subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            **keywords,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        shown = self("scontrol", "--oneliner", "show", "job", number)
        return dict(w.split("=", 1) for w in shown.split() if "=" in w)


@contextlib.contextmanager
def started() -> Iterator[Slurm]:
    """Starts the daemons and ends them, also where the test fails.

    Raises:
      CannotStart: programs are missing, or the node does not come up.
    """
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        raise CannotStart(
            f"{', '.join(missing)} not found; apt-get install slurm-wlm munge"
        )
    with contextlib.ExitStack() as stack:
        # Not pytest's folder: the path of a socket has at most 108 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm")))
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        controller, node = free_ports(2)
        text = CONFIG.format(
            folder=folder, user=getpass.getuser(), controller=controller, node=node
        )
        (folder / "slurm.conf").write_text(text)
        slurm = Slurm(folder)
        munge = (f"--{n}-file={folder / n}" for n in ("key", "pid", "seed", "log"))
        socket_option = f"--socket={folder / 'munge.socket'}"
        _daemon(
            stack, slurm, "munged", "--foreground", "--force", socket_option, *munge
        )
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        _daemon(stack, slurm, "slurmctld", "-D")
        _daemon(stack, slurm, "slurmd", "-D", "-N", "localhost")
        _wait(lambda: _state(slurm) == "idle", "slurmd", folder)
        stack.callback(_end_jobs, slurm)
        yield slurm


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _daemon(
    stack: contextlib.ExitStack, slurm: Slurm, name: str, *options: str
) -> None:
    log = stack.enter_context((slurm.folder / f"{name}.out").open("w"))
    process = subprocess.Popen(
        [name, *options],
        env=os.environ | slurm.environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _state(slurm: Slurm) -> str:
    try:
        return slurm("sinfo", "--noheader", "--format=%t")
    except AssertionError:
        return "no answer"


def _end_jobs(slurm: Slurm) -> None:
    """A job that still runs would outlive the daemons."""
    slurm("scancel", "--user", getpass.getuser())
    end = time.monotonic() + 60
    while slurm("squeue", "--noheader") and time.monotonic() < end:
        time.sleep(0.2)


def _wait(ready: Callable[[], bool], name: str, folder: Path) -> None:
    end = time.monotonic() + 30
    while not ready():
        if time.monotonic() > end:
            said = (folder / f"{name}.out").read_text().strip().splitlines()
            last = said[-1] if said else "nothing"
            raise CannotStart(f"{name} did not start within 30 s; it said: {last}")
        time.sleep(0.1)
