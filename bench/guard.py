"""Whether anything became slower beside its peers: ratios held against recorded ones.

    python bench/guard.py [--only loss,step] [--tolerance 0.15]
    python bench/guard.py --from loss.json --from step.json
    python bench/guard.py --record

Seconds say as much about the machine as about the code; the ratio of two arms that took
turns says more about the code. So only ratios are compared, each with the one recorded
for the same bench, arms, shapes, dtype and kind of device in `bench/recorded.json`. A
bench whose ratio fell by more than the tolerance runs once more, and the better of its
two ratios counts, since machines are noisy. Only arms of ours are compared. What was
never recorded is said and fails nothing, nor does an arm whose library is missing; but
where its peer ran and the arm did not, the ratio counts as fallen.

The exit code is 1 where a ratio fell, 76 where a bench ended with an error. --record
writes what was measured, of one run, in the place of what was recorded.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, from anywhere
from bench import command, ratios, timing
from bench.ratios import Ratio
from sfrik_jax.commands import parsing
from sfrik_jax.errors import (
    CorruptInputError,
    MissingInputError,
    NonFiniteError,
    WorkerError,
)

RECORDED = Path(__file__).with_name("recorded.json")
# Short settings of each bench: what they measure has to be as recorded, not fine.
SHORT = {
    "loss": ("loss.py --rounds 5 --seconds 0.2 --q 1024,4096",),
    "step": ("step.py --size 32 --stem small --rounds 3", "step.py --rounds 3"),
    "convolutions": ("convolutions.py --images 64 --rounds 3",),
    "input": ("input.py --pictures 32 --rounds 5",),
    "knn": ("knn.py --train 20000 --test 2000 --rounds 3",),
    "heads": ("heads.py --rounds 5 --seconds 1",),
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


def read(path: Path) -> list[Any]:
    """A list of records, each a dictionary.

    Raises:
      MissingInputError: there is no such file.
      CorruptInputError: it cannot be read, or there is no such list in it.
    """
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError as error:
        message = f"{path} is not there; write it with --json PATH of a bench"
        raise MissingInputError(message) from error
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); name another file"
        raise CorruptInputError(message) from error
    except ValueError as error:
        raise CorruptInputError(
            f"{path} is no JSON ({error}); write it anew"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorruptInputError(f"{path} holds no list of records; write it anew")
    return rows


def read_recorded(path: Path) -> list[Ratio]:
    """The ratios of a file that this wrote. Raises: as `read`."""
    recorded = read(path)
    for each in recorded:
        if not ({"ratio", *ratios.KEY} <= each.keys() and _positive(each["ratio"])):
            raise CorruptInputError(f"{path} holds no recorded ratios; use --record")
    return recorded


def read_ratios(path: Path) -> list[Ratio]:
    """The ratios of the records that a bench wrote. Raises: as `read`."""
    try:
        found = ratios.of(read(path))
    except (KeyError, AttributeError) as error:
        message = f"{path} holds no records of a bench; write it with its --json PATH"
        raise CorruptInputError(message) from error
    if not found:
        raise CorruptInputError(f"{path} has no ratio of an arm of ours; run its bench")
    return found


def run(bench: str) -> list[Ratio]:
    """The ratios of a bench at its short settings; what it prints is passed on.

    Raises:
      WorkerError: the bench failed.
    """
    found = []
    for words in SHORT[bench]:
        script, *options = words.split()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{bench}.json"
            line = [sys.executable, Path(__file__).with_name(script), *options]
            code = subprocess.run([*line, "--json", path]).returncode
            if code:
                raise WorkerError(f"bench/{words} ended with {code}; see above")
            found += read_ratios(path)
    return found


def measured(
    args: argparse.Namespace, recorded: list[Ratio]
) -> tuple[list[Ratio], list[Ratio]]:
    """The ratios of the files or the benches, and their comparison.

    Slower ones are measured again, where they came from a bench that ran here; but not
    in order to be recorded: the better of two runs is no fair measure for one.
    """
    if args.files:
        now = [each for path in args.files for each in read_ratios(path)]
        return now, ratios.compare(recorded, now, args.tolerance)
    now = [each for bench in args.only.split(",") for each in run(bench)]
    rows = ratios.compare(recorded, now, args.tolerance)
    again = {row["bench"] for row in rows if row["verdict"] == "slower"}
    for bench in () if args.record else sorted(again):
        print(f"{bench} runs once more: a ratio fell by more than {args.tolerance:.0%}")
        now = ratios.better(now, run(bench))
    return now, ratios.compare(recorded, now, args.tolerance)


def record(
    path: Path, recorded: list[Ratio], now: list[Ratio], gone: list[Ratio]
) -> None:
    """Writes the ratios of now in their place; without those of arms that are gone.

    Raises:
      NonFiniteError: a ratio of now is no positive number.
      OutputError, DiskFullError: the system refuses it.
    """
    for each in now:
        if not _positive(each["ratio"]):
            what = f"{each['bench']}, {each['arm']}: the ratio to {each['peer']}"
            raise NonFiniteError(f"{what} is {each['ratio']}; nothing was recorded")
    kept = [each for each in recorded if each not in gone]
    command.write_json(path, ratios.merge(kept, now))
    print(f"{len(now)} ratios recorded in {path}")


def fraction(text: str) -> float:
    """A tolerance: between 0 and 1."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 1")
    return number


def _positive(ratio: Any) -> bool:
    return isinstance(ratio, (int, float)) and 0 < ratio < math.inf


def _name(ratio: Ratio) -> str:
    shapes, dtype = _words(ratio["shapes"]), ratio["dtype"]
    return f"{ratio['arm']} to {ratio['peer']} ({shapes}, {dtype})"


def _words(shapes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shapes.items())


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__, json=False)
    parser.add_argument("--only", default=",".join(SHORT), help="benches, with commas")
    help = "records written by a bench in place of running one; more than once for more"
    parser.add_argument(
        "--from", dest="files", action="append", type=Path, default=[], help=help
    )
    parser.add_argument("--recorded", type=Path, default=RECORDED)
    parser.add_argument("--tolerance", type=fraction, default=TOLERANCE)
    parser.add_argument("--record", action="store_true", help="write, and fail nothing")
    args = parser.parse_args()
    unknown = set(args.only.split(",")) - SHORT.keys()
    if unknown:
        parser.error(f"--only={args.only}; choose from {','.join(SHORT)}")
    return args


def main() -> None:
    args = arguments()
    if args.record:
        parsing.checked_output(str(args.recorded), "--recorded")
    first = args.record and not args.recorded.exists()
    recorded = [] if first else read_recorded(args.recorded)
    now, rows = measured(args, recorded)
    print(timing.table(rows, COLUMNS))
    gone, others = ratios.unmeasured(recorded, now)
    for missing, words in ((gone, "though the peer ran"), (others, "with their peers")):
        if missing:
            print(
                f"{len(missing)} recorded ratios of these benches were not measured, "
                f"{words}: {'; '.join(map(_name, missing))}"
            )
    if args.record:
        return record(args.recorded, recorded, now, gone)
    slower = [row for row in rows if row["verdict"] == "slower"]
    new = sum(row["verdict"] == "not recorded" for row in rows)
    print(
        f"{len(rows)} ratios: {len(slower)} fell, {len(gone)} are gone, "
        f"{new} were never recorded"
    )
    if slower or gone:
        raise SystemExit(1)
    return None


if __name__ == "__main__":
    command.run(main)
