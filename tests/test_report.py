"""The page about a run: what it says, that it stands alone, and incomplete runs."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sfrik_jax.errors import CorruptInputError, MissingInputError, OutputError
from sfrik_jax.evaluators import pictures
from sfrik_jax.report import curves, write_report

SUMMARY = {
    "linear_top1": 84.1,
    "linear_top5": 99.0,
    "knn20_top1": 80.6,
    "random_init_linear_top1": 74.8,
    "random_init_knn20_top1": 72.9,
    "color_histogram_linear_top1": 40.3,
    "pixels_knn20_top1": 80.2,
    "train_seconds": 203.4,
    "views_per_second": 1377.0,
    "steps": 300,
    "test_images": 1000,
    "protocol": {"probe_epochs": 100},
    "weights_sha256": "9f86d0",
}
FACTS = {
    "devices": ["cpu", "cpu"],
    "versions": {"jax": "0.10.2"},
    "git_revision": "3f1c2ab",
    "command": ["python", "-m", "sfrik_jax", "pretrain", "--workdir", "my run"],
}
CONFIG = {
    "data": {"name": "fashion_mini"},
    "model": {"backbone": "resnet18", "embed_dim": 256},
    "loss": {"method": "sfrik"},
}


def metric_rows(steps, *, labels=True):
    for step in range(1, steps + 1):
        decay = math.exp(-step / 60)
        yield {
            "step": step,
            "epoch": step / 19,
            "train/loss": 1 + decay,
            "train/alignment": decay,
            "train/mmd": 0.32 + 0.1 * decay,
            "train/mmd_offdiagonal": 0.1 * decay,
            "train/learning_rate": 0.1 * decay,
            "z/effective_rank": 100 * (1 - decay) + 10,
            "z/std": 0.06,
            "z/uniformity": -3.9,
            "z/alignment": decay,
            "z/mmd_offdiagonal": 0.1 * decay,
        }
        if labels and step % 50 == 0:
            yield {
                "step": step,
                "epoch": step / 19,
                "online/knn20_top1": 80 - 9 * decay,
                "online/linear_top1": 84 - 9 * decay,
            }


def make_run(workdir, *, steps=100, labels=True, summary=SUMMARY, facts=FACTS):
    (workdir / "pictures").mkdir(parents=True)
    lines = [json.dumps(row) for row in metric_rows(steps, labels=labels)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, content in (("config", CONFIG), ("run", facts), ("summary", summary)):
        if content is not None:
            (workdir / f"{name}.json").write_text(json.dumps(content))
    images = np.zeros((2, 8, 8, 3), np.uint8)
    pictures.views(images, [images], workdir / "pictures" / "views.png")
    return workdir


class Page(HTMLParser):
    """Collects what the tests ask about: tags, attributes, text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.texts = [], [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def every(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_says_what_came_out(tmp_path):
    page = Page(write_report(make_run(tmp_path / "first")))
    assert page.open == []
    assert (
        "The linear probe reaches 84.1 %: 9.3 points above the same network untrained "
        "and 3.9 points above kNN on raw pixels." in page.text
    )
    assert "Same network, untrained 74.8 72.9" in page.text
    assert "Colour histogram 40.3 –" in page.text
    assert "one standard error is 1.2 points" in page.text
    assert "3 min 23 s" in page.text and "1,377 views per second" in page.text
    assert "--workdir 'my run'" in page.text and "git checkout 3f1c2ab" in page.text
    assert '"backbone": "resnet18"' in page.text


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (74.0, "0.8 points below the same network untrained"),
        (74.0, "Training did not improve the features."),
        (80.2, "level with kNN on raw pixels"),
    ],
)
def test_the_verdict_does_not_flatter(tmp_path, own, says):
    summary = {**SUMMARY, "linear_top1": own}
    page = Page(write_report(make_run(tmp_path / "first", summary=summary)))
    assert says in page.text


def test_the_verdict_takes_the_stronger_score_of_the_pixels(tmp_path):
    summary = {**SUMMARY, "pixels_linear_top1": 83.1}
    page = Page(write_report(make_run(tmp_path / "first", summary=summary)))
    assert "1.0 points above a linear probe on raw pixels" in page.text


def test_a_resumed_run_shows_its_newest_session(tmp_path):
    old = {**FACTS, "git_revision": "0000000", "started": "Monday"}
    new = {
        **FACTS,
        "git_revision": "3f1c2ab-dirty",
        "started": "Tuesday",
        "command": ["python -m sfrik_jax", "pretrain", "--workdir", "my run"],
    }
    facts = {"sessions": [old, new]}
    page = Page(write_report(make_run(tmp_path / "first", facts=facts)))
    assert "Started Monday" in page.text and "Sessions 2" in page.text
    assert "git checkout 3f1c2ab # and its uncommitted changes" in page.text
    assert "python -m sfrik_jax pretrain --workdir 'my run'" in page.text
    assert "Devices cpu × 2" in page.text


def test_the_page_stands_alone(tmp_path):
    page = Page(write_report(make_run(tmp_path / "first")))
    assert not re.search(r"https?://|//cdn|@import|<script", page.source)
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs)
    urls = re.findall(r"url\(([^)]*)\)", page.source)
    assert all(url.startswith("#") for url in urls)


def test_ids_are_unique_and_every_reference_has_one(tmp_path):
    page = Page(write_report(make_run(tmp_path / "first")))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source)
    assert {a or b for a, b in referred} <= set(ids)


