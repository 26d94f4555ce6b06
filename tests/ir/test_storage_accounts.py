"""Whatever a graph is made of and its notes claim, every constant is counted exactly once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpqc.ir import StoredPart, annotate
from mpqc.ir.analysis.storage import Storage, stored
from mpqc.ir.units import SMALLEST_UNIT

from .texts import model

# Each makes %next from %now, with weights a, b, c (float), codes q and scales s of its own.
PIECES = {
    "product": "{n} = MatMul ({x}, a{i})",
    "gemm": "{n} = Gemm <transB = 1> ({x}, a{i}, v{i})",
    "turned": "{n} = Gemm <transA = 1> ({x}, a{i})",
    "view": "t{i} = Transpose <perm = [1, 0]> (a{i}) {n} = MatMul ({x}, t{i})",
    "halves": "t{i} = Cast <to = 1> (h{i}) {n} = MatMul ({x}, t{i})",
    "integers": """t{i} = Cast <to = 6> (a{i}) u{i} = Cast <to = 1> (t{i})
        {n} = MatMul ({x}, u{i})""",
    "joined": "t{i} = Concat <axis = 0> (b{i}, c{i}) {n} = MatMul ({x}, t{i})",
    "positions": "t{i} = Gather (a{i}, ids) {n} = Add ({x}, t{i})",
    "cut": "t{i} = Slice (a{i}, zero, all) {n} = Add ({x}, t{i})",
    "shared": "{n} = MatMul ({x}, everybody)",
    "codes": """{n} = com.microsoft.MatMulNBits
        <K = 64, N = 64, bits = 4, block_size = 32> ({x}, q{i}, s{i})""",
    "dead": "t{i} = Neg (a{i}) {n} = Relu ({x})",
    "output": "{n} = Sub ({x}, v{i})",
}
SHAPES = {"a": (64, 64), "b": (32, 64), "c": (32, 64), "v": (64,), "s": (64, 2)}


def build(pieces: list[str]) -> ir.Model:
    lines: list[str] = []
    weights: dict[str, Any] = {}
    last = "x"
    for i, piece in enumerate(pieces):
        text = PIECES[piece].format(n=f"y{i}", x=last, i=i)
        lines.append(text)
        last = f"y{i}"
        weights |= {f"{n}{i}": shape for n, shape in SHAPES.items() if f"{n}{i}" in text}
        if f"q{i}" in text:
            weights[f"q{i}"] = np.full((64, 2, 16), i, np.uint8)
        if f"h{i}" in text:
            weights[f"h{i}"] = np.zeros((64, 64), np.float16)
    whole = " ".join(lines)
    extra = {"ids": np.arange(64), "zero": np.array([0]), "all": np.array([64])}
    weights |= {n: v for n, v in extra.items() if n in whole}
    if "everybody" in whole:
        weights["everybody"] = (64, 64)
    return model(f"g (float[64, 64] x) => (float[64, 64] {last}) {{ {whole} }}", **weights)


def held(found: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in found.graph.initializers.values()
        if value.const_value is not None
    )


def check(found: ir.Model) -> Storage:
    storage = stored(found)
    assert storage.bytes + storage.rest == held(found)
    assert storage.loose_bytes <= storage.rest
    names = [one.name for one in storage.loose]
    assert len(names) == len(set(names))
    initializers = found.graph.initializers.items()
    floats = {n for n, v in initializers if v.dtype and v.dtype.is_floating_point()}
    assert set(names) <= floats
    assert all(one.why for one in storage.loose)
    return storage


@settings(max_examples=150, deadline=None)
@example(["codes", "integers"], [(3, "q0", "channels")])  # a product that reads rounded floats
@given(
    st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=5),
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.sampled_from(["q0", "q1", "a0", "everybody", "nobody"]),
            st.sampled_from(["kernel", "channels", "lookup", "expansion", "outliers"]),
        ),
        max_size=4,
    ),
)
def test_every_constant_counts_once(
    pieces: list[str], claims: list[tuple[int, str, str]]
) -> None:
    found = build(pieces)
    plain = check(found)
    matrices = sum(piece not in ("cut", "dead", "integers", "output") for piece in pieces)
    matrices -= max(pieces.count("shared") - 1, 0) + pieces.count("joined")
    assert plain.weights == 4096 * matrices
    nodes = list(found.graph)
    for at, unit, role in claims:
        annotate(nodes[at % len(nodes)], StoredPart(unit, role))
    noted = check(found)
    # Floats too few for a unit may join one as some of its columns; that hides nothing.
    small = sum(one.entries for one in plain.loose if one.entries < SMALLEST_UNIT)
    assert plain.weights <= noted.weights <= plain.weights + small
    assert noted.bits_per_weight >= plain.bits_per_weight
