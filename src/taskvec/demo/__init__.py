"""The demo: forget, add and reason by analogy on a real model and real data, told as a story.

A setting (digits.py, text.py) makes a base and tasks; questions.py asks the same three questions of any; telling.py
prints; run.py does it all and writes the files.
"""

from .run import run

__all__ = ["run"]
