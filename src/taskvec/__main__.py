"""``python -m taskvec``, and ``torchrun -m taskvec``."""

from .cli import main

main()