def test_the_page_is_accessible(tmp_path):
    page = Page(write_report(make_run(tmp_path / "first")))
    assert page.every("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.every("meta"))
    assert all(image["alt"] for image in page.every("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.every("svg"))
    assert all("scope" in cell for cell in page.every("th"))


def test_curves_take_their_colours_from_the_page(tmp_path):
    page = Page(write_report(make_run(tmp_path / "first")))
    assert "prefers-color-scheme: dark" in page.source
    for svg in re.findall(r"<svg.*?</svg>", page.source, re.DOTALL):
        assert "var(--accent)" in svg and "#01000" not in svg
        assert not re.search(r"(?:fill|stroke): #", svg)
        assert "font-family" not in svg


def test_the_same_run_gives_the_same_page(tmp_path):
    workdir = make_run(tmp_path / "first")
    first = write_report(workdir).read_bytes()
    assert write_report(workdir).read_bytes() == first
    assert [path.name for path in workdir.glob("report*")] == ["report.html"]


def test_what_users_write_is_escaped(tmp_path):
    facts = {**FACTS, "command": "<script>alert(1)</script>", "<b>x": "<i>&</i>"}
    workdir = make_run(tmp_path / "<img src=x>", facts=facts)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, 'train/"><u>': 1.0}) + "\n")
    picture = workdir / "pictures" / "views.png"
    picture.rename(picture.with_name('"><em>.png'))
    page = Page(write_report(workdir))
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "b", "u", "em"}
    assert all(
        "src" not in i or i["src"].startswith("data:") for i in page.every("img")
    )


def test_a_run_without_labels_shows_its_gauges(tmp_path):
    summary = {"steps": 100, "train_seconds": 9.0, "linear_top1": None}
    page = Page(write_report(make_run(tmp_path / "a", labels=False, summary=summary)))
    assert "No labels, so no accuracy: the loss fell from 1.98 to 1.19" in page.text
    assert "an effective 91.1 of 256 dimensions" in page.text
    assert not page.every("table")
    assert len(page.every("svg")) == 7


def test_gauges_that_repeat_the_loss_are_left_out(tmp_path):
    make_run(tmp_path)
    html = write_report(tmp_path).read_text()
    assert html.count(">Alignment<") == 1
    assert "of unit z" not in html
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("train/mmd_offdiagonal", "train/variance"))
    html = write_report(tmp_path).read_text()
    assert html.count(">Alignment of unit z<") == 1
    assert html.count(">MMD of unit z, off-diagonal part<") == 1


def test_an_unfinished_run_says_so(tmp_path):
    page = Page(write_report(make_run(tmp_path / "a", summary=None)))
    assert "Not finished: at step 100. The linear probe reaches 82.3 % so far." in (
        page.text
    )
    assert "The last evaluation during training" in page.text


def test_a_run_before_its_first_evaluation_is_not_called_unlabelled(tmp_path):
    page = Page(write_report(make_run(tmp_path / "a", labels=False, summary=None)))
    assert "Not finished: at step 100. No accuracy yet: the loss fell" in page.text


def test_a_collapse_is_called_one(tmp_path):
    workdir = make_run(tmp_path / "a", labels=False, summary={"steps": 101})
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 101, "z/effective_rank": 1.1}) + "\n")
    assert "They have collapsed." in Page(write_report(workdir)).text


def test_a_run_before_its_first_step_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "Not finished: before its first step." in Page(write_report(tmp_path)).text


def test_broken_and_repeated_lines(tmp_path):
    workdir = make_run(tmp_path / "a")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 90, "train/loss": 7.25}\n{"step": 100, "train/loss": NaN}\n'
        )
        file.write('[1]\n{"step": 101, "train/lo')
    text = Page(write_report(workdir)).text
    assert "2 unreadable lines" in text and "1.189" in text  # NaN hides no number


def test_long_curves_are_thinned_with_both_ends():
    curve = [(step, float(step)) for step in range(1, 54_322)]
    thin = curves.thin(curve)
    assert len(thin) == curves.MAX_POINTS
    assert thin[0] == curve[0] and thin[-1] == curve[-1]
    assert curves.thin(curve[:1000]) == curve[:1000]


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-9, 1e9], [-5.0, 5.0]])
def test_any_values_can_be_drawn(values):
    line = curves.Line(list(enumerate(values)))
    svg = curves.draw([line], ident="x", label='"<&')
    assert 'aria-label="&quot;&lt;&amp;"' in svg


def test_a_missing_run_is_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match="is not there"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="neither config") as caught:
        write_report(tmp_path)
    assert caught.value.code == 66


def test_broken_json_is_corrupt_input(tmp_path):
    workdir = make_run(tmp_path / "a")
    (workdir / "summary.json").write_text("{")
    with pytest.raises(CorruptInputError, match=r"summary\.json"):
        write_report(workdir)


def test_a_page_that_cannot_be_written_is_an_output_error(tmp_path):
    workdir = make_run(tmp_path / "a")
    (workdir / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(workdir)


def test_numbers_beyond_floats_are_left_out(tmp_path):
    workdir = make_run(tmp_path / "a")
    huge = "1" + "0" * 400
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {huge}}}\n{{"step": Infinity}}\n{{"step": []}}\n')
        file.write(f'{{"step": 101, "train/loss": {huge}, "z/std": 0.5}}\n')
    text = Page(write_report(workdir)).text
    assert "3 unreadable lines" in text and "1.189" in text
