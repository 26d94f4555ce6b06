"""What packages, providers and devices are there, found out without a word on the terminal."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpqc.backend import gpu, packages
from mpqc.backend.native_log import native_log
from mpqc.backend.onnxruntime import installation
from mpqc.backend.packages import Package


def test_what_native_code_writes_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with native_log() as log:
        os.write(2, b"error: libcublasLt.so.13: cannot open shared object file: No such file")
    os.write(2, b"heard")
    assert log.missing_library == "libcublasLt.so.13"
    assert capfd.readouterr().err == "heard"


def test_the_terminal_is_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"lost")
        raise RuntimeError

    with pytest.raises(RuntimeError), native_log() as log:
        fail()
    os.write(2, b"heard")
    assert (log.text, log.missing_library) == ("lost", "")
    assert capfd.readouterr().err == "heard"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package of which a test writes the module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "_version", lambda wheel: "1.0" if wheel != "other" else "")
    return Package("Some", "mpqc_some_runtime", ("some", "other"), "pip install some")


def test_a_package_that_loads(package: Package, tmp_path: Path) -> None:
    (tmp_path / "mpqc_fine_runtime.py").write_text("")
    package = replace(package, module="mpqc_fine_runtime")
    assert package.installed() == {"some": "1.0"}
    assert package.problem() is None


def test_a_package_that_does_not_load(
    package: Package, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mpqc_some_runtime.py").write_text(
        "import os\nos.write(2, b'raw log')\nraise ImportError('no\\nluck')\n"
    )
    assert package.problem() == "does not load: no luck"
    assert capfd.readouterr().err == ""


def test_two_wheels_of_one_module_are_told(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_version", lambda wheel: "1.0")
    assert package.problem() == "some and other overwrite each other: uninstall one of them"


def test_a_package_that_is_not_there(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_version", lambda wheel: "")
    assert package.problem() == "not installed: pip install some"


@pytest.mark.ort
def test_providers_of_the_build_are_tried(capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    found = installation.provider_problems()
    assert list(found) == onnxruntime.get_available_providers()
    assert found["CPUExecutionProvider"] is None
    problems = [one for one in found.values() if one is not None]
    assert all("\n" not in one and "onnxruntime_src" not in one for one in problems)
    assert capfd.readouterr() == ("", "")


class FakeDriver:
    """Answers like libcuda.so.1 on a machine with one device."""

    def __init__(self, ready: int = 0) -> None:
        self._ready = ready

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._ready

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        return self._write(out, 12080)

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        return self._write(out, 1)

    def cuDeviceGet(self, out: Any, place: int) -> int:  # noqa: N802
        return self._write(out, place)

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = b"Fake GPU"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:  # noqa: N802
        return self._write(out, 24 << 30)

    def cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> int:  # noqa: N802
        return self._write(out, {75: 8, 76: 9}[which])

    def _write(self, out: Any, value: int) -> int:
        out._obj.value = value
        return 0


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_load", FakeDriver)
    found = gpu.nvidia_driver()
    assert found == gpu.Driver("12.8", (gpu.Gpu("Fake GPU", "8.9", 24 << 30),))


def test_a_driver_without_a_device_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_load", lambda: FakeDriver(ready=100))
    assert gpu.nvidia_driver() is None


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.nvidia_driver() is None
    assert gpu.driver_release() is None


class FakeManagement:
    """What NVIDIA's management library answers."""

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, out: Any, length: int) -> int:  # noqa: N802
        out.value = b"580.159.04"
        return 0


def test_the_release_of_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_load", lambda library: FakeManagement())
    assert gpu.driver_release() == "580.159.04"


def test_libraries_that_are_missing_are_not_named_before_they_are_needed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    installation.load_cuda_libraries()
    assert capfd.readouterr() == ("", "")
