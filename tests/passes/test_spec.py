"""Passes as text, both ways, and the registry behind it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import onnx_ir as ir
import pytest
from hypothesis import given

import mpqc.passes
from mpqc.ir import UsageError
from mpqc.ir.text_form import build_record, parse_record
from mpqc.passes.engine.pipeline.base import Pass, PassContext
from mpqc.passes.engine.pipeline.registry import PASSES, pass_class, pass_names
from mpqc.passes.engine.pipeline.spec import parse_passes, print_passes

FOLDER = Path(inspect.getfile(mpqc.passes)).parent


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "sample"

    count: int = 0
    budget: float = 3.5
    whole: bool = False
    metric: str = "fisher"
    widths: tuple[int, ...] = (2, 4, 8)
    names: tuple[str, ...] = ()
    limit: float | None = None

    def run(self, model: ir.Model, context: PassContext) -> bool:
        return False


NUMBERS = st.floats(allow_nan=False)
PASSES_OF_ALL_KINDS = st.builds(
    Sample,
    count=st.integers(),
    budget=NUMBERS,
    whole=st.booleans(),
    metric=st.text(),
    widths=st.lists(st.integers()).map(tuple),
    names=st.lists(st.text()).map(tuple),
    limit=st.none() | NUMBERS,
)


@given(PASSES_OF_ALL_KINDS)
def test_what_prints_reads_back(one: Sample) -> None:
    name, fields = parse_record(str(one))
    assert build_record(Sample, name, fields) == one


@pytest.mark.parametrize(
    "word", ["inf", "Infinity", "NaN", "True", "none", "1e5", "", "a b", '"']
)
def test_words_that_look_like_values(word: str) -> None:
    name, fields = parse_record(str(Sample(metric=word)))
    assert build_record(Sample, name, fields).metric == word


def test_parse_and_print() -> None:
    text = "normalize,verify-numerics{samples=5}"
    assert print_passes(parse_passes(text)) == text
    assert parse_passes(" normalize , verify-numerics { samples = 5 } ") == parse_passes(text)
    assert parse_passes("") == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("normalise", "unknown pass 'normalise'", "did you mean 'normalize'?"),
        ("verify-numerics{sample=4}", "has no option 'sample'", "did you mean 'samples'?"),
        ("verify-numerics{samples=many}", "option samples wants int", ""),
        ("verify-numerics{samples=2,samples=3}", "given twice", ""),
        ("normalize{x=1}", "has no option 'x'", "it has no options"),
        ("normalize,,partition-blocks", "expected a value but found ','", ""),
        ("normalize{", "the text ends", ""),
    ],
)
def test_refusals(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("entry", PASSES)
def test_names_line_up(entry: str) -> None:
    module, _, cls = entry.partition(":")
    last = module.rpartition(".")[2]
    name = last.replace("_", "-")
    found = pass_class(name)
    assert found.__name__ == cls
    assert cls.lower() == last.replace("_", "")
    assert found.name == name
    assert found.__module__ in (f"mpqc.passes.{module}", f"mpqc.passes.{module}.{last}")
    assert dataclasses.is_dataclass(found)
    assert found.__doc__


def test_every_pass_is_registered() -> None:
    files = {path.stem for path in FOLDER.rglob("*.py") if "(Pass):" in path.read_text()}
    assert {name.replace("-", "_") for name in pass_names()} == files


def test_infinite_budget_prints() -> None:
    assert "budget=inf" in str(Sample(budget=math.inf))
