"""Every example a reader can copy runs: README blocks in order, docstrings, the files that CONTRIBUTING names."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import taskvec
from taskvec import Checkpoint
from taskvec.cli import _run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders the README speaks of, small."""
    rng = np.random.default_rng(0)
    base = {
        f"visual.{i}.{part}": rng.normal(size=(4, 4)).astype(np.float32)
        for i in range(2)
        for part in ("attn.in", "mlp.w")
    }
    base |= {f"visual.{i}.attn.out.weight": rng.normal(size=(4, 4)).astype(np.float32) for i in range(2)}
    Checkpoint.of(base).save(tmp_path / "clip-b32")
    for name in ("cars", "dtd"):
        tuned = {n: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32) for n, x in base.items()}
        Checkpoint.of(tuned).save(tmp_path / "ft" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_python_runs(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = blocks("python")[0]
    exec(compile(first, "README.md", "exec"), {})
    assert Checkpoint.read("out/merged").names
    assert "ties(" in capsys.readouterr().out


def test_readme_training_runs(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[1]
    assert "steps=400" in code
    exec(compile(code.replace("steps=400", "steps=20"), "README.md", "exec"), {})  # fewer steps, the same calls
    assert "->" in capsys.readouterr().out
    assert (shelf / "report.html").stat().st_size > 10_000


def test_the_training_page_runs(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert code.count("steps=") == 2
    exec(compile(re.sub(r"steps=\d+", "steps=5", code), "training.md", "exec"), {})
    assert "linear-only: 6 tensors" in capsys.readouterr().out
    assert "through the linearised model" in (shelf / "tangent.html").read_text(encoding="utf-8")


def test_readme_shell_and_recipe_run(shelf: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(lines) >= 6
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "taskvec"
        assert _run(arguments) == 0, line
    (shelf / "recipe.yaml").write_text(blocks("yaml")[0])
    assert _run(["edit", "recipe.yaml", "-o", "from-recipe/"]) == 0


def test_contributing_method_works_as_written(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three pieces of "Add a method", put where it says, make a method that expressions know."""
    from taskvec import methods
    from taskvec.methods import sparse, sparse_steps

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    step, method, row = re.split(r"# methods/\w+\.py.*\n", code)[1:]
    space = {**vars(sparse_steps), **vars(sparse), "Method": methods.Method}
    exec(compile(step + method, "CONTRIBUTING.md", "exec"), space)
    assert "unanimous" not in methods.METHODS
    monkeypatch.setitem(methods.METHODS, "unanimous", eval("{" + row + "}", space)["unanimous"])
    lets = [x for n in ("base=clip-b32", "a=ft/cars", "b=ft/dtd") for x in ("--let", n)]
    assert _run(["edit", "base + unanimous([a - base, b - base])", *lets, "-o", "out"]) == 0
    name = "visual.0.mlp.w"
    base, a, b, out = (Checkpoint.read(p).array(name) for p in ("clip-b32", "ft/cars", "ft/dtd", "out"))
    agreed = np.where((a - base) * (b - base) > 0, (a + b) / 2 - base, 0)
    assert 0.2 < (agreed != 0).mean() < 0.8
    np.testing.assert_allclose(out, base + agreed, rtol=0, atol=1e-6)


def modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(taskvec.__path__, "taskvec.")]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (ROOT / link).exists(), f"{page} links to {link}"
    for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page} names {path}"
