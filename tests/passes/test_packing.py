from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mpqc.passes.engine.numerics.dense_codes import dense_layout, pack_dense, zero_byte
from mpqc.passes.engine.numerics.packing import pack, unpack


@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([16, 32, 64]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 130),
    seed=st.integers(0, 99),
)
def test_unpack_undoes_pack(bits: int, group: int, rows: int, columns: int, seed: int) -> None:
    low = -(1 << (bits - 1))
    codes = np.random.default_rng(seed).integers(low, -low, (rows, columns), dtype=np.int8)
    packed = pack(codes, bits, group)
    groups = -(-columns // group)
    assert packed.shape == (rows, groups, group * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, columns), codes)


@pytest.mark.parametrize(("bits", "expected"), [(2, 0b10_10_11_00), (4, 0x1F), (8, 0x7F)])
def test_first_code_is_in_the_lowest_bits(bits: int, expected: int) -> None:
    codes = {2: [[-2, 1, 0]], 4: [[7, -7]], 8: [[-1]]}[bits]
    assert pack(np.array(codes, np.int8), bits, 16)[0, 0, 0] == expected


@pytest.mark.parametrize(("bits", "filler"), [(2, 0xAA), (4, 0x88), (8, 0x80)])
def test_padding_is_the_code_of_zero(bits: int, filler: int) -> None:
    packed = pack(np.zeros((1, 17), np.int8), bits, 16)
    assert set(packed.ravel().tolist()) == {filler}


@given(
    bits=st.integers(1, 7),
    kernel_bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32, 64]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 130),
    seed=st.integers(0, 99),
)
def test_dense_codes_expand_to_those_of_the_kernel(
    bits: int, kernel_bits: int, group: int, rows: int, columns: int, seed: int
) -> None:
    assume(bits < kernel_bits)
    low = -(1 << (bits - 1))
    codes = np.random.default_rng(seed).integers(low, -low, (rows, columns), dtype=np.int8)
    dense = pack_dense(codes, bits, kernel_bits, group)
    groups = -(-columns // group)
    assert dense.size * 8 == rows * groups * group * bits
    found = dense_layout(bits, kernel_bits).expand(dense) + np.uint8(
        zero_byte(bits, kernel_bits)
    )
    wanted = pack(codes, kernel_bits, group)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("bits", "kernel_bits"), [(b, k) for k in (4, 8) for b in range(1, k)]
)
def test_weights_of_the_expansion_fit_into_signed_bytes(bits: int, kernel_bits: int) -> None:
    layout = dense_layout(bits, kernel_bits)
    assert layout.bits * layout.bytes == layout.kernel_bits * layout.stored
    assert layout.weights.min() >= -128
    assert layout.weights.max() <= 127
