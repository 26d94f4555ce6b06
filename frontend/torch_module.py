"""A torch module or fx GraphModule -> the graph, through torch.export."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch

from ..ir import InputError, UsageError

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMELESS = re.compile(r"val_\d+\Z")

OPSET = 20  # the newest that every runtime in the capability tables has had for a year


def from_module(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    dynamic_shapes: Any = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ir.Model:
    """Exports ``module`` as it computes in evaluation mode.

    Args:
        module: A torch module.
        example_inputs: One set of positional inputs.
        dynamic_shapes: Which axes may vary, as ``torch.export.export`` takes it.
        input_names: Names for the graph's inputs; those of ``forward`` by default.
        output_names: Names for the graph's outputs.

    Raises:
        InputError: torch.export cannot follow the module.
    """
    _check_examples(module, example_inputs)
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                module, tuple(example_inputs), dynamic_shapes=dynamic_shapes, strict=False
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(input_names) if input_names else None,
                output_names=list(output_names) if output_names else None,
            )
    except Exception as error:  # torch.export raises whatever the module's own code raises
        raise InputError(
            f"torch.export cannot follow {type(module).__name__}: {_line(error)}",
            hint="export it to ONNX yourself and give the .onnx file",
        ) from error
    finally:
        module.train(training)
    assert exported is not None
    _name_axes(exported.model, dynamic_shapes)
    _name_weights(exported.model)
    return _settled(exported.model)


def from_graph_module(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], dynamic_shapes: Any = None
) -> ir.Model:
    """Exports an fx GraphModule, which is a module like any other.

    Raises:
        InputError: torch.export cannot follow it.
    """
    return from_module(graph, example_inputs, dynamic_shapes)


def _check_examples(module: torch.nn.Module, example_inputs: Sequence[Any]) -> None:
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{type(module).__name__} is not a torch module")
    if isinstance(example_inputs, torch.Tensor):
        raise UsageError(
            "example_inputs is a tensor", hint="give a tuple: example_inputs=(tensor,)"
        )


def _name_axes(model: ir.Model, dynamic_shapes: Any) -> None:
    """Gives the open axes the caller's names, instead of ``s4`` and ``s41``."""
    given = torch.utils._pytree.tree_leaves(dynamic_shapes, is_leaf=_is_axes)
    names: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, given, strict=False):
        for axis, dim in _axes(axes).items():
            found = value.shape[axis] if value.shape is not None else None
            called = getattr(dim, "__name__", None)
            if isinstance(found, ir.SymbolicDim) and found.value and called:
                names[str(found.value)] = str(called)
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(model.graph):
        for axis, old in enumerate(value.shape or ()):
            if isinstance(old, ir.SymbolicDim) and old.value and value.shape is not None:
                renamed = pattern.sub(lambda match: names[match.group()], str(old.value))
                value.shape[axis] = ir.SymbolicDim(renamed)


def _is_axes(tree: Any) -> bool:
    """Returns whether ``tree`` describes the axes of one input."""
    dims = tree.values() if isinstance(tree, dict) else tree
    return tree is None or not any(isinstance(one, (dict, list, tuple)) for one in dims)


def _axes(axes: Any) -> dict[int, Any]:
    if isinstance(axes, dict):
        return axes
    return dict(enumerate(axes or ()))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _name_weights(model: ir.Model) -> None:
    """Calls weights that the exporter has transposed after their module, not ``val_61``."""
    taken = set(model.graph.initializers)
    for node in model.graph.all_nodes():
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
        name = f"{scopes[-2]}.weight" if len(scopes) > 1 else ""
        for value in node.inputs:
            if value is None or not value.is_initializer() or len(value.shape or ()) < 2:
                continue
            if name and name not in taken and _NAMELESS.match(str(value.name)):
                taken.add(name)
                value.name = name


def _settled(model: ir.Model) -> ir.Model:
    """Drops what only a debugger of torch.export reads: it names files of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from printing: stdout belongs to results."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
