"""The bench of a step's memory has the figures of the command plan."""

import json
import sys

import pytest
from test_plan import QUICKSTART, SMALL

from bench import memory
from sfrik_jax import config as configs
from sfrik_jax.errors import ConfigError
from sfrik_jax.planning import counted


def test_rows_are_of_every_q_projector_and_policy_and_are_the_plans(
    monkeypatch, capsys, tmp_path
):
    path = tmp_path / "memory.json"
    settings = [word for each in SMALL for word in ("--set", each)]
    words = "--devices 2 --q 32,64 --projector replicated,data --remat none,blocks"
    argv = ["memory.py", "--config", QUICKSTART, *settings, *words.split()]
    monkeypatch.setattr(sys, "argv", [*argv, "--json", str(path)])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    memory.main()
    rows = json.loads(path.read_text())
    found = {(row["shapes"]["q"], row["projector"], row["remat"]): row for row in rows}
    assert len(rows) == len(found) == 8
    for q in (32, 64):
        for projector in ("replicated", "data"):
            none, blocks = (found[q, projector, each] for each in ("none", "blocks"))
            assert blocks["peak_bytes"] < none["peak_bytes"]
    split, whole = (found[64, each, "none"] for each in ("data", "replicated"))
    assert split["state_bytes"] < whole["state_bytes"]
    config = configs.load(
        QUICKSTART,
        [*SMALL, "model.embed_dim=64", "mesh.projector=data", "step.remat=blocks"],
    )
    want = counted.count(config, 2)["peak_bytes"]
    assert found[64, "data", "blocks"]["peak_bytes"] == want
    assert "| 64 | data | blocks |" in capsys.readouterr().out


def test_a_step_is_run_to_be_measured():
    settings = [*SMALL, "mesh.data=8", "data.image_size=16", "data.batch_size=32"]
    found = memory.measured(configs.load(QUICKSTART, settings))
    assert found["xla_peak_bytes"] > 0
    assert found["measured_peak_bytes"] is None  # a CPU has no such count


def test_what_cannot_be_measured_is_said(capsys):
    assert memory.in_own_process("no_such.py", []) == {}
    assert "not measured: " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "some", "none,all"])
def test_a_policy_that_is_not_there_is_named(text):
    with pytest.raises(ConfigError, match=r"step\.remat is one of none, convolutions"):
        memory.choices(text, "step.remat")
