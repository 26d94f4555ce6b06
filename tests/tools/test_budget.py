from __future__ import annotations

import pytest

from mpqc.ir import UsageError
from mpqc.tools.budget import Budget


@pytest.mark.parametrize(
    ("asked", "bits", "size"),
    [
        (3.5, 3.5, None),
        ("4", 4.0, None),
        (" 2.25 ", 2.25, None),
        ("60MB", None, 60_000_000),
        ("60 MiB", None, 60 * 2**20),
        ("1.5gb", None, 1_500_000_000),
        ("500B", None, 500),
    ],
)
def test_reads_bits_and_sizes(
    asked: float | str, bits: float | None, size: int | None
) -> None:
    assert Budget.parse(asked) == Budget(bits, size)


@pytest.mark.parametrize(
    "asked",
    [0, -1, 100, float("nan"), float("inf"), "nan", "", "x", "3.5GX", "0MB", True, "1e400"],
)
def test_refuses_what_no_model_can_use(asked: float | str) -> None:
    with pytest.raises(UsageError):
        Budget.parse(asked)


def test_a_file_budget_lets_weights_grow_in_memory() -> None:
    assert Budget.of(None, "3.5") == Budget(3.5, None, expand=True)
    assert Budget.of(3.5, None) == Budget(3.5, None, expand=False)
    assert str(Budget.of(None, "60MB")) == "60000000 bytes in the file"
    for both in ((3.5, "3.5"), (None, None)):
        with pytest.raises(UsageError):
            Budget.of(*both)


def test_a_comma_is_corrected() -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse("3,5")
    assert caught.value.hint == "write 3.5"
