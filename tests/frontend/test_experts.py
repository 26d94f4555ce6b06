"""Which expert layers become one operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpqc.frontend import experts

moe = pytest.importorskip("transformers.integrations.moe")


def layer(**members: Any) -> Any:
    def init(self: Any, config: Any) -> None:
        torch.nn.Module.__init__(self)
        self.act_fn = torch.nn.SiLU()

    made = type("Layer", (torch.nn.Module,), {"__init__": init, "forward": None, **members})
    return moe.use_experts_implementation(made)(None)


def test_a_gate_of_the_models_own_is_not_taken_for_the_common_one() -> None:
    """It may clamp, for instance, which the operator would not do."""

    def clamped(self: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate.clamp(max=1)) * up

    assert experts._is_plain(layer())
    assert not experts._is_plain(layer(_apply_gate=clamped))
