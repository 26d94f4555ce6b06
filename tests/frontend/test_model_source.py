from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mpqc.frontend.hugging_face import check_folder
from mpqc.frontend.model_inputs import head_shape
from mpqc.frontend.model_source import locate
from mpqc.ir import InputError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("model.onnx", "tokenizer.json"), "model.onnx"),
        (("model.onnx", "model_fp16.onnx"), "model.onnx"),
        (("onnx/model.onnx", "onnx/model_int8.onnx", "config.json"), "onnx/model.onnx"),
        (("net.onnx",), "net.onnx"),
        (("config.json", "model.safetensors"), None),
    ],
)
def test_finds_the_model(names: tuple[str, ...], chosen: str | None, tmp_path: Path) -> None:
    source = locate(put(tmp_path, *names))
    assert source.onnx == (tmp_path / chosen if chosen else None)


def test_refuses_several_and_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        locate(tmp_path)
    with pytest.raises(InputError, match=r"a\.onnx, b\.onnx"):
        locate(put(tmp_path, "a.onnx", "b.onnx"))


def test_a_bare_name_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "net.onnx")
    monkeypatch.chdir(tmp_path)
    source = locate(Path("net.onnx"))
    assert source.onnx is not None
    assert source.onnx.is_absolute()


def test_companions_of_a_nested_model(tmp_path: Path) -> None:
    put(tmp_path, "onnx/model.onnx", "tokenizer.json", "config.json", "notes.txt")
    assert sorted(locate(tmp_path).companions()) == ["config.json", "tokenizer.json"]
    # A file alone does not look into the folder above.
    assert locate(tmp_path / "onnx" / "model.onnx").companions() == {}


def test_companions_do_not_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "secret.json")
    folder = put(tmp_path / "model", "model.onnx")
    os.symlink(tmp_path / "secret.json", folder / "tokenizer.json")
    assert locate(folder).companions() == {}


def test_links_inside_the_hub_cache_are_fine(tmp_path: Path) -> None:
    hub = tmp_path / "models--x"
    put(hub, "blobs/abc", "snapshots/123/.keep")
    folder = hub / "snapshots" / "123"
    os.symlink(Path("..") / ".." / "blobs" / "abc", folder / "config.json")
    assert list(locate(folder).companions()) == ["config.json"]


@pytest.mark.parametrize("names", [7, "LlamaForCausalLM", [7], {"x": 1}])
def test_architectures_are_a_list_of_names(names: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="architectures"):
        check_folder(tmp_path)


@pytest.mark.parametrize("genai", [{"model": 7}, {"model": {"decoder": [1]}}])
def test_settings_of_another_shape_are_input_errors(genai: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no JSON object"):
        head_shape(genai, {})
    assert head_shape({}, {}) == head_shape({"model": {"decoder": {}}}, {"head_dim": "x"})
