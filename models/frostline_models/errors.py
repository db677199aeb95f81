"""What a user is told when an input cannot be used: always the file or option, and the key."""

from __future__ import annotations


class InputError(ValueError):
    """Something given by the user is wrong; the message says what, where and what would do.

    The command line prints the message alone and exits with 2; anything else is a bug and
    keeps its traceback.
    """


def at(where, problem: str) -> InputError:
    """An error in a file or option: ``where: problem``."""
    return InputError(f"{where}: {problem}")
