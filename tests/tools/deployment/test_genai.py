"""A folder for onnxruntime-genai, and the first look at what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

import mpqc
from mpqc.ir import InputError, MachineError, UsageError
from mpqc.tools.cli import main
from mpqc.tools.generate import generate

from ...e2e import models
from .. import tiny_models
from .snippets import LM_EVAL, blocks, run_python, run_words

genai = pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.ort,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(300),
]
Capture = pytest.CaptureFixture[str]
_TEMPLATE = "{% for one in messages %}{{ one['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of a Llama whose next token is its best guess: random, but the same always."""
    home = tmp_path_factory.mktemp("genai")
    torch.manual_seed(0)
    folder = models.hugging_face_folder(models.llama(), home / "saved")
    models.byte_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    given: dict[str, Any] = {"samples": 4, "sequence_length": 16, "preset": "fast"}
    result = mpqc.compile(
        folder, budget=8.5, output=home / "out", for_="genai", cache=home / "cache", **given
    )
    return result.output


def test_the_folder_has_what_genai_reads(compiled: Path) -> None:
    settings = json.loads((compiled / "genai_config.json").read_text())
    assert settings["model"]["decoder"]["filename"] == "model.onnx"
    assert (compiled / "tokenizer.json").is_file()
    assert (compiled / "chat_template.jinja").read_text() == _TEMPLATE
    tokenizer = genai.Tokenizer(genai.Model(str(compiled)))
    text = json.dumps([{"role": "user", "content": "abc"}])
    assert tokenizer.apply_chat_template(text) == "abc"
    facts = json.loads((compiled / "mpqc.json").read_text())
    assert facts["settings"]["for"] == "genai"
    assert "--for genai" in facts["command"]


def test_the_code_in_the_readme_writes(compiled: Path) -> None:
    written = run_python(compiled)
    assert written
    assert written == "".join(generate(compiled, "Once upon a time", 64))


@pytest.mark.slow
@pytest.mark.ci_sample
@pytest.mark.skipif(not LM_EVAL.is_file(), reason="needs lm_eval: `make loaders` installs it")
def test_lm_eval_scores_the_folder(compiled: Path, tmp_path: Path) -> None:
    """On a task of local texts, by the command in the README."""
    rows: list[dict[str, Any]] = [
        {"text": f"abc{chr(100 + at)}", "choices": ["x", "yz", "!"], "answer": at % 3}
        for at in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = _TASK.replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "follows.yaml").write_text(task)
    command = blocks(compiled, "console")[1].removeprefix("$ ").split()
    assert command[0] == "lm_eval"
    command = [str(LM_EVAL), *command[1:-1], "follows"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "scores")]
    printed = run_words([*command, "--log_samples"], compiled)
    (found,) = (tmp_path / "scores").rglob("samples_follows_*.jsonl")
    samples = [json.loads(line) for line in found.read_text().splitlines()]
    right = 0
    for row, sample in zip(rows, sorted(samples, key=lambda one: one["doc_id"]), strict=True):
        wanted = [_likelihood(compiled, row["text"], one) for one in row["choices"]]
        got = [float(one[0][0]) for one in sample["resps"]]
        assert got == pytest.approx(wanted, abs=1e-3)
        right += int(np.argmax(wanted)) == row["answer"]
    assert f"|{right / len(rows):.4f}".rstrip("0") in printed.replace(" ", "")


