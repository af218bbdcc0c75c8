"""Numbers in checkpoints: reading, the algebra of points and vectors, streaming, writing.

Knows nothing of modules, tasks or training, and imports no torch (a `.pt` file or a torch tensor brings its own).
"""

from .algebra import Checkpoint, TaskVector, lift, named
from .dtypes import TensorSpec
from .graph import Op
from .text import Explanation, explain

__all__ = ["Checkpoint", "Explanation", "Op", "TaskVector", "TensorSpec", "explain", "lift", "named"]
