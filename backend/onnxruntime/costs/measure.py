"""Times the kernels of a target on this machine, and fits the coefficients of its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from scipy.optimize import nnls

from ....ir import Capabilities, Option
from ....ir.costs import CONCAT, FLOAT, INT8, ORDER, SELECT, Cost, CostTable
from .kernel_graphs import KernelGraph, joining, product
from .tables import MEASURED, here

_TOKENS = (1, 16, 128, 512)
_SHAPES = (  # rows, columns
    *((64, 768), (640, 576), (2048, 576), (768, 768), (512, 832)),
    *((2048, 1152), (256, 2048), (2048, 2048)),
)
_CHUNKS = (1, 128, 256)
_CHANNELS = (256, 1024, 3072, 49152)  # of what joins classes, one of them a vocabulary
_MANY_CHANNELS = 1 << 14
_COPIES = 4
_LEAST_SECONDS, _LEAST_RUNS = 0.03, 4  # of one measurement
_ROOM = 2  # weights that are to stay in the cache take a part of it
_CACHES = 3  # weights that are to come from memory take that many times the last cache
_ONCE = "measured by mpqc doctor --measure"


@dataclass(frozen=True)
class _Sample:
    """One measurement: what the cost model sees, and microseconds."""

    tokens: int
    rows: int
    columns: int
    time: float


def measure(
    table: Capabilities, threads: int, track: Callable[[list[str]], Iterable[str]]
) -> CostTable:
    """Times everything that ``table`` offers.

    Args:
        table: The target, one of ONNX Runtime's on the CPU.
        threads: Threads of an operation.
        track: Told what will be timed; yields it one after the other.
    """
    machine = here(threads)
    levels = {
        str(Option(kernel.bits, group)): kernel.accuracy_level
        for kernel in table.kernels
        for group in kernel.groups
    }
    costs = {}
    for name in track([FLOAT, INT8, *levels, CONCAT, ORDER, SELECT]):
        if name in (CONCAT, ORDER, SELECT):
            costs[name] = _fit(_joining_samples(name, threads), ())
        else:
            level = levels.get(name, 0)
            cold = _cold_samples(name, level, threads, machine.cache)
            warm = _product_samples(name, level, threads, machine.cache)
            costs[name] = _fit(warm, cold)
    return CostTable(MEASURED, machine, _ONCE, _TOKENS, costs)


def _product_samples(name: str, level: int, threads: int, cache: int) -> list[_Sample]:
    """Times products whose weights stay in the cache."""
    found = []
    for rows, columns in _SHAPES:
        fitting = int(cache / _ROOM / _bytes(name, rows, columns))
        copies = max(1, min(_COPIES, fitting))
        found += _timed(product(name, rows, columns, copies, level), _TOKENS, threads)
    return found


def _cold_samples(name: str, level: int, threads: int, cache: int) -> list[_Sample]:
    """Times one token with so many weights that no cache holds them."""
    rows, columns = _SHAPES[-1]
    copies = max(_COPIES, int(_CACHES * cache / _bytes(name, rows, columns)))
    return _timed(product(name, rows, columns, copies, level), _TOKENS[:1], threads)


def _bytes(name: str, rows: int, columns: int) -> float:
    """Returns about how many bytes the weights of a product take."""
    bits = {FLOAT: 32, INT8: 8}.get(name) or Option.parse(name).bits
    return rows * columns * bits / 8


def _joining_samples(name: str, threads: int) -> list[_Sample]:
    found = []
    for channels in _CHANNELS:
        copies = _COPIES if channels < _MANY_CHANNELS else 1
        found += _timed(joining(name, channels, copies), _TOKENS, threads)
    return found


def _timed(graph: KernelGraph, tokens: Iterable[int], threads: int) -> list[_Sample]:
    """Runs a graph with several numbers of tokens."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    content = graph.model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [
        _Sample(count, graph.rows, graph.columns, _best(session, graph, count) / graph.copies)
        for count in tokens
    ]


def _best(session: ort.InferenceSession, graph: KernelGraph, tokens: int) -> float:
    """Returns the least microseconds of a few runs: what else runs here only adds to it."""
    binding, random = session.io_binding(), np.random.default_rng(0)
    for name, width in graph.inputs.items():
        array = random.standard_normal((tokens, width), np.float32)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for name, width in graph.outputs.items():
        array = np.empty((tokens, width), np.float32)
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
    session.run_with_iobinding(binding)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < _LEAST_RUNS or time.perf_counter() - begun < _LEAST_SECONDS:
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def _fit(samples: list[_Sample], cold: Iterable[_Sample]) -> Cost:
    """Returns coefficients of at least 0 with the least squares of relative errors."""
    chunk, fitted = min(
        ((chunk, _fit_chunk(samples, chunk)) for chunk in _CHUNKS),
        key=lambda pair: _misfit(samples, *pair),
    )
    call, column, row, weight = (tuple(map(float, one)) for one in fitted.T)
    more = [0.0] * len(_TOKENS)
    for sample in cold:
        at = _TOKENS.index(sample.tokens)
        warm = float(_features(sample, chunk) @ fitted[at])
        more[at] = max(0.0, sample.time - warm) / (sample.rows * sample.columns / 1e6)
    return Cost(call, column, row, weight, tuple(more), chunk)


def _fit_chunk(samples: list[_Sample], chunk: int) -> np.ndarray:
    """Returns coefficients, tokens x 4, for a size of chunks."""
    fitted = []
    for tokens in _TOKENS:
        own = [sample for sample in samples if sample.tokens == tokens]
        times = np.array([sample.time for sample in own])
        features = np.stack([_features(sample, chunk) for sample in own]) / times[:, None]
        fitted.append(nnls(features, np.ones(len(own)))[0])
    return np.array(fitted)


def _misfit(samples: list[_Sample], chunk: int, fitted: np.ndarray) -> float:
    """Returns the sum of squared relative errors."""
    return sum(
        (float(_features(one, chunk) @ fitted[_TOKENS.index(one.tokens)]) / one.time - 1) ** 2
        for one in samples
    )


def _features(sample: _Sample, chunk: int) -> np.ndarray:
    columns = -(-sample.columns // chunk) * chunk
    return np.array([1.0, columns / 1e3, sample.rows / 1e3, sample.rows * columns / 1e6])
