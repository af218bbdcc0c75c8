"""Turning named weights into functions: binding, forward rules, a small vision transformer, model hubs.

Nothing here imports torch until it is called, except `taskvec.models.vit`.
"""

from .forward import Forward, linearised, plain
from .functional import Bound, bind, device_of, tensors

__all__ = ["Bound", "Forward", "bind", "device_of", "linearised", "plain", "tensors"]
