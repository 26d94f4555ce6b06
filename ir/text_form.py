"""One text form for passes and annotations: ``name{key=value, key=[1, 2]}``.

``print_record`` and ``parse_record`` are inverse to each other. A value is an integer, a
float, ``true``, ``false``, ``none``, a bare word, a quoted (JSON) string, or a list of those.
Field names are written with dashes where the dataclass has underscores.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from .errors import UsageError

T = TypeVar("T")

_TOKEN = re.compile(
    r"\s*(?:(?P<punctuation>[{}=,\[\]])|(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<word>[^\s{}=,\[\]\"]+))"
)
_PUNCTUATION = set("{}=,[]")
_BARE = re.compile(r"[A-Za-z_./@][A-Za-z0-9_./:@+\-]*\Z")
_LONGEST_SHOWN = 200  # letters of the user's text in a message
_DEEPEST = 8  # lists in lists; ours nest twice
_RESERVED = {"true", "false", "none", "nan", "inf", "infinity"}  # would read back as no word


def print_value(value: Any) -> str:
    """Returns the text of one scalar or tuple."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(print_value(item) for item in value) + "]"
    text = str(value)
    bare = _BARE.match(text) and _scalar(text) == text  # .5 would read back as a number
    return text if bare and text.lower() not in _RESERVED else json.dumps(text)


def print_record(name: str, record: Any) -> str:
    """Returns ``name{...}`` for a dataclass instance, leaving out fields at their default."""
    parts = [
        f"{field.name.replace('_', '-')}={print_value(getattr(record, field.name))}"
        for field in dataclasses.fields(record)
        if getattr(record, field.name) != field.default
    ]
    return f"{name}{{{', '.join(parts)}}}" if parts else name


class _Tokens:
    """A cursor over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.items = list(self._scan(text))
        self.at = 0

    @staticmethod
    def _scan(text: str) -> Iterator[str]:
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                raise UsageError(f"cannot read {text[at : at + 20]!r} in {_shown(text)}")
            yield match.group().strip()
            at = match.end()

    def peek(self) -> str:
        return self.items[self.at] if self.at < len(self.items) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (token != expected if expected else token in _PUNCTUATION):
            found = f"found {_shown(token)}" if token else "the text ends"
            raise UsageError(
                f"expected {expected or 'a value'} but {found} in {_shown(self.text)}"
            )
        self.at += 1
        return token


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + " ...")


def _scalar(token: str) -> Any:
    if token.startswith('"'):
        try:
            return json.loads(token)
        except ValueError as error:
            raise UsageError(f"{_shown(token)} is no quoted string: {error}") from error
    constants = {"true": True, "false": False, "none": None}
    if token in constants:
        return constants[token]
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            continue
    return token


def _value(tokens: _Tokens, depth: int = 0) -> Any:
    if tokens.peek() != "[":
        return _scalar(tokens.take())
    if depth == _DEEPEST:
        raise UsageError(f"lists are nested too deep in {_shown(tokens.text)}")
    tokens.take("[")
    items = []
    while tokens.peek() != "]":
        items.append(_value(tokens, depth + 1))
        if tokens.peek() == ",":
            tokens.take(",")
        elif tokens.peek() != "]":
            tokens.take("]")
    tokens.take("]")
    return tuple(items)


def _record(tokens: _Tokens) -> tuple[str, dict[str, Any]]:
    name = tokens.take()
    fields: dict[str, Any] = {}
    if tokens.peek() != "{":
        return name, fields
    tokens.take("{")
    while tokens.peek() != "}":
        key = tokens.take()
        tokens.take("=")
        if key in fields:
            raise UsageError(f"{_shown(key)} is given twice in {_shown(tokens.text)}")
        fields[key] = _value(tokens)
        if tokens.peek() == ",":
            tokens.take(",")
        elif tokens.peek() != "}":
            tokens.take("}")
    tokens.take("}")
    return name, fields


def parse_records(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Parses ``a{x=1},b`` into ``[("a", {"x": 1}), ("b", {})]``.

    Raises:
        UsageError: The text does not follow the grammar.
    """
    tokens = _Tokens(text)
    records = []
    while tokens.peek():
        records.append(_record(tokens))
        if tokens.peek():
            tokens.take(",")
    return records


def parse_record(text: str) -> tuple[str, dict[str, Any]]:
    """Parses exactly one record.

    Raises:
        UsageError: The text does not follow the grammar or holds several records.
    """
    records = parse_records(text)
    if len(records) != 1:
        raise UsageError(f"expected one record in {_shown(text)}")
    return records[0]


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Returns a hint that names the nearest known word, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word[:_LONGEST_SHOWN], names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(names)


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(
            _fits(item, typing.get_args(kind)[0]) for item in value
        )
    if kind is types.NoneType or kind is None:
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _coerce(value: Any, kind: Any) -> Any:
    """Gives an integer that stands for a float, or a scalar for a list, its type."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return _as_float(value)
    if kind is str and value is None:
        return "none"  # a word like any other where there is no other way to say nothing
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return print_value(value)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items = value if isinstance(value, tuple) else (value,)
        return tuple(_coerce(item, inner) for item in items)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for one in typing.get_args(kind):
            if _fits(_coerce(value, one), one) and not (one is str and value is None):
                return _coerce(value, one)
    return value


def build_record(cls: type[T], name: str, fields: dict[str, Any]) -> T:
    """Builds a dataclass from parsed fields.

    Args:
        cls: A dataclass whose fields are int, float, bool, str, tuples of those, or None.
        name: How the record is called in messages.
        fields: Text keys (with dashes) and parsed values.

    Raises:
        UsageError: A field is unknown, missing or of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, raw in fields.items():
        key = key.replace("_", "-")
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has no options"
            raise UsageError(f"{name!r} has no option {_shown(key)}", hint=hint)
        kind = hints[known[key].name]
        value = _coerce(raw, kind)
        if not _fits(value, kind) or (isinstance(value, float) and math.isnan(value)):
            wanted = getattr(kind, "__name__", str(kind))
            raise UsageError(f"{name}: option {key} wants {wanted}, not {print_value(raw)}")
        arguments[known[key].name] = value
    for key, field in known.items():
        required = (
            field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in arguments:
            raise UsageError(f"{name}: option {key} is required")
    return cls(**arguments)
