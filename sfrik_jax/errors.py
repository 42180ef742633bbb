"""Errors that a user can cause, each with the exit code of the command line.

The message is one line: what is wrong, where (path, step, leaf, setting and its
value), what was kept, and what to do.
"""

import json


class SfrikError(Exception):
    """An error that ends a command with `code` and one line, without a traceback."""

    code = 1


class ConfigError(SfrikError, ValueError):
    """A setting or an argument is unknown, of the wrong type, or impossible."""

    code = 2


class CorruptInputError(SfrikError):
    """Data, weights or every checkpoint are damaged."""

    code = 65


class BadPictureError(CorruptInputError):
    """One picture of a set cannot be read or decoded.

    Args:
      id: the file, or the record of its set.
      reason: what is wrong with it.
      remedy: what to do about it.
    """

    def __init__(
        self, id: str, reason: str, remedy: str = "replace or remove it"
    ) -> None:
        self.id, self.remedy = id, remedy
        self.reason = " ".join(reason.split())
        super().__init__(f"{self.line}; {remedy}")

    def __reduce__(self) -> tuple:
        """Travels between processes whole; an exception keeps its message alone."""
        return type(self), (self.id, self.reason, self.remedy)

    @property
    def line(self) -> str:
        """The finding as it is logged; an id with blanks in it is quoted."""
        plain = self.id.isprintable() and " " not in self.id
        shown = self.id if plain else json.dumps(self.id, ensure_ascii=False)
        return f"SFRIK-DATA-BAD id={shown} reason={self.reason}"


class MissingInputError(SfrikError, FileNotFoundError):
    """A data set, a folder, a weights file or a run is not there."""

    code = 66


class NonFiniteError(SfrikError, ArithmeticError):
    """The loss or a gradient is NaN or infinite."""

    code = 70


class MachineError(SfrikError):
    """The machine computes, adds up or keeps numbers wrong."""

    code = 71


class OutputError(SfrikError, OSError):
    """The output directory cannot be created or written, or is in use."""

    code = 73


class DiskFullError(SfrikError):
    """No space is left for what was to be written."""

    code = 74


class Preempted(SfrikError):
    """The run was told to stop; it has saved its state and can be run again.

    Args:
      of_all: all processes of the job raise it, at the same place.
    """

    code = 75

    def __init__(self, message: str, *, of_all: bool = False) -> None:
        super().__init__(message)
        self.of_all = of_all


class WorkerError(SfrikError):
    """A process of this run ended before its work did; the run can go on again."""

    code = 76


class LostPeerError(SfrikError):
    """Another process of this job did not come, or is gone; the job can go on again."""

    code = 76


class HangError(SfrikError):
    """Nothing moves any longer; the job can go on again."""

    code = 76


class ToldError(SfrikError):
    """What ended another process of this job ends this one with the same code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class MismatchError(SfrikError):
    """The configuration does not match what the run directory holds."""

    code = 78
