"""Numbers in checkpoints: reading, the algebra of points and vectors, streaming, writing.

Knows nothing of modules, tasks or training, and imports no torch (a `.pt` file or a torch tensor brings its own).
"""

from .algebra import Checkpoint, TaskVector, lift, named, open_weights
from .aligned import aligned
from .compare import Comparison, compare, kinship_notes, relative_distance
from .dtypes import TensorSpec
from .graph import Op
from .layers import as_vector, scale_by, stack
from .parts import part, parts
from .plan import explain
from .text import Explanation

__all__ = [
    "Checkpoint",
    "Comparison",
    "Explanation",
    "Op",
    "TaskVector",
    "TensorSpec",
    "aligned",
    "as_vector",
    "compare",
    "explain",
    "kinship_notes",
    "lift",
    "named",
    "open_weights",
    "part",
    "parts",
    "relative_distance",
    "scale_by",
    "stack",
]
