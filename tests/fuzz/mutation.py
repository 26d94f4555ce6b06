"""Mutations of what strangers may hand over: protobufs field by field, JSON, text, bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.message import EncodeError, Message  # type: ignore[import-untyped]

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    255,
    1 << 16,
    1 << 31,
    1 << 40,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"))
WORDS = (
    "",
    "x",
    "y",
    "w",
    "mpqc.block",
    "../w",
    "\x1b[31m",
    "a\nb",
    "\0",
    "é",
    "[" * 3000,
    "n" * 5000,
)
_SEEN = 400  # fields that a mutation chooses from


def mutate_model(model: onnx.ModelProto, source: Random) -> bytes:
    """Changes up to four fields of a copy of ``model``; sometimes its bytes as well."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        sites = list(_sites(changed))
        # Fields near the root are few: choose a kind of message first, then one of its fields.
        kind = source.choice(sorted({type(message).__name__ for message, _ in sites}))
        message, field = source.choice([one for one in sites if type(one[0]).__name__ == kind])
        try:
            _mutate_field(message, field, source, changed)
        except (ValueError, TypeError, OverflowError):
            continue  # nothing that a protobuf can hold
    try:
        data = bytes(changed.SerializeToString())
    except EncodeError:  # a text that is none, which only some fields let pass
        data = bytes(model.SerializeToString())
    return mutate_bytes(data, source) if source.random() < 0.1 else data


def _sites(message: Message) -> Iterator[tuple[Message, Any]]:
    """Yields every message inside with every field that it could have."""
    waiting = [message]
    while waiting:
        one = waiting.pop()
        for field in one.DESCRIPTOR.fields:
            yield one, field
        for field, value in one.ListFields():
            if field.message_type is not None:
                waiting += list(value)[:_SEEN] if _is_repeated(field) else [value]


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _mutate_field(message: Message, field: Any, source: Random, model: Message) -> None:
    if source.random() < 0.15:
        message.ClearField(field.name)
    elif _is_repeated(field):
        _mutate_list(getattr(message, field.name), field, source, model)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_another(field, source, model))
    else:
        setattr(message, field.name, _scalar(field, source, model))


def _mutate_list(items: Any, field: Any, source: Random, model: Message) -> None:
    act = source.choice(("drop", "double", "swap", "change", "add", "many"))
    at = source.randrange(len(items)) if len(items) else 0
    is_message = field.message_type is not None
    if act == "drop" and len(items):
        del items[at]
    elif act == "many":
        items.extend(list(items[at : at + 1]) * source.choice((2, 40, 1000)))
    elif act in ("double", "add") or not len(items):
        new = items[at] if act == "double" and len(items) else None
        if is_message:
            items.add().CopyFrom(new if new is not None else _another(field, source, model))
        else:
            items.append(new if new is not None else _scalar(field, source, model))
    elif is_message:
        other = type(items[at])()
        other.CopyFrom(items[source.randrange(len(items))])
        items[at].CopyFrom(other)
    else:
        items[at] = _scalar(field, source, model)


def _another(field: Any, source: Random, model: Message) -> Message:
    """Returns a message of the field's type that stands elsewhere in the model, or none."""
    wanted = field.message_type.full_name
    found = {id(one): one for one, _ in _sites(model) if one.DESCRIPTOR.full_name == wanted}
    new = source.choice(list(found.values())) if found else None
    if new is None:
        raise ValueError(f"no {wanted}")
    copy = type(new)()
    copy.CopyFrom(new)
    return copy


def _scalar(field: Any, source: Random, model: Message) -> Any:
    if field.enum_type is not None:
        return source.choice([one.number for one in field.enum_type.values])
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return source.choice(FLOATS)
    if field.cpp_type != field.CPPTYPE_STRING:
        low = -4 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64) else 0
        return source.choice((*NUMBERS, *range(low, 12)))
    text = source.choice((*WORDS, *_strings(model)))
    return text.encode() if field.type == field.TYPE_BYTES else text


def _strings(model: Message) -> list[str]:
    """Returns names, operators and the like that stand in the model."""
    found = [
        value
        for message, field in _sites(model)
        if field.cpp_type == field.CPPTYPE_STRING
        and not _is_repeated(field)
        and isinstance(value := getattr(message, field.name), str)
        and value
    ]
    return sorted(set(found))


def mutate_bytes(data: bytes, source: Random) -> bytes:
    """Flips, drops, doubles or cuts bytes."""
    out = bytearray(data)
    for _ in range(source.randint(1, 8)):
        at = source.randrange(len(out) + 1)
        span = source.choice((1, 2, 4, 8, 64))
        act = source.randrange(5)
        if act == 0:
            out[at : at + span] = bytes(source.randrange(256) for _ in range(span))
        elif act == 1 and at < len(out):
            out[at] ^= 1 << source.randrange(8)
        elif act == 2:
            del out[at : at + span]
        elif act == 3:
            out[at:at] = out[at : at + span] * source.choice((1, 2, 50))
        elif source.random() < 0.2:
            del out[at:]
    return bytes(out)


def mutate_text(text: str, source: Random, words: tuple[str, ...] = WORDS) -> str:
    """Changes a text by its tokens; half of the time only values, so that it still parses."""
    tokens = _tokens(text)
    if source.random() < 0.5:
        return _other_values(tokens, source)
    for _ in range(source.randint(1, 4)):
        at, act = source.randrange(len(tokens) + 1), source.randrange(4)
        if act == 0:
            tokens[at : at + 1] = [
                source.choice((*words, *map(str, NUMBERS), *map(str, FLOATS)))
            ]
        elif act == 1:
            del tokens[at : at + 1]
        elif act == 2:
            tokens[at:at] = tokens[at : at + 3] * source.choice((1, 2, 300))
        else:
            tokens[at:at] = [
                source.choice(("{", "}", "[", "]", ",", "=", '"', "\\", ".", "-"))
            ]
    return "".join(tokens)


def _other_values(tokens: list[str], source: Random) -> str:
    """Returns the text with other numbers or words in a few places."""
    before = [at for at, token in enumerate(tokens) if token in '="[']
    places = [
        at + 1 for at in before if tokens[at + 1 : at + 2] and tokens[at + 1][0].isalnum()
    ]
    for at in source.sample(places, min(len(places), source.randint(1, 2))):
        if tokens[at].isdigit():
            tokens[at] = str(source.choice((source.randint(0, 64), source.choice(NUMBERS))))
        else:
            tokens[at] = tokens[source.choice(places)]
    return "".join(tokens)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for letter in text:
        if letter.isalnum() and tokens and tokens[-1][-1].isalnum():
            tokens[-1] += letter
        else:
            tokens.append(letter)
    return tokens


def mutate_json(value: Any, source: Random) -> Any:
    """Replaces up to three values anywhere in a JSON document."""
    document = json.loads(json.dumps(value))
    for _ in range(source.randint(1, 3)):
        holders = [one for one in _holders(document) if one]
        if not holders:
            break
        holder = source.choice(holders)
        key = source.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if source.random() < 0.2:
            del holder[key]
        else:
            holder[key] = _any_json(source)
    return document


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for one in value.values() if isinstance(value, dict) else value:
            yield from _holders(one)


def _any_json(source: Random) -> Any:
    scalars = (None, True, False, 7, -1, 0, 0.5, 1 << 70, 1e400, "", "x", "../x", "a" * 3000)
    return source.choice((*scalars, [], {}, [7], ["x"], {"x": 7}, [[[]]], {"x": {"x": None}}))
