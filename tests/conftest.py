"""Eight fake devices, strict shapes, and a compilation cache for all tests."""

import fcntl
import os
import re
import signal
from pathlib import Path

# The tests compile much and compute little: without LLVM's expensive passes a training
# step on eight devices compiles in 7 s instead of 13. Set before jax is imported, and
# inherited by subprocesses.
FAST_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()

import jax
import numpy as np
import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and so would the programs
# that are tested with it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = Path(os.environ.get("SFRIK_TEST_CACHE", Path(__file__).parents[1] / ".cache"))
jax.config.update("jax_compilation_cache_dir", str(CACHE / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# The ids of docs/reliability.md that a test is named after: test_k2_d1_what_happens.
FAULT_NAME = re.compile(r"test_((?:[a-z]\d_)+)")

REFERENCE = Path(os.environ.get("SFRIK_REFERENCE", Path(__file__).parent / "reference"))


def pytest_collection_modifyitems(items):
    """Marks the tests of faults, to be run alone: -m "fault and slow"."""
    for item in items:
        if FAULT_NAME.match(item.name):
            item.add_marker(pytest.mark.fault)


@pytest.fixture
def reference():
    """Opens a file of reference arrays by name: reference("losses")."""

    def load(name: str):
        return np.load(REFERENCE / f"{name}.npz", allow_pickle=False)

    return load


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def arm(monkeypatch):
    """Arms faults (see `faults`), for this process and those that it starts."""
    from sfrik_jax import faults

    def arm(text: str, *, testing: str = "1") -> None:
        monkeypatch.setenv("SFRIK_TESTING", testing)
        monkeypatch.setenv("SFRIK_FAULTS", text)
        faults._armed.cache_clear()

    yield arm
    faults._armed.cache_clear()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """A TFDS data_dir with fashion_mini, prepared once for all runs of the tests."""
    from sfrik_jax.data import builders

    CACHE.mkdir(exist_ok=True)
    with (CACHE / "data.lock").open("w") as lock:
        # The processes of pytest-xdist come here at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        builders.prepare("fashion_mini", str(CACHE / "data"))
    return CACHE / "data"
