from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from mpqc.ir import BlockId, InternalError, annotate, verify

from .texts import model

TEXT = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
    h = MatMul (x, w)
    y = If (c) <
        then_branch = yes () => (float[N, 64] a) { a = Relu (h) },
        else_branch = no () => (float[N, 64] b) { b = MatMul (h, w) }
    >
}"""


def good() -> ir.Model:
    return model(TEXT, w=(64, 64))


def branch(found: ir.Model, name: str = "then_branch") -> ir.Graph:
    return found.graph[1].attributes[name].as_graph()


def test_a_good_graph_passes() -> None:
    verify(good())


def misplace(found: ir.Model) -> None:
    annotate(found.graph[0], BlockId(3))
    annotate(found.graph[1], BlockId(1))


BREAK: dict[str, Callable[[ir.Model], object]] = {
    "which nothing around it defines": lambda m: m.graph[0].replace_input_with(
        0, ir.Value(name="ghost")
    ),
    "before it is made": lambda m: m.graph[0].replace_input_with(0, m.graph.outputs[0]),
    "two values are called %x": lambda m: setattr(m.graph[0].outputs[0], "name", "x"),
    "has no value": lambda m: setattr(m.graph.initializers["w"], "const_value", None),
    "another value has that name": lambda m: setattr(branch(m)[0].outputs[0], "name", "h"),
    "needs operator set 'odd'": lambda m: setattr(branch(m)[0], "domain", "odd"),
    "broken #block": lambda m: m.graph[0].metadata_props.update({"mpqc.block": "block{nr=1}"}),
    "broken #bits": lambda m: m.metadata_props.update({"mpqc.bits": "}{"}),
    "of block 1 depends on block 3": misplace,
    "output %ghost": lambda m: m.graph.outputs.append(ir.Value(name="ghost")),
    "reads %a": lambda m: branch(m, "else_branch")[0].replace_input_with(
        0, branch(m)[0].outputs[0]
    ),
}


@pytest.mark.parametrize("problem", BREAK)
def test_a_broken_graph_is_named(problem: str) -> None:
    found = good()
    BREAK[problem](found)
    with pytest.raises(InternalError, match=problem):
        verify(found)


def test_notes_of_a_newer_version_are_left_alone() -> None:
    found = good()
    found.graph[0].metadata_props["mpqc.future"] = "whatever"
    found.graph[0].metadata_props["other.tool"] = "}{"
    verify(found)
