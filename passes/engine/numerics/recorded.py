"""Many small operations on fixed tensors, begun as one where a device can do that.

A CUDA device computes an operation on a column in less time than Python takes to begin it. A
CUDA graph records what is begun once, and begins all of it again by a single call. It needs
no compiler; where recording fails, operations are begun one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

_RECORDING = ("cuda",)  # kinds of devices
_MOST = 8  # recordings that are kept, each with its tensors

Work = Callable[..., None]


def run(
    work: Work, given: Sequence[torch.Tensor], made: Sequence[torch.Tensor], *numbers: int
) -> None:
    """Calls ``work(*given, *made, *numbers)``.

    Args:
        work: Begins operations in place, on views of its tensors, that allocate nothing and
            read no number. A function of a module: recordings are kept by it.
        given: What it reads, and may change; afterwards, their contents are undefined.
        made: What it fills.
        numbers: Fixed in a recording.
    """
    if given[0].device.type not in _RECORDING:
        work(*given, *made, *numbers)
        return
    shapes = tuple(tuple(one.shape) for one in (*given, *made))
    tensors, replay = _recording(work, shapes, given[0].device, numbers)
    for tensor, one in zip(tensors, given, strict=False):
        tensor.copy_(one)
    replay()
    for tensor, one in zip(tensors[len(given) :], made, strict=True):
        one.copy_(tensor)


@lru_cache(maxsize=_MOST)
def _recording(
    work: Work,
    shapes: tuple[tuple[int, ...], ...],
    device: torch.device,
    numbers: tuple[int, ...],
) -> tuple[list[torch.Tensor], Callable[[], None]]:
    """Returns tensors, and what does the work on them."""
    tensors = [torch.ones(shape, device=device) for shape in shapes]
    begin = partial(work, *tensors, *numbers)
    try:
        return tensors, _graph(begin, device)
    except RuntimeError:  # of the driver, or of an operation that cannot be recorded
        return tensors, begin


def _graph(begin: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Records a CUDA graph; returns what replays it."""
    if device.type != "cuda":
        return begin
    with torch.cuda.device(device):
        apart = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        apart.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(apart):
            begin()  # what kernels need the first time cannot be recorded
        torch.cuda.current_stream(device).wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            begin()
    replay: Callable[[], None] = graph.replay
    return replay
