"""A real Ray on this machine: the bytes of one process, whatever dies, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

import mpqc
from mpqc.passes.engine.pipeline.progress import Bar, SilentProgress
from tests.tools.tiny_models import save, weight

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpqc[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.ort]

_WIDTH = 320
_LAYERS = 4
_PHASES = ("calibrating", "trying every width", "rounding")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of products that each take a good part of a second to judge."""
    nodes, weights = [], []
    for at in range(_LAYERS):
        weights.append(weight(f"w{at}", (_WIDTH, _WIDTH), at))
        nodes.append(helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"h{at}"]))
        nodes.append(helper.make_node("Tanh", [f"h{at}"], [f"x{at + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", _WIDTH])
        for name in ("x0", f"x{_LAYERS}")
    ]
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    save(nodes, ends[:1], ends[1:], weights, path)
    loaded = onnx.load(path)
    onnx.save(loaded, path, save_as_external_data=True, location="model.data")
    feeds = np.random.default_rng(0).standard_normal((8 * 32, _WIDTH)).astype(np.float32)
    np.savez(path.with_name("feeds.npz"), x0=feeds)
    return path


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return compiled(model, tmp_path_factory.mktemp("alone"))


def compiled(model: Path, folder: Path, **more: Any) -> dict[str, bytes]:
    """Compiles with a cache of its own; returns the files of the result."""
    mpqc.compile(
        model,
        budget=4.5,
        output=folder / "out",
        cache=folder / "cache",
        preset="fast",
        kernels="always",
        calibration=model.with_name("feeds.npz"),
        samples=26,
        **more,
    )
    assert list((folder / "cache").glob(".mpqc-*")) == []
    facts = json.loads((folder / "out" / "mpqc.json").read_text())
    assert ("workers" in facts.pop("timings")) == ("workers" in more)
    facts.pop("files")  # hashes of the report, which shows seconds
    found = {one.name: one.read_bytes() for one in (folder / "out").glob("model.onnx*")}
    return found | {"facts": json.dumps(facts).encode()}


class Strikes(SilentProgress):
    """A progress that, once in every long pass, strikes while a worker is at work.

    Attributes:
        phases: The passes in which to strike.
        done: Those in which something was struck.
        said: Every line.
    """

    def __init__(
        self, strike: Callable[[psutil.Process], object], phases: Sequence[str] = _PHASES
    ) -> None:
        self._strike, self.phases = strike, phases
        self.done: list[str] = []
        self.said: list[str] = []

    def bar(
        self, what: str, items: int | None, work: float | None = None
    ) -> AbstractContextManager[Bar]:
        if what in self.phases:
            threading.Thread(target=self._watch, args=(what,)).start()
        return super().bar(what, items, work)

    def say(self, text: str) -> None:
        self.said.append(text)

    def _watch(self, what: str) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for one in working():
                self._strike(one)
                self.done.append(what)
                return


def working() -> Iterator[psutil.Process]:
    """Yields Ray's processes that work on a unit: Ray gives them its name."""
    for one in psutil.process_iter():
        try:
            title = (one.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if re.match(r"ray::(w\d|forward|backward)", title):
            yield one


def remains(marker: str) -> list[str]:
    """Returns the command lines of a session's processes, and of workers anywhere.

    Agents of Ray's that have lost their parent end by themselves after a minute.
    """
    found = []
    for one in psutil.process_iter():
        try:
            line = " ".join(one.cmdline()).strip()
        except psutil.Error:
            continue
        if marker in line or (line.startswith("ray::") and not line.endswith("Agent")):
            found.append(line)
    return found


def wait_until_nothing(marker: str) -> None:
    until = time.monotonic() + 30
    while remains(marker) and time.monotonic() < until:
        time.sleep(0.2)
    assert remains(marker) == []


@pytest.mark.ci_sample
def test_workers_change_no_byte(model: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    strikes = Strikes(lambda process: None)
    assert compiled(model, tmp_path, workers=2, progress=strikes) == alone
    assert "rounding: on 2 workers of 1 machine" in strikes.said
    facts = json.loads((tmp_path / "out" / "mpqc.json").read_text())
    for phase in _PHASES:
        (row,) = facts["timings"]["workers"][phase]
        assert row["pieces"] >= _LAYERS
        assert row["peak_memory"] > 0


def test_workers_that_are_killed_are_replaced(
    model: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    strikes = Strikes(lambda process: process.kill())
    assert compiled(model, tmp_path, workers=2, progress=strikes) == alone
    assert strikes.done == list(_PHASES)


@pytest.mark.parametrize("phase", _PHASES)
def test_a_machine_that_is_lost_is_done_without(
    phase: str, model: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        lose = partial(cluster.remove_node, node, allow_graceful=False)
        strikes = Strikes(lambda _: lose(), [phase])
        found = compiled(model, tmp_path, workers=cluster.address, progress=strikes)
        assert found == alone
        assert strikes.done == [phase]
        assert f"{_PHASES[0]}: on 2 workers of 2 machines" in strikes.said
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_ended_leaves_no_process(
    number: signal.Signals, model: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "mpqc.tools.cli", "compile", str(model), "--budget", "4.5"]
    words += ["--random-calibration", "--samples", "8", "--workers", "2"]
    words += ["-o", str(tmp_path / "out")]
    wait_until_nothing("raylet")  # of the test before
    # Ray names its processes after the folder of the session; its sockets need a short path.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        environment = {**os.environ, "MPQC_CACHE": str(tmp_path), "TMPDIR": short}
        child = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 90
        while not any(working()) and time.monotonic() < until:
            assert child.poll() is None
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
        assert child.returncode == {9: -9, 15: 143, 2: 130}[number], said
        wait_until_nothing(short)
        if number != signal.SIGKILL:
            assert not list(Path(short).glob(".mpqc-*/session*/sockets"))
    assert not (tmp_path / "out").exists()
