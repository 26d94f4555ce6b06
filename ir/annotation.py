"""Typed notes on nodes and models, keyed by class, stored in ``metadata_props`` as text.

A note never changes what a graph computes. It prints as ``#bits{...}`` and travels in an ONNX
file under ``mpqc.<key>`` in that same text, so that every dump is an ordinary ONNX file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, TypeVar, cast

import onnx_ir as ir

from .errors import InternalError
from .operands import all_graphs
from .text_form import build_record, parse_record, print_record

PREFIX = "mpqc."


class Annotated(Protocol):
    """Anything with ONNX metadata: a node, a graph, a model."""

    @property
    def metadata_props(self) -> dict[str, str]:
        """Text by key, written into the ONNX file."""
        ...


@dataclass(frozen=True)
class Annotation:
    """Base of all notes: frozen dataclasses of scalars and tuples, each with a ``key``."""

    key: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if cls.key in ANNOTATIONS:
            raise InternalError(f"two annotations claim the key {cls.key!r}")
        ANNOTATIONS[cls.key] = cls

    def __str__(self) -> str:
        return "#" + print_record(self.key, self)


ANNOTATIONS: dict[str, type[Annotation]] = {}

N = TypeVar("N", bound=Annotation)


def annotate(target: Annotated, note: Annotation) -> None:
    """Writes ``note`` on ``target``, replacing an earlier note of the same class."""
    target.metadata_props[PREFIX + note.key] = print_record(note.key, note)


@lru_cache(maxsize=1 << 14)
def _built(key: str, text: str) -> Annotation:
    """Parses a note; notes are frozen, so equal texts may share one."""
    _, fields = parse_record(text)
    return build_record(ANNOTATIONS[key], key, fields)


def note_of(target: Annotated, cls: type[N]) -> N | None:
    """Returns the note of class ``cls`` on ``target``, or None."""
    text = target.metadata_props.get(PREFIX + cls.key)
    if text is None:
        return None
    return cast("N", _built(cls.key, text))


def need_note(target: Annotated, cls: type[N]) -> N:
    """Returns the note of class ``cls``.

    Raises:
        InternalError: There is none.
    """
    note = note_of(target, cls)
    if note is None:
        raise InternalError(f"{getattr(target, 'name', target)} carries no #{cls.key}")
    return note


def drop_note(target: Annotated, cls: type[Annotation]) -> None:
    """Removes the note of class ``cls`` if there is one."""
    target.metadata_props.pop(PREFIX + cls.key, None)


def forget_notes(model: ir.Model) -> None:
    """Removes every note of a model from outside: what it claims, nobody has checked."""
    bodies = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in (one for body in bodies for one in all_graphs(body)):
        for target in (model, graph, *graph):
            for key in [key for key in target.metadata_props if key.startswith(PREFIX)]:
                del target.metadata_props[key]


def notes_of(target: Annotated) -> list[Annotation]:
    """Returns all known notes on ``target``, sorted by key."""
    found = [note_of(target, cls) for _, cls in sorted(ANNOTATIONS.items())]
    return [note for note in found if note is not None]
