"""Tables of what kernels take: shipped, measured, chosen and read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mpqc.backend.onnxruntime.capabilities import load
from mpqc.backend.onnxruntime.costs import measure, tables
from mpqc.ir import Option, UsageError
from mpqc.ir.costs import CONCAT, FLOAT, INT8, ORDER, SELECT, Cost, CostTable, Machine

SHIPPED = tables.names()
HERE = Machine("a processor", "avx512-vnni", "onnxruntime 1.31.1", 1, 32 << 20)


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "here", lambda threads: HERE)


def simple(weight: tuple[float, ...] = (2.0, 20.0)) -> CostTable:
    cost = Cost((1.0, 10.0), (0.0, 0.0), (0.0, 0.0), (2.0, 20.0), (4.0, 0.0))
    operations = {FLOAT: cost, "4g64": dataclasses.replace(cost, weight=weight)}
    return CostTable("measured", HERE, "made up", (1, 11), operations)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_prices_every_kernel(name: str) -> None:
    table = tables.find_table(name, 1, None)
    options = {
        str(Option(one.bits, group)) for one in load("ort-cpu").kernels for group in one.groups
    }
    assert options | {FLOAT, INT8, CONCAT, ORDER, SELECT} == set(table.operations)
    for operation in table.operations:
        times = [table.time(operation, tokens, 1024, 1024) for tokens in (1, 16, 128, 512)]
        assert times[0] > 0, operation
        assert times == sorted(times), operation
    cold = [table.time(one, 1, 4096, 4096, cold=True) for one in (FLOAT, "4g64")]
    assert cold[1] < cold[0] / 2, "four bits are for reading an eighth of the bytes"


def test_times_between_and_beyond_the_measured_numbers_of_tokens() -> None:
    table = simple()
    assert table.time(FLOAT, 1, 1000, 1000) == 1 + 2
    assert table.time(FLOAT, 1, 1000, 1000, cold=True) == 1 + 2 + 4
    assert table.time(FLOAT, 6, 1000, 1000) == pytest.approx(5.5 + 11)
    assert table.time(FLOAT, 22, 1000, 1000) == pytest.approx(2 * 30)
    assert table.time(FLOAT, 0.5, 1000, 1000) == 1 + 2


def test_a_chunk_that_is_not_full_takes_as_long_as_one_that_is() -> None:
    cost = dataclasses.replace(simple().operations[FLOAT], chunk=256)
    table = dataclasses.replace(simple(), operations={FLOAT: cost})
    assert table.time(FLOAT, 1, 8, 257) == table.time(FLOAT, 1, 8, 512)


def test_a_group_without_numbers_takes_those_of_the_nearest() -> None:
    table = tables.find_table("avx512-vnni", 1, None)
    assert table.kernel(Option(8, 576)) == "8g128"
    assert table.kernel(Option(3, 64)) == "4g64"
    assert table.kernel(Option(4, 16)) == "4g32"


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("avx512-vnni", "avx512-vnni"),
        ("avx2", "avx2"),
        ("avx-vnni", "avx2"),
        ("arm64", "avx2"),
    ],
)
def test_a_machine_takes_the_table_of_its_kind(
    kind: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "here", lambda threads: dataclasses.replace(HERE, kind=kind))
    assert tables.find_table("auto", 1, None).name == found


def test_what_was_measured_goes_first(tmp_path: Path) -> None:
    assert tables.find_table("auto", 1, tmp_path).name == "avx512-vnni"
    with pytest.raises(UsageError, match="nothing was measured"):
        tables.find_table("measured", 1, tmp_path)
    kept = simple(weight=(3.0, 7.0))
    path = tables.keep(kept, tmp_path / "new")
    assert tables.find_table("auto", 1, tmp_path / "new") == kept
    assert tables.find_table("measured", 1, tmp_path / "new") == kept
    assert tables.find_table("avx512-vnni", 1, tmp_path / "new").name == "avx512-vnni"
    for broken in ("", "[machine]", path.read_text().replace("[3, 7]", "[3]"), "\0"):
        path.write_text(broken)
        assert tables.find_table("auto", 1, tmp_path / "new").name == "avx512-vnni"


def test_a_table_of_another_runtime_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.keep(simple(), tmp_path)
    newer = dataclasses.replace(HERE, runtime="onnxruntime 1.32.0")
    monkeypatch.setattr(tables, "here", lambda threads: newer)
    assert tables.find_table("auto", 1, tmp_path).name == "avx512-vnni"


def test_unknown_machines_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown machine 'avx-2'"):
        tables.find_table("avx-2", 1, None)


@pytest.mark.ort
def test_measuring_finds_what_grows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes = ((16, 64), (64, 256), (128, 128), (256, 512))
    monkeypatch.setattr(measure, "_SHAPES", shapes)
    monkeypatch.setattr(measure, "_CHANNELS", (64, 256))
    monkeypatch.setattr(measure, "_LEAST_SECONDS", 0.0)
    small = dataclasses.replace(HERE, cache=1 << 17)
    for module in (measure, tables):
        monkeypatch.setattr(module, "here", lambda threads: small)
    seen: list[str] = []

    def track(whats: list[str]) -> list[str]:
        seen.extend(whats)
        return whats

    table = measure.measure(load("ort-cpu"), 1, track)
    assert (
        set(seen)
        == set(table.operations)
        == set(tables.find_table("avx512-vnni", 1, None).operations)
    )
    for name in (FLOAT, INT8, "4g64", "8g32"):
        assert table.time(name, 512, 512, 512) > table.time(name, 1, 512, 512) > 0
    tables.keep(table, tmp_path)
    again = tables.find_table("measured", 1, tmp_path)
    assert again.time(FLOAT, 16, 99, 99) == pytest.approx(table.time(FLOAT, 16, 99, 99), 1e-2)
