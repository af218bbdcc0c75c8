"""Studies: experiments as a small text file, computed cell by cell and never twice."""

from .estimate import Estimate, estimate
from .plan import plan
from .reading import load
from .running import Outcome, run
from .spec import Study
from .tryout import tried

__all__ = ["Estimate", "Outcome", "Study", "estimate", "load", "plan", "run", "tried"]
