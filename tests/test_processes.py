"""Several processes: who they are, meeting, agreeing, stopping at one step, failing.

The talk between processes is tested with threads of this one: each has a client of its
own of a real coordination service. Whole jobs are in test_many_processes.py.
"""

import contextlib
import importlib
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import Mesh

from sfrik_jax import errors, processes
from sfrik_jax import mesh as mesh_lib
from sfrik_jax.processes import cluster, roll_call
from sfrik_jax.processes.cluster import Place
from sfrik_jax.processes.local import free_port
from sfrik_jax.processes.talk import Talk
from sfrik_jax.provenance import about_the_program

# The services that jax itself starts; it has no public name for them.
_jax = importlib.import_module("jaxlib._jax")
NAMES = ("SLURM_", "SFRIK_", "OMPI_", "TPU_", "JOB_COMPLETION_INDEX", "KUBERNETES_")


@pytest.fixture
def told(monkeypatch):
    """Sets the environment to what is given, and finds the place."""

    def find(**variables: str) -> Place | None:
        for name in [n for n in os.environ if n.startswith(NAMES)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return cluster.find()

    return find


OWN = {
    "SFRIK_COORDINATOR": "10.0.0.7:1234",
    "SFRIK_PROCESS_COUNT": "3",
    "SFRIK_PROCESS_INDEX": "2",
}
STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
}


def test_nothing_told_is_one_process(told):
    assert told() is None
    assert processes.count() == 1 and processes.index() == 0 and processes.first()
    assert processes.gather("x") == ["x"]
    assert processes.from_first(lambda: (1, 2)) == (1, 2)


def test_own_variables_come_first_and_are_checked(told):
    place = told(**STEP, **OWN)
    assert place is not None
    assert (place.host, place.port) == ("10.0.0.7", 1234)
    assert (place.count, place.index, place.bind) == (3, 2, "")
    assert place.device_ids is None
    for host in ("127.0.0.1", "localhost", "[::1]"):
        local = told(**OWN | {"SFRIK_COORDINATOR": f"{host}:1234"})
        assert local is not None and local.bind == host.strip("[]")
    bound = told(**OWN, SFRIK_BIND="10.0.0.7")
    assert bound is not None and bound.bind == "10.0.0.7"
    assert (
        told(**OWN | {"SFRIK_PROCESS_COUNT": "1", "SFRIK_PROCESS_INDEX": "0"}) is None
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SFRIK_COORDINATOR": ""}, "without SFRIK_COORDINATOR"),
        ({"SFRIK_COORDINATOR": "host"}, "give HOST:PORT"),
        ({"SFRIK_COORDINATOR": "host:99999"}, "give HOST:PORT"),
        ({"SFRIK_PROCESS_COUNT": "two"}, "SFRIK_PROCESS_COUNT='two'"),
        ({"SFRIK_PROCESS_INDEX": "3"}, "numbered from 0"),
    ],
)
def test_half_a_place_is_refused(told, wrong, said):
    with pytest.raises(errors.ConfigError, match=said):
        told(**OWN | wrong)


def test_a_task_of_slurm_and_a_shell_inside_an_allocation(told):
    place = told(**STEP)
    assert place is not None
    assert place.host == "node07" and 61440 <= place.port < 65536
    assert (place.count, place.index, place.device_ids) == (3, 2, (1,))
    # A task alone on its node has all of the node's devices.
    alone = told(**STEP, SLURM_STEP_TASKS_PER_NODE="1(x3)")
    assert alone is not None and alone.device_ids is None
    # Three nodes of one task each, then one of two.
    for node, own in (("2", None), ("3", (1,))):
        uneven = told(**STEP, SLURM_STEP_TASKS_PER_NODE="1(x3),2", SLURM_NODEID=node)
        assert uneven is not None and uneven.device_ids == own
    port = told(**STEP, SFRIK_PORT="7777")
    assert port is not None and port.port == 7777
    # An interactive step of one task in an allocation for three; a batch script.
    assert told(**STEP, SLURM_STEP_NUM_TASKS="1") is None
    script = {k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"}
    assert told(**script) is None


def test_an_indexed_pod_without_the_kubernetes_package_is_told_so(told, caplog):
    with caplog.at_level(logging.WARNING):
        pod = {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
        assert told(**pod) is None
    assert "SFRIK_COORDINATOR" in caplog.text


def meet(*places: tuple[int, int], seconds: float = 20.0, port: int = 0) -> list:
    """The roll-call of processes (index, count): None, or what each one raised."""
    port = port or free_port()

    def hold(place: tuple[int, int]) -> Exception | None:
        index, count = place
        own = Place(f"127.0.0.1:{port}", count, index, "test", "127.0.0.1")
        try:
            roll_call.hold(own, seconds, lambda: None)
        except errors.SfrikError as error:
            return error
        return None

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(hold, places))


def test_processes_meet_and_leave_the_port_free():
    port = free_port()
    for _ in range(2):
        assert meet((0, 3), (1, 3), (2, 3), port=port) == [None] * 3


def test_m4_a_missing_process_is_named_to_all():
    first, third = meet((0, 3), (2, 3), seconds=1.0)
    for error in (first, third):
        assert error.code == 76
        assert "process 1 of 3 did not come to 127.0.0.1:" in str(error)
    [alone] = meet((1, 2), seconds=0.5)
    assert alone.code == 76
    assert "cannot reach process 0 at 127.0.0.1:" in str(alone)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(0, 3), (1, 2)], "process 1 was told of 2 processes, process 0 of 3"),
        ([(0, 2), (1, 3)], "process 1 was told of 3 processes, process 0 of 2"),
        ([(0, 3), (1, 3), (1, 3)], "two processes have index 1 of 3"),
    ],
)
def test_m4_wrong_counts_and_double_indices_end_all(places, said):
    for error in meet(*places):
        assert error.code == 2
        assert said in str(error)


