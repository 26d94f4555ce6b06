"""triton: a model repository of one model for Triton's ONNX Runtime backend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from .kind import Code, Kind, Layout
from .plain import onnxruntime_version

if TYPE_CHECKING:
    from ...frontend.model_source import Source
    from .kind import Finished

_VERSION = "1"
_CONFIG = "config.pbtxt"
_MOST_TOGETHER = 8  # requests in one run, where a model can take several
_BATCH = ("batch", "n")  # what exporters call an axis whose rows do not meet
_NOT_IN_JSON = ("FP16", "BF16")
_TYPES = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "double": "FP64",
    "float": "FP32",
    "float16": "FP16",
    "string": "STRING",
    **{one: one.upper() for one in ("int8", "int16", "int32", "int64")},
    **{one: one.upper() for one in ("uint8", "uint16", "uint32", "uint64")},
}


@dataclass(frozen=True)
class _Tensor:
    """An input or output as Triton wants it.

    Attributes:
        name: Its name.
        type: Its type, without ``TYPE_``.
        dims: Its axes; -1 where the size is open.
        open: The names of open axes, by place.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    open: tuple[str, ...]

    def text(self, batched: bool) -> str:
        """Returns it as protobuf text; an axis of requests is not written."""
        dims = self.dims[1:] if batched else self.dims
        lines = [f"    name: {quoted(self.name)}", f"    data_type: TYPE_{self.type}"]
        if dims:
            lines.append(f"    dims: [ {', '.join(map(str, dims))} ]")
        else:  # Triton knows no scalars
            lines += ["    dims: [ 1 ]", "    reshape { shape: [ ] }"]
        return "  {\n" + "\n".join(lines) + "\n  }"


def quoted(text: str) -> str:
    """Returns ``text`` as a string of protobuf's text form, whose bytes it names in octal."""
    return '"' + "".join(map(_character, text.encode("utf-8", "surrogatepass"))) + '"'


