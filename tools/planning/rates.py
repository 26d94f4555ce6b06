"""How quick this machine is at each kind of work: a few seconds of measuring.

What runs blocks is measured on a block of the model itself; the rest on matrices of the sizes
that the model has. Everything runs on all cores, or on the device, as the passes do it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from ...ir import Unit, quantizable
from ...ir.analysis.blocks import Block, blocks_of
from ...passes.engine.execution.devices import CPU, settle
from ...passes.engine.execution.executor import BlockRunner
from ...passes.engine.execution.extent import FLOAT_BYTES, Extent
from ...passes.engine.execution.parallel import for_each
from ...passes.engine.execution.precision import coarse_products
from ...passes.engine.execution.samples import Samples, Values
from ...passes.engine.numerics.factor import Factor, factorize
from ...passes.engine.numerics.gptq import gptq
from ...passes.engine.numerics.knapsack import Item, price
from ...passes.engine.numerics.scales import search_scales
from ...passes.engine.pipeline.base import PassContext
from ...passes.engine.pipeline.progress import SilentProgress
from ...passes.engine.pipeline.work import PLAIN_RATES, Kind, Rates

_LEAST_SECONDS = 0.3  # of a measurement; what is quicker is repeated
_MOST_COLUMNS, _MOST_TOKENS = 1024, 1024
_FEW_ROWS, _MANY_ROWS, _COLUMNS, _GROUP, _BITS = 32, 1024, 512, 64, 4
_CANDIDATES = {2: 24, 4: 8}  # scales that are tried, by bits
_WALKED = 1 << 22
_WRITTEN = 64 << 20
_ROWS, _OPTIONS = 1 << 16, 9


def measure(model: ir.Model, context: PassContext) -> Rates:
    """Returns amounts a second by kind; where one cannot be measured, those of any machine.

    Args:
        model: The graph, in blocks.
        context: Its runner, samples and original.
    """
    units = quantizable(model)
    columns = [min(unit.shape[1], _MOST_COLUMNS) for unit in units] or [_COLUMNS]
    width = int(np.median(columns))
    device = context.device
    product = _products(width, device)
    return {
        **PLAIN_RATES,
        Kind.PRODUCT: product,
        Kind.FACTOR: _factors(width, device),
        Kind.TRIAL: _trials(device),
        **_rounding(product, device),
        Kind.WALK: _walks(),
        Kind.WRITE: _writing(context),
        Kind.CHOICE: _choices(),
        **_sweeps(model, context),
        **_runtime(model, units, context),
    }


def _seconds(function: Callable[[], object], device: str = CPU) -> float:
    """Returns the seconds of a call: the least of several, if it is quick."""
    begun, best = time.perf_counter(), np.inf
    while True:
        start = time.perf_counter()
        function()
        settle(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > _LEAST_SECONDS:
            return float(best)


def _together(function: Callable[[], object], device: str) -> float:
    """Returns the seconds for a call, when as many run at a time as units would."""
    count = (os.cpu_count() or 1) if device == CPU else 1

    def together() -> None:
        for_each(lambda _: function(), range(count), SilentProgress(), "", device=device)

    return _seconds(together, device) / count


def _matrix(rows: int, columns: int, device: str = CPU) -> torch.Tensor:
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return made.to(device)


def _factor(columns: int, device: str) -> Factor:
    samples = _matrix(2 * columns, columns, device)
    return factorize(samples.T @ samples / len(samples), 0.1)


def _products(columns: int, device: str) -> float:
    inputs = _matrix(_MOST_TOKENS, columns, device)
    return inputs.numel() * columns / _seconds(lambda: inputs.T @ inputs, device)


def _factors(columns: int, device: str) -> float:
    samples = _matrix(2 * columns, columns, device)
    hessian = samples.T @ samples / len(samples)
    return columns**3 / _together(lambda: factorize(hessian, 0.1), device)


def _trials(device: str) -> float:
    weight, bits = _matrix(_MANY_ROWS, _COLUMNS, device), 2
    even = weight.new_ones(_COLUMNS)
    seconds = _together(lambda: search_scales(weight, bits, _GROUP, even), device)
    return weight.numel() * _CANDIDATES[bits] / seconds


def _rounding(product: float, device: str) -> dict[Kind, float]:
    """Tells apart what a column takes whatever its rows, and what a row of it takes."""
    factor = _factor(_COLUMNS, device)

    def beside_products(rows: int) -> float:
        weight = _matrix(rows, _COLUMNS, device)
        whole = _together(lambda: gptq(weight, _BITS, _GROUP, factor), device)
        scales = _together(lambda: search_scales(weight, _BITS, _GROUP, factor.price), device)
        return max(whole - scales - weight.numel() * _COLUMNS / 2 / product, whole / 20)

    few, many = beside_products(_FEW_ROWS), beside_products(_MANY_ROWS)
    entry = max(many - few, many / 20) / ((_MANY_ROWS - _FEW_ROWS) * _COLUMNS)
    step = max(few / _COLUMNS - _FEW_ROWS * entry, few / _COLUMNS / 20)
    return {Kind.COLUMN: 1 / entry, Kind.STEP: 1 / step}


def _walks() -> float:
    one, two = _matrix(1, _WALKED), _matrix(1, _WALKED)
    return _WALKED / _seconds(lambda: torch.mul(one, two))


def _writing(context: PassContext) -> float:
    data = bytes(_WRITTEN)
    with tempfile.TemporaryFile(dir=context.scratch) as file:
        begun = time.perf_counter()
        file.write(data)
        file.flush()
        return _WRITTEN / (time.perf_counter() - begun)


def _choices() -> float:
    generator = np.random.default_rng(0)
    loss = np.sort(generator.random((_ROWS, _OPTIONS)))[:, ::-1].astype(np.float32)
    item = Item(loss, np.arange(1, _OPTIONS + 1) * 64, 0, 32)
    tried = 0

    def count() -> None:
        nonlocal tried
        tried += 1

    begun = time.perf_counter()
    price([item], 64 * 4 * _ROWS, count)
    return loss.size * tried / (time.perf_counter() - begun)


def _sweeps(model: ir.Model, context: PassContext) -> dict[Kind, float]:
    """Runs one block forward and backward, in float32 and with coarse products."""
    if context.calibration is None or context.runner.unsupported(model.graph):
        return {}
    blocks = blocks_of(model)
    block, amount = _usual_block(model, blocks, context)
    if not amount:
        return {}
    runner = BlockRunner(context.runner, blocks, block.outputs)
    samples = Samples.of(context, context.calibration.first(1))
    (sample,) = samples
    runner.run(sample, stop=block.index)

    def ends(values: Values) -> Mapping[str, torch.Tensor]:
        names = [str(value.name) for value in block.outputs]
        return {
            name: torch.ones_like(values[name]) for name in names if values[name].requires_grad
        }

    def both() -> None:
        runner.run(sample, first=block.index, stop=block.index + 1)
        runner.backward(sample, block, ends=ends)
        sample.gradients.clear()

    both()  # lowers the block
    exact = _seconds(both, context.device)
    with coarse_products():
        coarse = _seconds(both, context.device)
    sample.clear()
    return {Kind.SWEEP: 3 * amount / exact, Kind.COARSE: 3 * amount / coarse}


def _usual_block(
    model: ir.Model, blocks: list[Block], context: PassContext
) -> tuple[Block, float]:
    """Returns the first block that is about as large as most are, and its multiply-adds."""
    extent, units = Extent.of(model, context.calibration), quantizable(model)

    def amount(block: Block) -> float:
        nodes = set(block.nodes)
        return sum(
            unit.size * extent.places(use)
            for unit in units
            for use in unit.uses
            if use.node in nodes and use.kind != "lookup"
        )

    amounts = [amount(block) for block in blocks]
    usual = float(np.median([one for one in amounts if one] or [0.0]))
    at = next(at for at, one in enumerate(amounts) if one >= usual / 2)
    return blocks[at], amounts[at]


def _runtime(model: ir.Model, units: list[Unit], context: PassContext) -> dict[Kind, float]:
    """Loads the original in the target runtime and runs a sample."""
    if context.original is None or context.calibration is None:
        return {}
    begun = time.perf_counter()
    with context.runner.session(context.original) as session:
        loaded = time.perf_counter() - begun
        feeds = context.calibration.feeds[0]
        seconds = _seconds(lambda: session.run(feeds))
    extent = Extent.of(model, context.calibration)
    weights = sum(unit.size for unit in units)
    found = {Kind.RUN: extent.multiply_adds(units) / seconds}
    found[Kind.LOAD] = FLOAT_BYTES * weights / loaded
    return {kind: rate for kind, rate in found.items() if rate > 0}
