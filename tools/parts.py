"""The encoder and the decoder of a model that has both, as files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..backend.encoder_decoder import write_parts
from ..ir import InputError


def cut_in_parts(model: Path, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Writes encoder and decoder beside ``model`` and returns their files.

    Of any other model there are none. One that cannot be cut is a model all the same; that is
    said.
    """
    try:
        return write_parts(model)
    except InputError as error:
        say(f"warning: {error.message}; it stays one graph")
        return ()
