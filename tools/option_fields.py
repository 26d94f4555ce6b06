"""How an option is declared: one dataclass field that the parser, recipes and documents read.

Imports nothing of ours, so that ``mpqc --help`` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

Options = TypeVar("Options")
Given = ParamSpec("Given")
Result = TypeVar("Result")
_SPEC = "spec"
_LARGEST = 1e12  # number that any option means
_METAVARS = {str: "NAME", int: "N", float: "X", Path: "PATH"}


@dataclass(frozen=True)
class OptionSpec:
    """What there is to know about an option, apart from its name.

    Attributes:
        help: What it means, in one line.
        kind: The type of its values. ``bool`` makes a flag; a ``Path`` must be UTF-8.
        default: The value where neither the caller nor a recipe gives one.
        metavar: What stands for its value in the help; by default as its kind has it.
        short: A short form, such as ``-o``.
        many: Whether it takes several values.
        required: Whether the command refuses to run without it.
        exclusive: Name of a group of options of which the command takes exactly one.
        least: The least value of a number.
        most: The greatest value of a number.
        known: The only words that it takes.
        recipe: Whether recipes may give it, or the key by which they do.
        recorded: Whether it decides the result, so that ``mpqc.json`` keeps it.
        python_only: Whether the command line does not have it.
    """

    help: str
    kind: type = str
    default: Any = None
    metavar: str = ""
    short: str = ""
    many: bool = False
    required: bool = False
    exclusive: str = ""
    least: int = 0
    most: int = 0
    known: tuple[str, ...] = ()
    recipe: bool | str = False
    recorded: bool = False
    python_only: bool = False

    @property
    def text(self) -> str:
        """The meaning, and the default if there is one."""
        return self.help if self.default is None else f"{self.help}; default: {self.default}"


def option(help: str, kind: type = str, **facts: Any) -> Any:
    """Returns a dataclass field for an option; see ``OptionSpec`` for ``facts``.

    The field's own default means that the caller said nothing: None, no values, or no flag.
    """
    spec = OptionSpec(help, kind, **facts)
    nothing: Any = () if spec.many else False if kind is bool else None
    return dataclasses.field(default=nothing, metadata={_SPEC: spec})


def setting(help: str, kind: type = str, **facts: Any) -> Any:
    """Returns an option that decides the result and has a place in recipes."""
    return option(help, kind, recipe=True, recorded=True, **facts)


def specs(options: Any) -> dict[str, OptionSpec]:
    """Returns the options of a dataclass, by name."""
    return {one.name: one.metadata[_SPEC] for one in dataclasses.fields(options)}


def key_of(name: str) -> str:
    """Returns ``for`` for ``for_``: a word that Python reserves bears an underscore there."""
    return name.removesuffix("_")


def flag_of(name: str) -> str:
    """Returns ``--sequence-length`` for ``sequence_length``."""
    return f"--{key_of(name).replace('_', '-')}"


def add_options(
    parser: argparse.ArgumentParser, options: type, only: Collection[str] = ()
) -> None:
    """Declares the options of a dataclass, or those called ``only``, to a parser."""
    groups: dict[str, Any] = {}
    for name, spec in specs(options).items():
        if spec.python_only or (only and name not in only):
            continue
        place: Any = parser
        if spec.exclusive:
            new = groups.get(spec.exclusive) or parser.add_mutually_exclusive_group(
                required=True
            )
            place = groups.setdefault(spec.exclusive, new)
        words = [spec.short, flag_of(name)] if spec.short else [flag_of(name)]
        if spec.kind is bool:
            place.add_argument(*words, dest=name, action="store_true", help=spec.text)
            continue
        several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
        place.add_argument(
            *words,
            dest=name,
            metavar=spec.metavar or _METAVARS[spec.kind],
            type=spec.kind,
            required=spec.required,
            help=spec.text,
            **(several if spec.many else {}),
        )


def options_in(chosen: argparse.Namespace, options: type) -> dict[str, Any]:
    """Returns what the command line gave for the options of a dataclass."""
    return {name: getattr(chosen, name) for name in specs(options) if name in chosen}


def option_words(options: type, values: Mapping[str, Any]) -> list[str]:
    """Returns the words of a command line that give ``values``; what is empty is left out.

    ``values`` go by the keys that recipes and ``mpqc.json`` have.
    """
    words: list[str] = []
    for name, spec in specs(options).items():
        value = values.get(key_of(name))
        if value is None or value is False or value == []:
            continue
        shown = [] if spec.kind is bool else list(value) if spec.many else [value]
        words += [flag_of(name), *map(str, shown)]
    return words


def resolved(given: Options, recipe: Mapping[str, Any] | None = None) -> Options:
    """Returns checked options without gaps: given values, the recipe's, or defaults.

    Raises:
        UsageError: A value is impossible.
    """
    values = {}
    for name, spec in specs(given).items():
        value = getattr(given, name)
        if value is None:
            value = (recipe or {}).get(name, spec.default)
        values[name] = _checked(name, spec, value)
    return type(given)(**values)


def _checked(name: str, spec: OptionSpec, value: Any) -> Any:
    """Returns the value, paths as ``Path``, or refuses it."""
    if spec.kind is Path and spec.many:
        several = [value] if isinstance(value, (str, Path)) else value
        return tuple(map(utf8_path, several))
    if spec.kind is Path and value is not None:
        return utf8_path(value)
    if spec.kind is float and value is not None:
        return _checked_float(name, value)
    if spec.most:
        _check_number(name, spec, value)
    if spec.known and value not in spec.known:
        from ..ir import UsageError
        from ..ir.text_form import did_you_mean

        hint = did_you_mean(str(value), spec.known)
        raise UsageError(f"unknown {key_of(name)} {value!r}", hint=hint)
    return value


def _checked_float(name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= _LARGEST:
        from ..ir import UsageError

        # A number may have more digits than Python prints.
        shown = value if not number or not value > _LARGEST else "that one"
        raise UsageError(f"{name.replace('_', '-')} must be a number above 0, not {shown}")
    return float(value)


def _check_number(name: str, spec: OptionSpec, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not spec.least <= value <= spec.most:
        from ..ir import UsageError

        # A number may have more digits than Python prints.
        shown = value if not whole or abs(value) <= 1 << 64 else "that one"
        wanted = f"a whole number from {spec.least} to {spec.most}"
        raise UsageError(f"{name.replace('_', '-')} must be {wanted}, not {shown}")


def utf8_path(path: Path | str) -> Path:
    """Returns a path that every library can be given.

    Raises:
        UsageError: It, or where it leads, is not UTF-8, which some runtimes refuse late.
    """
    for form in (os.path.abspath(path), os.path.realpath(path)):
        try:
            os.fsencode(form).decode("utf-8")
        except UnicodeDecodeError as error:
            from ..ir import UsageError

            hint = "rename it, or the folder that it lies in"
            raise UsageError(f"the path {form} is not UTF-8", hint=hint) from error
    return Path(path)


def takes(
    options: Callable[Given, Options],
) -> Callable[[Callable[[Any, Options], Result]], Callable[Concatenate[Any, Given], Result]]:
    """Lets a function of a model and options take the options as keywords instead.

    Signature and docstring get the options in place of the second parameter.
    """

    def decorate(
        function: Callable[[Any, Options], Result],
    ) -> Callable[Concatenate[Any, Given], Result]:
        def call(model: Any, /, *args: Given.args, **given: Given.kwargs) -> Result:
            return function(model, options(*args, **given))

        functools.update_wrapper(call, function)

        taken = list(inspect.signature(function).parameters.values())
        more = inspect.signature(options).parameters.values()
        call.__dict__["__signature__"] = inspect.Signature([taken[0], *more])
        lines = [f"        {name}: {one.text}." for name, one in specs(options).items()]
        line = rf"^ +{taken[1].name}: .*$"
        call.__doc__ = re.sub(line, "\n".join(lines), str(function.__doc__), flags=re.M)
        return call

    return decorate
