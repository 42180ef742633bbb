"""The documentation names what exists: links, paths, commands, tests, settings."""

import re
import shlex
from pathlib import Path

import jax
import pytest

from sfrik_jax import augment
from sfrik_jax import config as configs
from sfrik_jax.__main__ import build_parser, split_overrides
from sfrik_jax.config_keys import known
from sfrik_jax.eval_settings import JOBS
from sfrik_jax.settings import (
    DEFAULTS,
    LOSS_DEFAULTS,
    RECIPE_DEFAULTS,
    VARIANTS,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCED = re.compile(r"```\w*\n(.*?)```", flags=re.DOTALL)
PATH = r"(?:\.ci|bench|configs|docs|launch|sfrik_jax|tests)/[\w/.-]*\w"


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code(text: str) -> list[str]:
    """Fenced blocks and inline code, continued lines joined."""
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return [each.replace("\\\n", " ") for each in (*FENCED.findall(text), *inline)]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(path), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_in_code_exist(page):
    for snippet in code(page.read_text()):
        for word in re.findall(rf"(?<![\w/.-]){PATH}\.(?:py|sh|md|toml)\b", snippet):
            # configs/x.py stands for any file.
            assert Path(word).stem == "x" or (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in "\n".join(code(page.read_text())).splitlines():
        for words in re.findall(r"python -m sfrik_jax (\w.*?)(?: && |$)", line):
            rest, overrides = split_overrides(shlex.split(words, comments=True))
            if "--help" in rest:
                continue
            args = build_parser().parse_args(rest)
            config = getattr(args, "config", None)
            if getattr(args, "weights", None) is not None and "job" in args:
                overrides.append(f"weights={args.weights}")
            if config is not None and config.startswith("configs/"):
                loaded = configs.load(config, overrides)
                configs.validate(loaded)
                assert loaded.job == getattr(args, "job", "pretrain"), line


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tests_that_are_named_exist(page):
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", page.read_text()):
        assert f"def {name}(" in sources, name


def test_the_table_of_settings_is_complete_and_right():
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| (?:(\w+) \| )?`([\w.]+)` \| `(.+?)` \|", page, flags=re.M)
    table = {(method, key): default for method, key, default in rows}
    want = {("", "loss.method"): DEFAULTS["loss"]["method"]}
    want["", "augment.recipe"] = DEFAULTS["augment"]["recipe"]
    for section, value in DEFAULTS.items():
        if section in VARIANTS:
            continue
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for name, default in entries:
            want["", f"{section}.{name}".rstrip(".")] = default
    for method, settings in LOSS_DEFAULTS.items():
        want |= {(method, f"loss.{name}"): v for name, v in settings.items()}
    assert table == {key: repr(v).replace("'", '"') for key, v in want.items()}


def test_the_table_of_evaluation_settings_is_complete_and_right():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    rows = re.findall(
        r"^\| `([\w.]+)` \| (?:`(.+?)`|its name) \| ([\w, -]+) \|", page, flags=re.M
    )
    jobs = {job: tree for job, tree in JOBS.items() if job != "pretrain"}
    table: dict[tuple[str, str], str] = {}
    for key, default, names in rows:
        without = names.removeprefix("all but ")
        listed = {name.replace("-", "_") for name in without.split(", ")}
        if names.startswith("all"):
            listed = set(jobs) - listed
        for job in listed:
            assert (job, key) not in table, f"{key} of {job} is listed twice"
            table[job, key] = default or f'"{job}"'
    want = {
        (job, key): repr(value).replace("'", '"')
        for job in jobs
        for key, value in known({"job": job}).items()
        # The recipes have tables of their own.
        if not key.startswith("augment.") or key == "augment.recipe"
    }
    assert table == want


def test_the_tables_of_recipes_are_complete_and_right():
    page = (ROOT / "docs" / "data.md").read_text()
    found: dict[str, dict[str, str]] = {}
    recipes: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["setting", "what"]:
            recipes = cells[2:]
        elif cells[0].startswith("`augment."):
            for recipe, cell in zip(recipes, cells[2:], strict=True):
                if cell != "–":
                    key = cells[0].strip("`").removeprefix("augment.")
                    found.setdefault(recipe, {})[key] = cell.strip("`")
    assert found == {
        recipe: {k: repr(v).replace("'", '"') for k, v in settings.items()}
        for recipe, settings in RECIPE_DEFAULTS.items()
    }


def test_the_settings_that_may_change_are_listed():
    page = (ROOT / "docs" / "configuration.md").read_text()
    listed = [
        f"`{key}*`" if key[-1] == "." else f"`{key}`" for key in configs.RESUME_FREE
    ]
    assert f"{', '.join(listed)}." in page


def test_the_replay_of_a_step_runs_as_written(data_dir, monkeypatch):
    # Its shapes tell that the call is right; compiling it is left to other tests.
    make_views = augment.make_views
    monkeypatch.setattr(
        augment,
        "make_views",
        lambda batch, views, seed: jax.eval_shape(
            lambda batch: make_views(batch, views, seed), batch
        ),
    )
    text = (ROOT / "docs" / "data.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(block.replace('path="data"', f"path={str(data_dir)!r}"), names)
    assert names["batch"]["index"].tolist() == names["loader"].indices(41).tolist()
    assert names["pair"].shape == (256, 2, 28, 28, 3)
