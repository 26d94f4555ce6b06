"""What compiling costs, against the least that any method of its kind must do."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...ir import (
    BitAllocation,
    MachineError,
    annotate,
    quantizable,
    read_model,
    temporary_folder,
)
from ...passes.engine.pipeline.pipeline import Pipeline
from ..comparison.kept import Kept
from ..comparison.markdown import markdown
from ..compilation import Compilation
from ..option_fields import add_options as add_shared
from ..option_fields import option_words, options_in
from ..options import CompileOptions
from ..pass_options import calibrating
from ..pipelines import CALIBRATED, PLAIN_GPTQ, passes_of
from .job import job
from .results import show

_PLAIN_BITS = 4
_SHARED = (
    "budget",
    "file_budget",
    "preset",
    "output",
    "calibration",
    "samples",
    "sequence_length",
    "target",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what the benchmark needs to know."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="exported folder or file")
    add_shared(parser, CompileOptions, _SHARED)


def run(chosen: argparse.Namespace) -> None:
    """Compiles in a process of its own, then does the plain work in this one."""
    with temporary_folder() as folder:
        found = compile_apart(chosen, folder)
        with job(chosen, folder / "stats") as work:
            found["plain"] = plain_work(work)
    if chosen.output is not None:
        Kept(chosen.output / "compile-cost.json").put("cost", found)
    show(chosen.output, "compile-cost", table(found))


def compile_apart(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs ``mpqc compile`` with nothing in its cache; returns seconds and bytes."""
    given = {**options_in(chosen, CompileOptions), "output": folder / "compiled"}
    words = [sys.executable, "-m", "mpqc.tools.cli", "compile", str(chosen.model), "--json"]
    words += option_words(CompileOptions, given)
    begun = time.perf_counter()
    # Stats go to `folder/stats`, which this process reads later.
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, env={**os.environ, "MPQC_CACHE": str(folder)}
    )
    assert child.stdout is not None
    with child.stdout as stream:
        said = stream.read()
    _, status, usage = os.wait4(child.pid, 0)  # unlike wait(), it tells the peak of this child
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise MachineError("mpqc compile failed", hint="what it said stands above")
    return {
        "wall": time.perf_counter() - begun,
        "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "passes": json.loads(said)["seconds"],
    }


def plain_work(work: Compilation) -> dict[str, float]:
    """Returns the seconds of forward plus backward, and of one plain GPTQ pass."""
    context, model = work.context(), read_model(work.original)
    passes = passes_of(CALIBRATED)
    Pipeline(passes).run(model, context)
    if not context.report[str(calibrating(passes))]["reused"]:
        raise MachineError("the stats of the compilation were not found again")
    _allocate_plainly(model)
    sweep = _forward_backward(read_model(work.original), work)
    begun = time.perf_counter()
    Pipeline(passes_of(PLAIN_GPTQ)).run(model, context)
    return {"forward and backward": sweep, "gptq": time.perf_counter() - begun}


def _allocate_plainly(model: ir.Model) -> None:
    """Gives every row of every unit the same four bits."""
    for unit in quantizable(model):
        rows, columns = unit.shape
        group = 64 if columns >= 64 else 32
        option = f"{_PLAIN_BITS}g{group}"
        annotate(unit.notes, BitAllocation(unit.name, (option,), (rows,), 0.0))


def _forward_backward(model: ir.Model, work: Compilation) -> float:
    """Differentiates the likelihood of every sample with respect to all weights."""
    import torch

    from ...backend.torch_fx import lower_model

    module = lower_model(model)
    names = {unit.name for unit in quantizable(model)}
    buffers = dict(module.named_buffers())
    weights = [buffers[at] for name, at in module.meta["weights"].items() if name in names]
    for weight in weights:
        weight.requires_grad_(True)
    inputs = [str(one.name) for one in model.graph.inputs if not one.is_initializer()]
    assert work.calibration is not None
    begun = time.perf_counter()
    for feed in work.progress.track(
        work.calibration.training, len(work.calibration.training), "forward and backward"
    ):
        given = [torch.from_numpy(feed[name].copy()) for name in inputs]
        outputs = [one for one in module(*given) if one.requires_grad]
        torch.autograd.grad(
            outputs[0].log_softmax(-1).amax(-1).sum(), weights, allow_unused=True
        )
    return time.perf_counter() - begun


def table(found: dict[str, Any]) -> str:
    """Returns seconds by pass, the plain work, and how they compare."""
    passes, plain = found["passes"], found["plain"]
    total, least = sum(passes.values()), sum(plain.values())
    rows = [[name, f"{seconds:.1f}"] for name, seconds in passes.items()]
    rows += [["**all passes**", f"{total:.1f}"]]
    rows += [[f"plain: {name}", f"{seconds:.1f}"] for name, seconds in plain.items()]
    rows += [
        ["**plain work**", f"{least:.1f}"],
        ["all passes over plain work", f"{total / least:.2f}x"],
        ["whole command, seconds", f"{found['wall']:.1f}"],
        ["peak memory of the command, GB", f"{found['peak'] / 1e9:.2f}"],
    ]
    return markdown(["", "seconds"], rows)
