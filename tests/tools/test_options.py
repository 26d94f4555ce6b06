"""An option is one field: parser, recipes, Python, the replayed command and a page."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mpqc
from mpqc.ir import UsageError
from mpqc.passes.engine.pipeline.spec import print_passes
from mpqc.tools import recipe
from mpqc.tools.cli_parser import parse, parsers
from mpqc.tools.manifest import _command
from mpqc.tools.option_fields import (
    add_options,
    flag_of,
    option_words,
    options_in,
    resolved,
    setting,
    specs,
)
from mpqc.tools.options import CompileOptions
from mpqc.tools.settings import make_settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class MoreOptions(CompileOptions):
    shine: int = setting("how much it shines", int, default=3, most=9)


def test_one_field_is_a_whole_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parsers()[0].__class__(prog="more")
    add_options(parser, MoreOptions)
    assert "how much it shines; default: 3" in parser.format_help()
    words = ["--budget", "4", "--shine", "5"]
    given = options_in(parser.parse_args(words), MoreOptions)
    assert resolved(MoreOptions(**given)).shine == 5
    assert option_words(MoreOptions, {"budget": 4, "shine": 5}) == words
    monkeypatch.setattr(recipe, "CompileOptions", MoreOptions)
    path = tmp_path / "recipe.toml"
    path.write_text("shine = 7\n")
    said = recipe.read_recipe(path)
    assert resolved(MoreOptions(), said).shine == 7
    assert resolved(MoreOptions(shine=1), said).shine == 1
    assert resolved(MoreOptions()).shine == 3
    for wrong in (10, -1, True, "many"):
        with pytest.raises(UsageError, match="shine must be a whole number from 0 to 9"):
            resolved(MoreOptions(shine=wrong))  # type: ignore[arg-type]


def test_parser_and_signature_have_every_option() -> None:
    flags = parsers()[1]["compile"]._option_string_actions
    taken = inspect.signature(mpqc.compile).parameters
    assert list(taken) == ["model", *specs(CompileOptions)]
    for name, spec in specs(CompileOptions).items():
        assert spec.python_only != (flag_of(name) in flags)
        assert f"        {name}: {spec.text}." in str(mpqc.compile.__doc__)
    with pytest.raises(TypeError, match="budgt"):
        mpqc.compile("model.onnx", budgt=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "given",
    [
        {"budget": 3.5},
        {"file_budget": "60MB", "seed": 7, "preset": "fast", "target": "ort-cuda"},
        {"budget": 4, "calibration": ["a.txt", "b.npz"], "samples": 3, "outputs": "logits"},
        {"budget": 4, "random_calibration": True, "passes": "normalize,allocate-bits"},
        {"budget": 8, "target": "qdq", "activations": "int8", "sequence_length": 64},
    ],
)
def test_the_command_in_the_manifest_gives_the_same_settings(given: dict[str, Any]) -> None:
    settings = make_settings(CompileOptions(**given))
    kept = json.loads(json.dumps(settings.plain()))
    passes = print_passes(settings.pipeline(4.0))
    words = shlex.split(_command({"name": "model.onnx"}, kept, passes))
    assert words[:3] == ["mpqc", "compile", "model.onnx"]
    chosen = parse(words[1:])
    assert chosen is not None
    again = make_settings(CompileOptions(**options_in(chosen, CompileOptions)))
    assert again.plain() == settings.plain()
    assert again.pipeline(4.0) == settings.pipeline(4.0)


def written() -> str:
    """Returns docs/options.md as it should be."""
    rows = []
    for name, spec in specs(CompileOptions).items():
        flag = "" if spec.python_only else f"`{flag_of(name)}`"
        key = spec.recipe if isinstance(spec.recipe, str) else flag_of(name)[2:]
        key = f"`{key}`" if spec.recipe else ""
        default = "" if spec.default is None else f"`{spec.default}`"
        rows.append(f"| `{name}` | {flag} | {key} | {default} | {spec.help} |\n")
    return (
        "# Options of a compilation\n\n"
        "Made by `pytest tests/tools/test_options.py --update-golden`. `mpqc.compile` takes\n"
        "the names in the first column, `mpqc compile` those in the second, and a recipe (a\n"
        "TOML file, `--recipe FILE`) those in the third. An option that the caller gives\n"
        "overrides the recipe, and the recipe overrides the default.\n\n"
        "| Python | command | recipe | default | meaning |\n|---|---|---|---|---|\n"
        + "".join(rows)
    )


def test_the_page_of_options_is_complete(request: pytest.FixtureRequest) -> None:
    page = ROOT / "docs" / "options.md"
    if request.config.getoption("--update-golden"):
        page.write_text(written(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == written()
