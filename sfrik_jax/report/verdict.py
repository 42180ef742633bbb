"""The one sentence at the top of the page, computed from the numbers."""

from sfrik_jax.report.run import Run

OWNERS = {
    "": "This run",
    "random_init": "Same network, untrained",
    "pixels": "Raw pixels",
    "color_histogram": "Colour histogram",
}
COLLAPSED_RANK = 2.0  # an effective rank below it: all embeddings lie on a line


def verdict(run: Run) -> str:
    """What came out, in plain words: accuracies when there are labels, else gauges."""
    sentence = _accuracies(run) or _gauges(run)
    if run.summary is None:
        where = (
            "before its first step"
            if run.last_step is None
            else (f"at step {run.last_step:,}")
        )
        return f"Not finished: {where}. {sentence}".strip()
    return sentence or "The run has finished; it logged no numbers."


def score_name(score: str) -> str:
    """ "linear" -> "Linear probe", "knn20" -> "kNN, k = 20"."""
    return "Linear probe" if score == "linear" else f"kNN, k\u00a0=\u00a0{score[3:]}"


def score_order(score: str) -> tuple[int, str]:
    """Sorts the linear probe first, then kNN by rising k."""
    return (0, score) if score == "linear" else (int(score[3:]), score)


def owner_name(owner: str) -> str:
    """The row's title; a baseline without one is shown under its own name."""
    return OWNERS.get(owner, owner.replace("_", " "))


def _accuracies(run: Run) -> str:
    own = run.results.get("", {})
    if not own:
        return ""
    score = min(own, key=score_order)
    top1 = own[score]
    name = (
        "linear probe" if score == "linear" else f"{score[3:]}-nearest-neighbour vote"
    )
    so_far = "" if run.summary is not None else " so far"
    sentence = f"The {name} reaches {top1:.1f} %{so_far}"
    comparisons = []
    untrained = run.results.get("random_init", {}).get(score)
    if untrained is not None:
        comparisons.append(f"{_points(top1 - untrained)} the same network untrained")
    pixels = run.results.get("pixels", {})
    if pixels:  # against the stronger of its scores
        best = max(pixels, key=lambda key: pixels[key])
        judge = "a linear probe" if best == "linear" else "kNN"
        comparisons.append(f"{_points(top1 - pixels[best])} {judge} on raw pixels")
    if comparisons:
        sentence += ": " + " and ".join(comparisons)
    if untrained is not None and top1 <= untrained:
        return sentence + ". Training did not improve the features."
    return sentence + "."


def _points(difference: float) -> str:
    if abs(difference) < 0.05:
        return "level with"
    side = "above" if difference > 0 else "below"
    return f"{abs(difference):.1f} points {side}"


def _gauges(run: Run) -> str:
    """For runs without labels: did the loss fall, do the embeddings fill the space?"""
    parts = []
    start, end = run.first("train/loss"), run.last("train/loss")
    if start is not None and end is not None:
        verb = "fell" if end < start else "rose" if end > start else "stayed"
        parts.append(f"the loss {verb} from {start:.3g} to {end:.3g}")
    rank = run.last("z/effective_rank")
    if rank is not None:
        dim = run.setting("model", "embed_dim")
        of = f" of {dim:,} dimensions" if isinstance(dim, int) else ""
        parts.append(f"the embeddings use an effective {rank:.3g}{of}")
    if not parts:
        return ""
    # An unfinished run may have labels, and not have come to its first evaluation.
    why = "No accuracy yet" if run.summary is None else "No labels, so no accuracy"
    sentence = f"{why}: {' and '.join(parts)}."
    if rank is not None and rank < COLLAPSED_RANK:
        sentence += " They have collapsed."
    return sentence
