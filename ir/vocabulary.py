"""The notes that passes leave for one another. Arrays stand in the array store, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .annotation import Annotation


@dataclass(frozen=True)
class BlockId(Annotation):
    """On every node: the block it belongs to, counted in execution order."""

    key: ClassVar[str] = "block"
    index: int


@dataclass(frozen=True)
class LeftInFloat(Annotation):
    """On the anchor of a unit that stays in float, with the reason that the user is told."""

    key: ClassVar[str] = "float"
    unit: str
    why: str


@dataclass(frozen=True)
class FloatActivations(Annotation):
    """On a unit's anchor: its products and convolutions read activations in float, and why."""

    key: ClassVar[str] = "float-activations"
    unit: str
    why: str


@dataclass(frozen=True)
class TensorStats(Annotation):
    """On a unit's anchor: what calibration saw.

    The predicted divergence of storing row ``n`` with error ``d`` is
    ``1/2 * sum_t rows_t[n] * d^T hessian_t d`` over the unit's terms ``t``, one for each use.
    The arrays are ``<unit>/<t>/hessian`` (columns x columns) and ``<unit>/<t>/rows`` (rows);
    for products also ``activation``, ``low`` and ``high`` (columns), the variance of the
    kernels' rounding of inputs and the range of each input, and ``span`` (one number), the
    mean square of the distance between the ends of a sample.

    Attributes:
        unit: Name of the unit, the prefix of its arrays.
        terms: Number of quadratic terms.
        tokens: Number of token positions seen: rows that the Hessians are sums over.
        by_row: Whether the row moments are sure enough to give rows different options.
    """

    key: ClassVar[str] = "stats"
    unit: str
    terms: int
    tokens: int
    by_row: bool = True


@dataclass(frozen=True)
class LocalHessian(Annotation):
    """On a unit's anchor: it rounds against Hessians of what its own layer gives.

    The arrays are ``<unit>/<t>/local`` (count x columns x columns) and ``<unit>/<t>/owners``
    (rows, which of them is a row's own), for each term ``t`` that multiplies.

    Attributes:
        unit: Name of the unit.
        roles: What its rows are: ``queries``, ``keys``, ``values``, ``output`` of an
            attention, ``product`` or ``lookup``.
        count: Number of Hessians.
        trace: Mean of their diagonals over all rows and columns: of ``|dY|^2`` for one token.
        probes: Random signs behind each gradient; 0 for all directions.
    """

    key: ClassVar[str] = "local"
    unit: str
    roles: tuple[str, ...]
    count: int
    trace: float
    probes: int


@dataclass(frozen=True)
class AttentionUnits(Annotation):
    """On a softmax or a fused operator: the units of its attention.

    Attributes:
        queries: Unit that makes the queries.
        keys: Unit that makes the keys.
        values: Unit that makes the values.
        output: Unit that multiplies the heads.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head_size: Channels of a query.
        causal: Whether no query sees a later key.
        rope: How positions turn queries and keys, if they do.
    """

    key: ClassVar[str] = "attention"
    queries: str
    keys: str
    values: str
    output: str
    heads: int
    kv_heads: int
    head_size: int
    causal: bool
    rope: str


@dataclass(frozen=True)
class NoAttention(Annotation):
    """On a softmax or a fused operator: why no units are bound to it."""

    key: ClassVar[str] = "no-attention"
    why: str


@dataclass(frozen=True)
class Sensitivity(Annotation):
    """On a unit's anchor: the loss of every row under every option.

    The losses of ``fisher`` and ``kl`` are nats per token; those of other metrics have units
    of their own, and only their ratios mean something. The array ``<unit>/loss`` is rows x
    options.

    Attributes:
        unit: Name of the unit.
        metric: The kind of loss, such as ``fisher`` (predicted) or ``kl`` (measured).
        options: Printed options, the columns of the array.
        total: Sum over rows for each option.
    """

    key: ClassVar[str] = "sensitivity"
    unit: str
    metric: str
    options: tuple[str, ...]
    total: tuple[float, ...]


@dataclass(frozen=True)
class Score(Annotation):
    """On a unit's anchor: how sensitive a metric finds it, in one number for all options.

    ``allocate-bits{method=clusters}`` and ``{method=ratio}`` compare nothing else.

    Attributes:
        unit: Name of the unit.
        metric: The kind of number.
        value: The larger, the more bits the unit should get.
        block: The block that the number belongs to, which all units of it have in common; -1
            when it is the unit's own.
    """

    key: ClassVar[str] = "score"
    unit: str
    metric: str
    value: float
    block: int = -1


@dataclass(frozen=True)
class BitAllocation(Annotation):
    """On a unit's anchor: how many rows get which option.

    The rows in stored order are the array ``<unit>/order`` (int32): first those of the first
    option, then those of the second. It is absent when the unit has a single option.

    Attributes:
        unit: Name of the unit.
        options: Printed options that the unit uses, at least one row each.
        counts: Rows of each option; they sum to the unit's rows.
        loss: Predicted divergence of the choice in nats per token.
    """

    key: ClassVar[str] = "bits"
    unit: str
    options: tuple[str, ...]
    counts: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class SharedRows(Annotation):
    """On a unit's anchor: its stored rows follow an order that other units follow as well.

    The order is the array ``<unit>/order`` of those whose rows have several options. Until
    ``fold-permutations`` has moved the rows, the allocation counts bytes of the order too few.

    Attributes:
        unit: Name of the unit.
        group: Name of the group: that of its first unit.
    """

    key: ClassVar[str] = "shared"
    unit: str
    group: str


