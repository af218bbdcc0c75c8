"""Draw the README's picture from a demo's result.

make demo && .venv/bin/python docs/pictures/make.py taskvec-demo/results/1-forget.json
"""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path

from taskvec.report.figures import curve
from taskvec.report.words import control_floor
from taskvec.results import read_result

result = read_result(sys.argv[1])
row = result.row("task arithmetic")
roles = {result.target: f"target: {result.target}", result.control: f"control: {result.control}"}
floor = (control_floor(result, row.curve), "95 % of the base’s control")
svg = curve(row, row.curve, (result.target, result.control), label=roles.get, floor=floor)
# The page's colours, light and dark, go into the file, so that it stands alone.
page = resources.files("taskvec.report").joinpath("template.html").read_text(encoding="utf-8")
light, dark = (re.sub(r"\s+", " ", c) for c in re.findall(r"(--paper: .*?--c6: #\w+;)", page, flags=re.DOTALL)[:2])
style = f"<style>svg {{ {light} --sans: sans-serif; background: var(--paper) }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
width = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
assert width is not None
svg = svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{1.4 * float(width[1]):g}" ', 1)
svg = svg.replace(">", f">{style}", 1)
out = Path(__file__).with_name("forget.svg")
out.write_text(svg + "\n", encoding="utf-8")
print(out)
