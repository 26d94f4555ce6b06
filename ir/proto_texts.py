"""Every text of a parsed file must be UTF-8: protobuf hands out anything else as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx
from google.protobuf.descriptor import (  # type: ignore[import-untyped]
    Descriptor,
    FieldDescriptor,
)
from google.protobuf.message import Message  # type: ignore[import-untyped]

from .errors import InputError


def check_texts(model: onnx.ModelProto) -> None:
    """Refuses names, notes and descriptions that are not UTF-8.

    Raises:
        InputError: Names the field.
    """
    for field, text in _texts(model):
        if isinstance(text, bytes):
            raise InputError(
                f"a {field} is not UTF-8 text: {text[:60]!r}",
                hint="export the model again; onnx.checker.check_model may say more",
            )


def _texts(model: Message) -> Iterator[tuple[str, Any]]:
    """Yields every text with the name of its field; numbers stay unread."""
    todo = [model]
    while todo:
        one = todo.pop()
        texts, messages = _fields(one.DESCRIPTOR)
        for name, repeated in texts:
            value = getattr(one, name)
            for text in value if repeated else (value,):
                yield name, text
        for name, repeated in messages:
            if repeated:
                todo.extend(getattr(one, name))
            elif one.HasField(name):
                todo.append(getattr(one, name))


@cache
def _fields(kind: Descriptor) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Returns the fields of a message that are texts, and those that are messages."""
    named = [(field.type, field.name, _is_repeated(field)) for field in kind.fields]
    return (
        [(name, many) for type_, name, many in named if type_ == FieldDescriptor.TYPE_STRING],
        [(name, many) for type_, name, many in named if type_ == FieldDescriptor.TYPE_MESSAGE],
    )


def _is_repeated(field: FieldDescriptor) -> bool:
    known = getattr(field, "is_repeated", None)  # protobuf 7 has no label any more
    return bool(known if known is not None else field.label == field.LABEL_REPEATED)
