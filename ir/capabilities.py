"""The capabilities of a target, as data. The table itself belongs to its backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .option import Option

_WHOLE_BYTE = 8
_ARRAY_GROUPS = (64, 32, 48, 128, 96)  # the first that divides a row
_INT8_ACTIVATIONS = 4  # the accuracy_level of MatMulNBits


@dataclass(frozen=True)
class Evidence:
    """Why an entry of a table is believed: it was run somewhere, or read somewhere.

    Attributes:
        on: Runtime and processor that it was run on; empty if it was only read.
        when: When it was run or read, such as ``2026-11``.
        source: Where it was read; empty if it was run.

    Raises:
        ValueError: It says neither, or both, or not when.
    """

    on: str = ""
    when: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if bool(self.on) == bool(self.source):
            raise ValueError("evidence is a machine that it was run on, or a source")
        if not self.when:
            raise ValueError("evidence has a date")

    @property
    def probed(self) -> bool:
        """Whether it was run."""
        return bool(self.on)

    def __str__(self) -> str:
        if self.probed:
            return f"probed {self.when} on {self.on}"
        return f"read {self.when} in {self.source}"


@dataclass(frozen=True)
class Kernel:
    """One width at which a target multiplies by quantized weights with a fast kernel.

    Attributes:
        bits: Width of a code.
        groups: Group sizes for which the kernel is fast.
        row_multiple: The number of output channels must be a multiple of this.
        column_multiple: The number of input channels must be a multiple of this.
        accuracy_level: Value of the ``accuracy_level`` attribute that selects the fast kernel.
        time: Time of one token relative to the float matmul, for reports.
        per_row: Whether it also takes a single scale for each output channel.
        legal: Group sizes that the runtime takes, fast or not; empty for no more than
            ``groups``.
        times: Time of one token at each size of ``legal``, relative to the float matmul;
            empty where nothing was measured.
        hardware: Instructions or devices that the kernel is written for.
        note: What else there is to know of its time.
        evidence: How this is known.
    """

    bits: int
    groups: tuple[int, ...]
    row_multiple: int
    column_multiple: int
    accuracy_level: int
    time: float
    per_row: bool = False
    legal: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    hardware: str = ""
    note: str = ""
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Capabilities:
    """The capability table of one target.

    Attributes:
        target: Name of the target, such as ``ort-cpu``.
        provider: Execution provider of the runtime.
        runtime: Name and oldest version of the runtime that the table holds for.
        kernels: Widths for matrix products, ascending.
        lookup_bits: Widths at which rows of a table can be looked up.
        lookup: ``unpack`` (standard nodes on looked-up rows), ``gather-block-quantized``,
            ``dequantize`` (codes and scales are looked up, then multiplied) or ``expand``
            (rows are looked up in floats).
        array_bits: Widths that can expand to floats when the runtime loads the model, for
            whatever no kernel of codes can read.
        convolution_bits: Widths for which convolutions have kernels, with one scale per row.
            Without any, their weights are arrays.
        row_tile: Rows are given their option in tiles of this many.
        expanding: Widths without a kernel that can be stored all the same, because the
            runtime computes on constants when it loads a model.
        lowering: Name of the pass that writes graphs for the target.
        whole_groups: Whether groups have to divide the row, because codes cannot be padded.
        keeps_columns: Whether some input channels of a product can be multiplied in float,
            apart from the others.
        integer_bits: Widths for which products and convolutions have kernels that multiply
            integers, with one scale per row; they are offered only where that is asked for.
        smallest_kernel: Entries of the smallest weight that is worth a kernel of codes; those
            below expand to floats.
        smallest_lookup: The same of tables that are only looked up.
        arrays: How what takes floats gets them from codes: ``expand``, by operators that a
            runtime computes when it loads the model, or ``dequantize``.
        activation_types: What its lowering can round activations to.
        needs_headroom: Whether sums of two products may be clipped where it runs.
        stands_in: Whether the provider only proves results, which are for another runtime or
            device: its times tell nothing then.
        integer_time: Time of a convolution of integers, relative to one of floats.
        conversion: Multiplications that take as long as one number to codes or back.
        deployed: Execution provider that runs results where they are deployed, if another
            one proves them.
        contrib: Whether it knows operators of ONNX Runtime's own.
        finishing: Names of the passes that follow the lowering.
        float8: Whether codes of 8 bits by row are floats (E4M3) instead of integers.
        signed_scales: Whether scales may be negative.
        half: Whether any unit may be stored as float16, because the target computes in it.
        hardware: What processors or devices the runtime needs.
        also: Names and oldest versions of other runtimes that results run in.
        evidence: How the entries beside the kernels are known, by their names here without
            ``_bits``: lookup, array, convolution, integer, expanding.
    """

    target: str
    provider: str
    runtime: str
    kernels: tuple[Kernel, ...]
    lookup_bits: tuple[int, ...]
    lookup: str
    array_bits: tuple[int, ...]
    convolution_bits: tuple[int, ...]
    row_tile: int
    expanding: tuple[int, ...] = ()
    lowering: str = "lower-matmul-nbits"
    whole_groups: bool = False
    keeps_columns: bool = True
    integer_bits: tuple[int, ...] = ()
    smallest_kernel: int = 0
    smallest_lookup: int = 0
    arrays: str = "expand"
    activation_types: tuple[str, ...] = ()
    needs_headroom: bool = True
    stands_in: bool = False
    integer_time: float = 0.35  # as ONNX Runtime computes it with VNNI
    conversion: float = 16.0
    deployed: str = ""
    contrib: bool = True
    finishing: tuple[str, ...] = ()
    float8: bool = False
    signed_scales: bool = True
    half: bool = False
    hardware: str = ""
    also: tuple[str, ...] = ()
    evidence: Mapping[str, Evidence] = field(default_factory=dict, hash=False)

    @property
    def deployed_provider(self) -> str:
        """The execution provider that runs results where they are deployed."""
        return self.deployed or self.provider

    def kernel(self, bits: int) -> Kernel | None:
        """Returns the kernel for ``bits``, or None."""
        return next((kernel for kernel in self.kernels if kernel.bits == bits), None)

    def rounds_activations(self, bits: int) -> bool:
        """Tells whether the kernel for ``bits`` rounds activations to int8, in groups."""
        kernel = self.kernel(bits)
        return kernel is not None and kernel.accuracy_level == _INT8_ACTIVATIONS

    def can_store(self, option: Option) -> bool:
        """Tells whether codes of this width can reach a kernel of ``option.kernel_bits``."""
        return not option.expands or option.bits in self.expanding

    def _stored(self, kernels: Iterable[Option], expand: bool) -> tuple[Option, ...]:
        """Returns the options whose codes end as those of ``kernels``."""
        return tuple(
            option
            for kernel in kernels
            for bits in (kernel.bits, *(self.expanding if expand else ()))
            if (option := self._option(bits, kernel.group)).kernel_bits == kernel.bits
        )

    def _option(self, bits: int, group: int) -> Option:
        kernel = self.kernel(bits)
        by_row = kernel is not None and kernel.per_row and group not in kernel.groups
        return Option(bits, group, float8=self.float8 and by_row and bits == _WHOLE_BYTE)

    def multiplies_integers(self, option: Option, columns: int) -> bool:
        """Tells whether a kernel of integers can serve rows of ``columns`` weights."""
        kernel = self.kernel(option.bits)
        by_row = kernel is not None and kernel.per_row and option.group == columns
        return option.integer or by_row

    def integer_options(self, columns: int) -> tuple[Option, ...]:
        """Returns the options of kernels that multiply integers."""
        return tuple(Option(bits, columns, integer=True) for bits in self.integer_bits)

    def product_options(
        self, rows: int, columns: int, *, expand: bool = False
    ) -> tuple[Option, ...]:
        """Returns every option that a rows x columns weight may take in a matrix product.

        Args:
            rows: Output channels.
            columns: Input channels.
            expand: Whether codes may take more room in memory than in the file.
        """
        found = (
            Option(kernel.bits, group)
            for kernel in self.kernels
            if rows % kernel.row_multiple == 0 and columns % kernel.column_multiple == 0
            for group in self._groups(kernel.groups, kernel, columns)
        )
        return self._stored(found, expand)

    def lookup_options(self, columns: int, *, expand: bool = False) -> tuple[Option, ...]:
        """Returns every option that a table with ``columns`` columns may take in a lookup."""
        groups = sorted({group for kernel in self.kernels for group in kernel.groups})
        found = (
            Option(bits, group)
            for bits in self.lookup_bits
            for group in self._groups(groups, self.kernel(bits), columns)
            if group <= max(columns, 32)
        )
        return self._stored(found, expand)

    def _groups(
        self, groups: Sequence[int], kernel: Kernel | None, columns: int
    ) -> tuple[int, ...]:
        """Returns which of ``groups`` fit a row, and the row itself where that is a group."""
        fitting = (one for one in groups if not self.whole_groups or columns % one == 0)
        if kernel is not None and kernel.per_row:
            return (*(one for one in fitting if one in kernel.groups), columns)
        return tuple(fitting)

    def convolution_options(self, columns: int) -> tuple[Option, ...]:
        """Returns every option that a convolution's weight may take."""
        by_row = tuple(Option(bits, columns) for bits in self.convolution_bits)
        return by_row or self.array_options(columns)

    @staticmethod
    def array_groups(bits: int) -> tuple[int, ...]:
        """Returns the groups that arrays of a width may have; none where that is the row."""
        return () if bits >= _WHOLE_BYTE else _ARRAY_GROUPS

    def array_options(self, columns: int) -> tuple[Option, ...]:
        """Returns every option that a weight may take which a reader takes as floats.

        Each option that is used costs nodes, so there is one group size for each width: from
        8 bits on a row, below that the first of a few that divides the row.
        """
        fitting = {
            bits: (one for one in self.array_groups(bits) if columns % one == 0)
            for bits in self.array_bits
        }
        return tuple(Option(bits, next(groups, columns)) for bits, groups in fitting.items())
