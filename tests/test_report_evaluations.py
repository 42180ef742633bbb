"""The page's section of evaluation commands: what it shows, and of damaged records."""

import argparse
import copy
import functools
import json
import re

import numpy as np
import pytest
from test_report import SUMMARY, Page, make_run

from sfrik_jax.commands import reports
from sfrik_jax.errors import MissingInputError
from sfrik_jax.evaluators import scores
from sfrik_jax.jobs import results
from sfrik_jax.report import evaluations, records, write_report
from sfrik_jax.report.run import load

WEIGHTS = {"path": "runs/x", "step": 300, "sha256": "9f86d081" * 8}
OLDER = {"path": "runs/x", "step": 200, "sha256": "0a1b2c3d" * 8}
PROTOCOL = {
    "data.resize": 256,
    "data.image_size": 224,
    "data.method": "bilinear",
    "probe.epochs": 100,
}
CONFUSION = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
COMPARED = [
    {"learning_rate": 0.1, "weight_decay": 1e-6, "val_top1": 80.0, "val_loss": 0.61},
    {"learning_rate": 0.4, "weight_decay": 1e-6, "val_top1": 82.0, "val_loss": 0.58},
]
LINEAR = {
    "job": "linear",
    "figures": {
        "linear/val_top1": 82.0,
        "linear/top1": 85.0,
        "linear/top1_low": 64.0,
        "linear/top1_high": 94.8,
        "linear/top5": 100.0,
    },
    "protocol": PROTOCOL,
    "weights": WEIGHTS,
    "compared": COMPARED,
    "chosen": COMPARED[1],
    "per_class": {"cat": 80.0, "dog": 90.0, "<b>": None},
    "confusion": CONFUSION,
    "most_confused": [{"true": "cat", "predicted": "dog", "images": 2}],
}
GAUGES = {
    "job": "gauges",
    "figures": {
        "features/rankme": 41.25,
        "embeddings/rankme": 90.5,
        "features/alignment": 0.3125,
        "features/own_gauge": 2.0,
        "images": 1000,
    },
    "protocol": {"data.resize": 256, "augment.recipe": "vicreg", "gauges.images": 1000},
    "weights": {"path": "x.pth", "sha256": "77" * 32},
}
KNN = {
    "job": "knn",
    "figures": {
        **{f"knn/top1_k{k}": 80.0 - k / 100 for k in (200, 10)},
        **{f"knn/val_top1_k{k}": 11.0 for k in (200, 10)},
        "knn/top5_k10": 99.0,
        "knn/images": 1000,
    },
    "protocol": {"knn.temperature": 0.07},
    "weights": WEIGHTS,
}
SVM = {
    "job": "voc_svm",
    "figures": {"voc_svm/map_voc07": 81.25, "voc_svm/map_area": 83.5},
    "protocol": {},
    "weights": WEIGHTS,
    "per_class": {"cat": {"ap_voc07": 80.0, "cost": 1.0}},
    "table": [{"shots": 8, "map_voc07": 55.5, "map_area": 56.5}],
}


@pytest.fixture
def page(tmp_path):
    """Writes records by name into a run, and reads the page."""
    summary = {**SUMMARY, "backbone_sha256": WEIGHTS["sha256"]}
    workdir = make_run(tmp_path / "first", steps=0, summary=summary)

    def write(**contents):
        (workdir / "eval").mkdir()
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (workdir / "eval" / f"{name}.json").write_text(text)
        return Page(write_report(workdir))

    return write


def test_a_run_without_evaluations_has_no_section(page):
    assert "Evaluations" not in page().text


def test_the_figure_stands_with_interval_protocol_and_weights(page):
    text = page(linear=LINEAR).text
    assert "Linear probe 85.0 64.0 – 94.8 100.0" in text
    assert (
        "resized to 256 px · centre 224 px · bilinear · 100 epochs · weights step 300, "
        "9f86d0819f86" in text
    )
    assert "not the run's last" not in text


def test_figures_of_other_weights_are_marked(page):
    older = LINEAR | {"weights": OLDER}
    text = page(linear_step200=older, linear_step1000=LINEAR).text
    assert "weights step 200, 0a1b2c3d0a1b · not the run's last" in text
    assert text.count("not the run's last") == 1
    assert text.index("(linear_step200)") < text.index("(linear_step1000)")


