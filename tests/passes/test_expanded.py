"""Codes as the matrix that they stand for, and sums over their groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpqc.passes.engine.numerics import processor
from mpqc.passes.engine.numerics.expanded import expand, group_sums

KINDS = [torch.int8, torch.int16, torch.float16]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 90),
    group=st.sampled_from([16, 32, 100]),
    seed=st.integers(0, 99),
)
def test_rows_are_written_where_they_belong_and_summed_from_there(
    accelerated: bool, kind: torch.dtype, rows: int, columns: int, group: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator).to(kind)
    scales = torch.rand(rows, -(-columns // group), generator=generator) - 0.5
    places = torch.randperm(rows + 3, generator=generator)[:rows]
    slope = torch.randn(columns, rows + 3, generator=generator).T  # as products leave it
    matrix = torch.full((rows + 3, columns), torch.nan)
    with pytest.MonkeyPatch.context() as patch:
        if accelerated:
            patch.setattr(processor, "_PROCESSOR", "none")
        expand(codes, scales, group, places, matrix)
        sums = group_sums(slope, codes, group, places)
    owner = torch.arange(columns) // group
    assert torch.equal(matrix[places], codes.float() * scales[:, owner])
    assert int(matrix.isnan().all(1).sum()) == 3, "other rows are left alone"
    wanted = torch.zeros_like(scales).index_add_(1, owner, slope[places] * codes.float())
    torch.testing.assert_close(sums, wanted, rtol=1e-4, atol=1e-4)
