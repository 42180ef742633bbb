"""A model card: what the weights are, where they come from, and what they reach.

Markdown with a YAML header, as model hubs read it. A figure is listed only if it was
measured with exactly these weights.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sfrik_jax.models import BACKBONES
from sfrik_jax.weights.exported import PROGRAM, WEIGHTS
from sfrik_jax.weights.names import Variables, fingerprint

# Networks that torchvision and timm have too, under these names.
SHARED = ("resnet18", "resnet34", "resnet50", "resnet101")
STANDARD = {"width": 64, "stem": "imagenet"}
PLACE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")  # how absolute paths begin
SLASHES = re.compile(r"[/\\]")
HEAD = """---
library_name: sfrik_jax
pipeline_tag: image-feature-extraction
tags:
- {tags}
# license: to be chosen by whoever publishes these weights
---

# Backbone {arch}
"""


def model_card(
    model: Mapping[str, Any],
    variables: Variables,
    preprocessing: Mapping[str, Any],
    *,
    run: Path | None = None,
    restored: bool = False,
    program: str = "",
) -> str:
    """The text of a model card.

    Args:
      model: "arch", "width" and "stem"; "step" where it is known.
      run: the run directory that the weights come from. Its configuration, data and
        figures are stated if they are surely of these weights.
      restored: the weights are of one of its checkpoints; else it must have finished,
        with these weights.
      program: the input type of the StableHLO program beside the weights, if any.
    """
    sha256 = fingerprint(variables, model["arch"])
    if run and not restored:
        trained = _json(run / "summary.json").get("backbone_sha256") == sha256
        run = run if trained else None
    tags = [model["arch"], "jax", *(["self-supervised-learning"] if run else [])]
    parts = [
        HEAD.format(arch=model["arch"], tags="\n- ".join(tags)),
        _facts(model, variables, preprocessing, sha256),
        _usage(model, preprocessing, program),
    ]
    if run is None:
        parts.append("## Training\n\nNot known here: no run says that it made them.\n")
    else:
        parts += [_training(run), _figures(run, sha256)]
    # JSON may hold halves of characters, which no file of text can.
    return "\n".join(parts).encode(errors="replace").decode()


def _facts(
    model: Mapping[str, Any],
    variables: Variables,
    preprocessing: Mapping[str, Any],
    sha256: str,
) -> str:
    backbone = BACKBONES[model["arch"]](width=model["width"], stem=model["stem"])
    count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"]))
    mean, std = (
        ", ".join(f"{float(v):g}" for v in preprocessing[key])
        for key in ("mean", "std")
    )
    size = preprocessing["image_size"]
    rows = {
        "architecture": "{arch}, width {width}, stem {stem}".format_map(model),
        "features": f"{backbone.features:,}, the global average pool",
        "parameters": f"{count:,}, float32",
        "SHA-256 of the weights": f"`{sha256}`",
        "preprocessing": f"RGB; short side {preprocessing['resize']}, centre {size} x "
        f"{size}; (x / 255 - mean) / std",
        "mean; std": f"{mean}; {std}",
    }
    if "step" in model:
        rows["training step"] = f"{model['step']:,}"
    return _table(("", ""), rows.items())


def _usage(
    model: Mapping[str, Any], preprocessing: Mapping[str, Any], program: str
) -> str:
    size = preprocessing["image_size"]
    blocks = [
        "## Use",
        _code(
            "from sfrik_jax import weights",
            "",
            f'backbone, variables, preprocessing = weights.load("{WEIGHTS}")',
            "features = backbone.apply(variables, images)  # normalised, [n, H, W, 3]",
        ),
    ]
    if program:
        blocks.append(
            f"Without sfrik_jax, with jax and flatbuffers, its normalisation inside "
            f"(images {program} in 0 … 255, [n, {size}, {size}, 3]):"
        )
        blocks.append(
            _code(
                "from jax import export",
                "",
                f'content = bytearray(open("{PROGRAM}", "rb").read())',
                "features = export.deserialize(content).call(images)",
            )
        )
    return "\n\n".join([*blocks, *_usage_elsewhere(model)]) + "\n"


def _usage_elsewhere(model: Mapping[str, Any]) -> list[str]:
    arch = model["arch"]
    if arch not in SHARED or any(model[key] != v for key, v in STANDARD.items()):
        return [
            "torchvision and timm have no network of this shape; the tensors have "
            "torchvision's names and layouts all the same."
        ]
    return [
        "In PyTorch, with torchvision or timm (images normalised, NCHW):",
        _code(
            "import timm, torch, torchvision",
            "from safetensors.torch import load_file",
            "",
            f'state = load_file("{WEIGHTS}")',
            f"model = torchvision.models.{arch}()",
            "model.fc = torch.nn.Identity()",
            "model.load_state_dict(state)",
            f'model = timm.create_model("{arch}", num_classes=0)',
            "model.load_state_dict(state)",
        ),
    ]


def _training(run: Path) -> str:
    config, about = _json(run / "config.json"), _json(run / "run.json")
    sessions = about.get("sessions")
    session = _section(sessions[-1] if isinstance(sessions, list) and sessions else {})
    devices = session.get("devices")
    subset = _section(about.get("data_subset")).get("name")
    rows = {
        "source revision": session.get("git_revision"),
        "jax": _section(session.get("libraries")).get("jax"),
        "devices": ", ".join(map(str, devices)) if isinstance(devices, list) else "",
        "fingerprint of the data": about.get("data_fingerprint"),
        "subset of the data": _bare(subset),
    }
    settings = dict(_published(config))
    if config.get("init_from"):
        rows["started from"] = "weights of a file, not random ones"
    method = settings.get("loss.method", "an unknown method")
    data = {"folder": "a folder of pictures", "tfds": settings.get("data.name")}.get(
        str(settings.get("data.source"))
    )
    data = data or "data that the run does not name"
    known = [(key, value) for key, value in rows.items() if value]
    return "\n".join(
        [
            "## Training\n",
            f"By {method} on {data}, with the settings below.\n",
            _table(("", ""), known) if known else "",
            _table(("setting", "value"), ((f"`{k}`", v) for k, v in settings.items())),
        ]
    )


def _figures(run: Path, sha256: str) -> str:
    """Figures of these weights with their protocols; those of others are only named."""
    parts, others = ["## Figures\n"], []
    for name, of_these, title, figures, protocol in _records(run, sha256):
        if not of_these:
            others.append(name)
            continue
        settings = ", ".join(f"{key}={_text(v)}" for key, v in _published(protocol))
        parts.append(f"### {_text(title)}\n")
        parts.append(_table(("figure", "value"), _flat(figures)))
        parts.append(f"Protocol: {settings}.\n" if settings else "")
    if len(parts) == 1:
        parts.append("None has been measured with these weights.\n")
    if others:
        parts.append(f"Left out, as they are of other weights: {', '.join(others)}.\n")
    return "\n".join(part for part in parts if part)


def _records(run: Path, sha256: str) -> Iterator[tuple[str, bool, str, Any, Any]]:
    """File, whether it is of these weights, title, figures and protocol."""
    summary = _json(run / "summary.json")
    # The baselines beside them are not of these weights.
    figures = {k: v for k, v in summary.items() if k.startswith(("knn", "linear"))}
    if figures:
        own = summary.get("backbone_sha256") == sha256
        title = "at the end of training"
        yield "summary.json", own, title, figures, _section(summary.get("protocol"))
    for path in sorted((run / "eval").glob("*.json")):
        record = _json(path)
        if isinstance(record.get("figures"), dict):
            own = _section(record.get("weights")).get("sha256") == sha256
            protocol = _section(record.get("protocol"))
            title = record.get("name", path.stem)
            yield f"eval/{path.name}", own, title, record["figures"], protocol


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none, or it is damaged."""
    try:
        return _section(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _section(value: Any) -> dict[str, Any]:
    """A JSON object; empty where a damaged file has something else."""
    return value if isinstance(value, dict) else {}


def _published(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, but for what says where files lie on a machine."""
    flat = dict(_flat(tree))
    for key, value in flat.items():
        last = key.rpartition(".")[2]
        unused = key == "data.name" and flat.get("data.source") == "folder"
        if last in ("path", "init_from") or unused:
            continue
        if last == "subset" or last.endswith("_subset"):
            yield key, _bare(value)
        elif not (isinstance(value, str) and PLACE.match(value)):
            yield key, value


def _bare(subset: Any) -> Any:
    """A subset's setting; of a list's file only the name."""
    return SLASHES.split(subset)[-1] if isinstance(subset, str) else subset


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_text, line))} |\n" for line in lines)


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
