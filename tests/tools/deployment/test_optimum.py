"""A folder for optimum.onnxruntime and sentence-transformers, loaded by both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpqc
from mpqc.ir import InputError, UsageError
from mpqc.tools.evaluate import evaluate
from mpqc.tools.export import export_folder

from ...e2e import models
from ...e2e.compiled import noise
from .. import tiny_models
from .snippets import LOADERS, blocks, run_code

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.ort,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(300),
]
with_optimum = pytest.mark.skipif(
    not LOADERS.is_file(), reason="needs optimum-onnx: `make loaders` installs it"
)
FEW: dict[str, Any] = {"samples": 4, "sequence_length": 16, "preset": "fast"}
_ENDS = (
    '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "!", "model_max_length": 99}'
)
_MODULES = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]


def exported(make: Callable[[], Any], home: Path, **more: str) -> Path:
    torch.manual_seed(0)
    folder = models.hugging_face_folder(make(), home / "saved")
    for name, text in more.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def sentence_encoder(home: Path, kind: str = "sentence_transformers.models.Pooling") -> Path:
    """Returns a folder with an exported BERT, as sentence-transformers saves one."""
    saved = exported(models.bert, home)
    models.byte_tokenizer(saved)
    (saved / "tokenizer_config.json").write_text(_ENDS)
    folder = export_folder(saved, home / "exported").output
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for at, (name, path) in enumerate(_MODULES)
    ]
    modules[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": models.WIDTH, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    return folder


@with_optimum
@pytest.mark.slow
@pytest.mark.ci_sample
def test_sentence_transformers_encode_like_the_original(tmp_path: Path) -> None:
    folder = sentence_encoder(tmp_path)
    out = mpqc.compile(
        folder,
        budget=8.5,
        output=tmp_path / "out",
        for_="optimum",
        cache=tmp_path / "c",
        **FEW,
    ).output
    sentences, alone = blocks(out, "python")
    assert run_code(sentences, out, str(LOADERS)).strip().endswith(f"(1, {models.WIDTH})")
    assert f"[1, 44, {models.WIDTH}]" in run_code(alone, out, str(LOADERS))
    code = sentences.replace("print(model.encode(", "print(*(model.encode(").replace(
        ").shape)", ")[0]))"
    )
    found = [
        np.array(run_code(code, one, str(LOADERS)).split()[-models.WIDTH :], float)
        for one in (folder, out)
    ]
    assert np.linalg.norm(found[1]) == pytest.approx(1, abs=1e-3)
    assert found[0] @ found[1] > 0.99
    arrays = noise(folder / "model.onnx", tmp_path / "noise.npz", 4, 16, seed=9)
    assert (evaluate(folder, out, [arrays]).cosine or 0) > 0.99


@with_optimum
@pytest.mark.slow
@pytest.mark.ci_sample
def test_a_model_that_sees(tmp_path: Path) -> None:
    folder = exported(models.vit, tmp_path)
    out = mpqc.compile(
        folder,
        budget=8.5,
        output=tmp_path / "out",
        for_="optimum",
        random_calibration=True,
        **FEW,
    ).output
    (code,) = blocks(out, "python")
    assert f"[1, 17, {models.WIDTH}]" in run_code(code, out, str(LOADERS))


@with_optimum
@pytest.mark.slow
@pytest.mark.ci_sample
def test_a_decoder_that_optimum_has_exported(tmp_path: Path) -> None:
    saved = exported(models.llama, tmp_path)
    models.byte_tokenizer(saved)
    code = (
        "from optimum.exporters.onnx import main_export;"
        "main_export('saved', 'exported', task='text-generation-with-past')"
    )
    run_code(code, tmp_path, str(LOADERS))
    out = mpqc.compile(
        tmp_path / "exported", budget=8.5, output=tmp_path / "out", for_="optimum", **FEW
    ).output
    (code,) = blocks(out, "python")
    written = run_code(code, out, str(LOADERS)).split()  # a token a word, with this tokenizer
    assert written[:3] == ["T", "h", "e"]
    assert 44 < len(written) <= 44 + 16


def test_parts_with_weights_or_code_are_refused(tmp_path: Path) -> None:
    given: dict[str, Any] = {"budget": 4, "output": tmp_path / "out", "for_": "optimum"}
    folder = sentence_encoder(tmp_path, kind="os.system")
    with pytest.raises(UsageError, match=r"names 'os\.system'"):
        mpqc.compile(folder, **given)
    (folder / "modules.json").write_text('{"type": 7}')
    with pytest.raises(InputError, match="no list of modules"):
        mpqc.compile(folder, **given)


def test_what_optimum_cannot_run_is_refused_before_any_work(tmp_path: Path) -> None:
    given: dict[str, Any] = {"budget": 4, "output": tmp_path / "out", "for_": "optimum"}
    bare = tiny_models.vector_model(tmp_path / "bare" / "model.onnx")
    with pytest.raises(UsageError, match=r"no config\.json"):
        mpqc.compile(bare, **given)
    (bare.parent / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="reads the output 'last_hidden_state'"):
        mpqc.compile(bare.parent, **given)
    with pytest.raises(UsageError, match="encoder-decoder"):
        mpqc.compile(exported(models.t5, tmp_path / "t5"), **given)
    with pytest.raises(UsageError, match="without the input 'position_ids'"):
        mpqc.compile(exported(models.llama, tmp_path / "llama"), **given)
    assert not (tmp_path / "out").exists()
