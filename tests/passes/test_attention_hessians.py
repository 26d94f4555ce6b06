"""The Hessians of an attention against torch's own Jacobians of an attention written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.backend.runner import Runner
from mpqc.ir import annotate, blocks_of
from mpqc.ir.analysis.attention import find_attention
from mpqc.ir.vocabulary import BlockId
from mpqc.passes.engine.execution.padding import Padding
from mpqc.passes.engine.execution.samples import Values
from mpqc.passes.engine.statistics.attention_core import Core, Wiring, wire
from mpqc.passes.engine.statistics.head_hessian_terms import (
    gradients,
    squared_gradients,
    value_responses,
)
from mpqc.passes.engine.statistics.head_hessians import HeadHessians

from .attending import HEADS, SIZE, WIDTH, decomposed, grouped_query, packed, rotations
from .rounded import noise

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = 6


@dataclass
class Case:
    """One attention, ready to be asked; all in terms of separate projections."""

    core: Core
    values: Values
    weights: dict[str, torch.Tensor]  # rows x columns
    inputs: torch.Tensor
    mixed: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    known: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def mixer(self) -> torch.Tensor:
        return self.weights["wo"].float()

    def jacobian(self, name: str) -> torch.Tensor:
        """dY / dW of one projection: (tokens * width) x rows x columns, float64."""

        def given(weight: torch.Tensor) -> torch.Tensor:
            changed = {**self.weights, name: weight}
            return self.mixed(changed) @ changed["wo"].T

        if name not in self.known:
            found: torch.Tensor = torch.func.jacrev(given)(self.weights[name])
            self.known[name] = found.reshape(-1, *self.weights[name].shape)
        return self.known[name]


def written_out(
    x: torch.Tensor, kv_heads: int, *, causal: bool, rope: bool
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    cos, sin = (torch.from_numpy(one).double() for one in rotations(TOKENS))

    def turned(heads: torch.Tensor) -> torch.Tensor:
        if not rope:
            return heads
        a, b = heads.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def split(made: torch.Tensor) -> torch.Tensor:
        heads = made.reshape(TOKENS, -1, SIZE).transpose(0, 1)
        return heads.repeat_interleave(HEADS // len(heads), dim=0)

    def mixed(w: dict[str, torch.Tensor]) -> torch.Tensor:
        q, k, v = (
            turned(split(x @ w["wq"].T)),
            turned(split(x @ w["wk"].T)),
            split(x @ w["wv"].T),
        )
        scores = q @ k.mT / SIZE**0.5
        if causal:
            later = torch.ones(TOKENS, TOKENS).triu(1).bool()
            scores = scores.masked_fill(later, -10000.0)
        heads: torch.Tensor = scores.softmax(-1) @ v
        return heads.transpose(0, 1).reshape(TOKENS, -1)

    return mixed


def prepared(model: ir.Model) -> tuple[Core, Values, torch.Tensor]:
    """Lowers the only attention of a model and runs the model once."""
    for node in model.graph:
        annotate(node, BlockId(0))
    (block,) = blocks_of(model)
    (attention,) = find_attention(model).bound
    core = Core.lower(attention, block, Runner(threads=1))
    x = torch.from_numpy(noise(1, TOKENS, WIDTH, seed=9))
    given = [value for value in core.wanted if value.producer() is not None]
    module = Runner(threads=1).segment(block.nodes, block.inputs, given)
    assert [str(value.name) for value in block.inputs] == ["x"]
    with torch.no_grad():
        found = module(x)
    values = dict(zip((str(value.name) for value in given), found, strict=True))
    return core, Values(values, Padding()), x


def matrices(model: ir.Model, *, interleaved: bool = False) -> dict[str, torch.Tensor]:
    tensors = {
        name: torch.from_numpy(value.const_value.numpy().copy()).double().T
        for name, value in model.graph.initializers.items()
        if name.startswith("w") and value.const_value is not None
    }
    if "wqkv" in tensors:
        whole = tensors.pop("wqkv")
        if interleaved:
            cut = whole.reshape(HEADS, 3, SIZE, WIDTH).transpose(0, 1).reshape(3, -1, WIDTH)
            tensors |= dict(zip(("wq", "wk", "wv"), cut, strict=True))
        else:
            rest = (len(whole) - HEADS * SIZE) // 2
            parts = torch.split(whole, [HEADS * SIZE, rest, rest])
            tensors |= dict(zip(("wq", "wk", "wv"), parts, strict=True))
    return tensors


def case(
    model: ir.Model,
    kv_heads: int = HEADS,
    *,
    causal: bool = False,
    rope: bool = False,
    scaled: bool = True,
    interleaved: bool = False,
) -> Case:
    core, values, x = prepared(model)
    weights = matrices(model, interleaved=interleaved)
    if not scaled:  # the graph leaves out the scale
        weights["wq"] = weights["wq"] * SIZE**0.5
    mixed = written_out(x[0].double(), kv_heads, causal=causal, rope=rope)
    return Case(core, values, weights, x[0], mixed)


CASES: dict[str, Callable[[], Case]] = {
    "plain": lambda: case(decomposed(causal=False, tokens=TOKENS)),
    "causal": lambda: case(decomposed(tokens=TOKENS), causal=True),
    "grouped rope": lambda: case(
        decomposed(kv_heads=2, rope=True, tokens=TOKENS), 2, causal=True, rope=True
    ),
    "operator": lambda: case(
        grouped_query(rope=True, kv_heads=2, joined=False, tokens=TOKENS),
        2,
        causal=True,
        rope=True,
    ),
    "operator, packed": lambda: case(
        grouped_query(rope=True, kv_heads=2, joined=True, tokens=TOKENS),
        2,
        causal=True,
        rope=True,
    ),
}


@pytest.fixture(params=CASES, scope="module")
def asked(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def close(found: torch.Tensor, wanted: torch.Tensor, most: float = 1e-5) -> None:
    error = float((found.double() - wanted).norm() / wanted.norm())
    assert error < most, f"off by {error:.2e}"


def test_the_graph_is_what_is_written_out(asked: Case) -> None:
    _, mixed = asked.core.run(asked.values, asked.core.given(asked.values))
    close(mixed, asked.mixed(asked.weights))


def gauss_newton(jacobian: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The block on the diagonal that belongs to the rows of each head, times ``error``."""
    heads = zip(torch.split(jacobian, SIZE, dim=1), torch.split(error, SIZE), strict=True)
    parts = [
        torch.einsum("ynk,y->nk", block, torch.einsum("ynk,nk->y", block, part))
        for block, part in heads
    ]
    return torch.cat(parts)


