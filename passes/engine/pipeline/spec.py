"""Passes as text: what users type is what ``str(pass)`` prints."""

from __future__ import annotations

from collections.abc import Iterable

from ....ir.text_form import build_record, parse_records
from .base import Pass
from .registry import pass_class


def parse_passes(text: str) -> tuple[Pass, ...]:
    """Reads ``calibrate,allocate-bits{budget=3.5}``.

    Raises:
        UsageError: The text does not follow the grammar, or names a pass or option that does
            not exist.
    """
    return tuple(
        build_record(pass_class(name), name, given) for name, given in parse_records(text)
    )


def print_passes(passes: Iterable[Pass]) -> str:
    """Returns the text from which ``parse_passes`` builds equal passes."""
    return ",".join(str(one) for one in passes)
