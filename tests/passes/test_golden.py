"""Golden tests: ``tests/golden/<pass>/<case>.txt`` shows how passes change a small graph.

A case has directives, a graph in ONNX's own text form, and the listing of the result::

    // passes: normalize,partition-blocks
    // weight: w float[64, 96] seed=1        an initializer of random numbers
    // weight: v float[96, 64] transposed=w  the same numbers; also: same=w, fill=0.5, kind=...
    // constant: c float[64, 96] seed=2      the same in a Constant node
    // note: product stats{unit=w, terms=1, tokens=8}       on a node; or on: model
    // note: a, b stats{unit=$, terms=1, tokens=8}          on each node; $ is its name
    // array: w/0/rows float[96] seed=3 kind=positive       in the side store
    <ir_version: 10, opset_import: ["" : 17]>
    graph (float[N, 64] x) => (float[N, 96] y) { [product] y = MatMul(x, w) }
    // output                                the listing (or // error, message and hint)

The listing shows only the notes that the passes wrote or changed; notes that they dropped
follow it (``drops #shared from gated``).

Kinds of numbers: ``normal``, ``positive``, ``gram`` (x^T x), ``order`` (a permutation),
``codes`` (integers of ``bits=4`` bits) and ``falling`` (rows x options: starts at ``scale=1``,
falls to a tenth from option to option, and grows from row to row).
Unless a case says ``// numbers: change``, ONNX Runtime must compute the same outputs before
and after, bit for bit, or, with ``// numbers: close``, up to the order of sums; unless it says
``// again: changes``, running the passes a second time must change nothing.
``pytest --update-golden`` writes the present results; review the diff.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from mpqc.ir import Capabilities, Kernel, MpqcError, StoredPart, annotate, find_units
from mpqc.ir.annotation import ANNOTATIONS, PREFIX
from mpqc.ir.listing import listing
from mpqc.ir.text_form import build_record, parse_record
from mpqc.ir.verifier import verify
from mpqc.passes.engine.pipeline.base import PassContext, Runner
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.pipeline.registry import pass_names

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(GOLDEN.glob("*/*.txt"))
TARGET = Capabilities(
    target="golden",
    provider="CPUExecutionProvider",
    runtime="onnxruntime 1.31",
    kernels=tuple(Kernel(bits, (32, 64), 1, 16, 4, 0.2) for bits in (2, 4, 8)),
    lookup_bits=(2, 4, 8),
    lookup="unpack",
    array_bits=(4, 8),
    convolution_bits=(8,),
    row_tile=8,
    expanding=(5, 6),
    integer_bits=(8,),
)
DTYPES = {"float": "float32", "float16": "float16", "double": "float64"}
_SPEC = re.compile(r"(\S+) (\w+)\[([\d, ]*)\]((?: \w+=\S+)*)\Z")


@dataclass
class Case:
    """A parsed golden file."""

    passes: str = ""
    numbers: str = "same"
    again: str = "nothing"
    weights: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    graph: str = ""
    given: str = ""
    expected: str = ""


def read_case(path: Path) -> Case:
    """Splits a file into directives, graph and expectation."""
    given, _, rest = path.read_text().partition("\n// output\n")
    expected = f"// output\n{rest}"
    if not rest and "\n// error\n" in given:
        given, _, rest = given.partition("\n// error\n")
        expected = f"// error\n{rest}"
    case = Case(given=given, expected=expected)
    graph = []
    for line in given.splitlines():
        found = re.match(r"// (\w+): (.*)", line)
        if found is None:
            graph.append(line)
        elif isinstance(getattr(case, found[1] + "s", None), list):
            getattr(case, found[1] + "s").append(found[2].strip())
        else:
            assert hasattr(case, found[1]), f"{path}: unknown directive {line!r}"
            setattr(case, found[1], found[2].strip())
    case.graph = "\n".join(one for one in graph if not one.startswith("//"))
    return case


def numbers(spec: str, known: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Makes the array that a ``weight``, ``constant`` or ``array`` directive describes."""
    found = _SPEC.match(spec)
    assert found is not None, f"cannot read {spec!r}"
    name, dtype = found[1], DTYPES.get(found[2], found[2])
    shape = tuple(int(one) for one in found[3].split(",") if one.strip())
    options = dict(one.split("=") for one in found[4].split())
    rng = np.random.default_rng(int(options.get("seed", 0)))
    if "same" in options:
        array = known[options["same"]]
    elif "transposed" in options:
        array = known[options["transposed"]].T
    elif "fill" in options:
        array = np.full(shape, float(options["fill"]))
    elif options.get("kind") == "order":
        array = rng.permutation(shape[0])
    elif options.get("kind") == "codes":
        half = 1 << (int(options.get("bits", 4)) - 1)
        array = rng.integers(-half, half, shape)
    elif options.get("kind") == "falling":
        array = np.outer(np.arange(1, shape[0] + 1) / shape[0], 0.1 ** np.arange(shape[1]))
        array *= float(options.get("scale", 1))
    else:
        array = rng.standard_normal(shape) * 0.1
    if options.get("kind") == "positive":
        array = np.abs(array) + 0.01
    if options.get("kind") == "gram":
        array = array.T @ array
    assert array.shape == shape, spec
    known[name] = np.ascontiguousarray(array, dtype=dtype)
    return name, known[name]


