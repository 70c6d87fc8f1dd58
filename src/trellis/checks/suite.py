"""How a check is written: a function of a ``Subject`` whose docstring says what it proves.

It returns the numbers it compared as one sentence, raises ``CheckFailed`` with the cause, or ``CheckSkipped`` with the
reason. Anything else that it raises counts as failed, so a plug-in can never crash the kit.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trellis.checks.subject import Subject

CheckFunction = Callable[["Subject"], str]

SUITE: dict[str, CheckFunction] = {}


class CheckFailed(AssertionError):  # noqa: N818 - an outcome, read as one in a test's output
    """The plug-in does not do what the check proves; the message is the cause."""


class CheckSkipped(unittest.SkipTest):  # pytest and unittest both know it as a skip
    """The check does not apply to this plug-in; the message is the reason."""


def check(function: CheckFunction) -> CheckFunction:
    """Add a function to the suite under its own name."""
    assert function.__doc__, f"{function.__name__} does not say what it proves"
    SUITE[function.__name__] = function
    return function


def proves(function: CheckFunction) -> str:
    """Return the first sentence of a check's docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def require(condition: bool, cause: str) -> None:
    """Fail the check with ``cause`` unless ``condition`` holds."""
    if not condition:
        raise CheckFailed(cause)


def cause_of(error: BaseException) -> str:
    """Return an error as ``Type: message`` in one line, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}" if text else type(error).__name__
