"""Typed notes on nodes and models, keyed by class, stored in ``metadata_props`` as text.

A note never changes what a graph computes. It prints as ``#bits{...}`` and travels in an ONNX
file under ``mpqc.<key>`` in that same text, so that every dump is an ordinary ONNX file. Where
several units may share a node, each has notes of its own, under ``mpqc.<key>@<unit>``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, TypeVar, cast

import onnx_ir as ir

from .errors import InternalError, MissingFact
from .operands import all_graphs
from .text_form import build_record, parse_record, print_record

PREFIX = "mpqc."


class Annotated(Protocol):
    """Anything with ONNX metadata: a node, a graph, a model, a unit."""

    @property
    def metadata_props(self) -> MutableMapping[str, str]:
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


@dataclass(frozen=True)
class UnitNotes:
    """The notes of one of the units that a node may be the anchor of.

    Attributes:
        node: The anchor.
        unit: Name of the unit.
    """

    node: ir.Node
    unit: str

    @property
    def name(self) -> str:
        """Name of the unit."""
        return self.unit

    @property
    def metadata_props(self) -> MutableMapping[str, str]:
        """Those entries of the anchor's that are about the unit, under plain keys."""
        return _OwnEntries(self.node.metadata_props, f"@{self.unit}")


class _OwnEntries(MutableMapping[str, str]):
    """The entries of a mapping whose keys end in a suffix, without it."""

    def __init__(self, entries: MutableMapping[str, str], suffix: str) -> None:
        self._entries, self._suffix = entries, suffix

    def __getitem__(self, key: str) -> str:
        return self._entries[key + self._suffix]

    def __setitem__(self, key: str, text: str) -> None:
        self._entries[key + self._suffix] = text

    def __delitem__(self, key: str) -> None:
        del self._entries[key + self._suffix]

    def __iter__(self) -> Iterator[str]:
        own = [key for key in self._entries if key.endswith(self._suffix)]
        return iter([key.removesuffix(self._suffix) for key in own])

    def __len__(self) -> int:
        return len(list(iter(self)))


def class_of(key: str) -> type[Annotation] | None:
    """Returns the class of the note under a key, if it is one of ours."""
    if not key.startswith(PREFIX):
        return None
    return ANNOTATIONS.get(key.removeprefix(PREFIX).partition("@")[0])


def annotate(target: Annotated, note: Annotation) -> None:
    """Writes ``note`` on ``target``, replacing an earlier note of the same class."""
    target.metadata_props[PREFIX + note.key] = print_record(note.key, note)


@lru_cache(maxsize=1 << 14)
def built(key: str, text: str) -> Annotation:
    """Parses a note; notes are frozen, so equal texts may share one."""
    _, fields = parse_record(text)
    return build_record(ANNOTATIONS[key], key, fields)


def note_of(target: Annotated, cls: type[N]) -> N | None:
    """Returns the note of class ``cls`` on ``target``, or None."""
    text = target.metadata_props.get(PREFIX + cls.key)
    if text is None:
        return None
    return cast("N", built(cls.key, text))


def need_note(target: Annotated, cls: type[N]) -> N:
    """Returns the note of class ``cls``.

    Raises:
        MissingFact: There is none.
    """
    note = note_of(target, cls)
    if note is None:
        raise MissingFact(f"{getattr(target, 'name', target)} carries no #{cls.key}")
    return note


def drop_note(target: Annotated, cls: type[Annotation]) -> None:
    """Removes the note of class ``cls`` if there is one."""
    target.metadata_props.pop(PREFIX + cls.key, None)


def forget_notes(model: ir.Model, *, keep: Collection[type[Annotation]] = ()) -> None:
    """Removes notes: every one of a model from outside, whose claims nobody has checked.

    Args:
        model: The graph.
        keep: Classes whose notes stay.
    """
    bodies = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in (one for body in bodies for one in all_graphs(body)):
        for target in (model, graph, *graph):
            own = [key for key in target.metadata_props if key.startswith(PREFIX)]
            for key in own:
                if class_of(key) not in keep:
                    del target.metadata_props[key]


def notes_of(target: Annotated) -> list[Annotation]:
    """Returns all known notes on ``target``, those of all its units too, sorted by key."""
    entries = sorted(target.metadata_props.items())
    return [built(cls.key, text) for key, text in entries if (cls := class_of(key))]


def all_notes_of(target: Annotated, cls: type[N]) -> list[N]:
    """Returns the notes of class ``cls`` on ``target`` and on all its units."""
    entries = target.metadata_props.items()
    return [cast("N", built(cls.key, text)) for key, text in entries if class_of(key) is cls]
