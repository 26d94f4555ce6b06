"""NNCF's weight compression, on the exported ONNX file.

Settings: ``mode``, ``group``, ``ratio``, ``all_layers`` (the head, and with it a tied
embedding, at the primary width too), ``awq``, ``scale_estimation``, ``sensitivity``,
``samples``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nncf
import numpy as np
import onnx
from onnx import numpy_helper

from .exchange import Job


def main() -> None:
    """Compresses the model that the job names."""
    job = Job.given()
    asked = job.settings
    model = onnx.load(job.onnx)
    views = _untie(model)
    tables = {one.output[0] for one in views}
    lookups = [one.name for one in model.graph.node if tables & set(one.input)]
    feeds = list(_feeds(model, job.samples(asked.get("samples")), _head_size(job.model)))
    sensitivity = asked.get("sensitivity")
    result = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode(asked["mode"]),
        ratio=asked.get("ratio"),
        group_size=asked.get("group"),
        all_layers=asked.get("all_layers"),
        ignored_scope=nncf.IgnoredScope(names=lookups) if lookups else None,
        dataset=nncf.Dataset(feeds),
        sensitivity_metric=nncf.SensitivityMetric(sensitivity) if sensitivity else None,
        subset_size=len(feeds),
        awq=asked.get("awq"),
        scale_estimation=asked.get("scale_estimation"),
    )
    _tie(result, views)
    onnx.save(
        result, job.out / "model.onnx", save_as_external_data=True, location="model.onnx.data"
    )


def _untie(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Takes lookups off the weights that products read too; returns the views they had.

    NNCF 3.4 finds no weight behind a Transpose, and what it makes of a lookup in groups does
    not run in ONNX Runtime.
    """
    weights = {one.name: one for one in model.graph.initializer}
    lookups = {one.input[0]: one for one in model.graph.node if one.op_type == "Gather"}
    views = []
    for view in [one for one in model.graph.node if one.op_type == "Transpose"]:
        if view.output[0] in lookups and view.input[0] in weights:
            table = numpy_helper.to_array(weights[view.input[0]]).T.copy()
            model.graph.initializer.append(numpy_helper.from_array(table, view.output[0]))
            model.graph.node.remove(view)
            views.append(view)
    return views


def _tie(model: onnx.ModelProto, views: list[onnx.NodeProto]) -> None:
    """Lets lookups read what the products read now."""
    made = {one.output[0]: one for one in model.graph.node}
    for view in views:
        table = next(one for one in model.graph.initializer if one.name == view.output[0])
        model.graph.initializer.remove(table)
        codes = next(name for name in made if name.startswith(f"{view.input[0]}_"))
        view.input[0] = codes
        model.graph.node.remove(made[codes])
        model.graph.node.insert(0, view)
        model.graph.node.insert(0, made[codes])


def _head_size(folder: Path) -> int:
    """Returns the channels of a head, which the exported graph leaves open."""
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(facts.get("head_dim") or facts["hidden_size"] // facts["num_attention_heads"])


def _feeds(
    model: onnx.ModelProto, ids: np.ndarray, head: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what the graph reads: ids, a mask of ones, positions, and an empty cache."""
    places = np.arange(ids.shape[1])[None]
    for one in ids[:, None]:
        known = {"input_ids": one, "attention_mask": places * 0 + 1, "position_ids": places}
        yield {
            each.name: known[each.name] if each.name in known else _empty(each, head)
            for each in model.graph.input
        }


def _empty(value: onnx.ValueInfoProto, head: int) -> np.ndarray:
    """Returns the cache of one sequence without tokens: batch x heads x 0 x channels."""
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.zeros([1, sizes[1], 0, sizes[3] or head], dtype)


if __name__ == "__main__":
    main()
