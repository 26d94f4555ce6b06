"""The words of the mpqc command."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .option_fields import add_options
from .options import (
    CompareOptions,
    CompileOptions,
    DoctorOptions,
    EvalOptions,
    ExportOptions,
    GenerateOptions,
    LintOptions,
    OptOptions,
    PlanOptions,
)

_EXIT_CODES = """\
exit codes:
  0    done
  1    mpqc lint found errors
  2    usage: an option or its value is impossible
  3    bad or unsafe input
  4    environment: space, memory, a package or a provider is missing
  5    infeasible budget
  6    the result lost far more than predicted
  70   a bug of ours
  130  interrupted
  143  terminated

Results go to stdout, everything else to stderr. --json prints one object, on failure too.
"""


@dataclass(frozen=True)
class Operand:
    """What stands on a command line without a flag.

    Attributes:
        name: Its name in the code.
        metavar: What stands for it in the help.
        meaning: What it is.
        kind: The type of its value.
        optional: Whether it may be left out.
    """

    name: str
    metavar: str
    meaning: str
    kind: type = Path
    optional: bool = False


@dataclass(frozen=True)
class Command:
    """What the parser needs to know of a command.

    Attributes:
        summary: What it does, in one line.
        example: A command line that could be meant.
        operands: What it needs.
        options: The dataclass of its options, if it has any.
    """

    summary: str
    example: str
    operands: tuple[Operand, ...] = ()
    options: type | None = None


_MODEL = Operand(
    "model", "MODEL", "an .onnx file, a folder with one, or a Hugging Face folder"
)
COMMANDS = {
    "compile": Command(
        "Compile a model to exactly a budget.",
        "mpqc compile model.onnx --budget 3.5 -o compiled",
        (_MODEL,),
        CompileOptions,
    ),
    "plan": Command(
        "Say what a compilation would take and give, before it is run.",
        "mpqc plan model.onnx --budget 3.5",
        (_MODEL,),
        PlanOptions,
    ),
    "export": Command(
        "Export a Hugging Face folder to ONNX.",
        "mpqc export SmolLM2-135M -o exported",
        (Operand("folder", "DIR", "a Hugging Face folder"),),
        ExportOptions,
    ),
    "opt": Command(
        "Run passes on a dump or any ONNX file.",
        "mpqc opt dumps/004_PASS.onnx -o resumed",
        (Operand("dump", "DUMP", "an .onnx file of --dump-after-each, or any other"),),
        OptOptions,
    ),
    "inspect": Command(
        "Show what the weights of any ONNX file take.",
        "mpqc inspect compiled/model.onnx",
        (Operand("model", "FILE", "any .onnx file or model folder"),),
    ),
    "lint": Command(
        "Say what a runtime refuses, computes wrongly or runs slowly in any ONNX file.",
        "mpqc lint model.onnx --target tensorrt --fix -o fixed",
        (Operand("model", "FILE", "any .onnx file or model folder"),),
        LintOptions,
    ),
    "eval": Command(
        "Measure how far a result is from its original.",
        "mpqc eval exported compiled --text held_out.txt",
        (
            Operand("original", "ORIGINAL", "the model before"),
            Operand("result", "RESULT", "the model after"),
        ),
        EvalOptions,
    ),
    "compare": Command(
        "Compare methods at equal bytes: a table, a picture and JSON.",
        "mpqc compare exported --text held_out.txt -o compared",
        (_MODEL,),
        CompareOptions,
    ),
    "generate": Command(
        "Let a folder for onnxruntime-genai go on with a text: a first look.",
        "mpqc generate compiled 'Once upon a time' --max-tokens 64",
        (
            Operand("folder", "DIR", "a result of mpqc compile --for genai"),
            Operand("prompt", "PROMPT", "the text to go on from", str),
        ),
        GenerateOptions,
    ),
    "passes": Command("List the passes and their options.", "mpqc passes"),
    "presets": Command("List the pipelines that have names.", "mpqc presets"),
    "targets": Command(
        "List what results can run on, what that can do, and how it is known.",
        "mpqc targets ort-cpu",
        (Operand("target", "TARGET", "show everything that this one can do", str, True),),
    ),
    "doctor": Command(
        "Say what this machine can run, try it, and measure how fast.",
        "mpqc doctor --probe ort-cpu",
        options=DoctorOptions,
    ),
}


class Misused(Exception):
    """The words make no sense.

    Attributes:
        message: Why, in one line.
        hint: What would.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice is not None:
            known = re.findall(r"[\w-]+", choice[2])
            raise Misused(f"unknown choice {choice[1]!r}", _near(choice[1], known))
        name = self.prog.split()[-1]  # of a subcommand: its name
        raise Misused(message, f"example: {COMMANDS.get(name, COMMANDS['compile']).example}")


def _near(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else "known: " + ", ".join(names)


def parse(words: Sequence[str]) -> argparse.Namespace | None:
    """Returns what the words say; None when they only asked for help or the version.

    Raises:
        Misused: They say nothing that can be done.
    """
    parser, commands = parsers()
    command = next((word for word in words if not word.startswith("-")), None)
    if command in commands:
        _check_options(words, commands[command]._option_string_actions)
    try:
        chosen, extra = parser.parse_known_args(list(words))
    except SystemExit:
        return None
    if chosen.command is None:
        parser.print_help()
        return None
    if extra:
        example = f"example: {COMMANDS[chosen.command].example}"
        raise Misused(f"unknown argument {extra[0]!r}", example)
    return chosen


def _check_options(words: Sequence[str], known: Iterable[str]) -> None:
    """Names a mistyped option before anything else is complained about."""
    for word in words:
        name = word.split("=")[0]
        if word == "--":
            return
        if word.startswith("--") and name not in known:
            raise Misused(f"unknown option {name!r}", _near(name, known))


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser of the command, and those of its subcommands by name."""
    from .. import __version__

    parser = _Parser(
        prog="mpqc",
        description="A compiler for quantized networks: a model and a bit budget in,"
        " a graph that stock runtimes run out.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mpqc {__version__}")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        sub = group.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example: {command.example}",
            allow_abbrev=False,
        )
        for one in command.operands:
            count = {"nargs": "?"} if one.optional else {}
            sub.add_argument(
                one.name,
                metavar=one.metavar,
                type=one.kind,
                help=one.meaning,
                **count,  # type: ignore[arg-type]
            )
        if command.options is not None:
            add_options(sub, command.options)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser, dict(group.choices)
