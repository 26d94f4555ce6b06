"""The form of GPTQ for accelerators gives the codes of the form for processors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mpqc.passes.engine.numerics import gptq as forms
from mpqc.passes.engine.numerics import lazy_columns, processor, recorded
from mpqc.passes.engine.numerics.factor import Factor, factorize
from mpqc.passes.engine.numerics.gptq import Rounded, gptq
from mpqc.passes.engine.numerics.row_errors import row_errors
from mpqc.passes.engine.numerics.scales import search_scales

pytestmark = pytest.mark.usefixtures("one_thread")
_NEAR_TIE = 1e-4  # of a step: this near the middle of two codes, either may come out


def problem(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, Factor]:
    """Returns a weight and the factor of a Hessian whose columns go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    loud = torch.rand(columns, generator=generator).mul(3).exp()
    inputs = torch.randn(2 * columns + 8, columns, generator=generator) @ mixing * loud
    return weight, factorize(inputs.T @ inputs / len(inputs), 0.1)


def on_accelerator(
    weight: torch.Tensor, bits: int, group: int, factor: Factor, *, refinements: int = 0
) -> Rounded:
    """Rounds on the CPU as an accelerator would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "_PROCESSOR", "none")
        return gptq(weight, bits, group, factor, refinements=refinements)


def ties(
    weight: torch.Tensor, scales: torch.Tensor, bits: int, group: int, factor: Factor
) -> torch.Tensor:
    """Returns which rows meet a value nearly halfway between codes, column by column.

    From the first such value on, a row may take another way in the other form.
    """
    wide = scales.repeat_interleave(group, dim=1)[:, : weight.shape[1]][:, factor.order]
    left = weight[:, factor.order].double()
    upper, near = factor.upper.double(), torch.zeros(len(weight), dtype=torch.bool)
    for k in range(left.shape[1]):
        steps = left[:, k] / wide[:, k]
        near |= (steps - steps.floor() - 0.5).abs() < _NEAR_TIE
        code = steps.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = (left[:, k] - code * wide[:, k]) / upper[k, k]
        left[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return near


@given(
    rows=st.integers(1, 40),
    columns=st.integers(2, 150),
    bits=st.integers(2, 6),
    group=st.sampled_from([16, 32, 64, 200]),
    seed=st.integers(0, 1000),
)
@example(rows=3, columns=64, bits=4, group=32, seed=0)  # one whole block
@example(rows=3, columns=65, bits=4, group=32, seed=0)  # and one column more
def test_codes_are_the_same_but_for_ties(
    rows: int, columns: int, bits: int, group: int, seed: int
) -> None:
    weight, factor = problem(rows, columns, seed)
    scales = search_scales(weight, bits, group, factor.price)
    wide = scales.repeat_interleave(group, dim=1)[:, :columns]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    expected, paid = forms.compensated(weight.clone(), scales, bits, group, factor)
    found, also_paid = lazy_columns.compensated(
        weight, wide, low, high, factor.order, factor.upper
    )
    sure = ~ties(weight, scales, bits, group, factor)
    assert torch.equal(found[sure], expected[sure])
    losses = [row_errors(weight, codes * wide, factor.damped) for codes in (found, expected)]
    torch.testing.assert_close(losses[0].sum(), losses[1].sum(), rtol=0.02, atol=1e-6)
    torch.testing.assert_close(also_paid, losses[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(paid, losses[1], rtol=1e-3, atol=1e-6)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(2, 150),
    bits=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_coordinate_descent_loses_the_same(
    rows: int, columns: int, bits: int, seed: int
) -> None:
    weight, factor = problem(rows, columns, seed)
    scales = search_scales(weight, bits, 32, factor.price)
    wide = scales.repeat_interleave(32, dim=1)[:, :columns]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = (weight / wide).round().clamp(low, high)
    priced = weight @ factor.damped
    expected = forms._descend(priced, codes, scales, bits, 32, factor.damped)
    found = lazy_columns.descend(priced, codes, wide, low, high, factor.damped)
    assert (found == expected).float().mean() > 0.99
    before = row_errors(weight, codes * wide, factor.damped)
    losses = [row_errors(weight, one * wide, factor.damped) for one in (found, expected)]
    torch.testing.assert_close(losses[0].sum(), losses[1].sum(), rtol=0.02, atol=1e-6)
    assert (losses[0] <= before * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("refinements", [0, 3])
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 32)])
def test_all_of_rounding_loses_the_same(refinements: int, bits: int, group: int) -> None:
    weight, factor = problem(300, 200, seed=bits)
    there = gptq(weight, bits, group, factor, refinements=refinements)
    here = on_accelerator(weight, bits, group, factor, refinements=refinements)
    assert here.codes.dtype == there.codes.dtype
    assert here.codes.is_contiguous()
    assert (here.codes == there.codes).float().mean() > 0.995
    losses = [
        float(row_errors(weight, one.dequantize(group), factor.damped).sum())
        for one in (here, there)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_rows_in_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, factor = problem(600, 96, seed=7)
    whole = on_accelerator(weight, 3, 32, factor, refinements=1)
    monkeypatch.setattr(lazy_columns, "_MOST_BYTES", 1)  # as few rows as it takes at all
    parts = on_accelerator(weight, 3, 32, factor, refinements=1)
    assert (whole.codes == parts.codes).float().mean() > 0.999


def test_chunks_shrink_with_their_working_set() -> None:
    assert lazy_columns.rows_at_once(512, 32) == 16384
    assert 256 < lazy_columns.rows_at_once(5632, 32) < 4096
    assert lazy_columns.rows_at_once(28672, 32) == 256


def test_recordings_are_used_again_for_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA devices, where the work of a block is recorded on tensors of its own."""
    problems = [problem(40, 150, seed) for seed in (1, 2)]
    begun = [on_accelerator(weight, 3, 32, one, refinements=2) for weight, one in problems]
    monkeypatch.setattr(recorded, "_RECORDING", ("cpu",))
    recorded._recording.cache_clear()
    replayed = [on_accelerator(weight, 3, 32, one, refinements=2) for weight, one in problems]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(begun, replayed, strict=True))
    known = recorded._recording.cache_info()
    assert known.misses == known.currsize == 4  # two works, on whole blocks and on the last
    assert known.hits > 8


