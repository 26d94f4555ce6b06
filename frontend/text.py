"""Text -> token ids: reading text files, tokenizing them, cutting even chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ir import InputError, MachineError

TEXT_SUFFIXES = (".txt", ".md")
_LARGEST_TEXT = 32 << 20
_SLOW_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer, reduced to what calibration and evaluation need.

    Attributes:
        ids: Maps a text to its token ids, special tokens included.
        prefix: Special tokens that open every sequence.
        suffix: Special tokens that close every sequence; only sentence models have them.
        bare: Maps a text to its token ids without special tokens.
    """

    ids: Callable[[str], list[int]]
    bare: Callable[[str], list[int]]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def reads_sentences(self) -> bool:
        """Whether sequences are closed by a special token, as for BERT, and not continued."""
        return bool(self.suffix)


def has_tokenizer(companions: Mapping[str, Path]) -> bool:
    """Returns whether the companion files include a tokenizer."""
    return "tokenizer.json" in companions or any(one in companions for one in _SLOW_TOKENIZERS)


def load_encoder(companions: Mapping[str, Path]) -> TextEncoder:
    """Loads the tokenizer among the companion files.

    Raises:
        InputError: There is none, or it cannot be read.
        MachineError: The package that reads it is not installed.
    """
    path = companions.get("tokenizer.json")
    if path is not None:
        return _fast_encoder(path)
    slow = next((companions[one] for one in _SLOW_TOKENIZERS if one in companions), None)
    if slow is None:
        raise InputError(
            "no tokenizer beside the model",
            hint="put tokenizer.json beside it, or give arrays: --calibration samples.npz",
        )
    return _slow_encoder(slow.parent)


def _fast_encoder(path: Path) -> TextEncoder:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MachineError("the package tokenizers is missing", hint=_INSTALL) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise InputError(f"{path} is not a readable tokenizer: {_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    def bare(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return TextEncoder(ids, bare, *_frame(ids, bare))


def _slow_encoder(folder: Path) -> TextEncoder:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MachineError("the package transformers is missing", hint=_INSTALL) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds for a broken folder
        raise InputError(f"{folder} holds no readable tokenizer: {_line(error)}") from error

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, verbose=False).input_ids)

    def bare(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    return TextEncoder(ids, bare, *_frame(ids, bare))


_INSTALL = "pip install 'mpqc[hf]'"


def _frame(
    ids: Callable[[str], list[int]], bare: Callable[[str], list[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the special tokens before and after a text."""
    whole, inner = ids("a"), bare("a")
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return tuple(whole[:start]), tuple(whole[start + len(inner) :])
    return (), ()


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def text_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the text files that ``paths`` (files and folders) name.

    Raises:
        InputError: A path does not exist, or a folder holds no text.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in TEXT_SUFFIXES)
        if path.is_file():
            found.append(path)
        elif not path.is_dir():
            raise InputError(
                f"{path} does not exist", hint="name a text file or a folder of them"
            )
        elif not inside:
            raise InputError(f"{path} holds no .txt or .md file")
        else:
            found += [one for one in inside if one.is_file()]
    return found


def read_texts(files: Sequence[Path]) -> str:
    """Returns the joined content of text files.

    Raises:
        InputError: A file is not text, or there is too much text in all, or none.
    """
    parts, size = [], 0
    for path in files:
        try:
            size += path.stat().st_size
            if size > _LARGEST_TEXT:
                raise InputError(
                    f"more than {_LARGEST_TEXT >> 20} MB of text", hint="a few MB are plenty"
                )
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if b"\0" in raw[:4096]:
            raise InputError(f"{path} is not text: it holds NUL bytes")
        parts.append(
            raw.decode("utf-8", errors="ignore").replace("\r\n", "\n").replace("\r", "\n")
        )
    text = "\n".join(parts)
    if not text.strip():
        raise InputError("the text is empty: " + ", ".join(str(path) for path in files))
    return text


def spread_chunks(ids: np.ndarray, count: int, length: int) -> list[np.ndarray]:
    """Returns at most ``count`` chunks of ``length`` tokens, spread evenly from end to end.

    A text shorter than that gives as many whole chunks as it has, and at least one.
    """
    fitting = max(1, min(count, len(ids) // length))
    last = max(0, len(ids) - length)
    starts = [round(at * last / max(1, fitting - 1)) for at in range(fitting)]
    return [ids[start : start + length] for start in starts]


def evaluation_chunks(ids: np.ndarray, count: int, length: int) -> list[np.ndarray]:
    """Returns the chunks that evaluation measures on: ``ids[i * step : i * step + length]``.

    Here ``step = len(ids) // (count + 1)``, the rule of the project's independent measure.

    Raises:
        InputError: The text is too short to measure anything.
    """
    step = len(ids) // (count + 1)
    chunks = [ids[at * step : at * step + length] for at in range(count)]
    if step < 1 or min(len(chunk) for chunk in chunks) < 2:
        raise InputError(f"the text has only {len(ids)} tokens", hint="give a longer text")
    return chunks


def framed_chunks(
    encoder: TextEncoder,
    text: str,
    count: int,
    length: int,
    rule: Callable[[np.ndarray, int, int], list[np.ndarray]] = spread_chunks,
) -> list[np.ndarray]:
    """Cuts ``text`` into chunks; those of a sentence model open and close as sentences do.

    Args:
        encoder: The tokenizer.
        text: What to cut.
        count: Number of chunks wanted.
        length: Tokens in a chunk, special ones included.
        rule: Where to cut.
    """
    if not encoder.reads_sentences:
        return rule(np.asarray(encoder.ids(text), np.int64), count, length)
    inner = length - len(encoder.prefix) - len(encoder.suffix)
    ids = np.asarray(encoder.bare(text), np.int64)
    return [
        np.asarray([*encoder.prefix, *chunk, *encoder.suffix], np.int64)
        for chunk in rule(ids, count, max(1, inner))
    ]
