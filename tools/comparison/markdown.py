"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def number(value: float | None, form: str) -> str:
    """Returns a number as text, or a dash where there is none.

    Where four decimals would hide a small one, it gets three significant digits.
    """
    if value is None:
        return "-"
    return format(value, ".3g" if form == ".4f" and 0 < abs(value) < 0.01 else form)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
