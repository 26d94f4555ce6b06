from __future__ import annotations

import numpy as np
import pytest
import torch

from mpqc.backend.onnxruntime.runner import open_session
from mpqc.frontend.torch_module import from_graph_module, from_module
from mpqc.ir import InputError, UsageError


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(torch.relu(self.first(x)))
        return found


class Undecided(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.ort
@pytest.mark.timeout(120)
@pytest.mark.parametrize("graph", [False, True])
def test_shapes_stay_open_and_numbers_stay_the_same(graph: bool) -> None:
    torch.manual_seed(0)
    net = Net().train()
    shapes = ({0: torch.export.Dim("batch")},)
    examples = (torch.zeros(2, 8),)
    if graph:
        model = from_graph_module(torch.fx.symbolic_trace(net.eval()), examples, shapes)
    else:
        model = from_module(net, examples, shapes)
        assert net.training  # as it was before
    assert [str(dim) for dim in model.graph.inputs[0].shape or ()] == ["batch", "8"]
    x = torch.randn(5, 8)
    with open_session(model) as session:
        (found,) = session.run({session.inputs[0].name: x.numpy()}).values()
    np.testing.assert_allclose(found, net.eval()(x).detach().numpy(), atol=1e-6)


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(InputError, match="Undecided"):
        from_module(Undecided(), (torch.ones(2),))
    with pytest.raises(UsageError, match="is a tensor"):
        from_module(Net(), torch.ones(2, 8))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a torch module"):
        from_module("net", ())  # type: ignore[arg-type]
