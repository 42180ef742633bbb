"""What the page of many runs adds to the type, and the script that sorts tables."""

STYLE = """
:root {
  --series-1: #0067a5; --series-2: #c1540a; --series-3: #00805c;
  --series-4: #a03c8c; --series-5: #7a6200; --series-6: #5c6066;
}
@media (prefers-color-scheme: dark) {
  :root {
    --series-1: #6db7ea; --series-2: #f0955a; --series-3: #35c79b;
    --series-4: #e091cd; --series-5: #d6c04f; --series-6: #b9bec5;
  }
}
main { max-width: 76rem; }
section > h3 { margin: 1.8rem 0 .5rem; font-size: 1rem; font-weight: 600; }
.panels + .scroll { margin-top: 1.8rem; }
.groups { margin: 0 0 1.2rem; font-size: .88rem; }
.sortable { width: auto; min-width: min(100%, 34rem); }
.sortable th, .sortable td { padding: .42rem .7rem; }
.sortable th.number, .sortable td.number { text-align: right; }
.sortable tbody th, .sortable td:not(.number) { max-width: 26rem; min-width: 5rem; }
.sortable td:last-child:not(.number) { min-width: 14rem; }
.sortable tbody th { overflow-wrap: anywhere; min-width: 9rem; }
.sortable thead button {
  all: unset; cursor: pointer; color: inherit; white-space: nowrap;
}
.sortable thead button::after { content: " \\2195"; opacity: .45; }
.sortable [aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
.sortable [aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
.sortable thead button:hover, .sortable [aria-sort] button { color: var(--ink); }
.sortable thead button:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 3px;
}
.grids { display: flex; flex-wrap: wrap; gap: 1.4rem 3.5rem; }
.grids > .scroll { margin: 0; }
.grid { width: auto; font-variant-numeric: tabular-nums; }
.grid th { color: var(--muted); font-weight: 500; white-space: nowrap; }
.grid th, .grid td { padding: .5rem .8rem; text-align: center; }
.grid tbody th { text-align: right; }
.grid caption { text-align: left; padding-bottom: .5rem; font-size: .9rem; }
.grid td { white-space: nowrap; border-bottom: 0; }
.grid td.filled {
  background: color-mix(in srgb, var(--accent) var(--share), var(--ground));
  border: 2px solid var(--ground);
}
.grid td.best { font-weight: 700; outline: 2px solid var(--ink); outline-offset: -3px; }
@media (max-width: 46rem) {
  .grid { font-size: .85rem; }
  .grid th, .grid td { padding: .4rem .35rem; }
  .sortable { font-size: .85rem; }
}
.grid small { display: block; color: inherit; font-weight: 400; opacity: .85; }
"""

# Sorts by data-value where all filled cells have one, else by the text; cells without
# anything stay last. A second press turns the order.
SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells), body = table.tBodies[0];
  function worth(row, column) {
    var cell = row.cells[column], value = cell.dataset.value;
    if (value !== undefined) { return Number(value); }
    var text = cell.textContent.trim();
    return text === "" || text === "\\u2013" ? null : text;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") { return a - b; }
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }
  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    while (head.firstChild) { button.appendChild(head.firstChild); }
    head.appendChild(button);
    button.addEventListener("click", function () {
      var before = head.getAttribute("aria-sort");
      var first = head.classList.contains("number") ? "descending" : "ascending";
      var other = first === "ascending" ? "descending" : "ascending";
      var now = before === first ? other : first;
      heads.forEach(function (each) { each.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", now);
      var sign = now === "ascending" ? 1 : -1;
      Array.from(body.rows).map(function (row) {
        return [worth(row, column), row];
      }).sort(function (a, b) {
        if (a[0] === null || b[0] === null) {
          return (a[0] === null) - (b[0] === null);
        }
        return sign * compare(a[0], b[0]);
      }).forEach(function (pair) { body.appendChild(pair[1]); });
    });
  });
});
"""
