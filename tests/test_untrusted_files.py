"""Files of strangers: nothing of them is run, whichever reader gets them (X1 to X3)."""

import ast
import io
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import mutations
from faults.damaged_files import KINDS

from sfrik_jax import weights
from sfrik_jax.__main__ import main
from sfrik_jax.errors import CorruptInputError

ROOT = Path(__file__).parents[1]


def told(found: list[mutations.Read]) -> str:
    wrong = [each for each in found if not each.clean]
    return "\n".join(map(str, wrong[:10]))


def test_x1_x2_random_damage_ends_in_one_clear_line():
    """600 files of all kinds, in a process of their own; `slow` reads 10,000."""
    found = mutations.run(600, seed=7, kinds=list(KINDS))
    assert [each.number for each in found] == list(range(600))
    assert all(each.clean for each in found), told(found)
    for kind in KINDS:
        refused = [e for e in found if e.kind == kind and e.outcome == "refused"]
        assert len(refused) >= 10, kind


@pytest.mark.slow  # 50 s
def test_x1_ten_thousand_files_run_no_code_and_end_no_process():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "faults" / "mutations.py", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "10000 files, 0 not as they should be" in done.stdout


@pytest.mark.slow  # 25 s
def test_x2_ten_thousand_damaged_headers_in_half_a_minute():
    found = mutations.run(10_000, seed=2, kinds=["safetensors"])
    assert all(each.clean for each in found), told(found)
    assert sum(each.seconds for each in found) < 30
    assert sum(each.outcome == "refused" for each in found) > 8_000


class Executes:
    """Would make a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return Path.touch, (self.place,)


def of_objects(place: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.array([Executes(place)], object))
    return buffer.getvalue()


def object_row(place: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Executes(place)], object), allow_pickle=True)
    return buffer.getvalue()


def yaml_object(place: Path) -> bytes:
    return f"!!python/object/apply:os.system ['touch {place}']\n".encode()


def msgpack_bomb(place: Path) -> bytes:
    """Nested lists, each of which claims four billion items."""
    return (b"\xdd" + struct.pack(">I", (1 << 32) - 1)) * 100_000


def bare_pickle(place: Path) -> bytes:
    return pickle.dumps(Executes(place), 2)


STRANGE = [of_objects, object_row, yaml_object, msgpack_bomb, bare_pickle]


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".yaml"])
def test_x3_as_weights_it_is_refused(tmp_path, content, suffix):
    place = tmp_path / "canary"
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content(place))
    with pytest.raises(CorruptInputError) as caught:
        weights.open_file(path)
    assert caught.value.code == 65
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert not place.exists()


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("name", ["config.yaml", "config.json", "config.pkl", "c"])
def test_x3_as_a_configuration_it_is_refused(tmp_path, capsys, content, name):
    place = tmp_path / "canary"
    path = tmp_path / name
    path.write_bytes(content(place))
    words = ["--config", str(path), "--workdir", str(tmp_path / "run")]
    # A damaged config.json is damaged input; of another kind, the option is wrong.
    assert main(["pretrain", *words]) == (65 if name.endswith("json") else 2)
    assert capsys.readouterr().err.count("\n") == 1
    assert not place.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "9" * 10**6, "\0", "[]"]
)
def test_x3_a_config_json_of_any_text_is_refused(tmp_path, capsys, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert main(["pretrain", "--config", str(path)]) == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 500


# Modules whose readers run what they read, or make objects of its choice.
RUNNING = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "jsonpickle"}
RUNNING |= {"yaml", "msgpack", "torch", "runpy", "code", "imp"}
ALLOWED = {
    # Asks whether a task can be handed to a process; nothing is read.
    "data/pipeline.py": {"pickle"},
    # A configuration in Python is code, and documented as such.
    "config_files.py": {"runpy"},
}


def used(tree: ast.AST) -> set[str]:
    """Modules imported, and the bare names eval, exec and compile where called."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names |= {node.func.id} & {"eval", "exec", "compile", "__import__"}
    return names


def loads(tree: ast.AST) -> list[ast.Call]:
    """The calls of np.load."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "load"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("np", "numpy")
    ]


def test_x3_no_module_reads_what_can_run():
    running = RUNNING | {"eval", "exec", "compile", "__import__"}
    found, opened = {}, 0
    for path in sorted((ROOT / "sfrik_jax").rglob("*.py")):
        name, tree = (
            str(path.relative_to(ROOT / "sfrik_jax")),
            ast.parse(path.read_text()),
        )
        if uses := used(tree) & running:
            found[name] = uses
        for call in loads(tree):
            opened += 1
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert given.get("allow_pickle") == "False", name
        if name == "data/pipeline.py":
            assert "pickle.load" not in path.read_text()
    assert found == ALLOWED
    assert opened == 1


def test_x3_a_configuration_in_python_is_documented_as_code():
    text = " ".join((ROOT / "docs" / "configuration.md").read_text().split())
    assert "is a program" in text and "config.json" in text
    assert "from people whom you trust" in text


def test_x3_a_stored_configuration_is_data(tmp_path, capsys):
    """A run's config.json, also of a stranger, is read as JSON and checked."""
    place = tmp_path / "canary"
    path = tmp_path / "config.json"
    code = f"__import__('os').system('touch {place}')"
    path.write_text(json.dumps({"seed": code, "data": {"name": code}}))
    assert main(["config", "show", "--config", str(path)]) == 2
    assert main(["config", "show", "--config", str(path), f"--config.seed={code}"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not place.exists()
