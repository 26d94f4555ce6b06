"""web: a page that runs the model by onnxruntime-web, from files beside it alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .example import FEW_TOKENS, reads_any_length
from .kind import Code, Kind, Layout
from .markdown_text import code_span, escaped

if TYPE_CHECKING:
    from ...frontend.model_inputs import ModelInput
    from ...frontend.model_source import Source
    from .kind import Finished

_PACKAGE = "onnxruntime-web"
_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_RUNTIME = "runtime"
_TYPES = (
    *("bool", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_MOST_VALUES = 64  # that a form starts with; of more, the page makes one number
_LARGEST_FILE = 2**31 - 1  # of what a browser keeps in one buffer


def _refuse(source: Source) -> None:
    """Refuses a model whose inputs a page cannot make.

    Raises:
        UsageError: An input is no tensor of numbers.
    """
    import onnx_ir as ir

    from ...ir import UsageError, read_model

    if source.onnx is None:
        return
    for value in read_model(source.onnx).graph.inputs:
        kind = value.dtype
        is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
        if not is_tensor or kind in (ir.DataType.STRING, ir.DataType.BFLOAT16):
            raise UsageError(
                f"a page cannot make the input {value.name!r}: it is no tensor of numbers that"
                " JavaScript has",
                hint="leave out --for web",
            )


def find_runtime() -> Path | None:
    """Returns the folder of onnxruntime-web's files, where Node.js would look for it.

    That is ``node_modules`` in the current folder, in those above, and in ``NODE_PATH``.
    """
    for modules in _places():
        folder = modules / _PACKAGE / "dist"
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def _places() -> Iterator[Path]:
    here = Path.cwd()
    yield from (folder / "node_modules" for folder in (here, *here.parents))
    yield from map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))


def _runtime_bytes() -> int:
    found = find_runtime()
    return sum((found / name).stat().st_size for name in _FILES) if found is not None else 0


def _lay_out(result: Finished) -> Layout:
    """Adds the page, and onnxruntime-web's files where they are at hand."""
    runtime, version = result.folder / _RUNTIME, ""
    runtime.mkdir()
    found = find_runtime()
    if found is not None:
        for name in _FILES:
            shutil.copyfile(found / name, runtime / name)
        version = _version(found)
    _write_page(result)
    return Layout(
        result.model,
        (_runs_in(version),),
        _code(result, filled=found is not None),
        tuple(_notes(result)),
    )


