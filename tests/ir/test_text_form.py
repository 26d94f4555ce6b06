from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpqc.ir import UsageError
from mpqc.ir.text_form import build_record, parse_record, parse_records, print_record


@dataclass(frozen=True)
class Sample:
    whole: int = 0
    real: float = 0.5
    flag: bool = False
    some_text: str = "x"
    maybe: str | None = None
    perhaps: float | None = None
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    reals: tuple[float, ...] = field(default=(1.0,))


reals = st.floats(allow_nan=False)
samples = st.builds(
    Sample,
    whole=st.integers(),
    real=reals,
    flag=st.booleans(),
    some_text=st.text(),
    maybe=st.none() | st.text(),
    perhaps=st.none() | reals,
    words=st.lists(st.text()).map(tuple),
    numbers=st.lists(st.integers()).map(tuple),
    reals=st.lists(reals).map(tuple),
)


@given(samples)
def test_what_is_printed_parses_back(sample: Sample) -> None:
    name, fields = parse_record(print_record("sample", sample))
    assert build_record(Sample, name, fields) == sample


words = st.sampled_from(
    [".5", ".5e3", "1_0", "nan", "Inf", "-1", "true", "None", "a b", "[", "é"]
)


@given(st.builds(Sample, some_text=words, words=st.lists(words).map(tuple)))
def test_texts_that_look_like_something_else_stay_texts(sample: Sample) -> None:
    assert build_record(Sample, *parse_record(print_record("sample", sample))) == sample


@given(st.text(alphabet='ab1.{}[]=," \\\n-', max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(UsageError):
        parse_records(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("sample{whole=1.5}", "wants int"),
        ("sample{whole=1, whole=2}", "twice"),
        ("sample{whol=1}", "no option 'whol'"),
        ("sample{real=nan}", "wants float"),
        ("sample{whole=", "the text ends"),
        ("sample{flag=1}", "wants bool"),
    ],
)
def test_wrong_texts_say_why(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        build_record(Sample, *parse_record(text))


def test_none_is_a_word_where_there_is_no_other_way_to_say_nothing() -> None:
    given = parse_record("sample{some-text=none, maybe=none, words=[none, a]}")
    assert build_record(Sample, *given) == Sample(some_text="none", words=("none", "a"))


def test_a_number_too_large_for_a_float_is_no_crash() -> None:
    name, fields = parse_record("sample{real=" + "9" * 400 + "}")
    assert build_record(Sample, name, fields).real == float("inf")
