"""Models that generate, with their cache of keys and values as inputs and outputs.

A decoder becomes one graph from tokens and past to logits and present. An encoder-decoder
becomes one graph too, from the encoder's inputs, the decoder's tokens and past to logits; the
keys and values that cross attention takes from the encoder are outputs as well, which is where
the graph can be cut into an encoder and a decoder that does not repeat its work.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ..ir import DECODER_TOKENS, ENCODER_STATES
from .traced import EXAMPLE_BATCH, EXAMPLE_PAST, EXAMPLE_TOKENS, Example, Traced

_LAYERS = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")  # of configs
_DECODER_TOKENS = 5  # another number than of the encoder's tokens, so that axes stay apart


class _Decoder(torch.nn.Module):
    """A decoder whose past is a list of arrays."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.cached = model, _cache_argument(model)

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns logits and what the cache holds then, from tokens, mask and past."""
        cache = _filled(arrays[2:])
        found = self.model(
            input_ids=arrays[0],
            attention_mask=arrays[1],
            **{self.cached: cache},
            use_cache=True,
            return_dict=True,
        )
        return (found.logits, *_held(cache))


class _EncoderDecoder(torch.nn.Module):
    """An encoder-decoder whose past is a list of arrays; the encoder always runs."""

    def __init__(self, model: Any, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.cached = model, inputs, _cache_argument(model)

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns logits, the decoder's cache, and the encoder's keys, values and states."""
        count = len(self.inputs)
        given = dict(zip(self.inputs, arrays[:count], strict=True))
        encoded = self.model.get_encoder()(**given, return_dict=True)
        cache: Any = EncoderDecoderCache(_filled(arrays[count + 1 :]), DynamicCache())
        mask = {name: one for name, one in given.items() if name == "attention_mask"}
        found = self.model(
            encoder_outputs=encoded,
            decoder_input_ids=arrays[count],
            use_cache=True,
            return_dict=True,
            **mask,
            **{self.cached: cache},
        )
        own, crossed = cache.self_attention_cache, cache.cross_attention_cache
        return (found.logits, *_held(own), *_held(crossed), encoded.last_hidden_state)


def _cache_argument(model: Any) -> str:
    """Returns the name of the cache, which newer versions of transformers have changed."""
    taken = inspect.signature(model.forward).parameters
    return "cache" if "cache" in taken else "past_key_values"


def cached_decoder(model: Any) -> Traced | None:
    """Returns a decoder with its cache, or None if the cache is not one of keys and values."""
    module = _Decoder(model)
    shape = (EXAMPLE_BATCH, EXAMPLE_TOKENS)
    ids = torch.arange(EXAMPLE_BATCH * EXAMPLE_TOKENS).reshape(shape)
    ids = ids % int(getattr(model.config, "vocab_size", 32))
    try:
        with torch.no_grad():
            _, *held = module(ids, torch.ones_like(ids))
    except Exception:  # whatever a model raises that knows no such cache
        return None
    if not _are_keys_and_values(held, EXAMPLE_TOKENS, model):
        return None
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("sequence", min=2)
    total = torch.ones(EXAMPLE_BATCH, EXAMPLE_PAST + EXAMPLE_TOKENS, dtype=torch.int64)
    example = Example(
        {"input_ids": ids, "attention_mask": total},
        {
            "input_ids": {0: batch, 1: tokens},
            "attention_mask": {0: batch, 1: torch.export.Dim.DYNAMIC},
        },
    )
    past = _past("past_key_values.{layer}.{kind}", held, batch, "past_sequence_length")
    outputs = ("logits", *_names("present.{layer}.{kind}", len(held)))
    return Traced(module, example | past, outputs)


def encoder_decoder(model: Any, encoder: Example) -> Traced | None:
    """Returns an encoder-decoder with its cache, or None if it has no such cache.

    Args:
        model: The model.
        encoder: An example for its encoder.
    """
    module = _EncoderDecoder(model, tuple(encoder.inputs))
    shape = (EXAMPLE_BATCH, _DECODER_TOKENS)
    ids = torch.arange(EXAMPLE_BATCH * _DECODER_TOKENS).reshape(shape)
    try:
        with torch.no_grad():
            _, *held, _ = module(*encoder.inputs.values(), ids)
    except Exception:  # whatever a model raises that knows no such cache
        return None
    own = held[: len(held) // 2]
    if not _are_keys_and_values(own, _DECODER_TOKENS, model):
        return None
    batch = next(iter(encoder.dynamic.values()))[0]
    tokens = torch.export.Dim("decoder_sequence_length", min=2)
    example = Example({DECODER_TOKENS: ids}, {DECODER_TOKENS: {0: batch, 1: tokens}})
    length = "past_decoder_sequence_length"
    past = _past("past_key_values.{layer}.decoder.{kind}", own, batch, length)
    outputs = (
        "logits",
        *_names("present.{layer}.decoder.{kind}", len(own)),
        *_names("present.{layer}.encoder.{kind}", len(own)),
        ENCODER_STATES,
    )
    return Traced(module, encoder | example | past, outputs)


def _filled(past: tuple[torch.Tensor, ...]) -> DynamicCache:
    """Returns a cache that holds the keys and values of ``past``, which take turns."""
    cache = DynamicCache()
    for layer in range(len(past) // 2):
        cache.update(past[2 * layer], past[2 * layer + 1], layer)
    return cache


def _held(cache: Any) -> list[torch.Tensor]:
    return [one for layer in cache.layers for one in (layer.keys, layer.values)]


def _are_keys_and_values(held: list[Any], tokens: int, model: Any) -> bool:
    """Whether the cache has keys and values of every token, for every layer."""
    known = (getattr(model.config, name, None) for name in _LAYERS)
    layers = next((one for one in known if isinstance(one, int)), 0)
    if not held or len(held) < 2 * layers:
        return False
    return all(
        isinstance(one, torch.Tensor) and one.dim() == 4 and one.shape[2] == tokens
        for one in held
    )


def _past(pattern: str, held: list[torch.Tensor], batch: Any, length: str) -> Example:
    past = torch.export.Dim(length)
    names = _names(pattern, len(held))
    states = [one[:, :, :EXAMPLE_PAST].clone() for one in held]
    return Example(
        dict(zip(names, states, strict=True)), {name: {0: batch, 2: past} for name in names}
    )


def _names(pattern: str, count: int) -> list[str]:
    """Returns names of ``count`` states, keys and values in turn."""
    kinds = ("key", "value")
    return [pattern.format(layer=at // 2, kind=kinds[at % 2]) for at in range(count)]
