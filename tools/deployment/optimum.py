"""optimum: a folder that optimum.onnxruntime and sentence-transformers load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .kind import Code, Kind, Layout
from .plain import runs_in

if TYPE_CHECKING:
    from ...frontend.model_source import Source
    from .kind import Finished

_LARGEST = 1 << 20
_MODULES = "modules.json"
_WEIGHTLESS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers
_POSITIONS = "position_ids"
_DECODER = "ORTModelForCausalLM"
_TEXT = "The quick brown fox jumps over the lazy dog."
# Whose decoders optimum-onnx 0.1.0 feeds positions, and refuses when the graph takes none.
_WITH_POSITIONS = {
    *("arcee", "codegen", "cohere", "deepseek_v3", "falcon", "glm", "gpt2", "gpt_bigcode"),
    *("gpt_neo", "gpt_neox", "gptj", "granite", "helium", "imagegpt", "internlm2", "llama"),
    *("mistral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe"),
    *("smollm3", "stablelm"),
}


@dataclass(frozen=True)
class _Task:
    """What optimum has for a kind of architecture.

    Attributes:
        ending: How the names of such architectures end.
        loader: The class that loads them.
        outputs: What it reads of the graph.
    """

    ending: str
    loader: str
    outputs: tuple[str, ...] = ("logits",)


_TASKS = (
    _Task("ForCausalLM", _DECODER),
    _Task("LMHeadModel", _DECODER),
    _Task("ForSequenceClassification", "ORTModelForSequenceClassification"),
    _Task("ForTokenClassification", "ORTModelForTokenClassification"),
    _Task("ForMultipleChoice", "ORTModelForMultipleChoice"),
    _Task(
        "ForQuestionAnswering", "ORTModelForQuestionAnswering", ("start_logits", "end_logits")
    ),
    _Task("ForMaskedLM", "ORTModelForMaskedLM"),
    _Task("ForImageClassification", "ORTModelForImageClassification"),
    _Task("ForSemanticSegmentation", "ORTModelForSemanticSegmentation"),
    _Task("ForAudioFrameClassification", "ORTModelForAudioFrameClassification"),
    _Task("ForCTC", "ORTModelForCTC"),
    _Task("", "ORTModelForFeatureExtraction", ("last_hidden_state",)),
)


def _refuse(source: Source) -> None:
    """Refuses what optimum.onnxruntime has no class for.

    Raises:
        InputError: A file of settings is broken.
        UsageError: The settings are missing, or the graph is none that optimum runs.
    """
    settings = source.settings("config.json")
    if not isinstance(settings.get("model_type"), str):
        raise _refusal(
            f"{source.named.name}: no config.json with a model_type comes with it",
            "put the config.json of the original beside the model",
        )
    if settings.get("is_encoder_decoder"):
        raise _refusal(
            f"{source.named.name}, an encoder-decoder that keeps one cache for both",
        )
    _refuse_modules(source)
    task = _task(settings)
    if source.onnx is not None:
        _refuse_graph(source, task, str(settings["model_type"]))
    elif task.loader == _DECODER:
        _refuse_positions(str(settings["model_type"]), ())


def _refusal(what: str, hint: str = "leave out --for optimum") -> Exception:
    from ...ir import UsageError

    return UsageError(f"optimum.onnxruntime cannot run {what}", hint=hint)


def _task(settings: Mapping[str, Any]) -> _Task:
    from ...frontend.model_source import architectures

    name = next(iter(architectures(settings)), "")
    return next(one for one in _TASKS if name.endswith(one.ending))


def _refuse_graph(source: Source, task: _Task, model_type: str) -> None:
    from ...ir import read_model

    assert source.onnx is not None
    graph = read_model(source.onnx).graph
    lacking = set(task.outputs) - {str(value.name) for value in graph.outputs}
    if lacking:
        shown = ", ".join(map(repr, sorted(lacking)))
        raise _refusal(f"{source.named.name}: {task.loader} reads the output {shown}")
    if task.loader == _DECODER:
        _refuse_positions(model_type, [str(value.name) for value in graph.inputs])


def _refuse_positions(model_type: str, inputs: Sequence[str]) -> None:
    if model_type in _WITH_POSITIONS and _POSITIONS not in inputs:
        raise _refusal(
            f"a graph of a {model_type} without the input {_POSITIONS!r}",
            "export it with optimum-cli export onnx and compile that, or take --for genai",
        )


def _refuse_modules(source: Source) -> None:
    """Refuses parts of a sentence-transformers model with weights of their own, or code.

    Raises:
        InputError: ``modules.json`` is broken.
        UsageError: It names such a part.
    """
    for name in _modules(source):
        home, _, last = name.rpartition(".")
        if not home.startswith("sentence_transformers.") or last not in _WEIGHTLESS:
            raise _refusal(
                f"{source.named.name}: {_MODULES} names {name!r}, and of such parts only"
                f" {', '.join(_WEIGHTLESS)} go without weights or code of their own"
            )


def _modules(source: Source) -> list[str]:
    from ...ir import InputError

    path = source.companions().get(_MODULES)
    if path is None:
        return []
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        return [str(one["type"]) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} is no list of modules: {error}") from error


def _lay_out(result: Finished) -> Layout:
    """Leaves the files where they are: that is the layout."""
    task = _task(result.settings)
    said = "In this folder, after `pip install 'optimum-onnx[onnxruntime]'`:"
    blocks = [Code(said, "python", _program(result, task))]
    runtimes = ["optimum-onnx 0.1 (`optimum.onnxruntime`)"]
    if _MODULES in result.companions:
        said = "As a sentence encoder, after `pip install 'sentence-transformers[onnx]'`:"
        blocks.insert(0, Code(said, "python", _sentences(result)))
        runtimes.insert(0, 'sentence-transformers 5 with `backend="onnx"`')
    return Layout(result.model, (*runtimes, runs_in(result)), tuple(blocks))


def _sentences(result: Finished) -> str:
    return f"""\
from sentence_transformers import SentenceTransformer

provider = {{"provider": "{result.target.deployed_provider}"}}
model = SentenceTransformer(".", backend="onnx", model_kwargs=provider)
print(model.encode(["{_TEXT}"]).shape)
"""


def _program(result: Finished, task: _Task) -> str:
    reads_text = any(one.startswith("tokenizer") for one in result.companions)
    lines = [f"from optimum.onnxruntime import {task.loader}"]
    lines.append("from transformers import AutoTokenizer" if reads_text else "import torch")
    loading = f'from_pretrained(".", provider="{result.target.deployed_provider}")'
    lines += ["", f"model = {task.loader}.{loading}"]
    if reads_text:
        lines.append('tokenizer = AutoTokenizer.from_pretrained(".")')
        more = ", return_token_type_ids=False" if task.loader == _DECODER else ""
        lines.append(f'given = tokenizer("{_TEXT}", return_tensors="pt"{more})')
    else:
        lines.append("# Replace the zeros with what the model is to read.")
        lines.append("given = {")
        lines += [
            f"    {one.name!a}: torch.zeros({result.shape(one)})," for one in result.inputs
        ]
        lines.append("}")
    if task.loader == _DECODER:
        lines.append("written = model.generate(**given, max_new_tokens=16)")
        lines.append("print(tokenizer.decode(written[0]))" if reads_text else "print(written)")
    else:
        lines += [f"print(model(**given).{name}.shape)" for name in task.outputs[:1]]
    return "\n".join(lines)


KIND = Kind(program="optimum.onnxruntime", lay_out=_lay_out, refuse=_refuse)