def _version(found: Path) -> str:
    try:
        package = json.loads((found.parent / "package.json").read_text(encoding="utf-8"))
        return str(package["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "of an unknown version"


def _runs_in(version: str) -> str:
    if version:
        return f"a browser with WebAssembly; {_PACKAGE} {escaped(version)} is in `{_RUNTIME}/`"
    return f"a browser with WebAssembly, and {_PACKAGE}, which you put into `{_RUNTIME}/`"


def _write_page(result: Finished) -> None:
    from jinja2 import Environment, StrictUndefined

    from ...ir import read_model
    from ...ir.analysis.storage import stored
    from ..progress import plain

    here = files(__package__)
    template = here.joinpath("web.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    bits = stored(read_model(result.model)).bits_per_weight
    text = page.from_string(template).render(
        name=plain(result.name), bits=bits, facts=_json(_facts(result))
    )
    (result.folder / "index.html").write_text(text, encoding="utf-8")
    script = here.joinpath("web.mjs").read_text(encoding="utf-8")
    (result.folder / "page.mjs").write_text(script, encoding="utf-8")


def _json(facts: dict[str, Any]) -> Any:
    """Returns JSON that ends no script element, whatever is in it."""
    from markupsafe import Markup

    return Markup(json.dumps(facts).replace("<", "\\u003c"))


def _facts(result: Finished) -> dict[str, Any]:
    """Returns what the page needs to know."""
    return {
        "model": result.model.name,
        "data": _data(result),
        "inputs": [_input(result, one) for one in result.inputs],
    }


def _data(result: Finished) -> list[str]:
    return sorted(one.name for one in result.folder.glob("model.onnx.*") if one.is_file())


def _input(result: Finished, one: ModelInput) -> dict[str, Any]:
    """Returns an input's name, type and example; of a text, a few tokens that mean nothing."""
    shape = list(result.shape(one))
    is_token = one.role in ("tokens", "source", "mask", "positions", "segments")
    if is_token and reads_any_length(result):
        shape = [1, FEW_TOKENS]
    counts = one.role in ("tokens", "source", "positions") and len(shape) == 2
    rows = one.vocabulary or (1 << 20)
    values = [at % rows for at in range(shape[1])] * shape[0] if counts else []
    fill = 1 if one.role in ("mask", "lengths") else 0
    name = "bool" if one.dtype.kind == "b" else one.dtype.name
    assert name in _TYPES, name
    return {
        "name": one.name,
        "type": name,
        "shape": shape,
        "fill": fill,
        "values": values if len(values) <= _MOST_VALUES else [],
    }


def _code(result: Finished, *, filled: bool) -> tuple[Code, ...]:
    serve = Code(
        "Serve the folder, then open http://localhost:8000, which runs an example and takes"
        " numbers of yours (a page from a file may load nothing):",
        "console",
        "$ python -m http.server 8000 --bind 127.0.0.1",
    )
    fill = Code(
        f"First put {_PACKAGE} into `{_RUNTIME}/`, in this folder:",
        "console",
        f"$ npm pack {_PACKAGE}\n"
        f"$ tar -xzf {_PACKAGE}-*.tgz\n"
        + "\n".join(f"$ cp package/dist/{name} {_RUNTIME}/" for name in _FILES),
    )
    own = Code("In a page of your own beside these files:", "js", _program(result))
    return (serve, own) if filled else (fill, serve, own)


def _program(result: Finished) -> str:
    feeds = []
    for one in (_input(result, each) for each in result.inputs):
        kind = {"int64": "BigInt64Array", "float32": "Float32Array", "int32": "Int32Array"}
        array = kind.get(one["type"])
        size = " * ".join(map(str, one["shape"])) or "1"
        fill = f"{one['fill']}n" if one["type"] == "int64" else str(one["fill"])
        made = f"new {array}({size}).fill({fill})" if array else f"Array({size}).fill({fill})"
        name, shape = json.dumps(one["name"]), one["shape"]
        feeds.append(f"  {name}: new ort.Tensor({one['type']!r}, {made}, {shape}),")
    data = json.dumps([{"path": name, "data": name} for name in _data(result)])
    return "\n".join(
        [
            f'import * as ort from "./{_RUNTIME}/{_FILES[0]}";',
            "",
            f'const session = await ort.InferenceSession.create("{result.model.name}", {{'
            f"  externalData: {data},",
            "});",
            "const outputs = await session.run({ // replace the numbers",
            *feeds,
            "});",
            "for (const [name, { dims }] of Object.entries(outputs)) console.log(name, dims);",
        ]
    )


def _notes(result: Finished) -> Iterator[str]:
    """Yields what onnxruntime-web is known to refuse or to do badly."""
    from ...backend.lint import ERROR
    from ..lint import lint_file

    for one in result.folder.glob("model.onnx*"):
        if one.stat().st_size > _LARGEST_FILE:
            size = f"{one.stat().st_size / 1e9:.1f} GB"
            yield f"**Warning:** {code_span(one.name)} has {size}, more than a browser loads."
    for rule, found in lint_file(result.model, "web").by_rule:
        if rule.level == ERROR:
            said = escaped(f"{rule.title} ({found[0].detail}). {rule.why}")
            yield f"**Warning:** `mpqc lint . --target web` finds an error: {said}"


KIND = Kind(
    program="browsers, with onnxruntime-web",
    lay_out=_lay_out,
    refuse=_refuse,
    extra=_runtime_bytes,
)
