"""Learning tasks: data splits, a frozen head, and how they are scored. One builder function per data set."""

from .heads import read_heads, save_heads, with_heads
from .metrics import accuracy
from .task import Head, Split, Task, joined
from .zero_shot import zero_shot

__all__ = ["Head", "Split", "Task", "accuracy", "joined", "read_heads", "save_heads", "with_heads", "zero_shot"]
