"""Errors that a user can cause, each with the exit code of the command line.

The message is one line: what is wrong, where (path, step, leaf, setting and its
value), what was kept, and what to do.
"""


class SfrikError(Exception):
    """An error that ends a command with `code` and one line, without a traceback."""

    code = 1


class ConfigError(SfrikError, ValueError):
    """A setting or an argument is unknown, of the wrong type, or impossible."""

    code = 2


class CorruptInputError(SfrikError):
    """Data, weights or every checkpoint are damaged."""

    code = 65


class MissingInputError(SfrikError, FileNotFoundError):
    """A data set, a folder, a weights file or a run is not there."""

    code = 66


class NonFiniteError(SfrikError, ArithmeticError):
    """The loss or a gradient is NaN or infinite."""

    code = 70


class OutputError(SfrikError, OSError):
    """The output directory cannot be created or written, or is in use."""

    code = 73


class DiskFullError(SfrikError):
    """No space is left for what was to be written."""

    code = 74


class Preempted(SfrikError):
    """The run was told to stop; it has saved its state and can be run again."""

    code = 75


class MismatchError(SfrikError):
    """The configuration does not match what the run directory holds."""

    code = 78
