"""``python -m taskvec.cli``."""

from . import main

main()
