"""Which process of a job this one is, from its environment (see the package)."""

import importlib.util
import logging
import os
import re
from typing import NamedTuple

from sfrik_jax.errors import ConfigError

log = logging.getLogger("sfrik")

OWN = ("SFRIK_COORDINATOR", "SFRIK_PROCESS_COUNT", "SFRIK_PROCESS_INDEX")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
INDEXED_POD = "JOB_COMPLETION_INDEX"


class Place(NamedTuple):
    """The place of a process in its job.

    Attributes:
      coordinator: "host:port" of process 0.
      count: processes of the job. index: of this one.
      told_by: what told it, for messages.
      bind: the host that process 0 listens on; "" for all interfaces.
      device_ids: local devices that are this process's; None for all of them.
    """

    coordinator: str
    count: int
    index: int
    told_by: str
    bind: str = ""
    device_ids: tuple[int, ...] | None = None

    @property
    def host(self) -> str:
        """Of the coordinator, without brackets."""
        return self.coordinator.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of the coordinator."""
        return int(self.coordinator.rpartition(":")[2])


def find() -> Place | None:
    """The place that the environment gives; None where one process is all there is.

    Raises:
      ConfigError: it gives half of one, or an impossible one.
    """
    place = _own()
    if place is None and not any(name in os.environ for name in OWN):
        place = _slurm() or _detected()
    if place is None or place.count == 1:
        return None
    return place._replace(bind=os.environ.get("SFRIK_BIND", place.bind))


def _own() -> Place | None:
    given = {name: os.environ[name] for name in OWN if os.environ.get(name)}
    if not given:
        return None
    missing = [name for name in OWN if name not in given]
    if missing:
        raise ConfigError(
            f"{', '.join(given)} without {', '.join(missing)}; set all three or none"
        )
    address, count, index = given.values()
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"SFRIK_COORDINATOR={address!r}; give HOST:PORT of process 0")
    for name, value in ((OWN[1], count), (OWN[2], index)):
        if not value.isdecimal():
            raise ConfigError(f"{name}={value!r}; give a whole number")
    if not 0 <= int(index) < int(count):
        raise ConfigError(
            f"SFRIK_PROCESS_INDEX={index} with SFRIK_PROCESS_COUNT={count}; processes "
            "are numbered from 0 to one less than their count"
        )
    local = host.strip("[]") in LOOPBACK
    bind = host.strip("[]") if local else ""
    return Place(address, int(count), int(index), "SFRIK_PROCESS_*", bind)


def _slurm() -> Place | None:
    """The task of a step. A batch script or an `salloc` shell is not a task of many."""
    from jax._src import clusters

    if not clusters.SlurmCluster.is_env_present():
        return None
    # SLURM_NTASKS is the allocation's, also in a shell or a step of one task.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"])
    if int(tasks) == 1:
        return None
    place = _from_jax(clusters.SlurmCluster, "SLURM")
    # jax gives each task the device of its number; a task alone on a node has them all.
    local = None if _tasks_here() == 1 else (int(os.environ["SLURM_LOCALID"]),)
    return place._replace(count=int(tasks), device_ids=local)


def _tasks_here() -> int | None:
    """Tasks of the step on this node, from a list such as "2(x3),1"; None if untold."""
    tasks: list[int] = []
    for each in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", each)
        if found is None:
            return None
        tasks += [int(found[1])] * int(found[2] or 1)
    node = int(os.environ.get("SLURM_NODEID", 0))
    return tasks[node] if node < len(tasks) else None


def _detected() -> Place | None:
    """What jax's own detection finds besides SLURM."""
    from jax._src import clusters

    found = {
        "Open MPI": clusters.OmpiCluster,
        "Cloud TPU": clusters.GkeTpuCluster,
        "Cloud TPU's metadata": clusters.GceTpuCluster,
    }
    if INDEXED_POD in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        if importlib.util.find_spec("kubernetes") is None:
            log.warning(
                "%s is set and the package kubernetes is missing: this process runs "
                "alone unless %s are set",
                INDEXED_POD,
                ", ".join(OWN),
            )
        else:
            found["Kubernetes"] = clusters.K8sCluster
    for told_by, kind in found.items():
        if kind.is_env_present():
            return _from_jax(kind, told_by)
    return None


def _from_jax(kind, told_by: str) -> Place:
    try:
        count, index = kind.get_process_count(), kind.get_process_id()
        address = kind.get_coordinator_address(
            timeout_secs=60, override_coordinator_port=os.environ.get("SFRIK_PORT")
        )
        local = kind.get_local_process_id()
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"{told_by} does not say which process this is ({why}); set {OWN[0]}, "
            f"{OWN[1]} and {OWN[2]}"
        ) from error
    ids = None if local is None else (local,)
    return Place(address, count, index, told_by, device_ids=ids)