def test_what_was_compared_is_shown_with_the_chosen_one(page):
    made = page(linear=LINEAR)
    assert "2 settings compared, confusions of the classes" in made.text
    chosen = re.findall(r'<tr class="own">(.*?)</tr>', made.source)
    assert any("0.4" in row and "82" in row and "0.58" in row for row in chosen)
    assert not any("0.61" in row for row in chosen)


def test_confusions_are_coloured_by_their_share_of_the_class(page):
    made = page(linear=LINEAR)
    assert "1\u2002cat" in made.source
    cells = re.findall(
        r'class="(right|wrong)" style="--share: (\d+)%">(\d)', made.source
    )
    # Half the root of 8, 2, 1 and 9 tenths; a class without pictures has no colour.
    assert cells == [
        ("right", "45", "8"),
        ("wrong", "22", "2"),
        ("wrong", "16", "1"),
        ("right", "47", "9"),
    ]
    assert "80.0" in made.text and "90.0" in made.text
    assert "<b>" not in made.source and "&lt;b&gt;" in made.source


def test_of_many_classes_the_commonest_mistakes_are_listed(page):
    made = page(linear=many("dog"))
    assert "cat as dog 2" in made.text
    assert "--share:" not in made.source.split("</style>")[1]


def test_knn_has_a_row_for_each_k_of_the_final_split(page):
    text = page(knn=KNN).text
    assert "kNN, k = 200 78.0 – –" in text.replace("\u00a0", " ")
    assert "kNN, k = 10 79.9 – 99.0" in text.replace("\u00a0", " ")
    assert "11.0" not in text


def test_a_tuning_shows_its_validation_split_under_that_name(page):
    figures = {"linear/val_top1": 82.0, "linear/val_top5": 99.0}
    text = page(linear_tune=LINEAR | {"figures": figures}).text
    assert "Linear probe (linear_tune), validation split 82.0 – 99.0" in text


def test_gauges_and_svms_have_tables_of_their_own(page):
    made = page(gauges=GAUGES, **{"voc-svm": SVM})
    assert "Gauges Features Embeddings" in made.text
    assert "Effective rank (RankMe) 41.25 90.5" in made.text
    assert "Alignment 0.3125 –" in made.text
    assert "own gauge 2 –" in made.text
    note = "views vicreg · 1000 pictures · weights 777777777777 · not the run's last"
    assert note in made.text and "resized" not in made.text
    assert "SVMs 81.2 83.5" in made.text
    assert "8 per class 55.5 56.5" in made.text


def test_stored_features_are_no_figure(page):
    features = {"job": "features", "figures": {}, "protocol": {}, "weights": WEIGHTS}
    assert "Evaluations" not in page(features=features).text


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 100_000,
        "\udcff",
        {},
        LINEAR | {"figures": 3},
        LINEAR | {"weights": {"sha256": 3}},
        LINEAR | {"weights": WEIGHTS | {"step": "x"}},
        LINEAR | {"protocol": None},
        LINEAR | {"confusion": [[1, 2], [3]]},
        LINEAR | {"confusion": [[1, 2, 3]] * 2 + [[1, 2, "x"]]},
        LINEAR | {"confusion": 3},
        LINEAR | {"per_class": None},
        LINEAR | {"compared": [3]},
        LINEAR | {"compared": 3},
        LINEAR | {"table": [3]},
        LINEAR | {"most_confused": [{"true": "cat"}]},
    ],
    ids=range(19),
)
def test_a_damaged_record_is_named_and_hides_no_other(tmp_path, damage):
    workdir = make_run(tmp_path / "first", steps=0)
    (workdir / "eval").mkdir()
    (workdir / "eval" / "knn.json").write_text(json.dumps(KNN))
    text = damage if isinstance(damage, str) else json.dumps(damage)
    path = workdir / "eval" / "linear.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    page = Page(write_report(workdir))
    assert "Left out, as damaged: eval/linear.json; run the command again." in page.text
    assert "kNN" in page.text and "Linear probe (" not in page.text


def test_figures_that_are_no_numbers_are_left_out(page):
    figures = '{"linear/top1": NaN, "linear/top5": "x", "linear/val_top1": 81.5}'
    record = json.dumps(LINEAR | {"figures": {}}).replace(
        '"figures": {}', f'"figures": {figures}'
    )
    assert "Linear probe, validation split 81.5 – –" in page(linear=record).text


