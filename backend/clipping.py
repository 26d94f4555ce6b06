"""What processors do with sums of products of bytes."""

from __future__ import annotations

import platform
from functools import cache

_X86 = ("x86_64", "AMD64")
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


@cache
def clips_sums() -> bool:
    """Tells whether this processor clips sums of two products of bytes to 16 bits.

    Those of x86 without VNNI do, in kernels whose results leave no headroom.
    """
    import torch

    facts = torch.cpu.get_capabilities()
    return platform.machine() in _X86 and not any(facts.get(flag) for flag in _VNNI)
