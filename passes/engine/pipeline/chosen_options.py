"""Options that belong to one word of another option, like those of one metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from ....ir import UsageError
from ....ir.text_form import did_you_mean
from .base import Pass

T = TypeVar("T")


@dataclass(frozen=True)
class NoOptions:
    """For a word that has no options of its own."""


def chosen_options(step: Pass, option: str, choices: Mapping[str, type[T]]) -> T:
    """Builds the options of the word that an option of a pass chose.

    Args:
        step: The pass. Its fields that belong to a word are None where users left them out.
        option: The field that holds the word.
        choices: By word: the dataclass of its options, which checks their values.

    Raises:
        UsageError: There is no such word, or an option was given that belongs to others.
    """
    word = getattr(step, option)
    if word not in choices:
        hint = did_you_mean(word, choices)
        raise UsageError(f"{step.name} has no {option} {word!r}", hint=hint)
    owned = {key: _names(cls) for key, cls in choices.items()}
    belonging = set[str]().union(*owned.values())
    given = {name: getattr(step, name) for name in sorted(belonging)}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in owned[word]:
            others = [f"{option}={key}" for key, names in owned.items() if name in names]
            raise UsageError(
                f"{step.name}{{{option}={word}}} has no use for {name}",
                hint=f"{name} belongs to {' and '.join(others)}",
            )
    return choices[word](**given)


def one_of(known: Iterable[str], **given: str) -> None:
    """Refuses words that are not known, naming the option."""
    words = tuple(known)
    for name, word in given.items():
        if word not in words:
            raise UsageError(f"no {name} {word!r}", hint=did_you_mean(word, words))


def at_least(least: int, **given: int) -> None:
    """Refuses numbers below the least, naming the option."""
    for name, number in given.items():
        if number < least:
            raise UsageError(f"{name} must be at least {least}, not {number}")


def _names(cls: type[object]) -> set[str]:
    return {field.name for field in fields(cls)}  # type: ignore[arg-type]
