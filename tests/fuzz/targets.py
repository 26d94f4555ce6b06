"""What is fuzzed: how an input is made, and how mpqc is driven with it."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import onnx
import onnx_ir as ir
from safetensors.numpy import save as save_tensors

from mpqc.backend.lint import TARGETS as RUNTIMES
from mpqc.backend.lint import fix
from mpqc.frontend.array_files import array_samples, read_arrays
from mpqc.frontend.hugging_face import check_folder
from mpqc.frontend.model_inputs import model_inputs
from mpqc.frontend.model_source import COMPANIONS, locate
from mpqc.frontend.samples import SampleMaker
from mpqc.ir import inline_functions, note_of, read_model
from mpqc.ir.annotation import ANNOTATIONS
from mpqc.ir.errors import InternalError, MachineError, MpqcError
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.pipeline.spec import print_passes
from mpqc.tools.api import compile
from mpqc.tools.inspection import inspect_file
from mpqc.tools.lint import lint_file
from mpqc.tools.options import CompileOptions
from mpqc.tools.pipelines import PRESETS
from mpqc.tools.resume import opt
from mpqc.tools.settings import make_settings
from mpqc.tools.watch import Watch

from ..backend.lint.planted import PLANTED
from .mutation import mutate_bytes, mutate_json, mutate_model, mutate_text
from .seeds import models

_NEAREST = (
    "normalize,partition-blocks,calibrate,annotate-sensitivity{metric=weight-error},"
    "allocate-bits{budget=4.5, granularity=unit},quantize-weights{rounding=nearest},"
    "lower-matmul-nbits"
)
_OPT = "normalize,partition-blocks"


def is_expected(error: BaseException) -> bool:
    """Tells whether a failure is one that users are meant to see."""
    if isinstance(error, MachineError) and "memory" in error.message:
        return False
    return isinstance(error, MpqcError) and not isinstance(error, InternalError)


@dataclass(frozen=True)
class Target:
    """One way into mpqc.

    Attributes:
        make: Makes an input from a source of randomness.
        drive: Uses it in an empty folder.
        weight: How often it is chosen.
    """

    make: Callable[[Random], bytes]
    drive: Callable[[bytes, Path], object]
    weight: int


# Models


@cache
def _models() -> dict[str, onnx.ModelProto]:
    return models()


def _make_model(source: Random) -> bytes:
    return mutate_model(source.choice(list(_models().values())), source)


def _place(data: bytes, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    (folder / "w.bin").write_bytes(bytes(32768))
    return path


def _inspect(data: bytes, folder: Path) -> None:
    json.dumps(inspect_file(_place(data, folder)).facts())


@cache
def _planted() -> list[onnx.ModelProto]:
    """Returns models that break a rule of some runtime."""
    return [ir.to_proto(planted.model()) for planted in PLANTED.values()]


def _make_broken(source: Random) -> bytes:
    return mutate_model(source.choice([*_models().values(), *_planted()]), source)


def _lint(data: bytes, folder: Path) -> None:
    path = _place(data, folder)
    for target in RUNTIMES:
        json.dumps(lint_file(path, target).sarif())
    model = read_model(path)
    inline_functions(model)
    for target in RUNTIMES:
        fix(model, target)


def _opt(data: bytes, folder: Path) -> None:
    path = _place(data, folder)
    read_model(path)
    opt(path, _OPT, output=folder / "out").listing()


def _compile(data: bytes, folder: Path) -> None:
    path = _place(data, folder)
    inspect_file(path)
    compile(
        path,
        budget=4.5,
        passes=_NEAREST,
        output=folder / "out",
        random_calibration=True,
        samples=2,
        sequence_length=8,
        cache=folder / "cache",
    )


# Text


@cache
def _pipelines() -> tuple[str, ...]:
    return (_NEAREST, *(print_passes(preset.passes(3.5)) for preset in PRESETS.values()))


def _make_passes(source: Random) -> bytes:
    text = mutate_text(source.choice(_pipelines()), source)
    return text.encode("utf-8", errors="surrogatepass")


def _parse_passes(data: bytes, folder: Path) -> None:
    del folder
    pipeline = Pipeline.parse(data.decode("utf-8", errors="replace"))
    assert str(Pipeline.parse(str(pipeline))) == str(pipeline)
    pipeline.check(ir.from_proto(_models()["products"]))


_NOTES = (
    "bits{unit=w, options=[4, 8], groups=[32, 64]}",
    'float{unit="a b", why="too, {small}"}',
    "quant{unit=w, bits=[4], sizes=[[1, 2], [3]], scale=0.5, of-rows=true, none=none}",
    "part{unit=w, role=channels}",
)


def _make_note(source: Random) -> bytes:
    return mutate_text(source.choice(_NOTES), source).encode("utf-8", errors="surrogatepass")


def _read_notes(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", errors="replace")
    model = onnx.ModelProto()
    model.CopyFrom(_models()["products"])
    for key, cls in ANNOTATIONS.items():
        holder = ir.node("Relu", [])
        holder.metadata_props[f"mpqc.{key}"] = f"{key}{text[text.find('{') :]}"
        _tolerating(note_of, holder, cls)
    for node in model.graph.node:
        node.metadata_props.add(key=f"mpqc.{text.partition('{')[0]}", value=text)
    _inspect(model.SerializeToString(), folder)


def _tolerating(call: Callable[..., object], *arguments: object) -> None:
    try:
        call(*arguments)
    except Exception as error:
        if not is_expected(error):
            raise


_RECIPE = (
    'preset = "fast"\nsamples = 48\nsequence-length = 1_024\nseed = 0x7\n'
    'target = "ort-cpu"\noutputs = "auto"\nactivations = "none"\n'
)


def _make_recipe(source: Random) -> bytes:
    text = mutate_text(_RECIPE, source, ("[a]", "inf", "1979-05-27", "'''", "\ufeff", "{x=1}"))
    data = text.encode("utf-8", errors="surrogatepass")
    return mutate_bytes(data, source) if source.random() < 0.2 else data


def _read_recipe(data: bytes, folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(data)
    make_settings(CompileOptions(budget=3.5, recipe=path))


# Arrays


def _make_safetensors(source: Random) -> bytes:
    rows = np.arange(256, dtype=np.float32).reshape(4, 64)
    data = save_tensors({"x": rows, "y": rows.astype(np.int8)}, {"a": "b"})
    size = int.from_bytes(data[:8], "little")
    if source.random() < 0.4:
        return mutate_bytes(data, source)
    header = mutate_json(json.loads(data[8 : 8 + size]), source)
    text = json.dumps(header)
    if source.random() < 0.3:
        text = mutate_text(text, source)
    raw = text.encode("utf-8", errors="surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + data[8 + size :]


_HEADER_WORDS = ("'|V0'", "'|O'", "'<U0'", "'<M8[s]'", "True", "()", f"(0, {1 << 62})")


def _make_npz(source: Random) -> bytes:
    """Returns an archive whose array has another header, or which has other bytes."""
    stream = io.BytesIO()
    np.save(stream, np.arange(256, dtype=np.float32).reshape(4, 64))
    data = stream.getvalue()
    size = int.from_bytes(data[8:10], "little")
    head = data[10 : 10 + size].decode("latin-1")
    if source.random() < 0.7:
        head = mutate_text(head, source, _HEADER_WORDS)
    raw = head.encode("latin-1", errors="replace")
    array = data[:8] + (len(raw) & 0xFFFF).to_bytes(2, "little") + raw + data[10 + size :]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", source.choice((0, 8))) as archive:
        archive.writestr(
            "x.npy", array if source.random() < 0.8 else mutate_bytes(array, source)
        )
    return (
        mutate_bytes(packed.getvalue(), source) if source.random() < 0.3 else packed.getvalue()
    )


def _read_file(suffix: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / f"samples{suffix}"
        path.write_bytes(data)
        inputs = model_inputs(ir.from_proto(_models()["products"]))
        _tolerating(array_samples, [path], inputs, 4)
        read_arrays(path)

    return read


# Dumps


@cache
def _dumps() -> dict[str, bytes]:
    """Returns the files of a folder of dumps."""
    with tempfile.TemporaryDirectory() as name:
        path = _place(_models()["products"].SerializeToString(), Path(name))
        compile(
            path,
            budget=4.5,
            passes=_NEAREST.partition(",lower")[0],
            output=Path(name) / "out",
            random_calibration=True,
            samples=2,
            sequence_length=8,
            cache=Path(name) / "cache",
            dump_after_each=Path(name) / "dumps",
        )
        folder = Path(name) / "dumps"
        return {
            str(one.relative_to(folder)): one.read_bytes()
            for one in folder.rglob("*")
            if one.is_file()
        }


_LAST = "004_allocate-bits.onnx"


def _make_dump(source: Random) -> bytes:
    """Returns the name of a file in the folder, NUL, and other content for it."""
    name = source.choice(["run.json", "run.json", *sorted(_dumps())])
    content = _dumps()[name]
    if name == "run.json" and source.random() < 0.8:
        content = json.dumps(mutate_json(json.loads(content), source)).encode()
    else:
        content = mutate_bytes(content, source)
    return name.encode() + b"\0" + content


def _resume(data: bytes, folder: Path) -> None:
    changed, _, content = data.partition(b"\0")
    for name, kept in {**_dumps(), changed.decode(): content}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(kept)
    opt(folder / _LAST, watch=Watch(stop_after="quantize-weights"))


# Settings beside a model

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 128,
    "weight_map": {"a": "model.safetensors"},
    "auto_map": {},
    "model": {"context_length": 64, "decoder": {"head_size": 16, "num_key_value_heads": 2}},
    "version": "1.0",
    "model_type": "llama",
    "added_tokens": [{"id": 0, "content": "x", "special": True}],
}


_SETTINGS = (
    "config.json",
    "genai_config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)


def _make_settings(source: Random) -> bytes:
    text = json.dumps(mutate_json(_CONFIG, source))
    return (mutate_text(text, source) if source.random() < 0.2 else text).encode()


def _read_settings(data: bytes, folder: Path) -> None:
    for name in _SETTINGS:
        (folder / name).write_bytes(data)
    (folder / "model.safetensors").write_bytes(b"")
    assert set(locate(folder).companions()) <= set(COMPANIONS)
    _tolerating(check_folder, folder)
    path = _place(_models()["fused"].SerializeToString(), folder)
    maker = SampleMaker.of(read_model(path), locate(folder))
    _tolerating(lambda: maker.calibration(samples=2, sequence_length=8, random=True))
    path = _place(_models()["tied"].SerializeToString(), folder)
    maker = SampleMaker.of(read_model(path), locate(folder))
    maker.calibration(samples=2, sequence_length=8, random=True)


TARGETS: dict[str, Target] = {
    "inspect": Target(_make_model, _inspect, 40),
    "lint": Target(_make_broken, _lint, 20),
    "opt": Target(_make_model, _opt, 30),
    "compile": Target(_make_model, _compile, 6),
    "passes": Target(_make_passes, _parse_passes, 8),
    "notes": Target(_make_note, _read_notes, 6),
    "recipe": Target(_make_recipe, _read_recipe, 5),
    "safetensors": Target(_make_safetensors, _read_file(".safetensors"), 5),
    "npz": Target(_make_npz, _read_file(".npz"), 5),
    "dump": Target(_make_dump, _resume, 5),
    "settings": Target(_make_settings, _read_settings, 6),
}
