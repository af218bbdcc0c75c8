"""Reports: one self-contained HTML page, or GitHub Markdown, from results alone."""

from .render import markdown, write

__all__ = ["markdown", "write"]
