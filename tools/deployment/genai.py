"""genai: a folder that onnxruntime-genai generates text from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kind import Code, Kind, Layout
from .plain import installed_version

if TYPE_CHECKING:
    from ...frontend.model_source import Source
    from .kind import Finished

SETTINGS = "genai_config.json"
_GENERATING = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_SPEECH = "whisper"
_PACKAGES = ("onnxruntime-genai-cuda", "onnxruntime-genai")

_SCORED = "Scores on the tasks of lm-eval, after `pip install 'lm_eval>=0.4.13'`:"
_SCORE = "lm_eval run --model onnxruntime-genai --model_args pretrained=. --tasks hellaswag"
_WRITES = """\
import onnxruntime_genai as genai

model = genai.Model(".")
tokenizer = genai.Tokenizer(model)
options = genai.GeneratorParams(model)
options.set_search_options(max_length=64, do_sample=False)
generator = genai.Generator(model, options)
generator.append_tokens(tokenizer.encode("Once upon a time"))
shown = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(shown.decode(generator.get_next_tokens()[0]), end="", flush=True)
"""
_HEARS = """\
import numpy as np
import onnxruntime_genai as genai

model = genai.Model(".")
options = genai.GeneratorParams(model)
options.set_search_options(max_length=16, do_sample=False)
generator = genai.Generator(model, options)
# Replace the zeros with the log-mel spectrogram of what the model is to hear.
generator.set_model_input("input_features", np.zeros(SHAPE, np.float32))
generator.append_tokens(np.array([[START]], np.int32))
while not generator.is_done():
    generator.generate_next_token()
print(generator.get_sequence(0))
"""


def _refuse(source: Source) -> None:
    """Refuses what onnxruntime-genai cannot run.

    Raises:
        InputError: Its settings ask for code to be run.
        UsageError: There is no ``genai_config.json``, no export makes one, or there is no
            tokenizer.
    """
    from ...backend.onnxruntime.generation import refuse_code
    from ...frontend.text import has_tokenizer
    from ...ir import UsageError

    companions = source.companions()
    refuse_code(source.settings(SETTINGS))
    if source.onnx is None:
        _refuse_unexported(source)
    elif SETTINGS not in companions:
        raise UsageError(
            f"onnxruntime-genai cannot run {source.named.name}: no {SETTINGS} comes with it",
            hint="compile the Hugging Face folder of a decoder, or leave out --for genai",
        )
    if not has_tokenizer(companions):
        raise UsageError(
            f"onnxruntime-genai needs a tokenizer, and none comes with {source.named.name}",
            hint="put tokenizer.json beside the model, or leave out --for genai",
        )


def _refuse_unexported(source: Source) -> None:
    from ...frontend.model_source import architectures
    from ...ir import UsageError

    settings = source.settings("config.json")
    names = architectures(settings)
    generates = any(name.endswith(_GENERATING) for name in names)
    two_parts = settings.get("is_encoder_decoder") and settings.get("model_type") != _SPEECH
    if (names and not generates) or two_parts:
        kind = names[0] if names else "this encoder-decoder"
        raise UsageError(
            f"onnxruntime-genai cannot run {kind}: no export of it comes with {SETTINGS}",
            hint="leave out --for genai",
        )


def _lay_out(result: Finished) -> Layout:
    given: dict[str, Any] = {one.name: one for one in result.inputs}
    hears = "input_features" in given
    code = _WRITES
    if hears:
        start = result.settings.get("decoder_start_token_id")
        token = start if isinstance(start, int) else 0
        shape = str(result.shape(given["input_features"]))
        code = _HEARS.replace("SHAPE", shape).replace("START", str(token))
    said = "In this folder, after `pip install onnxruntime-genai`:"
    blocks = [Code(said, "python", code)]
    if not hears:
        text = "mpqc generate . 'Once upon a time' --max-tokens 64"
        blocks.insert(0, Code("A first look, with mpqc:", "console", f"$ {text}"))
        blocks.append(Code(_SCORED, "console", f"$ {_SCORE}"))
    return Layout(
        result.model,
        (f"onnxruntime-genai {installed_version(_PACKAGES)} or newer",),
        tuple(blocks),
    )


KIND = Kind(program="onnxruntime-genai", lay_out=_lay_out, refuse=_refuse)
