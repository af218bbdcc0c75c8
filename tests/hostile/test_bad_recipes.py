"""Expressions and recipes from strangers: read, never executed; refused in one line with exit code 2."""

from __future__ import annotations

import time

import pytest

from hostile import sound
from taskvec.errors import NotLinear, TaskvecError, UsageError
from taskvec.recipe import LONGEST, load, parse
from taskvec.weights import Checkpoint

INJECTIONS = [
    "__import__('os').system('touch MARKER')",
    "__import__('os')",
    "base.__class__",
    "base.save('MARKER')",
    "a.norm()",
    "(lambda: base)()",
    "lambda: base",
    "[base for _ in range(3)]",
    "[base]",
    "(base, a)",
    "{base}",
    "{'x': base}",
    "{x for x in a}",
    "sum(a for _ in [1])",
    "f'{base}'",
    "'base'",
    "b'base'",
    "a ** 2",
    "a // 2",
    "a % 2",
    "a @ a",
    "a << 1",
    "a | a",
    "~a",
    "not a",
    "a and a",
    "a if True else a",
    "a < a",
    "a == a",
    "a[0]",
    "a[:]",
    "(x := base)",
    "base; base",
    "base\nbase",
    "import os",
    "await a",
    "yield a",
    "*a",
    "ties(*[a])",
    "ties([*[a]])",
    "ties([a], **{'density': 1})",
    "ties(a)",
    "ties([a], 0.5)",
    "ties()",
    "ties([])",
    "ties([base])",
    "ties([a, 1])",
    "ties([a], density='0.5')",
    "ties([a], density=a)",
    "ties([a], density=True)",
    "ties([a], density=None)",
    "ties([a], density=0.5, density=0.6)",
    "ties([a], density=0)",
    "ties([a], density=1.0001)",
    "ties([a], density=20)",
    "ties([a], density=1e400)",
    "ties([a], density=1e400-1e400)",
    "ties([a], densty=0.5)",
    "dare([a], density=0.5, seed=0.5)",
    "dare([a], density=0.5, seed=1e400)",
    "dare([a], density=0.5, seed=1e400-1e400)",
    "dare([a])",
    "slerp([a], t=0.5)",
    "slerp([a, a, a])",
    "slerp([a, a], t=2)",
    "slerp([a, a], t=1e400-1e400)",
    "tise([a])",
    "open('MARKER', 'w')",
    "eval('1')",
    "ties.fn([a])",
    "restrict(a)",
    "restrict(a, base)",
    "restrict(a, '*', '*')",
    "restrict(1, '*')",
    "restrict(a, f'*')",
    "shared(base)",
    "shared(1, base)",
    "shared(base, a)",
    "rebase(base, base)",
    "rebase(a, base=base)",
    "1",
    "1 + 1",
    "1e400",
    "1e400 * a",
    "-1e400 * a",
    "(1e400 - 1e400) * a",
    "1e308 * 10 * a",
    "1e308 * (1e308 * a)",
    "a / 1e400",
    "a / 0",
    "1 / 0 * a",
    "a / 1e-310",
    "1" + "0" * 400 + " * a",
    "1" + "0" * 5000 + " * a",
    "0x" + "f" * 5000 + " * a",
    "1j * a",
    "nan * a",
    "inf * a",
    "True * a",
    "None",
    "...",
    "base + base",
    "2 * base",
    "-base",
    "base / 2",
    "a * a",
    "a - base",
    "a / a",
    "1 / a",
    "1 + a",
    "a + 0.5",
    "bsae + a",
    "",
    "   ",
    "#",
    "base +",
    "(base",
    "base)",
    "base + a'",
    "base \0 a",
    "base + ａ２",
    "-" * 5000 + "a",
    "(" * 5000 + "a" + ")" * 5000,
    "[" * 5000,
    "ties([" * 3000 + "a" + "])" * 3000,
    "a" + " + a" * 10_000,
    "x" * (LONGEST + 1),
    "restrict(a, '\\d')",
    "1if a else a",
    "restrict(a, '" + "*" * 9000 + "!')",
]


