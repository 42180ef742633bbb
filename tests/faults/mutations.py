"""Damaged files by the thousand, each read as a user's would be.

    python tests/faults/mutations.py --count 10000 --seed 0

File k of a seed is a function of the two. A process of its own reads the files one
after the other; it may end a file with what the file holds or with one of our errors,
and with nothing else: no other exception, no end of the process, no code of the file
run, no file opened to write, no other program started, memory within the limits below.
"""

import argparse
import collections
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
for folder in (TESTS, TESTS.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from faults.damaged_files import KINDS

SILENT = 120.0  # seconds without a word of the reader: it hangs
# MiB that reading one file may take. A file of 50 kB may rightly hold a picture of 50
# million pixels: 150 MB, and as much again for its palette, its turn or its 16 bits.
LIMIT = 512.0
# What no reader of a file has to do; Python announces each before it is done.
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pickle.find_class",
    "marshal.loads",
    "socket.connect",
)


class Read(NamedTuple):
    """How one file ended.

    Attributes:
      outcome: "read", "refused", or what must not be.
      grown: MiB that it took at most. seconds: its time.
    """

    number: int
    kind: str
    outcome: str
    grown: float
    seconds: float

    @property
    def clean(self) -> bool:
        return self.outcome in ("read", "refused") and self.grown < LIMIT


# --- The process that reads ---------------------------------------------------------


class Watch:
    """Notes what is forbidden while it is on. An audit hook cannot be taken out."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in FORBIDDEN or writes:
            self.seen = self.seen or f"{event} {str(arguments)[:80]}"


def resident(name: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(name))


def read_files(numbers: Iterator[int], seed: int, folder: Path, kinds: list[str]):
    """One `Read` after the other; the files lie in `folder` while they are read."""
    from sfrik_jax.errors import CorruptInputError

    watch = Watch()
    for kind in kinds:
        KINDS[kind](folder).warm_up()
    for number in numbers:
        kind = kinds[number % len(kinds)]
        subject = KINDS[kind](folder)
        subject.make(seed, number)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = resident("VmRSS"), time.perf_counter()
        watch.on, watch.seen = True, ""
        try:
            subject.read()
            outcome = "read"
        except CorruptInputError as error:
            one_line = str(error).isprintable() and len(str(error)) < 2000
            outcome = "refused" if one_line else f"said {str(error)[:200]!r}"
        except Exception as error:
            outcome = f"raised {type(error).__name__}: {str(error)[:200]}"
        finally:
            watch.on = False
        seconds, grown = time.perf_counter() - start, resident("VmHWM") - before
        if watch.seen or subject.canary.exists():
            outcome = f"did {watch.seen or 'what made the canary'}"
        yield Read(number, kind, outcome, round(grown, 2), round(seconds, 4))


# --- The process that counts --------------------------------------------------------


def run(count: int, seed: int, kinds: list[str]) -> list[Read]:
    """Reads `count` files; starts the reader anew where it ends before its work."""
    found: list[Read] = []
    while len(found) < count:
        found += _session(len(found), count, seed, kinds)
    return found


def _session(start: int, count: int, seed: int, kinds: list[str]) -> list[Read]:
    """From file `start` to the last one, or to one that ends or stops the reader."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        words = ["--reader", folder, "--first", start, "--count", count, "--seed", seed]
        process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words), "--kinds", ",".join(kinds)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        with process:
            found = [Read(*json.loads(line)) for line in _lines(process)]
            silent = process.poll() is None
            process.kill()
        code = process.returncode
        number = start + len(found)
        if number < count:
            outcome = "hung" if silent else f"ended the process with {code}"
            said.seek(0)
            print(said.read()[-2000:].decode(errors="replace"), file=sys.stderr)
            if not found:
                raise RuntimeError(f"the reader does not begin: {outcome}")
            kind = kinds[number % len(kinds)]
            found.append(Read(number, kind, outcome, 0.0, 0.0))
    return found


def _lines(process: subprocess.Popen) -> Iterator[str]:
    """Lines of its output until its end, or until it is silent for too long."""
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        process.wait()
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=SILENT)
        except queue.Empty:
            return
        if line is None:
            return
        yield line


def table(found: list[Read]) -> list[str]:
    """The rows of a table by kind, and one line about all."""
    rows = [f"{'kind':12}{'files':>7}{'read':>7}{'refused':>9}{'other':>7}"]
    rows[0] += f"{'MiB at most':>13}{'s at most':>11}"
    for kind in dict.fromkeys(each.kind for each in found):
        own = [each for each in found if each.kind == kind]
        counts = collections.Counter(each.outcome for each in own)
        other = len(own) - counts["read"] - counts["refused"]
        rows.append(
            f"{kind:12}{len(own):7}{counts['read']:7}{counts['refused']:9}{other:7}"
            f"{max(e.grown for e in own):13.1f}{max(e.seconds for e in own):11.3f}"
        )
    wrong = [each for each in found if not each.clean]
    rows.append(
        f"{len(found)} files, {len(wrong)} not as they should be; "
        f"{sum(each.seconds for each in found):.1f} s of reading, at most "
        f"{max(each.grown for each in found):.1f} MiB for one file"
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=", ".join(KINDS))
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if args.reader:
        out, sys.stdout = sys.stdout, io.StringIO()  # our lines alone
        numbers = iter(range(args.first, args.count))
        for each in read_files(numbers, args.seed, Path(args.reader), kinds):
            print(json.dumps(each), file=out, flush=True)
        return 0
    print(f"seed {args.seed}")
    start = time.perf_counter()
    found = run(args.count, args.seed, kinds)
    for each in found:
        if not each.clean:
            print(f"file {each.number} ({each.kind}): {each.outcome}, {each.grown} MiB")
    print("\n".join(table(found)))
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0 if all(each.clean for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