def test_output_is_the_second_moment_of_the_heads(asked: Case) -> None:
    _, mixed = asked.core.run(asked.values, asked.core.given(asked.values))
    error = torch.from_numpy(noise(WIDTH, HEADS * SIZE, seed=5)).double()
    flat = asked.jacobian("wo").reshape(TOKENS * WIDTH, -1)
    wanted = (flat.T @ (flat @ error.reshape(-1))).reshape(error.shape)
    close(error @ (mixed.T @ mixed).double(), wanted)


def test_values_are_exact(asked: Case) -> None:
    wiring = wire(asked.core, asked.values)
    seen = value_responses(asked.core, wiring, asked.values, asked.inputs).double()
    error = torch.from_numpy(noise(*asked.weights["wv"].shape, seed=5)).double()
    by_head = error.reshape(-1, SIZE, WIDTH)
    mixer = asked.weights["wo"].reshape(WIDTH, HEADS, SIZE)
    found = torch.zeros_like(by_head)
    group = wiring.group.tolist()
    for h, g in ((h, g) for h in range(HEADS) for g in range(HEADS) if group[h] == group[g]):
        rows = mixer[:, h].T @ mixer[:, g]
        found[group[h]] += rows @ by_head[group[h]] @ (seen[g].T @ seen[h])
    close(found.reshape_as(error), gauss_newton(asked.jacobian("wv"), error))


