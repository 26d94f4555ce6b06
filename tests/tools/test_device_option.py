"""--device: refused before any work where the device is missing, and handed to every pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mpqc
from mpqc.ir import MachineError, UsageError, write_model
from mpqc.passes.engine.execution import devices
from mpqc.passes.engine.execution.devices import find_device
from mpqc.tools.cli import main
from mpqc.tools.option_fields import specs
from mpqc.tools.options import CompileOptions
from mpqc.tools.resume import opt
from mpqc.tools.settings import make_settings

from ..passes.swept import language

Patch = pytest.MonkeyPatch


def without_cuda(patch: Patch) -> None:
    patch.setattr(torch.version, "cuda", None)
    patch.setattr(torch.version, "hip", None)


def with_cuda(patch: Patch, count: int, problem: str | None = None) -> None:
    """Pretends that torch has devices."""
    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch.cuda, "device_count", lambda: count)
    patch.setattr(devices, "_trial", lambda name: problem)


def without_mps(patch: Patch) -> None:
    patch.setattr(torch.backends.mps, "is_built", lambda: False)


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:7"])
def test_without_a_build_for_cuda(asked: str, monkeypatch: Patch) -> None:
    without_cuda(monkeypatch)
    without_mps(monkeypatch)
    with pytest.raises(MachineError) as error:
        find_device(asked)
    assert f"device {asked} cannot be used: torch" in error.value.message
    assert error.value.message.endswith("was built without CUDA")
    assert error.value.hint == "use --device cpu, or auto"


def test_with_fewer_devices(monkeypatch: Patch) -> None:
    without_mps(monkeypatch)
    with_cuda(monkeypatch, 2)
    assert find_device("cuda:1") == "cuda:1"
    assert find_device("cuda") == find_device("auto") == "cuda:0"
    with pytest.raises(MachineError, match=r"no device 7: this machine has cuda:0 to cuda:1"):
        find_device("cuda:7")
    with_cuda(monkeypatch, 1)
    with pytest.raises(
        MachineError, match=r"no device 1: this machine has cuda:0 only"
    ) as error:
        find_device("cuda:1")
    assert error.value.hint == "use --device cpu or cuda:0, or auto"
    with_cuda(monkeypatch, 0)
    with pytest.raises(MachineError, match="torch finds no CUDA device"):
        find_device("cuda")


def test_a_device_that_cannot_add_is_none(monkeypatch: Patch) -> None:
    with_cuda(monkeypatch, 1, problem="no kernel image is available")
    assert find_device("auto") == "cpu"
    with pytest.raises(MachineError, match="no kernel image is available"):
        find_device("cuda")


def test_apple_devices_only_when_asked_for(monkeypatch: Patch) -> None:
    without_cuda(monkeypatch)
    monkeypatch.setattr(devices, "_trial", lambda name: None)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("mps") == "mps:0"
    assert find_device("auto") == "cpu"
    without_mps(monkeypatch)
    with pytest.raises(MachineError, match="built without MPS"):
        find_device("mps")


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "cuda:one", "CPU", "", "meta"])
def test_unknown_devices_are_refused(asked: str) -> None:
    with pytest.raises(UsageError) as error:
        find_device(asked)
    assert "auto, cpu, cuda, cuda:N, mps" in error.value.hint


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_cuda(monkeypatch)
    without_mps(monkeypatch)
    write_model(language(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    words = ["compile", "model.onnx", "--budget", "4", "--device", "cuda", "-o", "out"]
    assert main(words) == 4
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "cuda" in one]
    assert "was built without CUDA" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(MachineError):
        mpqc.compile("model.onnx", budget=4, device="cuda:0")
    assert main([*words[:5], "tpu"]) == 2
    with pytest.raises(MachineError, match="was built without CUDA"):
        opt("model.onnx", "normalize", device="cuda")
    assert opt("model.onnx", "normalize", device="cpu").pipeline == "normalize"


def test_a_recipe_may_name_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('device = "cpu"\n')
    settings = make_settings(CompileOptions(budget=4, recipe=recipe))
    assert settings.device == settings.options.device == "cpu"
    assert settings.plain()["device"] == "cpu"
    assert specs(CompileOptions)["device"].default == "auto"


@pytest.mark.ort
def test_doctor_says_what_torch_can_use(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_cuda(monkeypatch)
    without_mps(monkeypatch)
    assert main(["doctor", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["devices"]["cpu"] is None
    assert "built without CUDA" in found["devices"]["cuda"]
    assert "built without MPS" in found["devices"]["mps"]


@pytest.mark.gpu
def test_a_real_device_is_found() -> None:
    assert find_device("auto") == "cuda:0"
    free, total = devices.free_bytes("cuda:0") or (0, 0)
    assert 0 < free <= total
