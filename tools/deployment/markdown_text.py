"""Text of others in Markdown: nothing in a name becomes a link, a heading or a tag."""

from __future__ import annotations

import re

from ..progress import plain

# Punctuation with a meaning inside a line, and what turns an address into a link by itself.
_ACTIVE = re.compile(r"[\\`*_\[\]<>|#&~!:@$]|(?<=www)\.", re.IGNORECASE)
_TICKS = re.compile("`+")


def escaped(text: str) -> str:
    """Returns ``text`` for a line of prose or a cell of a table."""
    return _ACTIVE.sub(r"\\\g<0>", plain(" ".join(text.split())))


def code_span(text: str) -> str:
    """Returns ``text`` as code inside a line or a cell of a table."""
    inner = plain(" ".join(text.split())).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(inner) + 1)
    space = " " if inner.startswith("`") or inner.endswith("`") or not inner else ""
    return f"{ticks}{space}{inner}{space}{ticks}"


def code_block(text: str, language: str) -> str:
    """Returns ``text`` as a block of code, which no line of it can end."""
    lines = "\n".join(map(plain, text.strip("\n").split("\n")))
    fence = "`" * max(3, _longest_ticks(lines) + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, _TICKS.findall(text)), default=0)
