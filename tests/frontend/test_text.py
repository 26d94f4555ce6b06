from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpqc.frontend.text import (
    TextEncoder,
    evaluation_chunks,
    framed_chunks,
    load_encoder,
    read_texts,
    spread_chunks,
    text_files,
)
from mpqc.ir import InputError


def test_chunks_spread_from_end_to_end() -> None:
    chunks = spread_chunks(np.arange(100), 3, 10)
    assert [chunk[0] for chunk in chunks] == [0, 45, 90]
    assert {len(chunk) for chunk in chunks} == {10}


def test_short_texts_give_fewer_chunks() -> None:
    assert len(spread_chunks(np.arange(25), 8, 10)) == 2
    assert [len(one) for one in spread_chunks(np.arange(5), 8, 10)] == [5]


def test_evaluation_follows_the_independent_measure() -> None:
    chunks = evaluation_chunks(np.arange(100), 4, 10)
    assert [chunk[0] for chunk in chunks] == [0, 20, 40, 60]
    with pytest.raises(InputError, match="only 3 tokens"):
        evaluation_chunks(np.arange(3), 4, 10)


def test_sentences_open_and_close() -> None:
    encoder = TextEncoder(lambda text: [1], lambda text: list(range(10, 30)), (1,), (2,))
    chunks = framed_chunks(encoder, "", 2, 6)
    assert [list(chunk) for chunk in chunks] == [
        [1, 10, 11, 12, 13, 2],
        [1, 26, 27, 28, 29, 2],
    ]


def test_texts_are_read_in_order_and_checked(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "c.bin").write_bytes(b"\0")
    files = text_files([tmp_path])
    assert [path.name for path in files] == ["a.txt", "b.md"]
    assert read_texts(files) == "one\n\ntwo"
    with pytest.raises(InputError, match="NUL"):
        read_texts([tmp_path / "c.bin"])
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(InputError, match="empty"):
        read_texts([tmp_path / "a.txt"])
    with pytest.raises(InputError, match="does not exist"):
        text_files([tmp_path / "none"])


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer"):
        load_encoder({"tokenizer.json": tmp_path / "tokenizer.json"})


def test_bert_like_tokenizers_are_seen_through(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.enable_truncation(2)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    encoder = load_encoder({"tokenizer.json": path})
    assert (encoder.prefix, encoder.suffix) == ((0,), (1,))
    assert encoder.reads_sentences
    assert encoder.bare("a a a a") == [3, 3, 3, 3]
