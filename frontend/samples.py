"""Samples to calibrate and evaluate on, from text, from array files, or from noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..ir import Calibration, Feeds, InputError, UsageError
from . import default_text
from .array_files import ARRAY_SUFFIXES, array_samples
from .model_inputs import (
    HeadShape,
    ModelInput,
    head_shape,
    longest_sequence,
    model_inputs,
    random_feed,
    token_feed,
)
from .model_source import Source
from .text import (
    evaluation_chunks,
    framed_chunks,
    has_tokenizer,
    load_encoder,
    read_texts,
    spread_chunks,
    text_files,
)

Say = Callable[[str], None]

_HELD_OUT = 2  # samples beside those that are fitted to; they prove the result


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples for one model.

    Attributes:
        source: Where the model and its companion files are.
        inputs: The inputs of the model.
        heads: Sizes of the key and value cache that the graph leaves open.
        say: Gets a line for each default that was used.
    """

    source: Source
    inputs: list[ModelInput]
    heads: HeadShape
    say: Say = _silent

    @classmethod
    def of(cls, model: ir.Model, source: Source, say: Say = _silent) -> SampleMaker:
        """Looks at the model's inputs and the files beside it."""
        genai, settings = source.settings("genai_config.json"), source.settings("config.json")
        return cls(source, model_inputs(model), head_shape(genai, settings), say)

    @property
    def tokens(self) -> ModelInput | None:
        """The input that carries token ids, if the model reads tokens."""
        return next((one for one in self.inputs if one.role == "tokens"), None)

    @property
    def mask(self) -> str | None:
        """Name of the input that tells tokens from padding, if there is one.

        That of an encoder tells nothing about its decoder's tokens.
        """
        if any(one.role == "source" for one in self.inputs):
            return None
        return next((one.name for one in self.inputs if one.role == "mask"), None)

    @property
    def reads_text(self) -> bool:
        """Whether text can be turned into samples."""
        return self.tokens is not None and has_tokenizer(self.source.companions())

    def calibration(
        self,
        paths: Sequence[Path] = (),
        *,
        samples: int,
        sequence_length: int,
        random: bool = False,
        seed: int = 0,
    ) -> Calibration:
        """Returns samples to calibrate on.

        Args:
            paths: Text files, array files, or folders of either; none for the default text.
            samples: Number of samples.
            sequence_length: Tokens in a sample.
            random: Make noise when there is nothing better to be had.
            seed: Seed of the noise.

        Raises:
            InputError: The files do not fit the model, or there are none and no tokenizer.
            UsageError: Files and noise are both asked for.
        """
        if paths and random:
            raise UsageError(
                "random calibration and calibration files contradict each other",
                hint="leave out --random-calibration",
            )
        if paths:
            arrays = array_files_in(paths)
            if arrays:
                return self._from_arrays(arrays, samples)
            files = text_files(paths)
            named = ", ".join(path.name for path in files[:4]) + (", ..." if files[4:] else "")
            return self._from_text(read_texts(files), named, samples, sequence_length)
        if random:
            return self._from_noise(samples, sequence_length, seed)
        if not self.reads_text:
            raise InputError(_nothing(self.tokens is not None), hint=_SOMETHING)
        self.say(f"no calibration text given: calibrating on {default_text.NAME}")
        return self._from_default(samples, sequence_length)

    def evaluation(
        self, paths: Sequence[Path], *, samples: int, sequence_length: int
    ) -> list[Feeds]:
        """Returns samples to measure on: even chunks of text, or the arrays of files."""
        arrays = array_files_in(paths)
        if arrays:
            return list(array_samples(arrays, self.inputs, samples))
        text = read_texts(text_files(paths))
        return list(self._text_feeds(text, samples, sequence_length, evaluation_chunks))

    def _from_default(self, samples: int, length: int) -> Calibration:
        """Takes half of the samples from each of the two texts that are always there."""
        wanted = samples + _HELD_OUT
        prose = default_text.own_prose()
        feeds = self._text_feeds(prose, (wanted + 1) // 2, length, spread_chunks)
        topics = default_text.python_topics()
        feeds += self._text_feeds(topics, wanted - len(feeds), length, spread_chunks)
        return self._of_text(feeds, default_text.NAME, samples)

    def _from_text(self, text: str, name: str, samples: int, length: int) -> Calibration:
        feeds = self._text_feeds(text, samples + _HELD_OUT, length, spread_chunks)
        return self._of_text(feeds, name, samples)

    def _of_text(
        self, feeds: list[dict[str, np.ndarray]], name: str, samples: int
    ) -> Calibration:
        if len(feeds) < samples:
            self.say(f"{name} is short: {len(feeds)} samples instead of {samples}")
        feeds = _held_out_last(feeds)
        tokens = self.tokens
        assert tokens is not None
        width = feeds[0][tokens.name].shape[-1]
        fitted = max(1, len(feeds) - _HELD_OUT)
        source = f"{fitted} x {width} tokens of {name}"
        return Calibration(
            feeds, source, feeds_key(feeds), tokens.name, held_out=_HELD_OUT, mask=self.mask
        )

    def _text_feeds(
        self,
        text: str,
        samples: int,
        length: int,
        rule: Callable[[np.ndarray, int, int], list[np.ndarray]],
    ) -> list[dict[str, np.ndarray]]:
        tokens = self.tokens
        if tokens is None:
            raise InputError("the model reads no tokens, so text cannot be fed", hint=_ARRAYS)
        encoder = load_encoder(self.source.companions())
        chunks = framed_chunks(encoder, text, samples, self._fitting(length), rule)
        highest = max(int(chunk.max()) for chunk in chunks)
        if tokens.vocabulary and highest >= tokens.vocabulary:
            raise InputError(
                f"the tokenizer gives the id {highest}, but the model's embedding has only"
                f" {tokens.vocabulary} rows",
                hint="the tokenizer beside the model belongs to another model",
            )
        return [token_feed(self.inputs, chunk, self.heads) for chunk in chunks]

    def _fitting(self, length: int) -> int:
        """Returns ``length``, or the shorter one that the model can read."""
        tokens = self.tokens
        assert tokens is not None
        if tokens.length == 0:
            raise InputError(f"the input {tokens.name!r} has room for 0 tokens")
        if tokens.length is not None:
            return tokens.length
        limit = longest_sequence(
            self.source.settings("genai_config.json"), self.source.settings("config.json")
        )
        if limit is not None and limit < length:
            self.say(f"the model reads at most {limit} tokens: samples are that long")
            return limit
        return length

    def _from_arrays(self, files: Sequence[Path], samples: int) -> Calibration:
        feeds = array_samples(files, self.inputs, samples)
        named = ", ".join(path.name for path in files[:4]) + (", ..." if files[4:] else "")
        source = f"{len(feeds)} samples of {named}"
        tokens = self.tokens
        name = tokens.name if tokens else None
        return Calibration(
            feeds, source, feeds_key(feeds), name, mask=self.mask_of_tokens(feeds)
        )

    def mask_of_tokens(self, feeds: Sequence[Feeds]) -> str | None:
        """Returns the name of the mask unless it marks padding instead of tokens.

        Padding has one id everywhere, and no sample is made of padding alone.
        """
        if self.mask is None or self.mask not in feeds[0]:
            return self.mask
        marks = [np.asarray(feed[self.mask]) != 0 for feed in feeds]
        is_other = any(not one.any() for one in marks)
        if self.tokens is not None and not is_other:
            ids = [np.asarray(feed[self.tokens.name]) for feed in feeds]
            inside, outside = (_distinct(ids, marks, real) for real in (True, False))
            is_other = inside <= 1 < outside
        if not is_other:
            return self.mask
        self.say(f"{self.mask!r} does not mark the tokens of samples: all places count")
        return None

    def _from_noise(self, samples: int, length: int, seed: int) -> Calibration:
        source = np.random.default_rng(seed)
        tokens = self.tokens
        length = self._fitting(length) if tokens else length
        feeds = [random_feed(self.inputs, length, source, self.heads) for _ in range(samples)]
        self.say("calibrating on random noise: expect worse quality than on real samples")
        words = f"{samples} random samples (seed {seed})"
        name = tokens.name if tokens else None
        return Calibration(feeds, words, feeds_key(feeds), name, random=True, mask=self.mask)


_ARRAYS = "give an .npz or .safetensors file of arrays named like the inputs"
_SOMETHING = (
    "give samples: --calibration samples.npz (arrays named like the inputs),"
    " or --random-calibration"
)


def _distinct(ids: Sequence[np.ndarray], marks: Sequence[np.ndarray], real: bool) -> int:
    """Returns how many different ids stand where the marks are ``real``."""
    found = [
        one[mark == real]
        for one, mark in zip(ids, marks, strict=True)
        if one.shape == mark.shape
    ]
    return len(np.unique(np.concatenate(found))) if found else 0


def _held_out_last(feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Moves the samples that prove the result, taken from inside the text, to the end."""
    count = len(feeds)
    kept = {(at + 1) * count // (_HELD_OUT + 1) for at in range(_HELD_OUT)}
    chosen = [feeds[at] for at in sorted(kept) if at < count]
    return [feed for at, feed in enumerate(feeds) if at not in kept] + chosen


def _nothing(tokens: bool) -> str:
    if tokens:
        return "there is no tokenizer beside the model, and no calibration data was given"
    return "the model reads no text, and no calibration data was given"


def array_files_in(paths: Sequence[Path]) -> list[Path]:
    """Returns the array files that ``paths`` (files and folders) name; empty if they are text.

    Raises:
        InputError: A path does not exist, or arrays and texts are mixed.
    """
    found, others = [], 0
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if _is_array_file(one))
            found += inside
            others += not inside
        elif not path.is_file():
            raise InputError(
                f"{path} does not exist", hint="name a text file, an .npz file or a folder"
            )
        elif _is_array_file(path):
            found.append(path)
        else:
            others += 1
    if found and others:
        raise InputError("arrays and texts cannot be mixed", hint="give one kind of file")
    return found


def _is_array_file(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES


def feeds_key(feeds: Sequence[Feeds]) -> str:
    """Returns a hash of all names, types, shapes and values."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