def _character(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def _refuse(source: Source) -> None:
    """Refuses a model with inputs or outputs that are no tensors.

    Raises:
        UsageError: It has some.
    """
    import onnx_ir as ir

    from ...ir import UsageError, read_model

    if source.onnx is None:
        return
    graph = read_model(source.onnx).graph
    for value in (*graph.inputs, *graph.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise UsageError(
                f"Triton takes tensors only, and {value.name!r} is none",
                hint="leave out --for triton",
            )


def _lay_out(result: Finished) -> Layout:
    """Moves everything to ``NAME/1`` and writes ``NAME/config.pbtxt``."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", result.name).strip("_-") or "model"
    inputs, outputs = _inputs(result), _outputs(result)
    entries = list(result.folder.iterdir())
    home = result.folder / name / _VERSION
    # A companion may have the name: everything goes aside first.
    aside = result.folder / ".moved"
    aside.mkdir()
    for one in entries:
        one.rename(aside / one.name)
    home.parent.mkdir()
    aside.rename(home)
    config = _config(name, inputs, outputs, result.target.target)
    (home.parent / _CONFIG).write_text(config, encoding="utf-8")
    return Layout(
        home / "model.onnx",
        (
            "Triton Inference Server with its ONNX Runtime backend; ONNX Runtime"
            f" {onnxruntime_version()} has loaded and run the model",
        ),
        (_served(), Code("Ask it, with Python alone:", "python", _asks(result, name, inputs))),
        _notes(inputs, outputs),
    )


def _inputs(result: Finished) -> list[_Tensor]:
    from ...backend.onnxruntime.runner import open_session

    with open_session(result.model, result.target.provider) as session:
        return [
            _tensor(one.name, one.type, one.shape, len(one.shape)) for one in session.inputs
        ]


def _outputs(result: Finished) -> list[_Tensor]:
    """Returns the outputs; of one without a known rank, the rank that it has on the sample."""
    from ...backend.onnxruntime.runner import open_session

    ranks = {one.name: len(one.shape) for one in result.outputs}
    unknown = [name for name, rank in ranks.items() if rank == 0]
    if unknown and result.sample is not None:
        with open_session(result.model, result.target.provider) as session:
            found = session.run(result.sample, unknown)
        ranks |= {name: array.ndim for name, array in found.items()}
    return [_tensor(one.name, one.type, one.shape, ranks[one.name]) for one in result.outputs]


def _tensor(name: str, kind: str, shape: Sequence[int | str | None], rank: int) -> _Tensor:
    axes = [*shape, *[None] * (rank - len(shape))]
    dims = tuple(one if isinstance(one, int) and one > 0 else -1 for one in axes)
    names = tuple(one if isinstance(one, str) else "" for one in axes)
    return _Tensor(name, _TYPES[kind.removeprefix("tensor(").removesuffix(")")], dims, names)


def _is_batched(tensors: Iterable[_Tensor]) -> bool:
    """Tells whether every first axis is open and has the one name of an axis of requests."""
    first = {one.open[0] if one.open else "" for one in tensors}
    name = next(iter(first)).lower() if len(first) == 1 else ""
    return _BATCH[0] in name or name == _BATCH[1]


def _config(
    name: str, inputs: Sequence[_Tensor], outputs: Sequence[_Tensor], target: str
) -> str:
    batched = _is_batched((*inputs, *outputs))
    kind = "KIND_CPU" if target in ("ort-cpu", "qdq") else "KIND_GPU"
    lines = [
        f"name: {quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {_MOST_TOGETHER if batched else 0}",
    ]
    for what, tensors in (("input", inputs), ("output", outputs)):
        listed = ",\n".join(one.text(batched) for one in tensors)
        lines.append(f"{what} [\n{listed}\n]")
    if batched:
        lines.append("dynamic_batching { }")
    lines.append(f"instance_group [ {{ kind: {kind} }} ]")
    if target == "tensorrt":
        accelerator = 'gpu_execution_accelerator: [ { name: "tensorrt" } ]'
        lines.append(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    return "\n".join(lines) + "\n"


def _served() -> Code:
    command = (
        '$ docker run --rm -p 8000:8000 -v "$PWD":/models nvcr.io/nvidia/tritonserver:TAG \\\n'
        "    tritonserver --model-repository=/models"
    )
    said = (
        "Start the server in this folder, which is the model repository; take a `TAG` whose"
        " release notes name that ONNX Runtime or a newer one:"
    )
    return Code(said, "console", command)


def _asks(result: Finished, name: str, inputs: Sequence[_Tensor]) -> str:
    """Returns a program that sends one request of made-up numbers, as JSON."""
    lines = [
        "import json",
        "import urllib.request",
        "",
        "# Replace these numbers.",
        "inputs = [",
    ]
    for tensor, one in zip(inputs, result.inputs, strict=True):
        shape = result.shape(one)
        value = {"BOOL": "True", "STRING": '""'}.get(tensor.type, "0")
        value = "1" if one.role in ("mask", "lengths") and value == "0" else value
        data = f"[{value}] * {prod(shape)}"
        lines.append(f"    ({one.name!a}, {tensor.type!r}, {list(shape)}, {data}),")
    lines += [
        "]",
        'keys = ("name", "datatype", "shape", "data")',
        'given = {"inputs": [dict(zip(keys, one)) for one in inputs]}',
        f'address = "http://localhost:8000/v2/models/{name}/infer"',
        "answer = urllib.request.urlopen(address, json.dumps(given).encode())",
        'for one in json.load(answer)["outputs"]:',
        '    print(one["name"], one["shape"])',
    ]
    return "\n".join(lines).replace("'STRING'", "'BYTES'")


def _notes(inputs: Sequence[_Tensor], outputs: Sequence[_Tensor]) -> tuple[str, ...]:
    notes = []
    if _is_batched((*inputs, *outputs)):
        notes.append(
            f"`{_CONFIG}` lets the server join up to {_MOST_TOGETHER} requests of one shape:"
            " the first axis of every input and output is open and named like an axis of"
            " requests. Set `max_batch_size` as your machine likes it."
        )
    else:
        notes.append(
            f"`{_CONFIG}` does not let the server join requests: no open first axis of every"
            " input and output is named like an axis of requests."
        )
    if any(one.type in _NOT_IN_JSON for one in (*inputs, *outputs)):
        notes.append("JSON has no half precision: send requests by `tritonclient` instead.")
    return tuple(notes)


KIND = Kind(program="Triton Inference Server", lay_out=_lay_out, refuse=_refuse)
