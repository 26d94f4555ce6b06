"""Folders of models that generate: exported, compiled, and run token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpqc
from mpqc.backend.endpoint import Endpoint
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.tools.export import export_folder

from . import models

pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.ci_sample,
    pytest.mark.timeout(600),
]
PROMPTS = 20
NEW = 12
_STEPS, _LONG, _RATE = 200, 16, 3e-3
_SPECIAL = 3  # tokens that begin, end and pad


def _compiled(folder: Path, **options: Any) -> Path:
    models.byte_tokenizer(folder / "saved")
    result = mpqc.compile(
        folder / "saved", budget=8.5, output=folder / "out", samples=6, **options
    )
    assert result.got <= 8.5
    assert not [unit for unit in result.report["units"] if unit.get("reason")]
    left = [one["name"] for one in result.report["left_in_float"]]
    assert not [name for name in left if "embed" in name and name.endswith("weight")]
    return result.output


def _prompts() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 250, (PROMPTS, 5))


def _taught(model: Any, read: dict[str, Any], batch: int = 32) -> Any:
    """Returns the model when it has learnt which token follows each, as a trained one knows.

    Of a random model the first two choices are often equally good, and 8 bits not exact.
    """
    generator = torch.Generator().manual_seed(0)
    plain = models.VOCABULARY - _SPECIAL  # what ends a text follows nothing
    follows = torch.arange(models.VOCABULARY)
    follows[_SPECIAL:] = _SPECIAL + torch.randperm(plain, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    read = {name: array.expand(batch, *array.shape[1:]) for name, array in read.items()}
    for _ in range(_STEPS):
        ids = torch.randint(_SPECIAL, models.VOCABULARY, (batch, 1), generator=generator)
        while ids.shape[1] <= _LONG:
            ids = torch.cat([ids, follows[ids[:, -1:]]], 1)
        logits = model(**{_name_of_ids(read): ids[:, :-1]}, **read).logits
        optimizer.zero_grad()
        wanted = ids[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted)
        torch.autograd.backward(loss)
        optimizer.step()
    return model.eval()


def _name_of_ids(read: dict[str, Any]) -> str:
    return "decoder_input_ids" if read else "input_ids"


def _check_written(
    model: Any, prompts: np.ndarray, written: list[list[int]], **read: Any
) -> None:
    """Checks that the original writes the same, greedily."""
    for prompt, found in zip(prompts, written, strict=True):
        ids = prompt.tolist()
        for _ in range(NEW):
            with torch.no_grad():
                logits = model(**{_name_of_ids(read): torch.tensor([ids])}, **read).logits
            ids.append(int(logits[0, -1].argmax()))
        assert found == ids


def _run_by_genai(folder: Path, prompt: np.ndarray, **inputs: np.ndarray) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + NEW, do_sample=False)
    generator = genai.Generator(model, params)
    for name, array in inputs.items():
        generator.set_model_input(name, array)
    generator.append_tokens(prompt[None].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(one) for one in generator.get_sequence(0)]


def _run_by_parts(folder: Path, prompt: np.ndarray, source: np.ndarray) -> list[int]:
    """Runs encoder and decoder of a result as a program that knows no mpqc would."""
    read = {"input_ids": source[None], "attention_mask": np.ones((1, len(source)), np.int64)}
    with (
        open_session(folder / "encoder_model.onnx") as encoder,
        open_session(folder / "decoder_model.onnx") as decoder,
    ):
        encoded = encoder.run(read)
        state = {
            one.name: encoded[one.name.replace("past_key_values", "present")]
            if ".encoder." in one.name
            else _empty(one)
            for one in decoder.inputs
            if one.name.startswith("past")
        }
        ids, new = prompt.tolist(), prompt[None]
        for _ in range(NEW):
            mask = {"encoder_attention_mask": read["attention_mask"]}
            found = decoder.run({"input_ids": new, **mask, **state})
            ids.append(int(found["logits"][0, -1].argmax()))
            new = np.array([ids[-1:]])
            grown = {name.replace("present", "past_key_values"): found[name] for name in found}
            state |= {name: grown[name] for name in state if name in grown}
    return list(ids)


def _empty(past: Endpoint) -> np.ndarray:
    """Returns keys or values of no tokens."""
    _, heads, _, size = past.shape
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return np.zeros((1, heads, 0, size), np.float32)


@pytest.mark.parametrize("make", [models.mixtral, models.gemma, models.gpt2])
def test_decoders_write_what_the_original_writes(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = _taught(make(), {})
    model.save_pretrained(tmp_path / "saved")
    out = _compiled(tmp_path, random_calibration=True, sequence_length=32)
    prompts = _prompts()
    _check_written(model, prompts, [_run_by_genai(out, prompt) for prompt in prompts])


def test_an_encoder_decoder_of_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = np.random.default_rng(1).integers(3, 250, 9)
    read = {
        "input_ids": torch.tensor(source[None]),
        "attention_mask": torch.ones(1, 9, dtype=torch.int64),
    }
    model = _taught(models.t5(), read)
    model.save_pretrained(tmp_path / "saved")
    out = _compiled(tmp_path, random_calibration=True, sequence_length=32)
    prompts = _prompts()
    written = [_run_by_parts(out, prompt, source) for prompt in prompts]
    _check_written(model, prompts, written, **read)


def test_an_encoder_decoder_of_speech(tmp_path: Path) -> None:
    torch.manual_seed(0)
    heard = np.random.default_rng(1).standard_normal((1, 80, 3000), np.float32)
    read = {"input_features": torch.tensor(heard)}
    model = _taught(models.whisper(places=1500), read, batch=4)
    model.save_pretrained(tmp_path / "saved")
    out = _compiled(tmp_path, random_calibration=True, sequence_length=20)
    prompts = _prompts()
    written = [_run_by_genai(out, one, input_features=heard) for one in prompts]
    _check_written(model, prompts, written, **read)


def test_both_towers_of_a_model_that_reads_and_sees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models.hugging_face_folder(models.clip(), tmp_path / "saved")
    result = export_folder(tmp_path / "saved", tmp_path / "exported")
    with open_session(result.model) as session:
        names = {one.name for one in session.inputs}
    assert names == {"input_ids", "attention_mask", "pixel_values"}
