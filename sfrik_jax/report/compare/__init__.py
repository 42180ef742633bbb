"""One self-contained page about many runs, and its tables as CSV and Markdown."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfrik_jax.errors import ConfigError
from sfrik_jax.files import make_folder, write_whole
from sfrik_jax.report import page
from sfrik_jax.report.compare import (
    cells,
    findings,
    heat,
    kernel_plots,
    look,
    plots,
    records,
    tables,
)
from sfrik_jax.report.compare.cells import Layout
from sfrik_jax.report.compare.gather import Collection, collect, is_sweep
from sfrik_jax.report.compare.tables import Table
from sfrik_jax.report.verdict import score_name

__all__ = ["is_sweep", "write_comparison"]


def write_comparison(
    directories: Sequence[Path], out: Path | None = None
) -> tuple[Path, Path, Path]:
    """Writes report.html, report.csv and report.md of all runs; their paths.

    Args: directories: of sweeps or of single runs; out: where to, by default the sweep
      directory, or the directory that holds all of several.

    A run that has failed, is not finished or is damaged is named on the page, and so is
    each file that cannot be read.

    Raises: MissingInputError (a directory holds neither a sweep nor a run), ConfigError
      (the default place is itself a run), OutputError or DiskFullError (not written).
    """
    collection = collect(directories)
    place = out or _common_place(directories)
    layout = cells.layout(collection.members)
    sections, found = _content(collection, layout)
    text = page.document(
        title=f"{collection.title} · SFRIK runs",
        html=[*sections, f"<script>{look.SCRIPT}</script>"],
        style=look.STYLE,
    )
    markdown = f"# {collection.title}\n\n{findings.verdict(collection, layout)}\n\n"
    markdown += "\n".join(table.markdown() for table in found)
    make_folder(place)
    paths = place / "report.html", place / "report.csv", place / "report.md"
    for path, content in zip(
        paths, (text, tables.as_csv(found), markdown), strict=True
    ):
        # Half a surrogate pair, which JSON and file names may have, becomes "?".
        write_whole(path, content.encode("utf-8", errors="replace"))
    return paths


def _common_place(directories: Sequence[Path]) -> Path:
    """The sweep directory itself, or the nearest one that holds all of several."""
    if len(directories) == 1:
        return directories[0]
    place = Path(os.path.commonpath([directory.resolve() for directory in directories]))
    if (place / "config.json").is_file():
        raise ConfigError(
            f"{place} is a run, whose own page is report.html there; give --out DIR"
        )
    return place


def _content(collection: Collection, layout: Layout) -> tuple[list[str], list[Table]]:
    """The sections that there is data for, and their tables."""
    runs = records.run_table(collection, layout)
    groups = plots.chosen(layout)
    collapse, gauges = plots.gauges(layout, groups)
    chosen, candidates = records.tuning(collection)
    table, differences = findings.cell_table(layout), findings.difference_table(layout)
    found = cells.scores(layout.cells)
    order = findings.ranked(layout, found[0]) if found else layout.cells
    sections = [
        page.header(
            kicker="Runs compared",
            title=collection.title,
            verdict=findings.verdict(collection, layout),
            about=_about(collection, layout),
        ),
        *_grids(layout),
        *_cells(table),
        *_differences(differences),
        *plots.training(layout, groups),
        *plots.cost(layout),
        *collapse,
        *plots.spectra(layout, groups),
        *kernel_plots.kernels(layout),
        *records.neighbours(order),
        *chosen,
        *records.states(collection, layout, runs),
        *records.common_settings(collection, layout),
        *records.commands(collection),
    ]
    listed = [table, differences, gauges, *candidates, runs]
    return sections, [each for each in listed if each is not None and each.rows]


def _about(collection: Collection, layout: Layout) -> str:
    counted = len(collection.members), len(layout.cells)
    parts = [f"{counted[0]} runs, {counted[1]} settings"]
    if layout.axes:
        parts.append("differing in " + ", ".join(layout.names[k] for k in layout.axes))
    return " · ".join(parts)


def _grids(layout: Layout) -> Iterator[str]:
    html = [
        grid
        for score in cells.scores(layout.cells)
        for grid in heat.grids(layout, cells.score(score), f"{score_name(score)} (%)")
    ]
    if html:
        axes = heat.axes_of(layout)
        names = " and ".join(layout.names[axis] for axis in axes or ())
        splits = {str(c.settings.get("eval.test_split", "?")) for c in layout.cells}
        note = (
            "Mean over seeds ± standard deviation (n - 1); eval.test_split = "
            f"{', '.join(sorted(splits))}. The best cell is framed."
        )
        tables = [page.group("grids", html)]
        yield page.section(f"Accuracy over {names}", note=note, html=tables)


def _cells(table: Table) -> Iterator[str]:
    if table.rows:
        note = (
            "Mean ± standard deviation over n seeds; a single seed has none. Against "
            "the best: mean paired difference ± its standard error. A heading sorts."
        )
        yield page.section("Settings compared", note=note, html=[table.html()])


def _differences(table: Table | None) -> Iterator[str]:
    if table is not None:
        note = (
            "Each seed of one setting less the same seed of the other: mean ± standard "
            "error over n pairs. Noise is what lies within the 95 % interval by "
            "Student's t: 12.7 standard errors of two pairs, 4.3 of three, 2.8 of five."
            " Where nothing differs, one in twenty leaves it by chance. The same step "
            "at several settings is pooled as well, as if each were a seed more."
        )
        shown = tables.folded(table, f"All {len(table.rows)} steps")
        yield page.section("Paired differences", note=note, html=[shown])
