"""A pretended accelerator: tensors that claim another device, and hold numbers all the same.

Under ``PretendedDevice`` every operation is checked by the rule of real accelerators: tensors
of a device meet only tensors of the same device, or CPU tensors of no axes. An engine that
makes a tensor without saying where, or mixes devices, fails as it would on a GPU; one that
does not runs to its end, and its numbers can be compared with the CPU's. torch's own fake
tensors have no numbers for decisions to read, and where torch is built without CUDA, fake
tensors of ``cuda`` cannot be indexed and abort the process when a gradient starts. So the
device goes by the name of torch's empty one, ``meta``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = "meta"
_MOVES = ("aten::_to_copy", "aten::copy_")
_READS = "aten::_local_scalar_dense"
_HEAVY = ("mm", "dot", "mv", "linalg", "cholesky", "solve", "einsum", "convolution")


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of two devices."""


class DoublesError(RuntimeError):
    """An operation made float64 where there is none."""


class Pretended(torch.Tensor):
    """A tensor on the pretended device.

    Attributes:
        numbers: Its contents, on the CPU.
    """

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=torch.device(DEVICE),
        )
        made.numbers = real
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {}, _CURRENT[-1] if _CURRENT else None)


class PretendedDevice(TorchDispatchMode):
    """While it is entered, ``meta`` is a device that computes.

    Attributes:
        doubles: Whether it has float64; Apple's devices do not.
        reads: How often single numbers were read from it, and tensors moved from it.
        calls: How often each operation was begun on it.
        left: How often each product or factorization was computed on the CPU meanwhile.
    """

    def __init__(self, *, doubles: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.doubles = doubles
        self.reads = 0
        self.calls: Counter[str] = Counter()
        self.left: Counter[str] = Counter()

    def __enter__(self) -> Self:
        _CURRENT.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _CURRENT.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {}, self)


class _Constants(TorchFunctionMode):
    """Makes tensors of Python's numbers on the device, and reads lists of them from it.

    torch does both without telling modes below this one.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


_CURRENT: list[PretendedDevice] = []


def _run(
    function: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    device: PretendedDevice | None,
) -> Any:
    tensors = [
        one for one in _flat((*args, *kwargs.values())) if isinstance(one, torch.Tensor)
    ]
    pretended = [one for one in tensors if isinstance(one, Pretended)]
    name, asked = function._schema.name, kwargs.get("device")
    if not pretended and asked is None:
        if device is not None and any(word in name for word in _HEAVY):
            device.left[name] += 1
        return function(*args, **kwargs)
    if name not in _MOVES:
        _refuse_mixed(name, tensors, bool(pretended))
    real = {key: _real(one) for key, one in kwargs.items()}
    if asked is not None:
        real["device"] = torch.device("cpu")
    made = function(*(_real(one) for one in args), **real)
    if device is not None and pretended:
        device.calls[name] += 1
    here = bool(pretended) if asked is None else torch.device(asked).type == DEVICE
    if name == "aten::copy_":
        here = isinstance(args[0], Pretended)
    if pretended and (name == _READS or not here) and device is not None:
        device.reads += 1
    if name == _READS or not here:
        return made
    _refuse_doubles(name, made, device)
    written = {id(one.numbers): one for one in pretended}  # in place, or by out=
    return tree_map_only(torch.Tensor, lambda x: _wrapped(x, written), made)


def _wrapped(real: torch.Tensor, written: Mapping[int, Pretended]) -> Pretended:
    return written[id(real)] if id(real) in written else Pretended(real)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for one in values:
        if isinstance(one, list | tuple):
            yield from one
        else:
            yield one


def _real(value: Any) -> Any:
    if isinstance(value, Pretended):
        return value.numbers
    return [_real(one) for one in value] if isinstance(value, list | tuple) else value


def _refuse_mixed(name: str, tensors: Sequence[torch.Tensor], pretended: bool) -> None:
    others = [one for one in tensors if not isinstance(one, Pretended) and one.ndim]
    if pretended and others:
        shapes = ", ".join(str(list(one.shape)) for one in others)
        raise MixedDevicesError(f"{name} mixes devices: of shape {shapes} on the CPU")


def _refuse_doubles(name: str, made: Any, device: PretendedDevice | None) -> None:
    if device is None or device.doubles:
        return
    found = [one for one in tree_iter(made) if isinstance(one, torch.Tensor)]
    if any(one.dtype == torch.float64 for one in found):
        raise DoublesError(f"{name} makes float64, which the device does not have")


@contextmanager
def pretending(*, doubles: bool = True) -> Iterator[PretendedDevice]:
    """Enters a pretended device; its name is ``DEVICE``."""
    with PretendedDevice(doubles=doubles) as device, _Constants():
        yield device


def put(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor on the device; inside ``pretending``."""
    return tensor.to(DEVICE)
