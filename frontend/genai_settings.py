"""genai_config.json: how onnxruntime-genai runs a model that torch.export has exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..ir import DECODER_FILE, ENCODER_FILE
from .model_inputs import longest_sequence

_NAME = "genai_config.json"
_SPEECH = "whisper"  # the only encoder-decoder with keys and values that genai runs
_GENERAL = "decoder"
_SESSION = {"log_id": "onnxruntime-genai", "provider_options": []}


def write_genai_settings(graph: ir.Model, config: Any, generation: Any, stage: Path) -> None:
    """Writes genai_config.json for a model with a cache, if genai can run such a model.

    Args:
        graph: The exported model.
        config: The config of the transformers model.
        generation: Its generation config, whose special tokens go first; may be None.
        stage: Where it goes.
    """
    inputs = {str(value.name): value for value in graph.graph.inputs}
    if "past_key_values.0.key" in inputs:
        parts = {"decoder": _decoder(inputs)}
        kind = _GENERAL
    elif config.model_type == _SPEECH and "input_features" in inputs:
        parts = {"encoder": _speech_encoder(inputs), "decoder": _crossed_decoder(inputs)}
        kind = _SPEECH
    else:
        return
    shape = graph.graph.outputs[0].shape
    vocabulary = shape[-1] if shape is not None else None
    length = longest_sequence({}, config.to_dict())
    if length is None or not isinstance(vocabulary, int):
        return
    tokens = _special_tokens(config, generation, vocabulary)
    if tokens is None:
        return
    sizes = {"hidden_size": config.hidden_size}  # an attribute map of transformers, if need be
    heads = getattr(config, "num_attention_heads", None)
    if isinstance(heads, int):
        sizes["num_attention_heads"] = heads
    settings = {
        "model": {
            **tokens,
            "context_length": length,
            "type": kind,
            "vocab_size": vocabulary,
            **{name: {**one, **sizes} for name, one in parts.items()},
        },
        "search": {
            "do_sample": False,
            "max_length": length,
            "num_beams": 1,
            "past_present_share_buffer": False,
        },
    }
    text = json.dumps(settings, indent=4, ensure_ascii=False)
    (stage / _NAME).write_text(text + "\n", encoding="utf-8")


def _special_tokens(config: Any, generation: Any, vocabulary: int) -> dict[str, Any] | None:
    """Returns begin, end and padding tokens; None without an end, for genai needs one."""

    def found(name: str) -> list[int]:
        values = [getattr(one, name, None) for one in (generation, config)]
        lists = [one if isinstance(one, list) else [one] for one in values if one is not None]
        known = [[one for one in ids if 0 <= one < vocabulary] for ids in lists]
        return next((ids for ids in known if ids), [])

    end = found("eos_token_id")
    if not end:
        return None
    return {
        "bos_token_id": (found("bos_token_id") or end)[0],
        "eos_token_id": end if len(end) > 1 else end[0],
        "pad_token_id": (found("pad_token_id") or end)[0],
    }


def _cache(inputs: Mapping[str, ir.Value], pattern: str) -> dict[str, Any]:
    """Returns number and sizes of the heads whose past ``pattern`` names."""
    shape = inputs[pattern.replace("%d", "0")].shape
    assert shape is not None
    count = sum(pattern.replace("%d", str(at)) in inputs for at in range(len(inputs)))
    return {
        "session_options": _SESSION,
        "num_attention_heads": shape[1],
        "num_key_value_heads": shape[1],
        "num_hidden_layers": count,
        "head_size": shape[3],
    }


def _decoder(inputs: Mapping[str, ir.Value]) -> dict[str, Any]:
    return {
        **_cache(inputs, "past_key_values.%d.key"),
        "filename": "model.onnx",
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }


def _speech_encoder(inputs: Mapping[str, ir.Value]) -> dict[str, Any]:
    return {
        **_cache(inputs, "past_key_values.%d.decoder.key"),
        "filename": ENCODER_FILE,
        "inputs": {"audio_features": "input_features"},
        "outputs": {
            "encoder_hidden_states": "last_hidden_state",
            "cross_present_key_names": "present.%d.encoder.key",
            "cross_present_value_names": "present.%d.encoder.value",
        },
    }


def _crossed_decoder(inputs: Mapping[str, ir.Value]) -> dict[str, Any]:
    return {
        **_cache(inputs, "past_key_values.%d.decoder.key"),
        "filename": DECODER_FILE,
        "inputs": {
            "input_ids": "input_ids",
            "past_key_names": "past_key_values.%d.decoder.key",
            "past_value_names": "past_key_values.%d.decoder.value",
            "cross_past_key_names": "past_key_values.%d.encoder.key",
            "cross_past_value_names": "past_key_values.%d.encoder.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.decoder.key",
            "present_value_names": "present.%d.decoder.value",
        },
    }
