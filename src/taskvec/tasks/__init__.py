"""Learning tasks: data splits, a frozen head, and how they are scored. One builder function per data set."""

from .heads import add_head, read_heads, save_heads, with_heads
from .metrics import accuracy
from .task import Head, Split, Task, joined, side_by_side
from .zero_shot import zero_shot

__all__ = [
    "Head",
    "Split",
    "Task",
    "accuracy",
    "add_head",
    "joined",
    "read_heads",
    "save_heads",
    "side_by_side",
    "with_heads",
    "zero_shot",
]
