"""Documents say what is so: the list of passes, the keys of mpqc.json, options and links."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mpqc
from mpqc.backend.lint import load_rules
from mpqc.backend.onnxruntime.capabilities import load, targets
from mpqc.ir import Annotation
from mpqc.ir.target_rows import BY_ROW, Row, rows_of
from mpqc.ir.text_form import print_value
from mpqc.passes.engine.pipeline.base import Pass
from mpqc.passes.engine.pipeline.registry import all_passes
from mpqc.passes.engine.pipeline.spec import print_passes
from mpqc.tools.benchmarks import __main__ as benchmarks
from mpqc.tools.benchmarks.gpu import page as gpu
from mpqc.tools.cli_parser import parsers
from mpqc.tools.pipelines import PRESETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PASSES = ROOT / "docs" / "passes.md"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_OF_PIP = {
    *("--extra-index-url", "--no-deps", "--no-index", "--only-binary", "--platform"),
    "--python-version",
}
_TOOLS = {"--update-golden", "--strict"} | _OF_PIP  # of pytest, mypy and pip
_TOOLS |= {"--include", "--model", "--tasks"}  # of lm_eval, up to an underscore
_TOOLS |= {"--address", "--head", "--port"}  # of ray start


def described(cls: type[Pass]) -> tuple[str, dict[str, str]]:
    """Returns the docstring's text, and what it says about each option."""
    text = inspect.cleandoc(cls.__doc__ or "").replace("``", "`")
    body, _, attributes = text.partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE)
    return body.strip(), {name: " ".join(words.split()) for name, words in entries}


def notes(kinds: tuple[type[Annotation], ...]) -> str:
    return ", ".join(f"`#{kind.key}`" for kind in kinds) or "nothing"


def section(cls: type[Pass]) -> str:
    """Returns what docs/passes.md says about one pass."""
    body, meanings = described(cls)
    lines = [f"## {cls.name}", "", body, ""]
    fields = dataclasses.fields(cls)
    if fields:
        lines += ["| option | default | meaning |", "|---|---|---|"]
    for field in fields:
        default = "required"
        if field.default is not dataclasses.MISSING:
            default = f"`{print_value(field.default)}`"
        assert field.name in meanings, f"{cls.name}: {field.name} is not described"
        shown = field.name.replace("_", "-")
        lines.append(f"| `{shown}` | {default} | {meanings[field.name]} |")
    lines += [""] * bool(fields)
    flow = f"Reads {notes(cls.reads)}; writes {notes(cls.writes)}"
    lines.append(f"{flow}; drops {notes(cls.drops)}." if cls.drops else f"{flow}.")
    return "\n".join(lines) + "\n"


def written() -> str:
    """Returns docs/passes.md as it should be."""
    steps = re.sub(r",(?![^{]*\})", ",\n", print_passes(PRESETS["default"].passes(3.5)))
    head = (
        "# The passes\n\n"
        "Made from the docstrings by `pytest tests/test_docs.py --update-golden`.\n"
        "`mpqc passes` prints the short form. The default pipeline for `--budget 3.5` is\n\n"
        f"```text\n{steps}\n```\n\n"
        "A note such as `#stats` stands on nodes of the graph; a pass that reads one has to\n"
        "come after a pass that writes it, or the pipeline is refused.\n\n"
    )
    return head + "\n".join(section(cls) for cls in all_passes())


def test_passes_are_described_as_they_are(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PASSES.write_text(written(), encoding="utf-8")
    assert PASSES.read_text(encoding="utf-8") == written()


RULES = ROOT / "docs" / "lint.md"
_RULES_START = (
    "| rule | level | targets | what is wrong | what happens | what would work | since |"
)


def rules_table() -> str:
    """Returns the table of rules in docs/lint.md as it should be."""
    lines = [_RULES_START, "|---|---|---|---|---|---|---|"]
    for rule in load_rules().values():
        fix = " (`--fix`)" if rule.fix else ""
        since = rule.since
        if rule.source != "measured":
            since = f"[{rule.since}]({rule.source})"
        cells = (f"`{rule.id}`", rule.level, ", ".join(rule.targets), rule.title, rule.why)
        lines.append("| " + " | ".join((*cells, rule.remedy + fix, since)) + " |")
    return "\n".join(lines) + "\n"


def test_rules_are_listed_as_they_are(request: pytest.FixtureRequest) -> None:
    head, _, _ = RULES.read_text(encoding="utf-8").partition(_RULES_START)
    if request.config.getoption("--update-golden"):
        RULES.write_text(head + rules_table(), encoding="utf-8")
    assert RULES.read_text(encoding="utf-8") == head + rules_table()


TARGETS = ROOT / "docs" / "targets.md"
_TARGETS_START = "<!-- From here on: pytest tests/test_docs.py --update-golden -->"


def cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def row_cells(row: Row) -> str:
    """Returns a line of a target's table in docs/targets.md."""
    groups = "a row" if row.groups == (BY_ROW,) else ", ".join(map(str, row.groups))
    used = "yes" if row.offered else "no"
    fast = {True: "yes", False: "no", None: ""}[row.fast]
    time = "" if row.time is None else f"{row.time:g}"
    evidence = row.evidence
    assert evidence is not None
    known = f"probed: {evidence.on}" if evidence.probed else f"[read]({evidence.source})"
    known = f"{known}, {evidence.when}"
    return cells(row.kind, str(row.bits), groups, used, fast, time, row.notes, known)


def targets_section(name: str) -> str:
    """Returns what docs/targets.md says about one target."""
    table = load(name)
    runtimes = ", ".join(f"{one} or newer" for one in (table.runtime, *table.also))
    titles = ("does", "bits", "groups of", "used", "fast", "time", "notes", "known")
    lines = [
        f"## {name}",
        "",
        f"{runtimes}. Provider: {table.provider}. Hardware: {table.hardware}.",
        "",
        cells(*titles),
        "|---|---:|---|---|---|---:|---|---|",
        *map(row_cells, rows_of(table)),
    ]
    return "\n".join(lines) + "\n"


def test_targets_are_listed_as_they_are(request: pytest.FixtureRequest) -> None:
    head, mark, _ = TARGETS.read_text(encoding="utf-8").partition(_TARGETS_START)
    assert mark, "docs/targets.md has lost its mark"
    made = f"{head}{mark}\n\n" + "\n".join([*map(targets_section, targets()), gpu.section()])
    if request.config.getoption("--update-golden"):
        TARGETS.write_text(made, encoding="utf-8")
    assert TARGETS.read_text(encoding="utf-8") == made


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields the options of a command, and of commands inside it."""
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)


def known_options() -> set[str]:
    commands = [*parsers()[1].values(), *benchmarks.parsers()[1].values()]
    return {name for one in commands for name in options_of(one)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(path: Path) -> None:
    named = set(_OPTION.findall(path.read_text(encoding="utf-8")))
    assert named <= known_options() | _TOOLS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.ort
def test_keys_of_the_manifest_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .tools.tiny_models import vector_model

    monkeypatch.setenv("MPQC_CACHE", str(tmp_path / "cache"))
    model = vector_model(tmp_path / "vector.onnx")
    options: dict[str, Any] = {"random_calibration": True, "samples": 4}
    result = mpqc.compile(model, budget=5, output=tmp_path / "out", **options)
    text = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(result.report) <= described
    files = {path.name for path in result.output.iterdir()}
    assert all(f"`{name}`" in text for name in files)
