"""How we fail: what a user can mend is one kind of error, everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend; its text says what is wrong and what to write instead.

    The command line shows the text and ends with exit code 2.
    """
