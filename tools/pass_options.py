"""Options of passes, whichever passes they are: what the tools set is found by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ..ir import Calibrated, StoredPart, UsageError
from ..ir.text_form import build_record, parse_records
from ..passes.engine.pipeline.base import Pass
from ..passes.engine.pipeline.registry import all_passes, pass_class


def has_option(one: Pass | type[Pass], name: str) -> bool:
    """Returns whether a pass has an option called ``name``."""
    return any(field.name == name for field in dataclasses.fields(one))


def is_lowering(one: Pass | type[Pass]) -> bool:
    """Returns whether a pass writes the codes that a runtime reads."""
    return StoredPart in one.writes


def passes_with(name: str, *, lowering: bool = False) -> list[str]:
    """Returns the names of all passes with an option; of lowering passes only if asked."""
    found = [one for one in all_passes() if has_option(one, name)]
    return [one.name for one in found if is_lowering(one) or not lowering]


def read_passes(text: str, **options: object) -> tuple[Pass, ...]:
    """Reads passes as users type them; each that has one of ``options`` is given its value.

    Raises:
        UsageError: The text names a pass or an option that does not exist.
    """
    passes = []
    for name, given in parse_records(text):
        cls = pass_class(name)
        more = {key: value for key, value in options.items() if has_option(cls, key)}
        passes.append(build_record(cls, name, {**given, **more}))
    return tuple(passes)


def with_option(
    passes: Iterable[Pass], name: str, value: object, what: str
) -> tuple[Pass, ...]:
    """Returns the passes, with a value for an option in each of them that has it.

    Args:
        passes: The passes.
        name: The option.
        value: Its value.
        what: The value in words, for the message.

    Raises:
        UsageError: No pass has it.
    """
    before = tuple(passes)
    if not any(has_option(one, name) for one in before):
        known = passes_with(name)
        raise UsageError(
            f"the pipeline has no {known[0]}, so {what} means nothing to it",
            hint=f"add {' or '.join(known)}; run: mpqc passes",
        )
    return tuple(
        dataclasses.replace(one, **{name: value}) if has_option(one, name) else one
        for one in before
    )


def changed(one: Pass, options: Mapping[str, Any]) -> Pass:
    """Returns a pass with some options replaced, given as they are parsed from text.

    Raises:
        UsageError: There is no such option, or it has no such value.
    """
    kept = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return build_record(type(one), one.name, {**kept, **options})


def calibrating(passes: Iterable[Pass]) -> str | None:
    """Returns the name of the pass whose sweep all budgets share, if there is one."""
    return next((one.name for one in passes if Calibrated in one.writes), None)
