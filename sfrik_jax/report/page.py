"""The page's type, colours and elements; it knows nothing of runs.

Text arguments are escaped here; arguments named `html` hold markup that was.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fcfbf8; --card: #ffffff; --ink: #1d1f21; --muted: #66696d; --rule: #dcdad4;
  --accent: #1f5f8b; --second: #b4631a; --tint: #eef3f6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #141618; --card: #1b1e21; --ink: #e7e5df; --muted: #9da1a5;
    --rule: #34383c; --accent: #7fb6dd; --second: #e0a062; --tint: #1f2a32;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif;
}
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 4rem; }
h1, .verdict, h2 {
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, serif;
  font-weight: 500; overflow-wrap: anywhere;
}
.kicker {
  margin: 0; color: var(--muted); font-size: .8rem; letter-spacing: .09em;
  text-transform: uppercase;
}
h1 { margin: .15rem 0 .9rem; font-size: 2.5rem; line-height: 1.15; }
.verdict { margin: 0 0 .9rem; max-width: 44rem; font-size: 1.35rem; line-height: 1.42; }
.about, .note { color: var(--muted); font-size: .9rem; margin: 0; max-width: 46rem; }
section { margin-top: 3.2rem; }
h2 {
  margin: 0 0 .35rem; padding-top: .9rem; border-top: 1px solid var(--rule);
  font-size: 1.4rem;
}
.note { margin-bottom: 1.2rem; }
.pair {
  display: grid; grid-template-columns: 1fr 1fr; gap: 2.5rem; align-items: start;
}
.panels {
  display: grid; gap: 1.8rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
}
.panels > figure, .pair > * { min-width: 0; }
figure { margin: 0; }
figcaption {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
  margin-bottom: .3rem; font-size: .9rem;
}
.value, td.number { font-variant-numeric: tabular-nums; }
.value { color: var(--muted); }
svg { display: block; width: 100%; height: auto; }
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0 0; padding: 0;
  list-style: none; color: var(--muted); font-size: .82rem;
}
.legend i {
  display: inline-block; width: 1.3rem; margin-right: .4rem; vertical-align: .25em;
  border-top: 2px solid var(--key);
}
.legend i.dashed { border-top-style: dashed; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
th, td {
  padding: .5rem .6rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: baseline;
}
thead th { color: var(--muted); font-size: .82rem; font-weight: 500; }
tbody th { font-weight: 400; }
th.number, td.number { text-align: right; }
td.number, thead th.number { white-space: nowrap; }
tr.own th, tr.own td { font-weight: 650; }
tr.own { background: var(--tint); }
table:has(.small) thead th.number { width: 1%; }
tr:has(+ .small) > * { border-bottom: 0; padding-bottom: 0; }
.small td { padding-top: .1rem; color: var(--muted); font-size: .8rem; }
.scroll + .scroll { margin-top: 1.8rem; }
.heat { font-size: .82rem; font-variant-numeric: tabular-nums; }
.heat th, .heat td { padding: .28rem .2rem; }
.heat tbody td { min-width: 1.9rem; text-align: center; }
.heat thead th { text-align: center; white-space: nowrap; }
.heat thead th:first-child, .heat tbody th { text-align: left; white-space: nowrap; }
.heat tbody th { padding-right: .7rem; }
.heat td.right, .heat td.wrong {
  background: color-mix(in srgb, var(--hue) var(--share), var(--ground));
}
.heat td.right { --hue: var(--accent); }
.heat td.wrong { --hue: var(--second); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto 0 0; }
@media (min-width: 64rem) { img { image-rendering: pixelated; } }
dl {
  display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem 1.6rem;
  margin: 0; font-size: .92rem;
}
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 1.4rem; font-size: .92rem; }
details > .scroll { margin-top: .9rem; }
summary { cursor: pointer; color: var(--accent); }
pre {
  margin: .7rem 0 0; padding: .9rem 1rem; overflow-x: auto; background: var(--card);
  border: 1px solid var(--rule); border-radius: 6px;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (max-width: 46rem) {
  main { padding: 2rem 1rem 3rem; }
  h1 { font-size: 1.9rem; }
  .verdict { font-size: 1.15rem; }
  section { margin-top: 2.4rem; }
  .pair { grid-template-columns: minmax(0, 1fr); gap: 1.8rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .5rem; }
  details th, details td { padding: .4rem .2rem; }
  details table { font-size: .82rem; }
  /* Ten classes of up to 999 pictures a cell fit into 358 px; more are scrolled. */
  .heat { font-size: .68rem; }
  .heat th, .heat td { padding: .28rem .06rem; }
  .heat tbody td { min-width: 1.2rem; }
  .heat thead th:first-child, .heat tbody th {
    min-width: 4rem; padding-right: .25rem; white-space: normal;
    overflow-wrap: anywhere;
  }
}
"""


