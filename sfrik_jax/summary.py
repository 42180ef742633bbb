"""What a run says of itself at its end, on the standard output."""

from collections.abc import Mapping
from typing import Any

from sfrik_jax.data.bad_pictures import FILE as BAD_PICTURES

ENCODERS = {
    "": "pretrained",
    "random_init_": "random initialisation",
    "pixels_": "pixels",
    "color_histogram_": "colour histogram",
}


def show(summary: Mapping[str, Any]) -> None:
    """The table of encoders on the standard output."""
    names = [key for key in summary if key.startswith("knn") and key.endswith("top1")]
    if names:
        print(f"{'':24s}{'linear top-1':>14s}{names[0].replace('_', ' '):>14s}   (%)")
        for prefix, title in ENCODERS.items():
            if f"{prefix}linear_top1" in summary:
                linear, knn = (
                    summary[f"{prefix}{n}"] for n in ("linear_top1", names[0])
                )
                print(f"{title:24s}{linear:14.1f}{knn:14.1f}")
    if summary["bad_pictures"]:
        print(
            f"{summary['bad_pictures']} bad pictures, replaced in training; "
            f"{summary['train_images_left_out']} left out of what the probes learn "
            f"from; see {BAD_PICTURES}"
        )
    print(
        f"{summary['steps']} steps in {summary['train_seconds']:.0f} s, "
        f"{summary['views_per_second'] or 0:,.0f} views/s"
    )
