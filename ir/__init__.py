"""The ground floor: the annotated graph. Knows ONNX, not the choices of any algorithm."""

from .analysis.blocks import Block, blocks_of, partition
from .analysis.shared_orders import FixedOrder, SharedOrder, SharedOrders, find_shared_orders
from .annotation import (
    Annotation,
    all_notes_of,
    annotate,
    drop_note,
    forget_notes,
    need_note,
    note_of,
    notes_of,
)
from .arrays import ArrayStore
from .cached_file import CachedFile
from .capabilities import Capabilities, Evidence, Kernel
from .content_key import model_key
from .errors import (
    ExcessLoss,
    InfeasibleBudget,
    InputError,
    InternalError,
    MachineError,
    Miscompiled,
    MissingFact,
    MpqcError,
    UsageError,
)
from .listing import clean, listing, type_text
from .machine_errors import machine_errors
from .model_checks import check_finite, inline_functions, refuse_quantized
from .operands import all_graphs, all_nodes, captures, operands, subgraphs_of
from .option import HALF, Option
from .owned_folder import temporary_folder
from .part_names import DECODER_FILE, DECODER_TOKENS, ENCODER_FILE, ENCODER_STATES
from .reader import read_model
from .samples import Calibration, Feeds
from .staging import refuse_overlap, staged_folder
from .tensor_files import byte_size, stored_bytes
from .unit_search import find_units, quantizable
from .units import FLOAT_TYPES, Unit, Use
from .verifier import problems, verify
from .vocabulary import (
    AttentionUnits,
    BitAllocation,
    BlockId,
    Budgeted,
    Calibrated,
    ChannelAllocation,
    ChannelSpec,
    ColumnScales,
    FloatActivations,
    LeftInFloat,
    LocalHessian,
    NoAttention,
    OutlierColumns,
    OutlierEntries,
    QuantSpec,
    Score,
    Sensitivity,
    Settled,
    SharedRows,
    StoredPart,
    TensorStats,
)
from .writer import write_model, write_references

__all__ = [
    "DECODER_FILE",
    "DECODER_TOKENS",
    "ENCODER_FILE",
    "ENCODER_STATES",
    "FLOAT_TYPES",
    "HALF",
    "Annotation",
    "ArrayStore",
    "AttentionUnits",
    "BitAllocation",
    "Block",
    "BlockId",
    "Budgeted",
    "CachedFile",
    "Calibrated",
    "Calibration",
    "Capabilities",
    "ChannelAllocation",
    "ChannelSpec",
    "ColumnScales",
    "Evidence",
    "ExcessLoss",
    "Feeds",
    "FixedOrder",
    "FloatActivations",
    "InfeasibleBudget",
    "InputError",
    "InternalError",
    "Kernel",
    "LeftInFloat",
    "LocalHessian",
    "MachineError",
    "Miscompiled",
    "MissingFact",
    "MpqcError",
    "NoAttention",
    "Option",
    "OutlierColumns",
    "OutlierEntries",
    "QuantSpec",
    "Score",
    "Sensitivity",
    "Settled",
    "SharedOrder",
    "SharedOrders",
    "SharedRows",
    "StoredPart",
    "TensorStats",
    "Unit",
    "UsageError",
    "Use",
    "all_graphs",
    "all_nodes",
    "all_notes_of",
    "annotate",
    "blocks_of",
    "byte_size",
    "captures",
    "check_finite",
    "clean",
    "drop_note",
    "find_shared_orders",
    "find_units",
    "forget_notes",
    "inline_functions",
    "listing",
    "machine_errors",
    "model_key",
    "need_note",
    "note_of",
    "notes_of",
    "operands",
    "partition",
    "problems",
    "quantizable",
    "read_model",
    "refuse_overlap",
    "refuse_quantized",
    "staged_folder",
    "stored_bytes",
    "subgraphs_of",
    "temporary_folder",
    "type_text",
    "verify",
    "write_model",
    "write_references",
]
