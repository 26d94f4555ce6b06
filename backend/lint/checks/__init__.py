"""One function for each rule: yields the nodes that break it, and what is wrong there."""

from __future__ import annotations

from collections.abc import Mapping

from ..view import Check
from . import integer_kernels, matmul_nbits, openvino, pairs, tensorrt, tensorrt_graph, web

CHECKS: Mapping[str, Check] = {
    **pairs.CHECKS,
    **tensorrt.CHECKS,
    **tensorrt_graph.CHECKS,
    **matmul_nbits.CHECKS,
    **integer_kernels.CHECKS,
    **openvino.CHECKS,
    **web.CHECKS,
}