def build_model(case: Case) -> ir.Model:
    """Returns the graph of a case with its weights, constants and notes."""
    proto = onnx.parser.parse_model(case.graph)
    known: dict[str, np.ndarray] = {}
    for spec in case.weights:
        name, array = numbers(spec, known)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for at, spec in enumerate(case.constants):
        name, array = numbers(spec, known)
        value = onnx.numpy_helper.from_array(array, name)
        proto.graph.node.insert(at, onnx.helper.make_node("Constant", [], [name], value=value))
    model = ir.from_proto(proto)
    nodes = {str(node.name): node for node in model.graph}
    units = {unit.name: unit for unit in find_units(model)}
    for text in case.notes:
        targets, note = re.split(r"(?<!,) ", text, maxsplit=1)
        for target in targets.split(", "):
            key, fields = parse_record(note.replace("$", target))
            made = build_record(ANNOTATIONS[key], key, fields)
            unit = units.get(getattr(made, "unit", ""))
            if target == "model":
                annotate(model, made)
            elif unit is not None and unit.anchor is nodes[target] and key != StoredPart.key:
                annotate(unit.notes, made)
            else:
                annotate(nodes[target], made)
    return model


def build_context(case: Case, scratch: Path) -> PassContext:
    """Returns a context without a runner: golden passes look at the graph only."""
    context = PassContext(cast(Runner, None), TARGET, scratch)
    known: dict[str, np.ndarray] = {}
    for spec in case.arrays:
        context.arrays.put(*numbers(spec, known))
    return context


def outputs(model: ir.Model) -> list[np.ndarray]:
    """Runs a model in ONNX Runtime on seeded inputs, as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(7)
    feeds = {}
    for one in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 3 for dim in one.shape]
        if "float" in one.type:
            feeds[one.name] = rng.standard_normal(shape).astype(np.float32)
        elif "bool" in one.type:
            feeds[one.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            feeds[one.name] = rng.integers(0, 4, shape).astype(np.int64)
    return cast(list[np.ndarray], session.run(None, feeds))


def carriers(model: ir.Model) -> dict[str, dict[str, str]]:
    """Returns the metadata of the model, under "model", and of every node, under its name."""
    nodes = {str(node.name): node.metadata_props for node in model.graph.all_nodes()}
    return {"model": model.metadata_props, **nodes}


def changes(model: ir.Model, given: dict[str, dict[str, str]]) -> str:
    """Returns the listing of ``model`` without the notes that are the same in ``given``."""
    shown = model.clone()
    dropped: dict[str, list[str]] = {}
    for name, notes in carriers(shown).items():
        for key, text in given.get(name, {}).items():
            if key not in notes:
                dropped.setdefault(f"#{key.removeprefix(PREFIX)}", []).append(name)
            elif notes[key] == text:
                del notes[key]
    drops = [f"drops {key} from {', '.join(names)}" for key, names in dropped.items()]
    return "\n".join([listing(shown).rstrip(), *drops])


def come_out(case: Case, model: ir.Model, context: PassContext) -> str:
    """Runs the passes; returns the text that the file should have after the graph."""
    given = carriers(build_model(case))
    try:
        Pipeline.parse(case.passes).run(model, context)
    except MpqcError as error:
        return f"// error\n{error.message}\n{error.hint}".rstrip() + "\n"
    return f"// output\n{changes(model, given)}\n"


@pytest.mark.ort
@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = read_case(path)
    model = build_model(case)
    verify(model)
    interface = [[value.name for value in model.graph.outputs]]
    before = outputs(model) if case.numbers != "change" else []
    text = come_out(case, model, build_context(case, tmp_path))
    if request.config.getoption("--update-golden"):
        path.write_text(f"{case.given}\n{text}")
    assert text == (text if request.config.getoption("--update-golden") else case.expected)
    if text.startswith("// error"):
        return
    assert interface == [[value.name for value in model.graph.outputs]]
    after = outputs(model)
    tolerance = 1e-5 if case.numbers == "close" else 0
    for wanted, got in zip(before, after, strict=case.numbers != "change"):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    if case.again == "nothing":
        again = come_out(case, model, build_context(case, tmp_path))
        assert again == text, "a second run changed the graph"


def test_every_folder_is_a_pass() -> None:
    known = set(pass_names())
    for folder in GOLDEN.iterdir():
        assert folder.name in known, f"{folder} belongs to no pass"
    for path in CASES:
        assert path.parent.name in read_case(path).passes, f"{path} does not run its pass"
