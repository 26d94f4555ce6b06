"""Whether ONNX Runtime's targets and providers really work on this machine."""

from __future__ import annotations

import contextlib
import io

import onnx_ir as ir

from ...ir import MpqcError
from ..native_log import native_log
from .capabilities import installed_runtime_problem, load
from .probing import in_plain_words
from .runner import open_session

# What results are made of beside their kernels: constants that are computed at load.
_TINY = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[1, 1, 1, 1] x) => (float[1, 1, 1, 1] y)
<uint8[1, 1, 1, 1] codes = {7}, uint8 shift = {1}, uint8 zero = {0}, float one = {1}>
{
    fields = BitShift<direction = "RIGHT">(codes, shift)
    sums = QLinearConv(fields, one, zero, codes, one, zero, one, zero)
    wide = Cast<to = 1>(sums)
    y = Add(x, wide)
}"""


def target_problem(target: str) -> str | None:
    """Returns in one line why ``target`` does not work here; None if it loads a tiny model.

    Raises:
        UsageError: There is no such target.
    """
    return installed_runtime_problem(target) or _loading_problem(load(target).provider)


def provider_problems() -> dict[str, str | None]:
    """Returns the providers that this build has, and why those that do not work do not.

    A build lists what it was compiled with, whether or not its libraries are there.
    """
    try:
        import onnxruntime
    except ImportError:
        return {}
    return {one: _loading_problem(one) for one in onnxruntime.get_available_providers()}


def _loading_problem(provider: str) -> str | None:
    try:
        with open_session(ir.from_onnx_text(_TINY), provider):
            return None
    except MpqcError as error:
        return in_plain_words(error.message)


def load_cuda_libraries() -> None:
    """Loads CUDA's libraries where they came as Python packages, which no loader looks into.

    What is not there is found missing when a provider needs it, and named then.
    """
    quiet = contextlib.redirect_stdout(io.StringIO())
    with contextlib.suppress(ImportError), native_log(), quiet:
        import onnxruntime

        onnxruntime.preload_dlls()