def document(*, title: str, html: Iterable[str], style: str = "") -> str:
    """A whole page without any reference to another file; `style` adds to its own."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(html) + "\n</main>\n</body>\n</html>\n"
    )


def header(*, kicker: str, title: str, verdict: str, about: str) -> str:
    """The head of the page: what it is, its title, its verdict in a sentence."""
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<p class="verdict">{escape(verdict)}</p>'
        f'<p class="about">{escape(about)}</p></header>'
    )


def section(title: str, *, html: Iterable[str], note: str = "") -> str:
    """A section of parts that are HTML already, below a title and a note."""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(html)}</section>"


def group(kind: str, html: Iterable[str]) -> str:
    """A container of the class `kind`, such as "pair" or "panels"."""
    return f'<div class="{escape(kind)}">{"".join(html)}</div>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    own: int,
    label: str,
    notes: Sequence[str] = (),
) -> str:
    """A table whose first column names the row; row number `own` is emphasised.

    Args: notes: small print below each row; "" for none.
    """
    first, *others = (escape(cell) for cell in head)
    cells = "".join(f'<th scope="col" class="number">{cell}</th>' for cell in others)
    body = "".join(
        ('<tr class="own">' if i == own else "<tr>")
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        + (_small_print(notes[i], len(head)) if notes and notes[i] else "")
        for i, row in enumerate(rows)
    )
    return scrolled(
        f'<table><thead><tr><th scope="col">{first}</th>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
        label,
    )


def _small_print(note: str, columns: int) -> str:
    return f'<tr class="small"><td colspan="{columns}">{escape(note)}</td></tr>'


def heat_table(
    names: Sequence[str],
    counts: Sequence[Sequence[int]],
    last: Sequence[str],
    *,
    head: tuple[str, str],
    label: str,
) -> str:
    """A square table of counts, coloured by their share of the row.

    Columns have the number of the row that has the name. The colour is mixed at half
    the root of the share, so that rare mistakes show and text stays readable.

    Args: last: a text for each row, in the last column; head: of the outer columns.
    """
    numbers = "".join(
        f'<th scope="col" title="{escape(name)}">{i}</th>'
        for i, name in enumerate(names, 1)
    )
    body = "".join(
        f'<tr><th scope="row">{i + 1}\u2002{escape(name)}</th>'
        + "".join(_heat_cell(n, sum(row), i == j) for j, n in enumerate(row))
        + f'<td class="number">{escape(last[i])}</td></tr>'
        for i, (name, row) in enumerate(zip(names, counts, strict=True))
    )
    first, final = map(escape, head)
    return scrolled(
        f'<table class="heat"><thead><tr><th scope="col">{first}</th>{numbers}'
        f'<th scope="col">{final}</th></tr></thead><tbody>{body}</tbody></table>',
        label,
    )


def _heat_cell(count: int, total: int, diagonal: bool) -> str:
    if not count:
        return "<td>·</td>"
    share = 50 * (count / total) ** 0.5
    kind = "right" if diagonal else "wrong"
    return f'<td class="{kind}" style="--share: {share:.0f}%">{count:,}</td>'


def scrolled(html: str, label: str) -> str:
    """A part that is scrolled sideways where the page is narrow."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"{html}</div>"
    )


def panel(title: str, value: str, *, html: str, legend: Iterable[str] = ()) -> str:
    """A captioned figure around the SVG `html`."""
    keys = "".join(legend)
    return (
        f"<figure><figcaption><span>{escape(title)}</span>"
        f'<span class="value">{escape(value)}</span></figcaption>{html}'
        + (f'<ul class="legend">{keys}</ul>' if keys else "")
        + "</figure>"
    )


def key(text: str, *, colour: str, dashed: bool = False) -> str:
    """One entry of a legend; `colour` is one of the page's variables."""
    kind = ' class="dashed"' if dashed else ""
    return (
        f'<li><i{kind} style="--key: var(--{escape(colour)})"></i>{escape(text)}</li>'
    )


def image(path: Path, *, alt: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms and their values."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f"<dl>{items}</dl>"


def collapsed(title: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return opened(title, html=[f'<pre tabindex="0">{escape(text)}</pre>'])


def opened(title: str, *, html: Iterable[str]) -> str:
    """Parts that open on a click."""
    return f"<details><summary>{escape(title)}</summary>{''.join(html)}</details>"


def code(text: str) -> str:
    """A block of code."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