def test_the_page_with_evaluations_stands_alone_and_is_accessible(page):
    made = page(linear=LINEAR, gauges=GAUGES, knn=KNN, **{"voc-svm": SVM})
    assert made.open == []
    assert not re.search(r"https?://|//cdn|@import|<script", made.source)
    assert all("scope" in cell for cell in made.every("th"))
    regions = [div for div in made.every("div") if div.get("class") == "scroll"]
    assert len(regions) == 6
    assert all(region["aria-label"] for region in regions)


def test_records_come_by_name_and_number(tmp_path):
    (tmp_path / "eval" / "linear.json").mkdir(parents=True)
    for name in ("b2", "b10", "a", "b"):
        path = tmp_path / "eval" / f"{name}.json"
        path.write_text(json.dumps(KNN))
    found, damaged = records.read(tmp_path)
    assert [record.name for record in found] == ["a", "b", "b2", "b10"]
    assert damaged == []


def test_of_more_than_a_hundred_classes_the_matrix_is_a_file(tmp_path):
    workdir, count = make_run(tmp_path / "first", steps=0), 101
    (workdir / "eval" / "linear").mkdir(parents=True)
    confusion = np.eye(count, dtype=np.int64) * 4
    confusion[7, 9] = 3
    counts = scores.Counts(confusion, np.full(count, 4))
    results.write(
        workdir,
        "linear",
        job="linear",
        figures=LINEAR["figures"],
        identity={"weights": WEIGHTS, "protocol": PROTOCOL},
        details=results.class_details(counts, [f"c{i}" for i in range(count)]),
    )
    found, damaged = records.read(workdir)
    assert damaged == []
    assert np.load(workdir / found[0].confusion_file)[7, 9] == 3
    assert (found[0].confusion, found[0].per_class["c7"]) == ([], 57.14)
    text = Page(write_report(workdir)).text
    assert "Linear probe 85.0 64.0 – 94.8 100.0" in text
    assert "Linear probe: commonest mistakes" in text and "c7 as c9 3" in text
    assert "All of 101 x 101 classes: eval/linear/confusion.npy" in text


HOSTILE = [
    *(None, True, -1, 1.5, 10**400, float("nan"), float("inf"), ""),
    *("<script>x", "\ud800", [], {}, [[]], [1, 2], ["a"], {"a": []}, {"a": {"b": 1}}),
]


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def places(value, path=()):
    """Where values are in JSON, to two entries of a list."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@pytest.mark.parametrize("record", [LINEAR, GAUGES, KNN, SVM], ids=lambda r: r["job"])
def test_no_value_hides_the_other_records(tmp_path, record):
    run = load(make_run(tmp_path / "first", steps=0))
    (run.workdir / "eval").mkdir()
    other = json.dumps(LINEAR | {"job": "finetune"})
    (run.workdir / "eval" / "finetune.json").write_text(other)
    for place in places(record):
        for value in [*HOSTILE, nested(900)]:
            changed = copy.deepcopy(record)
            holder = functools.reduce(lambda node, key: node[key], place[:-1], changed)
            holder[place[-1]] = value
            (run.workdir / "eval" / "a.json").write_text(json.dumps(changed))
            html = "".join(evaluations.sections(run))
            assert "Fine-tuned" in html
            assert "<script" not in html


def test_half_a_character_is_written(page):
    assert "cat as ? 2" in page(linear=many(predicted="\ud800")).text


def many(predicted):
    count = evaluations.HEAT_CLASSES + 1
    return LINEAR | {
        "per_class": {f"class {i}": 50.0 for i in range(count)},
        "confusion": [[1] * count] * count,
        "most_confused": [{"true": "cat", "predicted": predicted, "images": 2}],
    }


def test_evaluations_of_a_file_have_a_page_of_their_own(tmp_path):
    (tmp_path / "resnet50" / "eval").mkdir(parents=True)
    with pytest.raises(MissingInputError, match=r"nor eval/\*\.json; give"):
        write_report(tmp_path / "resnet50")
    (tmp_path / "resnet50" / "eval" / "knn.json").write_text(json.dumps(KNN))
    asked = argparse.Namespace(workdirs=[str(tmp_path / "resnet50")], out=None)
    assert reports.report(asked) == 0
    made = Page(tmp_path / "resnet50" / "report.html")
    assert made.open == []
    assert "<title>resnet50 · SFRIK evaluation</title>" in made.source
    assert [tag for tag, _ in made.tags].count("h2") == 1
    assert "Evaluations" in made.text and "kNN, k" in made.text
    assert "Not finished" not in made.text