def test_queries_are_exact_along_every_direction(asked: Case) -> None:
    wiring = wire(asked.core, asked.values)
    channels = torch.cat(wiring.queries)
    error = torch.from_numpy(noise(*asked.weights["wq"].shape, seed=5)).double()
    moved = asked.inputs.double() @ error.T
    found = torch.zeros_like(error)
    place = asked.core.place(0)
    for made in gradients(asked.core, asked.values, asked.mixer, 0, torch.Generator()):
        slope = made[place][:, channels].double()  # tokens x rows, one direction of each head
        along = (slope * moved).reshape(TOKENS, HEADS, SIZE).sum(2, keepdim=True)
        found += (slope.reshape(TOKENS, HEADS, SIZE) * along).reshape(TOKENS, -1).T @ (
            asked.inputs.double()
        )
    close(found, gauss_newton(asked.jacobian("wq"), error))


def mean_blocks(jacobian: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The mean over ``rows`` of the Gauss-Newton matrix's blocks on the diagonal."""
    picked = jacobian[:, rows].reshape(-1, jacobian.shape[2])
    return picked.T @ picked / len(rows)


def gathered(asked: Case, probes: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By role: the Hessians (for one token) and their owners, in terms of the role's rows."""
    state = HeadHessians(asked.core, probes, torch.Generator().manual_seed(3))
    name = asked.core.attention.query.use.activation.name
    state.add(Values({**asked.values, str(name): asked.inputs[None]}, Padding()))
    found, start = {}, 0
    for role, part in zip(("wq", "wk", "wv"), asked.core.attention.projections, strict=False):
        result = state.result()[part.unit.name, part.at]
        rows = len(asked.weights[role])
        single = part.unit.shape[0] == rows
        owners = result.owners if single else result.owners[start : start + rows]
        found[role] = (result.matrices * TOKENS, owners)
        start += rows
    return found


@pytest.mark.parametrize("role", ["wq", "wv"])
def test_rows_of_a_head_get_the_mean_of_their_blocks(asked: Case, role: str) -> None:
    found, owners = gathered(asked)[role]
    jacobian = asked.jacobian(role)
    assert len(set(owners.tolist())) == len(asked.weights[role]) // SIZE
    for owner in set(owners.tolist()):
        rows = (owners == owner).nonzero()[:, 0]
        assert len(rows) == SIZE
        close(found[owner], mean_blocks(jacobian, rows), 2e-5)


def test_keys_are_the_token_by_token_part(asked: Case) -> None:
    found, owners = gathered(asked, probes=600)["wk"]
    made = asked.inputs.double() @ asked.weights["wk"].T

    def given(k: torch.Tensor) -> torch.Tensor:
        # Keys enter as inputs @ W^T: a weight that maps one-hot tokens gives any keys at all.
        pseudo = torch.linalg.pinv(asked.inputs.double()) @ k
        return asked.mixed({**asked.weights, "wk": pseudo.T}) @ asked.weights["wo"].T

    jacobian = torch.func.jacrev(given)(made).reshape(-1, *made.shape)
    for owner in set(owners.tolist()):
        rows = (owners == owner).nonzero()[:, 0]
        weights = jacobian[:, :, rows].square().sum((0, 2)) / len(rows)
        wanted = (asked.inputs.double() * weights[:, None]).T @ asked.inputs.double()
        close(found[owner], wanted, 0.1)


def test_few_signs_are_right_on_average() -> None:
    asked = CASES["grouped rope"]()
    generator = torch.Generator().manual_seed(0)
    exact = squared_gradients(asked.core, asked.values, asked.mixer, 0, generator)
    found = squared_gradients(asked.core, asked.values, asked.mixer, 500, generator)
    close(found[0].sum(1), exact[0].sum(1).double(), 0.1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_packed_units_are_wired_by_their_channels(interleaved: bool) -> None:
    asked = case(packed(interleaved=interleaved), scaled=False, interleaved=interleaved)
    wiring: Wiring = wire(asked.core, asked.values)
    whole = np.arange(3 * HEADS * SIZE)
    cut = whole.reshape(HEADS, 3, SIZE) if interleaved else whole.reshape(3, HEADS, SIZE)
    cut = cut.transpose(1, 0, 2) if interleaved else cut
    for role, sets in enumerate((wiring.queries, wiring.keys, wiring.values)):
        for head, channels in enumerate(sets):
            assert channels.tolist() == cut[role, head].tolist()
