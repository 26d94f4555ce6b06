"""Recurrent layers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..table import lowering

_Activation = Callable[[Tensor, float | None, float | None], Tensor]
_States = tuple[Tensor, ...]
_Step = Callable[[Tensor, _States, "_Weights"], _States]

_ACTIVATIONS: dict[str, _Activation] = {
    "relu": lambda x, a, b: functional.relu(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "affine": lambda x, a, b: (1.0 if a is None else a) * x + (b or 0.0),
    "leakyrelu": lambda x, a, b: functional.leaky_relu(x, 0.01 if a is None else a),
    "thresholdedrelu": lambda x, a, b: torch.where(x > (1.0 if a is None else a), x, 0 * x),
    "scaledtanh": lambda x, a, b: (
        (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x)
    ),
    "hardsigmoid": lambda x, a, b: torch.clamp(
        (0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1
    ),
    "elu": lambda x, a, b: functional.elu(x, 1.0 if a is None else a),
    "softsign": lambda x, a, b: functional.softsign(x),
    "softplus": lambda x, a, b: functional.softplus(x),
}


@dataclass(frozen=True)
class _Weights:
    """One direction's parameters.

    Attributes:
        inputs: Gates by input size.
        states: Gates by hidden size.
        input_bias: Per gate.
        state_bias: Per gate.
        peepholes: Input, output and forget gates' view of the cell; empty without.
        functions: The activations, in the order of the operator.
        limit: Bound on what enters an activation; 0 for none.
    """

    inputs: Tensor
    states: Tensor
    input_bias: Tensor
    state_bias: Tensor
    peepholes: tuple[Tensor, ...]
    functions: tuple[Callable[[Tensor], Tensor], ...]
    limit: float

    def activate(self, index: int, x: Tensor) -> Tensor:
        """Activation number ``index`` of ``x``."""
        return self.functions[index](x.clamp(-self.limit, self.limit) if self.limit else x)

    def gates(self, x: Tensor, hidden: Tensor) -> Tensor:
        """All gates before activation."""
        return x @ self.inputs.T + self.input_bias + hidden @ self.states.T + self.state_bias


@dataclass(frozen=True)
class _Layer:
    """The common inputs and attributes of the three operators.

    Attributes:
        weight: Directions, gates, input size.
        recurrence: Directions, gates, hidden size.
        bias: Directions, twice the gates; or None.
        peepholes: Directions, thrice the hidden size; or None.
        lengths: Valid steps of each sequence; or None.
        names: Activations for each direction, one direction after the other.
        alpha: Parameters of those activations.
        beta: Parameters of those activations.
        limit: Bound on what enters an activation; 0 for none.
        direction: forward, reverse or bidirectional.
        layout: 1 if the batch comes first.
    """

    weight: Tensor
    recurrence: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    lengths: Tensor | None
    names: list[str]
    alpha: list[float]
    beta: list[float]
    limit: float
    direction: str
    layout: int

    def run(self, x: Tensor, initial: list[Tensor | None], step: _Step) -> _States:
        """All outputs of the operator: every step's hidden state and the last states."""
        x = x.transpose(0, 1) if self.layout else x
        hidden, last = [], []
        for index in range(self.weight.shape[0]):
            backward = self.direction == "reverse" or index == 1
            states = tuple(self._start(x, state, index) for state in initial)
            rows, final = self._scan(x, states, self._parameters(index), step, backward)
            hidden.append(rows)
            last.append(final)
        every = torch.stack(hidden, dim=1)
        finals = [torch.stack(parts) for parts in zip(*last, strict=True)]
        if self.layout:
            every = every.permute(2, 0, 1, 3)
            finals = [final.transpose(0, 1) for final in finals]
        return (every, *finals)

    def _start(self, x: Tensor, state: Tensor | None, index: int) -> Tensor:
        if state is None:
            return x.new_zeros(x.shape[1], self.recurrence.shape[-1])
        return state[:, index] if self.layout else state[index]

    def _parameters(self, index: int) -> _Weights:
        weight, recurrence = self.weight[index], self.recurrence[index]
        gates = weight.shape[0]
        bias = weight.new_zeros(2 * gates) if self.bias is None else self.bias[index]
        count = len(self.names) // self.weight.shape[0]
        return _Weights(
            inputs=weight,
            states=recurrence,
            input_bias=bias[:gates],
            state_bias=bias[gates:],
            peepholes=() if self.peepholes is None else self.peepholes[index].chunk(3),
            functions=tuple(self._function(index * count + i) for i in range(count)),
            limit=self.limit,
        )

    def _function(self, index: int) -> Callable[[Tensor], Tensor]:
        function = _ACTIVATIONS[self.names[index].lower()]
        alpha = self.alpha[index] if index < len(self.alpha) else None
        beta = self.beta[index] if index < len(self.beta) else None
        return lambda x: function(x, alpha, beta)

    def _scan(
        self, x: Tensor, states: _States, weights: _Weights, step: _Step, backward: bool
    ) -> tuple[Tensor, _States]:
        rows: list[Tensor] = [states[0]] * x.shape[0]
        for time in range(x.shape[0])[:: -1 if backward else 1]:
            new = step(x[time], states, weights)
            rows[time] = new[0]
            if self.lengths is not None:
                valid = (time < self.lengths)[:, None]
                rows[time] = torch.where(valid, new[0], torch.zeros_like(new[0]))
                new = tuple(
                    torch.where(valid, after, before)
                    for after, before in zip(new, states, strict=True)
                )
            states = new
        return torch.stack(rows), states


