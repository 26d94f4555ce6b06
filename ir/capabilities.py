"""What a target can run, as data. The table itself belongs to the backend that knows it."""

from __future__ import annotations

from dataclasses import dataclass

from .option import Option


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
    """

    bits: int
    groups: tuple[int, ...]
    row_multiple: int
    column_multiple: int
    accuracy_level: int
    time: float


@dataclass(frozen=True)
class Capabilities:
    """The capability table of one target.

    Attributes:
        target: Name of the target, such as ``ort-cpu``.
        provider: Execution provider of the runtime.
        runtime: Name and oldest version of the runtime that the table holds for.
        kernels: Widths for matrix products, ascending.
        lookup_bits: Widths at which rows of a table can be looked up.
        lookup: ``unpack`` (standard nodes on looked-up rows) or ``gather-block-quantized``.
        convolution_bits: Widths at which convolutions can be stored, with one scale a row.
        row_tile: Rows are given their option in tiles of this many.
    """

    target: str
    provider: str
    runtime: str
    kernels: tuple[Kernel, ...]
    lookup_bits: tuple[int, ...]
    lookup: str
    convolution_bits: tuple[int, ...]
    row_tile: int

    def kernel(self, bits: int) -> Kernel | None:
        """Returns the kernel for ``bits``, or None."""
        return next((kernel for kernel in self.kernels if kernel.bits == bits), None)

    def product_options(self, rows: int, columns: int) -> tuple[Option, ...]:
        """Returns every option that a rows x columns weight may take in a matrix product."""
        return tuple(
            Option(kernel.bits, group)
            for kernel in self.kernels
            if rows % kernel.row_multiple == 0 and columns % kernel.column_multiple == 0
            for group in kernel.groups
        )

    def lookup_options(self, columns: int) -> tuple[Option, ...]:
        """Returns every option that a table with ``columns`` columns may take in a lookup."""
        groups = {group for kernel in self.kernels for group in kernel.groups}
        return tuple(
            Option(bits, group)
            for bits in self.lookup_bits
            for group in sorted(groups)
            if group <= max(columns, 32)
        )

    def convolution_options(self, columns: int) -> tuple[Option, ...]:
        """Returns every option that a convolution's weight may take: a row is one group."""
        return tuple(Option(bits, columns) for bits in self.convolution_bits)
