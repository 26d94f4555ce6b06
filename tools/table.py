"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .progress import plain


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields columns, left-aligned, whatever the terminal's width: results may be piped."""
    clean = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in clean) for at in range(len(clean[0]))]
    for row in clean:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield line.rstrip()