def test_m4_a_taken_port_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [error] = meet((0, 2), port=port)
    assert error.code == 2
    assert f"127.0.0.1:{port} is taken" in str(error)


def test_strangers_at_the_port_do_not_disturb_the_roll_call():
    port = free_port()

    def knock() -> None:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": 1}\n', b"[1]\n", b""):
            with contextlib.suppress(OSError), socket.socket() as stranger:
                stranger.connect(("127.0.0.1", port))
                stranger.sendall(said)

    with ThreadPoolExecutor(3) as pool:
        place = Place(f"127.0.0.1:{port}", 2, 0, "test", "127.0.0.1")
        first = pool.submit(roll_call.hold, place, 20.0, lambda: None)
        time.sleep(0.3)
        pool.submit(knock).result()
        roll_call.hold(place._replace(index=1), 20.0, lambda: None)
        first.result()


def test_a_stop_is_heeded_while_waiting():
    def check() -> None:
        raise errors.Preempted("asked")

    place = Place(f"127.0.0.1:{free_port()}", 2, 0, "test", "127.0.0.1")
    for index in range(2):
        with pytest.raises(errors.Preempted):
            roll_call.hold(place._replace(index=index), 60.0, check)


@pytest.fixture
def talks():
    """Three processes' ends of one talk."""
    address, count = f"127.0.0.1:{free_port()}", 3
    service = _jax.get_distributed_runtime_service(
        address, count, heartbeat_timeout=60, shutdown_timeout=10
    )
    clients = [
        _jax.get_distributed_runtime_client(
            address, i, init_timeout=30, heartbeat_timeout=60, use_compression=True
        )
        for i in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        made = [Talk(client, i, count) for i, client in enumerate(clients)]
        yield made
        for talk in made:
            talk.close()
        list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()


def in_all(talks, function) -> list:
    with ThreadPoolExecutor(len(talks)) as pool:
        return list(pool.map(function, talks))


def test_texts_are_gathered_in_the_order_of_the_processes(talks):
    for round in range(3):
        found = in_all(talks, lambda t, r=round: t.gather(f"{r}:{t.index}"))
        assert found == [[f"{round}:{i}" for i in range(3)]] * 3


def test_m1_a_signal_to_one_stops_all_at_the_same_step(talks):
    paces = (0.001, 0.004, 0.002)

    def steps(talk: Talk) -> int:
        for step in range(1, 100_000):
            time.sleep(paces[talk.index])
            if talk.index == 1 and step == 20:
                talk.stop_requested = True
            if talk.reached(step):
                return step
        return 0

    stopped = in_all(talks, steps)
    assert len(set(stopped)) == 1
    assert stopped[0] > 20


def test_a_process_that_fails_before_it_agrees_to_stop_holds_nobody_up(
    talks, monkeypatch
):
    monkeypatch.setattr("sfrik_jax.processes.talk.end", lambda line, code: None)
    talks[2].close()  # it is about to fail, and answers no more
    for talk in talks:
        talk.reached(7)
    talks[1].stop_requested = True
    while not talks[0]._asked:
        time.sleep(0.05)
    talks[2].fail(65, "the picture is bad")
    start = time.monotonic()
    with pytest.raises(errors.ToldError, match="the picture is bad"):
        talks[0].reached(8)
    assert time.monotonic() - start < 5
    for talk in talks[::-1]:
        talk.hear()


def test_asking_whether_to_stop_costs_microseconds(talks):
    start = time.perf_counter()
    for step in range(10_000):
        talks[0].reached(step)
    assert (time.perf_counter() - start) / 10_000 < 50e-6


def test_a_failure_reaches_those_that_wait(talks, monkeypatch):
    ended = []
    monkeypatch.setattr(
        "sfrik_jax.processes.talk.end", lambda line, code: ended.append((line, code))
    )
    talks[2].fail(65, "the picture is bad")
    with pytest.raises(errors.ToldError, match="process 2: the picture is bad") as info:
        talks[0].gather("")
    assert info.value.code == 65
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == [("", 65)]  # process 1, quietly; process 0 has files to close
    talks[2].hear()
    talks[0].hear()


@pytest.mark.parametrize("key", ["optim.base_lr", "data", "code loop.py"])
def test_m5_what_differs_is_named(talks, monkeypatch, key):
    local = threading.local()
    monkeypatch.setattr(processes, "gather", lambda text: local.talk.gather(text))
    monkeypatch.setattr(processes, "first", lambda: local.talk.index == 0)

    def agree(talk: Talk) -> str | None:
        local.talk = talk
        processes.agree({"same": 1})
        try:
            processes.agree({key: 0.5 if talk.index == 1 else 0.25})
        except errors.SfrikError as error:
            assert error.code == 78
            return str(error)
        return None

    said = set(in_all(talks, agree))
    assert len(said) == 1
    assert f"process 1 has {key}=0.5, process 0 has 0.25" in said.pop()


def test_m5_all_of_the_program_is_compared():
    about = about_the_program()
    root = Path(processes.__file__).parents[1]
    for path in root.rglob("*.py"):
        assert f"code {path.relative_to(root)}" in about
    assert {"version of jax", "version of numpy", "version of Python"} <= about.keys()


def test_answers_come_from_all_that_can_give_them(talks, monkeypatch):
    for talk in talks:
        talk.answer = lambda index=talk.index: f"at {index}"
    over = threading.Event()
    assert talks[1].ask(10.0, over) == ["at 0", "at 1", "at 2"]
    talks[2].close()  # it answers no more
    start = time.monotonic()
    assert talks[0].ask(2.0, over) == ["at 0", "at 1", None]
    assert time.monotonic() - start < 5
    over.set()
    assert talks[0].ask(60.0, over)[2] is None


def test_a_hang_lets_all_write_before_the_first_one_ends(talks, monkeypatch):
    done = []
    monkeypatch.setattr(
        "sfrik_jax.processes.talk.end", lambda line, code: done.append(("end", code))
    )
    for talk in talks:
        talk.on_hang = lambda index=talk.index: done.append(("stacks", index))
    talks[2].fail_at_once(76, "no step", hangs=True)
    deadline = time.monotonic() + 20
    while len(done) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(done[:2]) == {("stacks", 0), ("stacks", 1)}
    assert set(done[2:]) == {("end", 76)}
    talks[0].hear()


class Device(SimpleNamespace):
    """A device of a process, as a mesh needs it."""

    def __hash__(self) -> int:
        return self.id


def rows_of(
    grid: list[list[int]], batch: int, monkeypatch, index: int, count: int = 0
) -> list[int]:
    """The rows of a process; the grid holds the process of each device."""
    numbered = np.empty(np.shape(grid), object)
    for number, place in enumerate(np.ndindex(*numbered.shape)):
        numbered[place] = Device(
            id=number, process_index=grid[place[0]][place[1]], platform="cpu"
        )
    count = count or max(map(max, grid)) + 1
    monkeypatch.setattr(mesh_lib.jax, "process_count", lambda: count)
    monkeypatch.setattr(mesh_lib.jax, "process_index", lambda: index)
    mesh = Mesh(numbered, ("data", "model"))
    return mesh_lib.process_rows(batch, mesh).tolist()


def test_rows_follow_the_devices_of_a_process(monkeypatch):
    def rows(grid, index):
        return rows_of(grid, 8, monkeypatch, index)

    assert rows([[0], [0], [1], [1]], 1) == [4, 5, 6, 7]
    # Devices that are not in the order of the processes.
    assert rows([[0], [1], [0], [1]], 1) == [2, 3, 6, 7]
    # Two processes that share rows along `model`, and one that has both columns.
    assert rows([[0, 1], [2, 3]], 1) == [0, 1, 2, 3]
    assert rows([[0, 0], [1, 1]], 1) == [4, 5, 6, 7]
    with pytest.raises(errors.ConfigError, match="some of the rows"):
        rows([[0, 0, 1], [1, 2, 2]], 0)
    with pytest.raises(errors.ConfigError, match="leave process 1 without a device"):
        rows_of([[0]], 8, monkeypatch, 1, count=2)
