"""An encoder-decoder in one graph, cut into two models that share its weights.

The graph goes from the encoder's inputs, the decoder's tokens and its past to logits, and its
outputs include the keys and values that cross attention takes from the encoder. There it is
cut: a runtime runs the encoder once, and the decoder once for each token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..ir import (
    DECODER_FILE,
    DECODER_TOKENS,
    ENCODER_FILE,
    ENCODER_STATES,
    InputError,
    write_references,
)

_PAST, _PRESENT, _CROSSED = "past_key_values.", "present.", ".encoder."
_MASK = "attention_mask"
_RENAMED = {DECODER_TOKENS: "input_ids", _MASK: "encoder_attention_mask"}


def write_parts(joined: Path) -> tuple[Path, ...]:
    """Writes encoder and decoder beside a model that has both; they share its data file.

    Args:
        joined: The model's file, written by mpqc.

    Returns:
        The files of encoder and decoder; none for any other model.

    Raises:
        InputError: A part needs a size that none of its inputs has.
    """
    if not _is_joined(ir.load(joined).graph):
        return ()
    parts = {ENCODER_FILE: _encoder(ir.load(joined)), DECODER_FILE: _decoder(ir.load(joined))}
    files = tuple(joined.with_name(name) for name in parts)
    for file, part in zip(files, parts.values(), strict=True):
        write_references(part, file)
    return files


def _is_joined(graph: ir.Graph) -> bool:
    return any(value.name == DECODER_TOKENS for value in graph.inputs) and bool(
        _crossing(graph)
    )


def _crossing(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.outputs if _is_of_encoder(value, states=False)]


def _is_of_encoder(value: ir.Value, *, states: bool = True) -> bool:
    name = str(value.name)
    crosses = name.startswith(_PRESENT) and _CROSSED in name
    return crosses or (states and name == ENCODER_STATES)


def _is_of_decoder(value: ir.Value) -> bool:
    return value.name == DECODER_TOKENS or str(value.name).startswith(_PAST)


def _encoder(model: ir.Model) -> ir.Model:
    graph = model.graph
    own = [value for value in graph.inputs if not _is_of_decoder(value)]
    states = [value for value in graph.outputs if value.name == ENCODER_STATES]
    part = _part(model, own, [*states, *_crossing(graph)])
    for value in states:
        value.name = "last_hidden_state"
    return part


def _decoder(model: ir.Model) -> ir.Model:
    graph = model.graph
    crossing = _crossing(graph)
    outputs = [value for value in graph.outputs if not _is_of_encoder(value)]
    own = [value for value in graph.inputs if _is_of_decoder(value) or value.name == _MASK]
    graph.outputs[:] = outputs
    for value in crossing:
        name = str(value.name).replace(_PRESENT, _PAST, 1)
        given = ir.Value(name=name, shape=value.shape, type=value.type)
        value.replace_all_uses_with(given)
        own.append(given)
    part = _part(model, own, outputs)
    for value in graph.inputs:
        value.name = _RENAMED.get(str(value.name), value.name)
    return part


def _part(model: ir.Model, own: list[ir.Value], outputs: list[ir.Value]) -> ir.Model:
    """Keeps what ``outputs`` need of ``own``."""
    graph = model.graph
    foreign = [value for value in graph.inputs if value not in own]
    graph.outputs[:] = outputs
    _measure_own(graph, own, foreign)
    RemoveUnusedNodesPass()(model)
    for value in foreign:
        if value.uses():
            raise InputError(
                f"the encoder-decoder cannot be cut: {value.name!r} is read on both sides"
            )
    graph.inputs[:] = [value for value in own if value.uses() or value in outputs]
    return model


def _measure_own(
    graph: ir.Graph, own: Iterable[ir.Value], foreign: Iterable[ir.Value]
) -> None:
    """Reads sizes that the other part's inputs have off inputs of this part."""
    places = {
        dim.value: (value, axis)
        for value in own
        for axis, dim in enumerate(value.shape or ())
        if isinstance(dim, ir.SymbolicDim) and dim.value is not None
    }
    for value in foreign:
        for node in [usage.node for usage in value.uses() if usage.node.op_type == "Shape"]:
            dims = list(value.shape or ())
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", len(dims))
            taken = dims[start:end]
            if len(taken) != 1 or not isinstance(taken[0], ir.SymbolicDim):
                continue
            if taken[0].value in places:
                source, axis = places[taken[0].value]
                node.replace_input_with(0, source)
                node.attributes["start"] = ir.AttrInt64("start", axis)
                node.attributes["end"] = ir.AttrInt64("end", axis + 1)
