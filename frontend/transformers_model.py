"""A model that transformers knows -> ONNX through torch.export.

The pooling and normalization that a sentence-transformers folder adds after the encoder are
not part of the exported model; ``mpqc eval`` pools by itself.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from ..ir import InputError, MachineError, write_model
from .cached_model import cached_decoder, encoder_decoder
from .experts import one_operator
from .genai_settings import write_genai_settings
from .model_source import COMPANIONS, architectures
from .text import has_tokenizer
from .torch_module import from_module
from .traced import EXAMPLE_BATCH, EXAMPLE_TOKENS, ByPosition, Example, Traced

Say = Callable[[str], None]

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MOSTLY = 0.99
_OUTPUTS = (
    "logits",
    "logits_per_image",
    "text_embeds",
    "image_embeds",
    "last_hidden_state",
    "pooler_output",
)


def export_model(folder: Path, stage: Path, settings: Mapping[str, Any], say: Say) -> None:
    """Writes the model of a Hugging Face folder as ``stage/model.onnx``.

    Args:
        folder: The folder.
        stage: Where the files go.
        settings: Its config.json.
        say: Gets a line if a part of the model is not in the graph.

    Raises:
        InputError: transformers or torch.export cannot follow it.
        MachineError: transformers is not installed.
    """
    model = _load(folder, settings)
    with one_operator(model):
        graph = _exported(model)
    _tell_what_is_missing(model, graph, say)
    write_model(graph, stage / "model.onnx")
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)
    if has_tokenizer({path.name: path for path in folder.iterdir()}):
        generation = getattr(model, "generation_config", None)
        write_genai_settings(graph, model.config, generation, stage)


def _tell_what_is_missing(model: Any, graph: ir.Model, say: Say) -> None:
    """Says how much of the model's weights the graph does not have."""
    sizes = [value.numel() for value in {*model.parameters()}]
    found = [value.const_value for value in graph.graph.initializers.values()]
    held = sum(one.size for one in found if one is not None and one.dtype.is_floating_point())
    if held < _MOSTLY * sum(sizes):
        say(
            f"warning: {type(model).__name__} has {sum(sizes)} weights, the graph only {held}:"
            f" what its outputs {_listed(graph)} do not need is left out"
        )


def _listed(graph: ir.Model) -> str:
    names = [str(value.name) for value in graph.graph.outputs if "." not in str(value.name)]
    return ", ".join(map(repr, names))


def _exported(model: Any) -> ir.Model:
    traced = _traced(model)
    graph = from_module(
        traced.module,
        tuple(traced.example.inputs.values()),
        (tuple(traced.example.dynamic.values()),),
        input_names=tuple(traced.example.inputs),
        output_names=traced.outputs,
    )
    for value in list(graph.graph.initializers.values()):
        value.name = str(value.name).removeprefix("model.")  # the name of our own wrapper
    return graph


def _traced(model: Any) -> Traced:
    """Returns what to export: with a cache if the model generates, else from end to end."""
    generates = model.can_generate()
    if getattr(model.config, "is_encoder_decoder", False):
        found = encoder_decoder(model, _example(model.get_encoder())) if generates else None
        if found is not None:
            return found
        raise InputError(
            f"no export for {type(model).__name__}: an encoder-decoder without logits",
            hint="export its parts to ONNX yourself and give the .onnx files",
        )
    found = cached_decoder(model) if generates else None
    if found is not None:
        return found
    return _uncached(model)


def _uncached(model: Any) -> Traced:
    example = _example(model)
    names = tuple(example.inputs)
    try:
        with torch.no_grad():
            found = model(**example.inputs, return_dict=True)
    except Exception as error:  # whatever a model raises that wants other inputs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{type(model).__name__} does not run on {', '.join(names)} alone: {reason}",
            hint="export it to ONNX yourself and give the .onnx file",
        ) from error
    outputs = tuple(name for name in _OUTPUTS if found.get(name) is not None)
    if not outputs:
        raise InputError(
            f"{type(model).__name__} has none of the outputs {', '.join(_OUTPUTS)}"
        )
    if "logits" in outputs:
        outputs = ("logits",)
    return Traced(ByPosition(model, names, outputs), example, outputs)


def _load(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Returns the model in evaluation mode."""
    try:
        import transformers
    except ImportError as error:
        raise MachineError(
            "reading a Hugging Face folder needs transformers", hint="pip install 'mpqc[hf]'"
        ) from error
    known = [getattr(transformers, one, None) for one in architectures(settings)]
    kind: Any = next((one for one in known if isinstance(one, type)), transformers.AutoModel)
    shown: Any = transformers.logging
    shown.set_verbosity_error()
    shown.disable_progress_bar()
    try:
        model = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # transformers raises many kinds for a broken folder
        text = str(error).strip().splitlines()
        reason = text[0] if text else type(error).__name__
        raise InputError(f"transformers cannot read the folder: {reason}") from error
    model.config.use_cache = False
    return model.eval()


def _example(model: Any) -> Example:
    """Returns inputs to trace with: those of both towers, or by the model's main input."""
    taken = inspect.signature(model.forward).parameters
    text, image = (getattr(model.config, f"{one}_config", None) for one in ("text", "vision"))
    if text is not None and image is not None and {"input_ids", "pixel_values"} <= {*taken}:
        return _text_example(taken, text) | _image_example(image, "image_batch")
    main = getattr(model, "main_input_name", "input_ids")
    makers: dict[str, Callable[[], Example]] = {
        "input_ids": lambda: _text_example(taken, model.config),
        "pixel_values": lambda: _image_example(model.config, "batch"),
        "input_features": lambda: _feature_example(model.config),
        "input_values": _wave_example,
    }
    if main not in makers:
        raise InputError(
            f"no export for {type(model).__name__}, which reads {main!r}",
            hint="export it to ONNX yourself and give the .onnx file",
        )
    return makers[main]()


def _text_example(taken: Container[str], config: Any) -> Example:
    segments = getattr(config, "type_vocab_size", 0) or 0
    names = [name for name in _TEXT_INPUTS if name in taken]
    if segments < 1 and "token_type_ids" in names:
        names.remove("token_type_ids")
    shape = (EXAMPLE_BATCH, EXAMPLE_TOKENS)
    values = {
        "input_ids": torch.arange(EXAMPLE_BATCH * EXAMPLE_TOKENS).reshape(shape)
        % int(getattr(config, "vocab_size", 32)),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "token_type_ids": torch.zeros(shape, dtype=torch.int64),
    }
    longest = getattr(config, "max_position_embeddings", None)
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim(
        "sequence", min=2, max=longest if isinstance(longest, int) else None
    )
    return Example(
        {name: values[name] for name in names}, {name: {0: batch, 1: tokens} for name in names}
    )


def _image_example(config: Any, batch: str) -> Example:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    image = torch.zeros(EXAMPLE_BATCH, config.num_channels, height, width)
    return Example({"pixel_values": image}, {"pixel_values": {0: torch.export.Dim(batch)}})


def _feature_example(config: Any) -> Example:
    frames = 2 * int(config.max_source_positions)  # the first convolution halves them
    features = torch.zeros(EXAMPLE_BATCH, int(config.num_mel_bins), frames)
    return Example(
        {"input_features": features}, {"input_features": {0: torch.export.Dim("batch")}}
    )


def _wave_example() -> Example:
    wave = torch.zeros(EXAMPLE_BATCH, 16_000)
    return Example({"input_values": wave}, {"input_values": {0: torch.export.Dim("batch")}})
