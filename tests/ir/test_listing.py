from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from mpqc.ir import BitAllocation, BlockId, annotate, listing

from .texts import model

TEXT = """g (float[N, 64] x, bool c) => (float[N, 64] y, float[N, 1] m) {
    h = MatMul (x, w)
    z = com.microsoft.Gelu (h)
    m = ReduceMean <axes = [-1], keepdims = 1> (z)
    k = Clip (z, , top)
    y = If (c) <
        then_branch = yes () => (float[N, 64] a) { a = LeakyRelu <alpha = 0.1> (k) },
        else_branch = no () => (float[N, 64] b) { b = Identity (k) }
    >
}"""

NOTES = '#bits{unit=w, options=["4g64", "8g32"], counts=[32, 32], loss=0.5} #block{index=0}'
LISTING = f"""\
#block{{index=7}}
input %x : f32[N,64]
input %c : bool[]
@w : f32[64,64]
%h = MatMul(%x, @w) : ?[...] {NOTES}
%z = com.microsoft.Gelu(%h) : ?[...]
%m = ReduceMean(%z) {{axes=[-1], keepdims=1}} : f32[N,1]
%k = Clip(%z, _, %top) : ?[...]
%y = If(%c) {{then_branch=..., else_branch=...}} : f32[N,64]
  then_branch:
    %a = LeakyRelu(%k) {{alpha=0.1}} : f32[N,64]
    return %a
  else_branch:
    %b = Identity(%k) : f32[N,64]
    return %b
return %y, %m
"""


def noted() -> ir.Model:
    found = model(TEXT, w=(64, 64))
    annotate(found, BlockId(7))
    annotate(found.graph[0], BitAllocation("w", ("4g64", "8g32"), (32, 32), 0.5))
    annotate(found.graph[0], BlockId(0))
    return found


def test_the_listing_shows_values_weights_types_and_notes() -> None:
    assert listing(noted()) == LISTING


def test_small_constants_stand_where_they_are_read() -> None:
    found = model("g (float[4] x) => (float[4] y) { y = Add (x, c) }", c=(1,))
    value = found.graph.initializers["c"]
    value.const_value = ir.tensor(np.array([2 / 3], np.float32), name="c")
    assert "@c" not in listing(found)
    assert "%y = Add(%x, <f32[1] 0.666667>)" in listing(found)


def test_floats_have_six_digits() -> None:
    found = noted()
    annotate(found.graph[0], BitAllocation("w", ("4g64",), (64,), 32.500000000349246))
    assert "loss=32.5}" in listing(found)


def test_lines_can_be_cut_off() -> None:
    lines = listing(noted(), width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[4].endswith("…")


def test_names_cannot_move_the_cursor() -> None:
    found = noted()
    found.graph[0].outputs[0].name = "a\x1b[31m\r\u202eb\x9b"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", listing(found))
