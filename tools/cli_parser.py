"""The words of the mpqc command."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

_EXIT_CODES = """\
exit codes:
  0    done
  2    usage: an option or its value is impossible
  3    bad or unsafe input
  4    environment: space, memory, a package or a provider is missing
  5    infeasible budget
  70   a bug of ours
  130  interrupted

Results go to stdout, everything else to stderr. --json prints one object, on failure too.
"""
_EXAMPLES = {
    "compile": "mpqc compile model.onnx --budget 3.5 -o compiled",
    "export": "mpqc export SmolLM2-135M -o exported",
    "opt": "mpqc opt dumps/004_annotate-sensitivity.onnx -o resumed",
    "inspect": "mpqc inspect compiled/model.onnx",
    "eval": "mpqc eval exported compiled --text held_out.txt",
    "compare": "mpqc compare exported --text held_out.txt -o compared",
    "passes": "mpqc passes",
    "presets": "mpqc presets",
    "doctor": "mpqc doctor",
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
        raise Misused(message, f"example: {_EXAMPLES.get(name, _EXAMPLES['compile'])}")


def _near(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    found = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else "known: " + ", ".join(names)


def parse(words: Sequence[str]) -> argparse.Namespace | None:
    """Returns what the words say; None when they only asked for help or the version.

    Raises:
        Misused: They say nothing that can be done.
    """
    parser, commands = _parsers()
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
        raise Misused(
            f"unknown argument {extra[0]!r}", f"example: {_EXAMPLES[chosen.command]}"
        )
    return chosen


def _check_options(words: Sequence[str], known: Iterable[str]) -> None:
    """Names a mistyped option before anything else is complained about."""
    for word in words:
        name = word.split("=")[0]
        if word == "--":
            return
        if word.startswith("--") and name not in known:
            raise Misused(f"unknown option {name!r}", _near(name, known))


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
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
    commands = {
        name: group.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {_EXAMPLES[name]}",
            allow_abbrev=False,
        )
        for name, summary in _SUMMARIES.items()
    }
    _add_compile(commands["compile"])
    _add_export(commands["export"])
    _add_opt(commands["opt"])
    _add_inspect(commands["inspect"])
    _add_eval(commands["eval"])
    _add_compare(commands["compare"])
    for command in commands.values():
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser, commands


_SUMMARIES = {
    "compile": "Compile a model to exactly a budget.",
    "export": "Export a Hugging Face folder to ONNX.",
    "opt": "Run passes on a dump or any ONNX file.",
    "inspect": "Show what the weights of any ONNX file take.",
    "eval": "Measure how far a result is from its original.",
    "compare": "Compare methods at equal bytes: a table, a picture and JSON.",
    "passes": "List the passes and their options.",
    "presets": "List the pipelines that have names.",
    "doctor": "Say what this machine can run.",
}


def _add_compile(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--budget",
        help="stored bits per weight, like 3.5, or the size of all files, like 60MB",
    )
    budget.add_argument(
        "--file-budget",
        metavar="BUDGET",
        help="the same for the file alone: weights may take more room in memory",
    )
    _add_output(parser, "default: MODEL-BUDGET in the current folder")
    _add_calibration(parser)
    parser.add_argument(
        "--activations",
        metavar="TYPE",
        help="for target qdq: none (default), int8 or uint8",
    )
    parser.add_argument(
        "--recipe", metavar="FILE", type=Path, help="a TOML file with a pipeline"
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="a pipeline by its name (default); see mpqc presets"
    )
    parser.add_argument(
        "-p", "--passes", metavar="TEXT", help="a pipeline, instead of a preset"
    )
    _add_watch(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="an .onnx file, a folder with one, or a Hugging Face folder",
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="NAME", help="ort-cpu (default), ort-cuda or qdq")
    parser.add_argument(
        "--calibration",
        metavar="PATH",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="text files, .npz or .safetensors files, or folders of them",
    )
    parser.add_argument(
        "--random-calibration",
        action="store_true",
        help="calibrate on noise; the result is marked",
    )
    parser.add_argument("--samples", metavar="N", type=int, help="calibration samples (64)")
    parser.add_argument(
        "--sequence-length", metavar="L", type=int, help="tokens in a sample (512)"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="seed of random choices (0)")
    parser.add_argument(
        "--objective", metavar="NAME", help="auto (default), logits or regression"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a Hugging Face folder")
    _add_output(parser, "default: DIR-onnx in the current folder")


def _add_opt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dump", metavar="DUMP", type=Path, help="an .onnx file of --dump-after-each"
    )
    parser.add_argument(
        "-p",
        "--passes",
        metavar="TEXT",
        help="passes to run; default: what the dump's run had left",
    )
    _add_output(parser, "folder for the result; without it, the graph is printed")
    parser.add_argument("--print", action="store_true", help="print the graph")
    _add_watch(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="FILE", type=Path, help="any .onnx file or model folder"
    )


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("original", metavar="ORIGINAL", type=Path, help="the model before")
    parser.add_argument("result", metavar="RESULT", type=Path, help="the model after")
    _add_text(parser)
    parser.add_argument("--samples", metavar="N", type=int, default=8, help="samples (8)")
    parser.add_argument(
        "--sequence-length",
        metavar="L",
        type=int,
        default=512,
        help="tokens in a sample (512)",
    )
    parser.add_argument(
        "--target", metavar="NAME", default="ort-cpu", help="what to run both on"
    )
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        default="onnxruntime",
        help="onnxruntime (default), openvino, or torch for what the standard says",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="forbid the runtime to round activations where the graph does not",
    )


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        metavar="PATH",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="text files, or .npz/.safetensors files with arrays named like the inputs",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--methods",
        metavar="LIST",
        nargs="+",
        action="extend",
        default=[],
        help="names of presets (all), or .toml files of pipelines; see docs/compare.md",
    )
    parser.add_argument(
        "--budgets",
        metavar="LIST",
        nargs="+",
        action="extend",
        default=[],
        help="stored bits per weight (2.5,3,3.5,4,4.5)",
    )
    parser.add_argument(
        "--file-budgets",
        metavar="LIST",
        nargs="+",
        action="extend",
        default=[],
        help="the same for the file alone, as compile --file-budget",
    )
    _add_text(parser)
    parser.add_argument(
        "--eval-samples", metavar="N", type=int, default=8, help="to measure on (8)"
    )
    _add_calibration(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="default: MODEL-compared; what is there is not measured again",
    )
    parser.add_argument("--overwrite", action="store_true", help="measure everything again")
    parser.add_argument(
        "--keep", action="store_true", help="keep the compiled models, in DIR/compiled"
    )


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dump-after-each", metavar="DIR", type=Path, help="write dumps there"
    )
    parser.add_argument("--stop-after", metavar="PASS", help="stop after that pass")
    parser.add_argument(
        "--print-after", metavar="PASS", help="print the graph to stderr after it"
    )
    parser.add_argument("--time-passes", action="store_true", help="show what each pass cost")
