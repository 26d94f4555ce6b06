"""Apply the scales of a site: divide the producer of the activation, multiply its readers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...ir import ArrayStore, Unit
from ...ir.units import stored_tensor
from ..engine.emission.emitter import Names
from ..engine.statistics.moved import grow
from .sites import Part, Site


def fold(site: Site, factors: np.ndarray, arrays: ArrayStore, names: Names) -> None:
    """Divides the columns of the site's activations by ``factors``; no output changes.

    The statistics of calibration stay valid: their arrays are read through the same scales.

    Args:
        site: Where.
        factors: One for each class of the site, all positive.
        arrays: The side store.
        names: Gives names to constants that others read too.
    """
    for part in site.consumers:
        _rescale_unit(part, by_class(factors, part.classes), "columns", arrays)
    for part in site.producers:
        _rescale_unit(part, 1 / by_class(factors, part.classes), "rows", arrays)
    for part in site.constants:
        _rescale_constant(part, 1 / by_class(factors, part.classes), names)


def by_class(factors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the factor of every entry; 1 for those that have no class."""
    found = np.append(factors, 1.0)[classes]  # class -1 is the last entry
    return np.asarray(found, dtype=np.float32)


def _rescale_unit(part: Part, factors: np.ndarray, axis: str, arrays: ArrayStore) -> None:
    unit = part.unit
    assert unit is not None
    stored_axis = unit.row_axis if axis == "rows" else 1 - unit.row_axis
    shape = (-1, 1) if stored_axis == 0 else (1, -1)
    _let_be(unit.weight, factors.reshape(shape))
    grow(unit, arrays, axis, factors)


def _rescale_constant(part: Part, factors: np.ndarray, names: Names) -> None:
    value = part.node.inputs[part.index]
    assert value is not None
    tensor = stored_tensor(value)
    assert tensor is not None
    if not np.any(tensor.numpy()):
        return  # nothing to divide
    alone = len(value.uses()) == 1 and value.is_initializer() and not value.is_graph_output()
    if alone and np.broadcast_shapes(tensor.shape.numpy(), factors.shape) == tuple(
        tensor.shape.numpy()
    ):
        _let_be(value, factors)
        return
    name = names.free(f"{value.name}/scaled")
    array = (tensor.numpy().astype(np.float32) * factors).astype(tensor.dtype.numpy())
    own = ir.Tensor(array, dtype=tensor.dtype, name=name)
    made = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(own.dtype), const_value=own
    )
    assert part.node.graph is not None
    part.node.graph.register_initializer(made)
    part.node.replace_input_with(part.index, made)


def _let_be(value: ir.Value, factors: np.ndarray) -> None:
    """Multiplies an initializer, once it is read."""
    old = value.const_value
    assert old is not None
    shape = ir.Shape(old.shape.numpy())

    def scaled() -> ir.Tensor[np.ndarray]:
        array = old.numpy().astype(np.float32) * factors
        return ir.Tensor(array.astype(old.dtype.numpy()), old.dtype, name=value.name)

    value.const_value = ir.LazyTensor(scaled, dtype=old.dtype, shape=shape, name=value.name)


def consumed(site: Site) -> list[Unit]:
    """Returns the units that multiply the site's activations."""
    return [part.unit for part in site.consumers if part.unit is not None]
