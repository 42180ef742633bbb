"""The shell functions that choose an interpreter and a build of JAX."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def shell(function: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs a function of launch/environment.sh with `folder` first in PATH."""
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATOR"}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        ["bash", "-c", f"source launch/environment.sh; {function}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("driver", "wanted"), [("580.65", "jax[cuda13]"), ("550.54", "jax[cuda12]")]
)
def test_a_gpu_is_found_and_its_driver_asked(tmp_path, driver, wanted):
    program(tmp_path, "nvidia-smi", f"echo {driver}")
    assert shell("find_accelerator", tmp_path).stdout == "cuda\n"
    assert shell("jax_requirement cuda", tmp_path).stdout == f"{wanted}\n"


def test_the_accelerator_can_be_chosen(tmp_path):
    program(tmp_path, "nvidia-smi", "exit 1")
    for name in ("cpu", "tpu"):
        found = shell("find_accelerator", tmp_path, ACCELERATOR=name).stdout.strip()
        assert found == name
    assert shell("jax_requirement tpu", tmp_path).stdout == "jax[tpu]\n"
    assert shell("jax_requirement cpu", tmp_path).stdout == "jax\n"
    result = shell("jax_requirement gpu", tmp_path)
    assert result.returncode == 2
    assert "choose cpu, cuda or tpu" in result.stderr


def test_a_python_that_is_none_or_too_old_is_refused(tmp_path):
    result = shell("find_python", tmp_path, PYTHON="/nowhere/python3")
    assert (result.returncode, result.stdout) == (2, "")
    assert "PYTHON=/nowhere/python3 is no program" in result.stderr
    program(tmp_path, "old", "exit 1")
    result = shell("find_python", tmp_path, PYTHON=str(tmp_path / "old"))
    assert result.returncode == 2
    assert "Python 3.11 or later is needed" in result.stderr


def test_the_scripts_are_valid():
    for script in [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"]:
        subprocess.run(["bash", "-n", str(script)], check=True)