@dataclass(frozen=True)
class ColumnScales(Annotation):
    """On a unit's anchor: its columns are multiplied by what its input is divided by.

    The factor of a column is ``peak^(1 - alpha) * weight^-beta`` of its activation's largest
    magnitude and its weights' (CrossQuant, eq. 5, and SmoothQuant), up to a common factor.

    Attributes:
        unit: Name of the unit.
        site: Name of the activation that was divided.
        alpha: Share that is left to the token's own scale.
        beta: Power of the weights' largest magnitude.
    """

    key: ClassVar[str] = "columns"
    unit: str
    site: str
    alpha: float
    beta: float = 0.0


@dataclass(frozen=True)
class QuantSpec(Annotation):
    """On a unit's anchor: its weight has been rounded; the graph holds the simulated values.

    Arrays: ``<unit>/codes/<i>`` (int8, rows of class i x columns, signed codes) and
    ``<unit>/scales/<i>`` (float16, rows of class i x groups), in stored order.

    Attributes:
        unit: Name of the unit.
        options: Printed options of the classes.
        counts: Rows of each class.
        rounding: ``gptq`` or ``nearest``.
    """

    key: ClassVar[str] = "quant"
    unit: str
    options: tuple[str, ...]
    counts: tuple[int, ...]
    rounding: str


@dataclass(frozen=True)
class OutlierColumns(Annotation):
    """On a unit's anchor: input channels that stay in 16 bits as a matrix of their own.

    They are the array ``<unit>/outliers/columns`` (int32, ascending).

    Attributes:
        unit: Name of the unit.
        columns: How many.
    """

    key: ClassVar[str] = "outlier-columns"
    unit: str
    columns: int


@dataclass(frozen=True)
class OutlierEntries(Annotation):
    """On a unit's anchor: single weights that stay in 16 bits, each with its place.

    They are the array ``<unit>/outliers/entries`` (int32, entries x 2: row and column).

    Attributes:
        unit: Name of the unit.
        entries: How many.
    """

    key: ClassVar[str] = "outlier-entries"
    unit: str
    entries: int


@dataclass(frozen=True)
class ChannelAllocation(Annotation):
    """On a unit's anchor: how many input channels get which width.

    The channels in stored order are the array ``<unit>/channels`` (int32): first those of the
    first width, then those of the second. Outlier columns are not among them.

    Attributes:
        unit: Name of the unit.
        levels: What values there are: ``free``, ``grid4``, ``grid8`` or ``even``.
        group: Columns that share a scale; 0 for levels without scales, or one scale per row.
        bits: Widths of an index, ascending, at least one channel each.
        counts: Channels of each width.
    """

    key: ClassVar[str] = "channels"
    unit: str
    levels: str
    group: int
    bits: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class ChannelSpec(Annotation):
    """On a unit's anchor: its weight has been rounded as its ``ChannelAllocation`` says.

    The graph holds the simulated values. Arrays, for the channels of width i in stored order:
    ``<unit>/indices/<i>`` (uint8, channels x rows); unless the levels are even,
    ``<unit>/levels/<i>`` (float16, or int8 on a grid; channels x 2^bits); if the levels have
    scales, ``<unit>/scales`` (float16, rows x groups, or rows x groups of all widths side by
    side where the levels are even); ``<unit>/outliers/kept`` (float16, columns x rows) and
    ``<unit>/outliers/values`` (float16: weights, or with scales what they lack).

    Attributes:
        unit: Name of the unit.
        rounding: ``gptq`` or ``nearest``.
        loss: Predicted divergence in nats per token.
    """

    key: ClassVar[str] = "codebooks"
    unit: str
    rounding: str
    loss: float


@dataclass(frozen=True)
class StoredPart(Annotation):
    """On a node of a lowered graph: it reads initializers that store part of a unit.

    Attributes:
        unit: Name of the unit.
        role: ``kernel``, ``channels`` (a kernel for some of the columns), ``lookup``,
            ``dequantize``, ``expansion``, ``permutation``, ``outliers`` or ``factor``.
    """

    key: ClassVar[str] = "part"
    unit: str
    role: str


@dataclass(frozen=True)
class Calibrated(Annotation):
    """On the model: which stats file belongs to it.

    Attributes:
        stats: Content key of the stats (model hash and calibration hash).
        source: A description of the calibration data.
        samples: Number of samples.
        tokens: Number of token positions.
        objective: ``logits`` or ``regression``.
        output: Name of the output that the objective reads (the first, when it reads several).
        random: True when the samples were noise.
    """

    key: ClassVar[str] = "calibration"
    stats: str
    source: str
    samples: int
    tokens: int
    objective: str
    output: str
    random: bool = False


@dataclass(frozen=True)
class Settled(Annotation):
    """On the model: what a pass has stored for good before bits are allocated.

    Attributes:
        bytes: Of constants that the model did not have, codes of stored units among them.
        weights: Weights that are in codes already, and no part of any unit any more.
    """

    key: ClassVar[str] = "settled"
    bytes: int
    weights: int


@dataclass(frozen=True)
class Budgeted(Annotation):
    """On the model: the requested budget and the result.

    Attributes:
        asked: Stored bits per weight asked for.
        got: Stored bits per weight of the allocation.
        resident: Its bits per weight in memory, once the runtime has loaded it (estimated).
        weights: Number of weights in all units.
        loss: Sum of predicted divergences, nats per token.
    """

    key: ClassVar[str] = "budget"
    asked: float
    got: float
    resident: float
    weights: int
    loss: float