_TASK = """\
task: follows
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def _likelihood(folder: Path, text: str, continued: str) -> float:
    """Returns the log of the chance that the graph itself gives a continuation."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(folder / "tokenizer.json")).encode
    first, second = encode(text).ids, encode(continued).ids
    logits = _logits(folder, first + second)[len(first) - 1 : -1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(logs[np.arange(len(second)), second].sum())


def test_generate_writes_what_the_model_prefers(compiled: Path, capsys: Capture) -> None:
    words = ["generate", str(compiled), "abc", "--max-tokens", "7"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    tokenizer = genai.Tokenizer(genai.Model(str(compiled)))
    stream = tokenizer.create_stream()
    wanted = _preferred(compiled, tokenizer.encode("abc"), 7)
    assert text == "".join(stream.decode(one) for one in wanted)
    assert len(shown) >= len(text) > 0


def _preferred(folder: Path, prompt: np.ndarray, count: int) -> np.ndarray:
    """Returns the tokens that the graph itself prefers, run without genai."""
    ids = list(map(int, prompt))
    for _ in range(count):
        ids.append(int(_logits(folder, ids)[-1].argmax()))
    return np.array(ids[len(prompt) :], np.int32)


def _logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Returns what the graph says of the token after each."""
    import onnxruntime

    settings = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    heads, size = settings["num_key_value_heads"], settings["head_size"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    feeds: dict[str, np.ndarray] = {
        one.name: np.zeros((1, heads, 0, size), np.float32)
        for one in session.get_inputs()
        if one.name.startswith("past")
    }
    feeds["input_ids"] = np.array([ids])
    feeds["attention_mask"] = np.ones((1, len(ids)), np.int64)
    found: np.ndarray = session.run(["logits"], feeds)[0][0]
    return found


def test_generate_stops_at_the_longest_context(compiled: Path) -> None:
    context = json.loads((compiled / "genai_config.json").read_text())["model"]
    context = context["context_length"]
    prompt = "a" * (context - 2)
    assert len(list(generate(compiled, prompt, 1 << 19))) <= 2
    with pytest.raises(UsageError, match=f"has {context} tokens"):
        list(generate(compiled, "a" * context))


def test_generate_refuses_what_it_cannot_run(
    compiled: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["generate", str(compiled), ""]) == 2
    assert "prompt is empty" in capsys.readouterr().err
    plain = tiny_models.language_folder(tmp_path / "plain")
    assert main(["generate", str(plain), "abc"]) == 3
    assert "--for genai" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "none"), "abc"]) == 3
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime_genai", None)
    with pytest.raises(MachineError, match="not installed"):
        list(generate(compiled, "abc"))


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"session_options": {"custom_ops_library": "evil.so"}}, "asks for code"),
        ({"filename": "../model.onnx"}, "outside its folder"),
    ],
)
def test_settings_that_reach_outside_are_refused(
    part: dict[str, Any], why: str, compiled: Path, tmp_path: Path
) -> None:
    folder = Path(copytree(compiled, tmp_path / "copy"))
    path = folder / "genai_config.json"
    settings = json.loads(path.read_text())
    settings["model"]["decoder"] |= part
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=why):
        list(generate(folder, "abc"))
    (folder / "mpqc.json").unlink()
    with pytest.raises(InputError, match=why):
        mpqc.compile(folder, budget=4, output=tmp_path / "out", for_="genai")


def test_what_genai_cannot_run_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tiny_models.language_folder(tmp_path / "model")
    given: dict[str, Any] = {"budget": 4, "output": tmp_path / "out", "for_": "genai"}
    with pytest.raises(UsageError, match=r"no genai_config\.json"):
        mpqc.compile(folder, **given)
    for make in (models.bert, models.t5):
        saved = models.hugging_face_folder(make(), tmp_path / make.__name__)
        models.byte_tokenizer(saved)
        with pytest.raises(UsageError, match="onnxruntime-genai cannot run"):
            mpqc.compile(saved, **given)
    module = torch.nn.Linear(64, 64)
    with pytest.raises(UsageError, match="none comes with Linear"):
        mpqc.compile(module, example_inputs=(torch.zeros(1, 64),), **given)
    saved = models.hugging_face_folder(models.llama(), tmp_path / "llama")
    with pytest.raises(UsageError, match="needs a tokenizer"):
        mpqc.compile(saved, **given)
    assert not (tmp_path / "out").exists()
