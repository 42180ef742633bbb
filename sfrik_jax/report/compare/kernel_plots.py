"""The section on the kernels that runs were trained with."""

from collections.abc import Iterator

from sfrik_jax.report import page
from sfrik_jax.report.compare import cells as names
from sfrik_jax.report.compare import figures, profiles
from sfrik_jax.report.compare.cells import Layout
from sfrik_jax.report.compare.figures import Line


def kernels(layout: Layout) -> Iterator[str]:
    """K(t)/K(1) of the weights in use."""
    found, untold = _in_use(layout)
    shown = dict(list(found.items())[: figures.GROUPS])
    if not shown:
        return
    pairs = [profiles.lines(weights, dim) for weights, dim in shown.values()]
    panels = [
        figures.panel(
            title,
            [Line(pair[which], group) for group, pair in enumerate(pairs)],
            ident=f"k{which}",
            label=f"{title} of {len(shown)} kernels",
            value=value,
        )
        for which, title, value in (
            (0, "K(t)/K(1)", "over the cosine t"),
            (1, "K(t)/K(1) where cosines lie", "over t√q"),
        )
    ]
    note = (
        "Of the weights b_1, b_2, … in use. Cosines of random directions have the "
        "deviation 1/√q, so the right chart shows what most pairs feel."
    )
    if len(shown) < len(found):
        note += f" Drawn are {len(shown)} of {len(found)} kernels."
    if untold:
        note += f" Not drawn: {', '.join(dict.fromkeys(untold))}."
    several = names.DIM in layout.varying
    labels = [
        f"{label}, q = {dim}" if several else label for label, (_, dim) in shown.items()
    ]
    parts = [figures.legend(labels), page.group("panels", panels)]
    yield page.section("Kernels", note=note, html=parts)


def _in_use(
    layout: Layout,
) -> tuple[dict[str, tuple[tuple[float, ...], int]], list[str]]:
    """Weights and q by the text of the weights, of the first cell that has them.

    Beside them the texts that make no kernel.
    """
    found: dict[str, tuple[tuple[float, ...], int]] = {}
    untold = []
    for cell in layout.cells:
        setting, dim = cell.settings.get(names.WEIGHTS), cell.settings.get(names.DIM)
        if setting is None or not isinstance(dim, int) or dim < 2:
            continue
        label = names.text(setting)
        weights = profiles.weights_of(setting, dim)
        if weights is None:
            untold.append(label)
        elif label not in found:
            found[label] = weights, dim
    return found, untold