def _names(given: list[str] | None, default: list[str], directions: int) -> list[str]:
    return given if given is not None else default * directions


@lowering("", "RNN", since=7, ignores=("hidden_size",))
def simple_recurrence(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """``h = f(W x + R h + b)``; returns every ``h`` and the last."""
    names = _names(activations, ["Tanh"], weight.shape[0])
    layer = _Layer(
        weight, recurrence, bias, None, sequence_lens, names,
        activation_alpha or [], activation_beta or [], clip, direction, layout,
    )  # fmt: skip

    def step(x: Tensor, states: _States, w: _Weights) -> _States:
        return (w.activate(0, w.gates(x, states[0])),)

    return layer.run(x, [initial_h], step)


@lowering("", "GRU", since=7, ignores=("hidden_size",))
def gated_recurrence(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Gated recurrent units; returns every hidden state and the last."""
    names = _names(activations, ["Sigmoid", "Tanh"], weight.shape[0])
    layer = _Layer(
        weight, recurrence, bias, None, sequence_lens, names,
        activation_alpha or [], activation_beta or [], clip, direction, layout,
    )  # fmt: skip

    def step(x: Tensor, states: _States, w: _Weights) -> _States:
        (h,) = states
        x_z, x_r, x_h = (x @ w.inputs.T + w.input_bias).chunk(3, -1)
        r_z, r_r, r_h = w.states.chunk(3)
        b_z, b_r, b_h = w.state_bias.chunk(3)
        update = w.activate(0, x_z + h @ r_z.T + b_z)
        reset = w.activate(0, x_r + h @ r_r.T + b_r)
        seen = reset * (h @ r_h.T + b_h) if linear_before_reset else (reset * h) @ r_h.T + b_h
        return ((1 - update) * w.activate(1, x_h + seen) + update * h,)

    return layer.run(x, [initial_h], step)


@lowering("", "LSTM", since=7, ignores=("hidden_size",))
def long_short_term_memory(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float = 0.0,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Long short-term memory; returns every hidden state, the last and the last cell."""
    names = _names(activations, ["Sigmoid", "Tanh", "Tanh"], weight.shape[0])
    layer = _Layer(
        weight, recurrence, bias, peepholes, sequence_lens, names,
        activation_alpha or [], activation_beta or [], clip, direction, layout,
    )  # fmt: skip

    def step(x: Tensor, states: _States, w: _Weights) -> _States:
        h, c = states
        i, o, f, g = w.gates(x, h).chunk(4, -1)
        p_i, p_o, p_f = w.peepholes or (c.new_zeros(()),) * 3
        write = w.activate(0, i + p_i * c)
        keep = 1 - write if input_forget else w.activate(0, f + p_f * c)
        cell = keep * c + write * w.activate(1, g)
        return w.activate(0, o + p_o * cell) * w.activate(2, cell), cell

    return layer.run(x, [initial_h, initial_c], step)
