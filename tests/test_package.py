"""The package as a whole: public names, what is imported when, start-up cost."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import taskvec as tv

HEAVY = ("torch", "transformers", "sklearn", "matplotlib", "jinja2", "scipy")
PROBE = """
import sys
from taskvec.cli import _run
code = _run(sys.argv[1:])
loaded = [m for m in {heavy!r} if m in sys.modules]
sys.exit(f"loaded {{loaded}}" if loaded else code)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("base", "tuned"):
        weights = {"a.0.weight": rng.normal(size=(8, 4)).astype(np.float32), "bias": np.ones(3, np.float32)}
        tv.Checkpoint.of(weights, label=name).save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["methods"],
        ["diff", "base", "tuned", "-o", "v.safetensors"],
        ["explain", "base + 0.5 * (tuned - base)", "--let", "base=base", "--let", "tuned=tuned"],
        ["edit", "base + 0.5 * ties([tuned - base])", "--let", "base=base", "--let", "tuned=tuned", "-o", "out"],
        ["compare", "base", "tuned", "--by", "layer"],
    ],
    ids=lambda a: a[0],
)
def test_editing_imports_no_heavy_library(models: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments], cwd=models, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_starts_quickly() -> None:
    """0.2 s of CPU is the promise; the best of three keeps a busy machine out of it."""
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "taskvec.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.2


def test_public_names_exist_and_are_listed() -> None:
    assert tv.__version__
    for name in tv.__all__:
        assert getattr(tv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tv.nonsense  # noqa: B018


def test_every_error_has_the_exit_code_its_docstring_draws() -> None:
    import re

    from taskvec import errors

    drawn = dict(re.findall(r"[├└]── (\w+)\s+(\d)", errors.__doc__ or ""))
    raised = {n: e for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.TaskvecError)}
    assert set(raised) - {"TaskvecError"} == set(drawn)
    for name, code in drawn.items():
        assert raised[name].exit_code == int(code)