@pytest.fixture(scope="module")
def names():
    import numpy as np

    base = Checkpoint.of({"w": np.zeros(3, np.float32)}, label="base")
    return {"base": base, "a": Checkpoint.of({"w": np.ones(3, np.float32)}, label="a") - base}


@pytest.mark.parametrize("text", INJECTIONS, ids=lambda t: t[:40])
def test_expression_is_refused(text, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(TaskvecError) as caught:
        parse(text, names)
    assert time.process_time() - start < 2
    assert caught.value.exit_code == 2 or "chooses none" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4
    assert not list(tmp_path.iterdir())


def test_errors_say_where_and_suggest(names):
    with pytest.raises(UsageError, match="Did you mean 'base'"):
        parse("bsae + a", names)
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        parse("tise([a])", names)
    with pytest.raises(UsageError, match=r"density.*Did you mean 'density'"):
        parse("ties([a], densty=0.5)", names)
    with pytest.raises(UsageError, match=r"\^"):
        parse("base + * a", names)
    with pytest.raises(NotLinear, match="Add what was learned"):
        parse("base + base", names)


GOOD = "recipe: 1\nlet:\n  base: {read: base.safetensors}\n  tuned: {read: tuned.safetensors}\n  tau: tuned - base\noutput: base + 0.5 * tau\n"
RECIPES = {
    "python tag": GOOD.replace("tuned - base", "!!python/object/apply:os.system ['touch MARKER']"),
    "python name": GOOD.replace("tuned - base", "!!python/name:os.system"),
    "own tag": GOOD.replace("tuned - base", "!x y"),
    "alias": GOOD.replace("tuned - base", "&t tuned - base\n  other: *t"),
    "billion laughs": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nrecipe: 1\noutput: x\n",
    "duplicate key": GOOD + "output: base\n",
    "duplicate name": GOOD.replace("  tau:", "  base: {read: tuned.safetensors}\n  tau:"),
    "duplicate field": GOOD.replace("{read: base.safetensors}", "{read: base.safetensors, read: tuned.safetensors}"),
    "merge key": GOOD.replace("{read: base.safetensors}", "{<<: {read: base.safetensors}}"),
    "typo": GOOD.replace("output:", "outptu:"),
    "typo inside": GOOD.replace("read: base", "raed: base"),
    "extra key inside": GOOD.replace("{read: base.safetensors}", "{read: base.safetensors, sha265: x}"),
    "no version": GOOD.replace("recipe: 1\n", ""),
    "other version": GOOD.replace("recipe: 1", "recipe: 2"),
    "version is true": GOOD.replace("recipe: 1", "recipe: yes"),
    "version is text": GOOD.replace("recipe: 1", "recipe: '1'"),
    "output is a number": GOOD.replace("base + 0.5 * tau", "010"),
    "output is a time": GOOD.replace("base + 0.5 * tau", "1:30"),
    "output is a date": GOOD.replace("base + 0.5 * tau", "2001-99-99"),
    "output is nothing": GOOD.replace(" base + 0.5 * tau", ""),
    "output is false": GOOD.replace("base + 0.5 * tau", "no"),
    "bad number": GOOD.replace("base + 0.5 * tau", "!!int x"),
    "bad timestamp": GOOD.replace("base + 0.5 * tau", "!!timestamp x"),
    "bad binary": GOOD.replace("base + 0.5 * tau", "0b_"),
    "name is false": GOOD.replace("  tau:", "  no: {read: base.safetensors}\n  tau:"),
    "name is a list": GOOD.replace("  tau:", "  ? [a]\n  : b\n  tau:"),
    "name with a hyphen": GOOD.replace("  tau:", "  my-tau: tuned - base\n  tau:"),
    "name of a method": GOOD.replace("  tau:", "  ties: tuned - base\n  tau:"),
    "name is a keyword": GOOD.replace("  tau:", "  lambda: {read: base.safetensors}\n  tau:"),
    "let is a list": "recipe: 1\nlet: [a]\noutput: a\n",
    "read is a list": GOOD.replace("{read: base.safetensors}", "{read: [base.safetensors]}"),
    "dtype is a number": GOOD + "dtype: 16\n",
    "dtype unknown": GOOD + "dtype: bflaot16\n",
    "dtype integer": GOOD + "dtype: int8\n",
    "itself": GOOD.replace("tau: tuned - base", "tau: 2 * tau"),
    "in a circle": GOOD.replace("tau: tuned - base", "tau: 2 * other\n  other: 0.5 * tau"),
    "coefficient nan": GOOD.replace("0.5", ".nan"),
    "coefficient 1e400": GOOD.replace("0.5", "1e400"),
    "coefficient text": GOOD.replace("0.5", "'half'"),
    "list": "- a\n",
    "text": "hello\n",
    "nothing": "",
    "two documents": GOOD + "---\n" + GOOD,
    "deep": "[" * 5000 + "]" * 5000,
    "deep table": "".join("  " * i + "a:\n" for i in range(1000)),
    "tab": GOOD.replace("  base", "\tbase"),
    "control character": GOOD.replace("tau: ", "tau: \x07"),
    "deep definitions": "recipe: 1\nlet:\n  base: {read: base.safetensors}\n  tuned: {read: tuned.safetensors}\n  x0: tuned - base\n"
    + "".join(f"  x{i}: 2 * x{i - 1}\n" for i in range(1, 3000)) + "output: base + x2999\n",
    "laughing definitions": "recipe: 1\nlet:\n  base: {read: base.safetensors}\n  tuned: {read: tuned.safetensors}\n  x0: tuned - base\n"
    + "".join(f"  x{i}: 'ties([x{i - 1}, x{i - 1}])'\n" for i in range(1, 40)) + "output: base + x39\n",
    "laughing points": "recipe: 1\nlet:\n  base: {read: base.safetensors}\n  x0: {read: tuned.safetensors}\n"
    + "".join(f"  x{i}: 'base + ties([x{i - 1} - base, x{i - 1} - base])'\n" for i in range(1, 40)) + "output: x39\n",
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_is_refused(case, tmp_path, run_cli, untouched, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "base.safetensors")
    sound(tmp_path / "tuned.safetensors", seed=1)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPES[case].encode())
    check = untouched(tmp_path)
    start = time.process_time()
    code, out, err = run_cli("edit", path, "-o", tmp_path / "out.safetensors")
    assert time.process_time() - start < 5
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and len(err) < 2000
    check()


def test_messages_of_recipes_help(tmp_path):
    path = tmp_path / "recipe.yaml"
    for case, said in {
        "typo": "Did you mean 'output'", "duplicate key": "line 7", "extra key inside": "Did you mean 'sha256'",
        "alias": "aliases are not allowed", "name with a hyphen": "Write 'my_tau'", "name is a list": "line 5",
    }.items():  # fmt: skip
        path.write_text(RECIPES[case])
        with pytest.raises(UsageError, match=said):
            load(path)


def test_a_sound_recipe_runs(tmp_path, run_cli):
    sound(tmp_path / "base.safetensors")
    sound(tmp_path / "tuned.safetensors", seed=1)
    (tmp_path / "recipe.yaml").write_text(GOOD)
    code, out, err = run_cli("edit", tmp_path / "recipe.yaml", "-o", tmp_path / "out.safetensors")
    assert code == 0, err
    assert "base + 0.5 * (tuned - base)" in out


def test_a_recipe_that_pins_another_file(tmp_path, run_cli):
    sound(tmp_path / "base.safetensors")
    sound(tmp_path / "tuned.safetensors", seed=1)
    (tmp_path / "recipe.yaml").write_text(
        GOOD.replace("{read: base.safetensors}", "{read: base.safetensors, sha256: 00}")
    )
    code, _, err = run_cli("edit", tmp_path / "recipe.yaml", "-o", tmp_path / "out.safetensors")
    assert code == 3 and "sha256" in err