def test_what_cannot_be_recorded_is_begun_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(begin: object, device: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    weight, factor = problem(40, 150, seed=1)
    expected = on_accelerator(weight, 3, 32, factor)
    monkeypatch.setattr(recorded, "_RECORDING", ("cpu",))
    monkeypatch.setattr(recorded, "_graph", refuse)
    recorded._recording.cache_clear()
    assert torch.equal(on_accelerator(weight, 3, 32, factor).codes, expected.codes)
    recorded._recording.cache_clear()


@pytest.mark.gpu
def test_a_cuda_device_records() -> None:
    recorded._recording.cache_clear()
    weight, factor = problem(40, 64, seed=1)
    device = torch.device("cuda:0")
    gptq(weight.to(device), 3, 32, factor.to(device))
    shapes = ((64, 40), (64, 40), (64, 64), (64, 40), (64, 40))
    replay = recorded._recording(lazy_columns._compensate, shapes, device, (-4, 3))[1]
    assert getattr(replay, "__name__", "") == "replay"


@pytest.mark.gpu
def test_a_cuda_device_gives_the_codes_of_the_cpu() -> None:
    weight, factor = problem(1000, 300, seed=3)
    there = gptq(weight, 4, 32, factor, refinements=3)
    device = torch.device("cuda:0")
    here = gptq(weight.to(device), 4, 32, factor.to(device), refinements=3)
    assert (here.codes.cpu() == there.codes).float().mean() > 0.995
