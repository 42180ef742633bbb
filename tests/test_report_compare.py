"""The page of many runs: cells over seeds, paired differences, states, the look."""

import csv
import json
import re
import shutil
import subprocess
import time

import pytest
import synthetic_sweeps as made
from test_report import Page

from sfrik_jax.__main__ import main
from sfrik_jax.locks import Lock
from sfrik_jax.report.compare import cells, gather, look, records, statistics
from sfrik_jax.report.compare import write_comparison as compare


def accuracy(order, dim, seed):
    """L = 1 to 3 gives 70, 74, 75; a seed moves all alike, and L = 3 a little."""
    return {1: 70.0, 2: 74.0, 3: 75.0}[order] + seed + (order == 3) * seed + dim / 64


def rows_of(directory, table):
    with (directory / "report.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == table]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = made.grid_sweep(tmp_path_factory.mktemp("runs") / "lq", accuracy)
    assert main(["report", str(directory)]) == 0
    return directory


def test_cells_have_means_over_seeds(sweep):
    rows = {row["row"]: row for row in rows_of(sweep, "cells")}
    assert len(rows) == 6
    row = rows["L = 3, q = 64"]  # 76 and 78
    assert float(row["linear_top1"]) == 77.0 and row["linear_top1_n"] == "2"
    assert float(row["linear_top1_sd"]) == pytest.approx(2**0.5)
    assert "77.0 ± 1.4" in Page(sweep / "report.html").text
    assert "| L = 3, q = 64 | 77.0 ± 1.4 | 75.0 ± 1.4 |" in (
        (sweep / "report.md").read_text()
    )


def test_neighbouring_orders_are_compared_by_seed(sweep):
    rows = rows_of(sweep, "differences")
    found = {(r["row"], r["against"]): r for r in rows}
    low = found["L = 2, q = 16", "L = 1, q = 16"]  # 4 and 4
    assert (float(low["difference"]), float(low["difference_se"])) == (4.0, 0.0)
    high = found["L = 3, q = 16", "L = 2, q = 16"]  # 1 and 2: sd 0.707, error 0.5
    assert float(high["difference"]) == 1.5
    assert float(high["difference_se"]) == pytest.approx(0.5)
    assert ("L = 3, q = 64", "L = 3, q = 16") in found
    assert ("L = 3, q = 64", "L = 2, q = 16") not in found
    # Over q = 16 and 64: 1, 2, 1, 2, error 0.289, 3.2 of which are noise.
    over = found["L = 3", "L = 2"]
    assert (float(over["difference"]), over["difference_n"]) == (1.5, "4")
    assert float(over["difference_se"]) == pytest.approx(3**-0.5 / 2)
    text = Page(sweep / "report.html").text
    assert "L: 2 → 3 q = 16 +1.50 ± 0.50 2 noise" in text
    assert "L: 2 → 3 all of these +1.50 ± 0.29 4 beyond noise" in text


def test_the_verdict_tells_a_lead_from_noise(sweep, tmp_path):
    # The second is L = 3, q = 16, 0.75 below with either seed.
    text = Page(sweep / "report.html").text
    assert "Best: L = 3, q = 64, 77.0 ± 1.4 % (linear probe, 2 seeds)." in text
    assert "+0.75 points with each of 2 seeds: noise cannot be told" in text
    values = {1: [70.0, 74.0], 2: [75.0, 79.2]}  # differences 5 and 5.2
    made.grid_sweep(
        tmp_path / "b", lambda o, q, s: values[o][s], orders=(1, 2), dims=(16,)
    )
    compare([tmp_path / "b"])
    text = Page(tmp_path / "b" / "report.html").text
    assert "+5.10 points over 2 shared seeds exceeds noise, which is 1.27" in text
    values = {1: [70.0, 74.0], 2: [71.0, 72.0]}  # differences 1 and -2
    made.grid_sweep(
        tmp_path / "a", lambda o, q, s: values[o][s], orders=(1, 2), dims=(16,)
    )
    compare([tmp_path / "a"])
    text = Page(tmp_path / "a" / "report.html").text
    assert "+0.50 points over 2 shared seeds is within noise: 19.06 points" in text


def test_equal_differences_are_no_certainty():
    """Of which floating point makes an error of 1e-15, not of zero."""
    a, b = {"0": 62.75, "1": 71.65, "2": 77.35}, {"0": 60.79, "1": 69.69, "2": 75.39}
    found = statistics.paired(a, b)
    assert found is not None and 0 < (found.error or 0) < 1e-13
    assert found.noise is None and found.exceeds_noise is None


def test_one_seed_has_no_deviation(tmp_path):
    made.grid_sweep(tmp_path, accuracy, seeds=(0,))
    compare([tmp_path])
    text = Page(tmp_path / "report.html").text
    assert "with one seed: noise cannot be told" in text
    notes, over = r"(Mean|mean)[^.]*±[^.]*", r"all of these \S+ ± \S+"
    assert "±" not in re.sub(f"{notes}|{over}", "", text)
    assert all(not row["linear_top1_sd"] for row in rows_of(tmp_path, "cells"))


def test_states_are_told_and_unfinished_runs_count_in_no_figure(tmp_path):
    made.grid_sweep(tmp_path, accuracy, orders=(1, 2))
    content = json.loads((tmp_path / "sweep.json").read_text())
    names = [run["name"] for run in content["runs"]]
    (tmp_path / names[0] / "summary.json").unlink()
    (tmp_path / names[1] / "summary.json").write_text('{"linear_top1": 99.')
    content["runs"][2]["state"] = "failed (code 70)"
    content["runs"][3]["state"] = "running"  # as a killed sweep leaves what is done
    content["runs"][0]["state"] = "running"  # and what was killed with it
    content["runs"].append({"name": "begun", "overrides": {}, "state": "running"})
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text(
        (tmp_path / names[0] / "config.json").read_text()
    )
    content["runs"].append({"name": "later", "overrides": {}, "state": "waiting"})
    content["runs"].append({"name": "../../outside", "overrides": {}})
    made.write(tmp_path / "sweep.json", content)
    (tmp_path / names[5] / "spectrum.json").write_text("[")
    with Lock(tmp_path / "begun" / "lock", "it", "wait"):
        compare([tmp_path])
    states = {row["row"]: row["state"] for row in rows_of(tmp_path, "runs")}
    assert [states[name] for name in names[:4]] == [
        "not finished",
        "damaged",
        "failed (code 70)",
        "done",
    ]
    assert states["later"] == "waiting" and len(states) == 10
    assert states["begun"] == "running"
    text = Page(tmp_path / "report.html").text
    assert f"Failed (code 70) 1: {names[2]}" in text
    assert f"{names[5]}/spectrum.json" in text and "sweep.json" in text
    counts = {r["row"]: r["linear_top1_n"] for r in rows_of(tmp_path, "cells")}
    assert counts["L = 1, q = 64"] == "1" and "5 of 10 runs are done." in text


def test_a_damaged_sweep_file_hides_no_run(tmp_path):
    made.grid_sweep(tmp_path, accuracy, orders=(1,))
    (tmp_path / "sweep.json").write_text("{")
    compare([tmp_path])
    assert len(rows_of(tmp_path, "runs")) == 4
    assert "Damaged files sweep.json" in Page(tmp_path / "report.html").text


def test_runs_that_never_began_have_a_page(tmp_path):
    made.write_sweep(tmp_path, {"a": {"seed": "0"}}, {"a": "waiting"})
    compare([tmp_path])
    text = Page(tmp_path / "report.html").text
    assert "No run is done yet" in text and "Waiting 1: a" in text


def methods(directory, **more):
    losses = {
        "sfrik": {"method": "sfrik", "weights": [1.0, 40.0]},
        "simclr": {"method": "simclr", "temperature": 0.15},
    }
    runs = {}
    for place, (method, loss) in enumerate(losses.items()):
        for seed in (0, 1):
            name = f"{method}-{seed}"
            runs[name] = {"loss.method": method, "seed": str(seed)}
            settings = made.config(seed=seed, loss=loss, base_lr=1.0 + place)
            made.write_run(directory / name, settings, 80.0 - place + seed, **more)
    made.write_sweep(directory, runs)
    return directory


def test_what_follows_from_the_method_is_no_axis(tmp_path):
    methods(tmp_path)
    found = cells.layout(gather.collect([tmp_path]).members)
    assert found.axes == ["loss.method"]
    assert [cell.label for cell in found.cells] == ["sfrik", "simclr"]
    compare([tmp_path])
    text = Page(tmp_path / "report.html").text
    assert "weights = (1, 40), base_lr = 1" in text
    assert "temperature = 0.15, base_lr = 2" in text


def test_weights_that_are_no_prefixes_are_shown_whole(tmp_path):
    for place, weights in enumerate([[1.0, 40.0], [2.0, 40.0, 40.0]]):
        loss = {"method": "sfrik", "weights": weights}
        made.write_run(tmp_path / str(place), made.config(loss=loss), 80.0)
    compare([tmp_path / "0", tmp_path / "1"])
    rows = rows_of(tmp_path, "cells")
    assert {row["row"] for row in rows} == {
        "weights = (1, 40)",
        "weights = (2, 40, 40)",
    }


def test_kernels_with_a_name_are_drawn(tmp_path):
    for place, weights in enumerate(["rbf(2.5, order=3)", [1.0, 40.0], "nonsense(1)"]):
        loss = {"method": "sfrik", "weights": weights}
        made.write_run(tmp_path / str(place), made.config(loss=loss), 80.0 + place)
    compare([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    page = Page(tmp_path / "report.html")
    assert "Not drawn: nonsense(1)." in page.text
    labels = [svg["aria-label"] for svg in page.every("svg")]
    assert "K(t)/K(1) of 2 kernels" in labels
    assert "Best: weights = nonsense(1)" in page.text


def test_tuning_stays_apart_from_the_results(tmp_path):
    methods(tmp_path)
    settings = made.config(seed=0, loss={"method": "sfrik", "weights": [1.0, 40.0]})
    made.write_run(tmp_path / "tuning" / "t0", settings, 99.5)
    made.write_sweep(tmp_path / "tuning", {"t0": {"optim.base_lr": "3"}})
    candidates = [
        {"run": "t1", "overrides": {"optim.base_lr": "6"}, "value": None},
        {"run": "t0", "overrides": {"optim.base_lr": "3"}, "value": 99.5},
    ]
    choice = {"for": {"loss.method": "sfrik"}, "chosen": {"optim.base_lr": "3"}}
    choice |= {"run": "t0", "value": 99.5, "candidates": candidates}
    made.write(tmp_path / "tuned.json", {"metric": "linear_top1", "choices": [choice]})
    compare([tmp_path])
    html = (tmp_path / "report.html").read_text()
    before, after = html.split("Tuning, on the validation split")
    assert "99.5" not in before and "99.50" in after
    assert "loss.method = sfrik: optim.base_lr = 3 is taken" in after
    assert "99.5" not in str(rows_of(tmp_path, "cells") + rows_of(tmp_path, "runs"))
    tried = rows_of(tmp_path, "tuning")
    assert [row["tuning_linear_top1"] for row in tried] == ["99.5", ""]


def test_what_users_write_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>|`x`"
    loss = {"method": bad, "weights": [1.0]}
    directory = tmp_path / "<img src=x>"
    made.write_run(directory / "a", made.config(loss=loss), 80.0, steps=4)
    made.write_run(directory / '"><u>b', made.config(seed=1), 81.0)
    made.write_sweep(directory, {"a": {bad: bad}, '"><u>b': {}}, {"a": f"failed {bad}"})
    choice = {"for": {bad: bad}, "candidates": [{"run": bad, "overrides": 3}]}
    made.write(directory / "tuned.json", {"metric": bad, "choices": [choice, 7]})
    made.add_neighbours(directory / '"><u>b')
    compare([directory])
    page = Page(directory / "report.html")
    assert page.open == [] and not {tag for tag, _ in page.tags} & {"u"}
    assert len(page.every("script")) == 1
    assert all(i["src"].startswith("data:") for i in page.every("img"))
    assert "<script>" not in (directory / "report.md").read_text()


def test_the_page_stands_alone(sweep):
    page = Page(sweep / "report.html")
    assert page.open == []
    assert not re.search(r"https?://|//cdn|@import", page.source)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source)
    assert {a or b for a, b in referred} <= set(ids)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.every("svg"))
    assert all("scope" in cell for cell in page.every("th"))
    for title in (
        "Training",
        "Cost against q",
        "Collapse gauges",
        "Spectra",
        "Kernels",
    ):
        assert f"<h2>{title}</h2>" in page.source
    assert "#01000" not in page.source and "#02000" not in page.source


def test_the_same_runs_give_the_same_page(sweep):
    first = (sweep / "report.html").read_bytes()
    compare([sweep])
    assert (sweep / "report.html").read_bytes() == first


def test_the_command_of_a_sweep_is_the_one_that_was_noted(tmp_path):
    made.write_sweep(tmp_path / "x", {"a": {"seed": "0"}})
    (sweep,) = gather.collect([tmp_path / "x"]).sweeps
    (line,) = records.sweep_command(sweep)
    want = f"sweep --config 'a b.py:small' --workdir {tmp_path / 'x'}"
    assert line == f"python -m sfrik_jax {want}"
    (tmp_path / "x" / "sweep.json").write_text('{"runs": []}')
    assert records.sweep_command(gather.collect([tmp_path / "x"]).sweeps[0]) == []


def test_a_tuning_alone_is_a_sweep_without_final_figures(sweep, tmp_path):
    place = tmp_path / "tuned"
    place.mkdir()
    (place / "tuning").symlink_to(sweep)
    compare([place])
    text = Page(place / "report.html").text
    assert "Tuning, on the validation split" in text
    assert "Best:" not in text


def test_where_the_page_goes(tmp_path, capsys):
    for name in ("x", "y"):
        made.write_run(tmp_path / name, made.config(), 80.0)
    paths = [str(tmp_path / name) for name in ("x", "y")]
    assert main(["report", paths[0], paths[0]]) == 0  # one run, its own page
    assert capsys.readouterr().out == f"{tmp_path / 'x' / 'report.html'}\n"
    assert main(["report", *paths]) == 0
    assert (tmp_path / "report.md").is_file()
    assert "Left out as repeats y" in Page(tmp_path / "report.html").text
    assert main(["report", *paths, "--out", str(tmp_path / "new" / "place")]) == 0
    assert (tmp_path / "new" / "place" / "report.csv").is_file()
    inner = made.write_run(tmp_path / "x" / "inner", made.config(seed=1), 80.0)
    assert main(["report", paths[0], str(inner)]) == 2
    assert "give --out DIR" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", paths[0], str(tmp_path / "empty")]) == 66


def test_sixty_runs_are_quick_and_small(tmp_path):
    made.grid_sweep(
        tmp_path,
        lambda order, dim, seed: 70.0 + order + seed + dim / 1000,
        orders=(1, 2, 3, 4, 5),
        dims=(64, 256, 1024, 4096),
        seeds=(0, 1, 2),
    )
    start = time.process_time()
    compare([tmp_path])
    assert time.process_time() - start < 60
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
    assert len(rows_of(tmp_path, "runs")) == 60


@pytest.mark.slow
def test_a_browser_sorts_and_has_no_complaint(sweep, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page's script is not run")
    press = (
        'var h=document.querySelectorAll("table.sortable th")[1];'
        'h.querySelector("button").click();h.querySelector("button").click();'
    )
    page = tmp_path / "page.html"
    source = (sweep / "report.html").read_text()
    page.write_text(source.replace("</body>", f"<script>{press}</script></body>"))
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += [
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}",
        f"file://{page}",
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    table = re.search(r'<table class="sortable">.*?</table>', done.stdout, re.DOTALL)
    assert table is not None and 'aria-sort="ascending"' in table[0]
    values = re.findall(r"<tr[^>]*><th.*?</th><td[^>]*>([\d.]+)", table[0])
    assert len(values) == 6 and values == sorted(values, key=float)


def test_the_script_cannot_end_early():
    assert "</" not in look.SCRIPT
