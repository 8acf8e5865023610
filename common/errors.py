"""How we fail: what a user can mend is one kind of error; a bug keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend; the text says what is wrong, and what to write instead.

    The command line shows the text and ends with exit code 2.
    """


class FileError(UserError, OSError):
    """A file, disk, server or process that does not do its part; what to mend, and what is kept."""


class Busy(UserError):
    """Another process works on it."""


class NotYet(UserError):
    """What other processes work on is not done yet; the same command goes on when it is.

    The command line ends with exit code 75, see `common.stopping.NOT_FINISHED`.
    """


class Incomplete(UserError):
    """Parts failed and were given up, all others are done; the same command tries them again."""


class NotFinite(UserError, FloatingPointError):
    """A loss or gradient that is NaN or infinite: settings or data that training cannot take."""
