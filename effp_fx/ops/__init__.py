"""What the compiler knows of each op: one row each, by family; importing this package fills the table."""

from effp_fx.ops import (
    attention,
    contraction,
    convolution,
    elementwise,
    indexing,
    movement,
    normalisation,
    reduction,
    sizes,
    spatial,
)
from effp_fx.ops.table import KINDS, Kept, Row, add, find, forget_op, register_op, rows

__all__ = [
    "KINDS",
    "Kept",
    "Row",
    "add",
    "attention",
    "contraction",
    "convolution",
    "elementwise",
    "find",
    "forget_op",
    "indexing",
    "movement",
    "normalisation",
    "reduction",
    "register_op",
    "rows",
    "sizes",
    "spatial",
]
