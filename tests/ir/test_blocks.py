from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from mpqc.ir import (
    Block,
    BlockId,
    InternalError,
    annotate,
    blocks_of,
    find_units,
    partition,
    verify,
)

from .texts import model


def cut(found: ir.Model) -> list[Block]:
    """Partitions, notes and reads back, and checks what must hold for every model."""
    for node, index in partition(found).items():
        annotate(node, BlockId(index))
    verify(found)
    blocks = blocks_of(found)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    known = set(found.graph.inputs)
    for block in blocks:
        assert set(block.inputs) <= known
        assert not any(value.is_initializer() for value in block.inputs)
        known |= set(block.outputs)
    assert {value for value in found.graph.outputs if value.producer()} <= known
    return blocks


def loads(found: ir.Model) -> list[int]:
    """Returns how many units each block reads."""
    place = partition(found)
    counts = Counter(place[use.node] for unit in find_units(found) for use in unit.uses)
    return [counts[index] for index in range(max(place.values()) + 1)]


def transformer(layers: int, *, cross: bool = False, cache: bool = False) -> ir.Model:
    """A decoder: attention half and MLP half per layer, each added to the residual stream."""
    memory, kept = ", float[N, 64] memory" * cross, ""
    lines = ["x0 = Gather (table, ids)", "s = Shape (ids)", "m = Cast <to = 1> (s)"]
    if cross:
        lines.append("encoded = MatMul (memory, we)")
    for at in range(layers):
        source = "encoded" if cross else f"n{at}"
        lines += [
            f"n{at} = Sigmoid (x{at})",
            f"q{at} = MatMul (n{at}, wq{at})",
            f"k{at} = MatMul ({source}, wk{at})",
            f"l{at} = Mul (q{at}, k{at})",
            f"a{at} = Add (l{at}, m)",
            f"o{at} = MatMul (a{at}, wo{at})",
            f"r{at} = Add (x{at}, o{at})",
            f"u{at} = MatMul (r{at}, wu{at})",
            f"x{at + 1} = Add (r{at}, u{at})",
        ]
        if cache:
            lines.append(f"present{at} = Identity (k{at})")
            kept += f", float[N, 64] present{at}"
    lines.append(f"y = MatMul (x{layers}, head)")
    text = f"g (int64[N] ids{memory}) => (float[N, 64] y{kept}) {{ {chr(10).join(lines)} }}"
    names = [f"w{kind}{at}" for at in range(layers) for kind in "qkou"]
    names += ["table", "head", *(["we"] * cross)]
    return model(text, **dict.fromkeys(names, (64, 64)))


@pytest.mark.parametrize("cache", [False, True])
def test_a_decoder_is_cut_into_halves_of_layers(cache: bool) -> None:
    found = transformer(30, cache=cache)
    assert loads(found) == [1, *[3, 1] * 30, 1]
    blocks = cut(found)
    outputs = [[value.name for value in block.outputs] for block in blocks]
    assert outputs[2] == ["x1"]
    assert outputs[1] == (["r0", "present0"] if cache else ["r0"])
    assert "x0" in outputs[0]


def test_a_decoder_that_reads_an_encoder_everywhere_is_still_cut() -> None:
    found = transformer(12, cross=True)
    assert len(cut(found)) >= 12
    assert max(loads(found)) <= 4


def test_one_dense_graph_is_one_block_per_layer_or_fewer() -> None:
    lines = ["x0 = MatMul (i, w)"]
    for at in range(1, 40):  # every layer reads every earlier one
        lines.append(f"s{at} = Sum ({', '.join(f'x{k}' for k in range(at))})")
        lines.append(f"x{at} = MatMul (s{at}, w{at})")
    text = f"g (float[N, 64] i) => (float[N, 64] x39) {{ {chr(10).join(lines)} }}"
    found = model(text, w=(64, 64), **{f"w{at}": (64, 64) for at in range(1, 40)})
    assert len(cut(found)) >= 1


def test_two_heads_share_the_trunk() -> None:
    found = model(
        """
        g (float[N, 64] i) => (float[N, 64] hidden, float[N, 64] pooled, float[N, 64] other) {
            a = MatMul (i, w0)
            hidden = MatMul (a, w1)
            p = MatMul (hidden, w2)
            pooled = Tanh (p)
            other = MatMul (hidden, w3)
        }""",
        **{f"w{at}": (64, 64) for at in range(4)},
    )
    blocks = cut(found)
    assert [value.name for value in blocks[1].outputs] == ["hidden", "other"]
    assert [value.name for value in blocks[2].outputs] == ["pooled"]


def test_shapes_read_from_the_stream_do_not_break_the_order() -> None:
    found = model(
        """g (float[N, 64] i) => (float[N, 64] y) {
            a = MatMul (i, w0)
            s = Shape (a)
            b = MatMul (a, w1)
            c = Reshape (b, s)
            d = MatMul (c, w2)
            y = Reshape (d, s)
        }""",
        **{f"w{at}": (64, 64) for at in range(3)},
    )
    blocks = cut(found)
    assert len(blocks) == 3
    assert "s" in [value.name for value in blocks[2].inputs]


def test_values_captured_by_control_flow_are_inputs_and_outputs() -> None:
    found = model(
        """g (float[N, 64] i, bool c) => (float[N, 64] y) {
            a = MatMul (i, w0)
            b = MatMul (a, w1)
            d = If (c) <
                then_branch = yes () => (float[N, 64] t) { t = Relu (a) },
                else_branch = no () => (float[N, 64] e) { e = Identity (b) }
            >
            y = MatMul (d, w2)
        }""",
        **{f"w{at}": (64, 64) for at in range(3)},
    )
    blocks = cut(found)
    names = [value.name for block in blocks for value in block.inputs]
    assert "a" in names


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N] x) => (float[N] y) { y = Relu (x) }",
        "g (float[N] x) => (float[N] x) { }",
    ],
)
def test_models_without_units_have_at_most_one_block(text: str) -> None:
    assert len(cut(model(text))) <= 1


def test_a_wrong_order_is_refused() -> None:
    found = transformer(2)
    for node, index in partition(found).items():
        annotate(node, BlockId(9 - index))
    with pytest.raises(InternalError, match="depends on"):
        blocks_of(found)
    with pytest.raises(InternalError, match="depends on"):
        verify(found)


def test_a_missing_note_is_named() -> None:
    with pytest.raises(InternalError, match="carries no #block"):
        blocks_of(transformer(1))


def test_views_of_weights_stand_with_their_first_reader() -> None:
    found = model(
        """g (int64[N] ids) => (float[N, 64] y) {
            x = Gather (table, ids)
            a = MatMul (x, w)
            b = Relu (a)
            turned = Transpose (v)
            c = MatMul (b, turned)
            tied = Cast <to = 1> (table)
            other = Transpose (tied)
            d = MatMul (c, w)
            y = MatMul (d, turned)
        }""",
        table=(80, 64),
        w=(64, 64),
        v=(64, 64),
    )
    blocks = cut(found)
    place = {node.outputs[0].name: block.index for block in blocks for node in block.nodes}
    assert place["turned"] == place["c"] > 0
    assert not any(value.name == "turned" for value in blocks[1].inputs)
