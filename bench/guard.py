"""Whether anything became slower beside its peers: ratios held against recorded ones.

    python bench/guard.py [--only loss,step] [--tolerance 0.15]
    python bench/guard.py --from loss.json --from step.json
    python bench/guard.py --record

Seconds say as much about the machine as about the code; the ratio of two arms that took
turns says more about the code. So only ratios are compared, each with the one recorded
for the same bench, arms, shapes, dtype and kind of device in `bench/recorded.json`. A
bench whose ratio fell by more than the tolerance runs once more, and the better of its
two ratios counts, since machines are noisy. What was never recorded is said and fails
nothing, nor does an arm whose library is missing.

The exit code is 1 where a ratio fell; --record writes what was measured in its place.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import timing
from sfrik_jax.errors import CorruptInputError, MissingInputError

RECORDED = Path(__file__).with_name("recorded.json")
# Short settings of each bench: what they measure has to be as recorded, not fine.
SHORT = {
    "loss": ("loss.py", "--rounds", "5", "--seconds", "0.2", "--q", "1024,4096"),
    "step": ("step.py", "--size", "32", "--stem", "small", "--rounds", "3"),
    "convolutions": ("convolutions.py", "--images", "64", "--rounds", "3"),
    "input": ("input.py", "--pictures", "32", "--rounds", "5"),
    "knn": ("knn.py", "--train", "20000", "--test", "2000", "--rounds", "3"),
    "heads": ("heads.py", "--rounds", "5", "--seconds", "1"),
}
# Two runs of bench/input.py on a busy machine gave 6.78 and 5.90 for one ratio,
# 13 % apart (bench/RESULTS.md).
TOLERANCE = 0.15
COLUMNS: dict[str, timing.Column] = {
    "bench": "",
    "arm": "",
    "peer": "",
    "shapes": (lambda row: _words(row["shapes"]), ""),
    "dtype": "",
    "recorded": ".2f",
    "now": ".2f",
    "change": "+.0%",
    "verdict": "",
}
_KEY = ("bench", "arm", "peer", "shapes", "dtype", "device")
Ratio = dict[str, Any]


def ratios(rows: Iterable[timing.Record]) -> list[Ratio]:
    """Each arm's ratio to each of its peers, with what it is a ratio of."""
    return [
        {
            "bench": row["name"],
            "arm": row["arm"],
            "peer": peer,
            "shapes": row["shapes"],
            "dtype": row["dtype"],
            "device": kind_of_device(row),
            "ratio": ratio,
            "spread": row["spread"],
            **{name: row[name] for name in ("date", "commit") if name in row},
        }
        for row in rows
        for peer, ratio in row.get("ratios", {}).items()
        if peer != row["arm"]
    ]


def kind_of_device(row: timing.Record) -> str:
    """An accelerator's name; of CPUs the cores, which change ratios, and the name."""
    if row["device"] != "cpu":
        return row["device"]
    return f"{row['cores']} cores of {row['cpu']}"


def key(ratio: Ratio) -> str:
    """What has to be equal for two ratios to be compared."""
    return json.dumps([ratio[name] for name in _KEY], sort_keys=True)


def compare(
    recorded: Iterable[Ratio], now: Iterable[Ratio], tolerance: float
) -> list[Ratio]:
    """A row for each ratio of now: recorded, now, change and verdict.

    Verdicts: "slower" where the ratio fell by more than the tolerance, "faster" where
    it rose by more, "not recorded", or "same".
    """
    known = {key(each): each["ratio"] for each in recorded}
    rows = []
    for each in now:
        row = {name: each[name] for name in _KEY} | {"now": each["ratio"]}
        before = known.get(key(each))
        if before is None:
            rows.append(row | {"verdict": "not recorded"})
            continue
        change = each["ratio"] / before - 1
        verdict = "same"
        if abs(change) > tolerance:
            verdict = "faster" if change > 0 else "slower"
        rows.append(row | {"recorded": before, "change": change, "verdict": verdict})
    return rows


def better(first: Iterable[Ratio], second: Iterable[Ratio]) -> list[Ratio]:
    """The larger of each ratio of two runs."""
    best = {key(each): each for each in first}
    for each in second:
        name = key(each)
        if name not in best or each["ratio"] > best[name]["ratio"]:
            best[name] = each
    return list(best.values())


def merge(recorded: Iterable[Ratio], now: Iterable[Ratio]) -> list[Ratio]:
    """The records with those of now in their place, in order."""
    kept = {key(each): each for each in recorded} | {key(each): each for each in now}
    return [kept[name] for name in sorted(kept)]


def read(path: Path) -> list[Any]:
    """A list of records.

    Raises:
      MissingInputError, CorruptInputError: there is no such file, or no list in it.
    """
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError as error:
        message = f"{path} is not there; write it with --json PATH of a bench"
        raise MissingInputError(message) from error
    except ValueError as error:
        raise CorruptInputError(
            f"{path} is no JSON ({error}); write it anew"
        ) from error
    if not isinstance(rows, list):
        raise CorruptInputError(f"{path} holds no list of records; write it anew")
    return rows


def run(bench: str) -> list[Ratio]:
    """The ratios of a bench at its short settings; what it prints is passed on.

    Raises:
      SystemExit: the bench failed.
    """
    script, *options = SHORT[bench]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{bench}.json"
        command = [sys.executable, Path(__file__).with_name(script), *options]
        if subprocess.run([*command, "--json", path]).returncode:
            raise SystemExit(f"bench/{script} failed; see above")
        return ratios(read(path))


def measured(
    args: argparse.Namespace, recorded: list[Ratio]
) -> tuple[list[Ratio], list[Ratio]]:
    """The ratios of the files or the benches, and their comparison.

    Slower ones are measured again, where they came from a bench that ran here.
    """
    if args.files:
        now = [each for path in args.files for each in ratios(read(path))]
        return now, compare(recorded, now, args.tolerance)
    now = [each for bench in args.only.split(",") for each in run(bench)]
    rows = compare(recorded, now, args.tolerance)
    again = {row["bench"] for row in rows if row["verdict"] == "slower"}
    for bench in sorted(again):
        print(f"{bench} runs once more: a ratio fell by more than {args.tolerance:.0%}")
        now = better(now, run(bench))
    return now, compare(recorded, now, args.tolerance)


def _words(shapes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shapes.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SHORT), help="benches, with commas")
    help = "records written by a bench in place of running one; more than once for more"
    parser.add_argument(
        "--from", dest="files", action="append", type=Path, default=[], help=help
    )
    parser.add_argument("--recorded", type=Path, default=RECORDED)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--record", action="store_true", help="write, and fail nothing")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - SHORT.keys()
    if unknown:
        parser.error(f"--only={args.only}; choose from {','.join(SHORT)}")
    try:
        recorded = read(args.recorded)
        now, rows = measured(args, recorded)
    except (MissingInputError, CorruptInputError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.code) from error
    print(timing.table(rows, COLUMNS))
    if args.record:
        text = json.dumps(merge(recorded, now), indent=1)
        args.recorded.write_text(f"{text}\n")
        print(f"{len(now)} ratios recorded in {args.recorded}")
        return
    slower = [row for row in rows if row["verdict"] == "slower"]
    new = sum(row["verdict"] == "not recorded" for row in rows)
    print(f"{len(rows)} ratios: {len(slower)} fell, {new} were never recorded")
    if slower:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
