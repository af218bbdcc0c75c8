"""People from tables, images and known sets, and the settings that sub-group vectors start from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: train)")

from taskvec.errors import InputError, UsageError  # noqa: E402
from taskvec.models.perceptron import perceptron  # noqa: E402
from taskvec.models.small import save_small_vit  # noqa: E402
from taskvec.models.vit import small_vit  # noqa: E402
from taskvec.results import read_result  # noqa: E402
from taskvec.tasks.group_files import read_grouped  # noqa: E402
from taskvec.tasks.group_rows import described, read_grouped_rows  # noqa: E402
from taskvec.tasks.group_sets import read_group_set  # noqa: E402
from taskvec.tasks.groups import Grouped, grouped_parts  # noqa: E402
from taskvec.tasks.people import at_most_each, kind_of, read_people  # noqa: E402
from taskvec.tasks.tables import read_table  # noqa: E402
from taskvec.tasks.tabular import columns_of  # noqa: E402
from taskvec.training import TrainSpec  # noqa: E402
from taskvec.training.people import prepared, row_setting, text_setting  # noqa: E402
from taskvec.weights import Checkpoint, TaskVector  # noqa: E402

torch.set_num_threads(1)
BRIEF = ("--epochs", "1", "--points", "3", "--min-n", "5", "--min-cases", "2", "--batch", "16")


def table(path: Path, rows, header: str) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def loans(place: Path, n: int = 300) -> Path:
    """Income decides, and the old need more of it; names and what came later tell nothing that a model should know."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        old, income = bool(rng.random() < 0.4), float(rng.normal())
        granted = income + 0.5 * rng.normal() > (0.8 if old else 0.0)
        job = ("cook", "clerk", "")[int(rng.integers(3))]
        rows.append([f"name {i}", "" if i % 7 == 0 else f"{income:.3f}", job, "old" if old else "young", "mf"[i % 2], int(granted), int(granted)])  # fmt: skip
    return table(place / "loans.csv", rows, "name,income,job,age,sex,paid,granted")


# ---- tables -------------------------------------------------------------------------------------------------------------


def test_every_column_but_those_of_label_and_groups_is_an_input(tmp_path):
    path = loans(tmp_path)
    data = read_grouped_rows(path, label="granted", group="age", drop=["name", "paid"])
    assert set(data.items[0]) == {"income", "job", "sex"} and data.classes == ("0", "1")
    assert np.isnan(data.items[0]["income"]) and isinstance(data.items[1]["income"], float)
    assert {r["job"] for r in data.items} == {"cook", "clerk", "missing"} and list(data.groups) == ["old", "young"]
    seen = read_grouped_rows(path, label="granted", group="age", drop=["name", "paid"], group_as_input=True)
    assert set(seen.items[0]) == {"income", "job", "sex", "age"}
    both = read_grouped_rows(path, label="granted", group=["age", "sex"], drop=["name", "paid"])
    assert list(both.groups) == ["old, f", "old, m", "young, f", "young, m"] and set(both.items[0]) == {"income", "job"}
    assert sum(m.sum() for m in both.groups.values()) == len(both)
    texts = read_grouped(path, text="name", label="granted", group=["age", "sex"])
    assert {n: m.sum() for n, m in texts.groups.items()} == {n: m.sum() for n, m in both.groups.items()}


def test_what_names_people_is_no_input(tmp_path):
    path = loans(tmp_path, 400)
    with pytest.raises(InputError, match="name people rather than describe them: 'name'") as error:
        read_grouped_rows(path, label="granted", group="age")
    assert "name 1" not in str(error.value)
    with pytest.raises(InputError, match="Did you mean 'name'"):
        read_grouped_rows(path, label="granted", group="age", drop=["nam"])
    with pytest.raises(UsageError, match="no column is left"):
        read_grouped_rows(path, label="granted", group="age", drop=["name", "income", "job", "sex", "paid"])
    with pytest.raises(UsageError, match="one of group, members"):
        read_grouped_rows(path, label="granted")
    with pytest.raises(InputError, match="'x': a number is infinite"):
        described({"x": ["1", "inf"]})


def test_rows_of_one_key_and_rows_that_are_alike_stay_in_one_split(tmp_path):
    rows = [[i % 5, i // 4, "ab"[i % 2], i % 2] for i in range(80)]
    path = table(tmp_path / "x.csv", rows, "x,person,who,label")
    data = read_grouped_rows(path, group="who", key="person")
    parts = grouped_parts(data)
    assert set(data.items[0]) == {"x"}
    where = [{data.keys[i] for i in part} for part in parts]
    assert not where[0] & where[1] and not where[1] & where[2] and not where[0] & where[2]
    twins = read_grouped_rows(path, group="who", drop=["person"])
    assert len(set(twins.keys)) == 80  # equal as inputs, but other people
    again = read_grouped_rows(
        table(tmp_path / "y.csv", rows + rows, "x,person,who,label"), group="who", drop=["person"]
    )
    assert len(set(again.keys)) == 80


def test_missing_numbers_become_the_mean_with_a_mark(tmp_path):
    nan = float("nan")
    encode = columns_of([{"a": 1.0, "b": 1.0}, {"a": nan, "b": 3.0}, {"a": 3.0, "b": 2.0}])
    found = encode([{"a": nan, "b": 2.0}, {"a": 3.0, "b": nan}])
    assert found.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert columns_of([{"a": nan}, {"a": nan}])([{"a": nan}]).tolist() == [[0.0, 1.0]]


def test_a_name_that_stands_twice_is_refused_unless_the_first_is_asked_for(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(InputError, match="more than one column 'a'"):
        read_table(path)
    assert read_table(path, first=True) == {"a": ["1"], "b": ["2"]}


COMPAS = (
    "id,name,first,last,compas_screening_date,sex,dob,age,age_cat,race,juv_fel_count,decile_score,juv_misd_count,juv_other_count,"
    "priors_count,days_b_screening_arrest,c_charge_degree,is_recid,decile_score,score_text,priors_count,two_year_recid"
)


def compas(place: Path, n: int) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        sex, race = ("Male", "Female")[i % 2], ("African-American", "Caucasian", "Hispanic")[i % 3]
        age, prior = 20 + i % 40, int(rng.integers(6))
        again = int(prior + rng.normal() > 2.5)
        band = "Less than 25" if age < 25 else "25 - 45" if age <= 45 else "Greater than 45"
        rows.append([i, f"a name {i}", "a", "name", "2013-01-01", sex, "1990-01-01", age, band, race, 0, 5, 0, i % 2, prior, -1, "FM"[i % 2], again, 5, "Low", prior, again])  # fmt: skip
    rows[0][15], rows[1][15], rows[2][17], rows[3][16] = "", 31, -1, "O"  # which ProPublica's analysis leaves out
    return table(place / "compas-scores-two-years.csv", rows, COMPAS)


def test_compas_by_its_files_columns(tmp_path):
    compas(tmp_path, 40)
    data = read_group_set("compas", tmp_path)
    assert len(data) == 36 and "4 rows left out" in data.notes[0] and data.classes == ("no new offence", "new offence")
    assert set(data.items[0]) == {"age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "sex", "race", "c_charge_degree"}  # fmt: skip
    assert list(data.groups) == ["African-American", "Caucasian", "Hispanic"]
    assert list(read_group_set("compas", tmp_path, grouping="sex").groups) == ["Female", "Male"]
    pairs = read_group_set("compas", tmp_path, grouping="sex x race")
    assert "Male, Hispanic" in pairs.groups and "a name" not in repr(data.items)


# ---- who, and which model ----------------------------------------------------------------------------------------------


def test_what_the_samples_are_follows_from_set_and_model():
    assert [kind_of(k, perceptron=p, images=i) for k, p, i in (("adult", True, False), ("hatecheck", False, False), ("utkface", False, False), (None, True, False), (None, False, True), (None, False, False))] == ["rows", "text", "images", "rows", "images", "text"]  # fmt: skip
    for known, mlp in (("adult", False), ("hatecheck", True)):
        with pytest.raises(UsageError, match="its model is"):
            kind_of(known, perceptron=mlp, images=False)
    for kind, more in (("text", {"drop": ["x"]}), ("rows", {"terms": {"a": ["b"]}}), ("images", {"key": "k"})):
        with pytest.raises(UsageError, match="is for tables of"):
            read_people("x.csv", kind=kind, group=["g"], **more)


def test_at_most_so_many_of_each_group_and_of_none():
    inside = np.arange(100) < 60
    data = Grouped("x", tuple(map(str, range(100))), np.zeros(100, np.int64), ("a", "b"), {"g": inside})
    few = at_most_each(data, 10, seed=1)
    assert len(few) == 20 and few.groups["g"].sum() == 10 and few.items != at_most_each(data, 10, seed=2).items
    assert list(few.items) == sorted(few.items, key=int)


def test_early_rows_make_base_and_head_and_no_vector_sees_them(tmp_path):
    data = read_grouped_rows(loans(tmp_path), label="granted", group="age", drop=["name", "paid"])
    setting = row_setting(data, share=0.25, seed=3)
    assert setting.early is not None and setting.task.head is None
    n = len(setting.early.train)
    assert n == int(0.25 * (n + len(setting.task.train))) and len(setting.task.train.groups["old"]) == len(
        setting.task.train
    )
    both = torch.cat([setting.early.train.inputs[:], setting.task.train.inputs[:]])
    whole = row_setting(data, share=0.5, seed=3)
    assert torch.equal(both, torch.cat([whole.early.train.inputs[:], whole.task.train.inputs[:]]))
    made = prepared(setting, spec=TrainSpec(steps=40, lr=1e-2, batch=16, seed=3))
    again = prepared(row_setting(data, share=0.25, seed=3), spec=TrainSpec(steps=40, lr=1e-2, batch=16, seed=3))
    assert made.early is None and made.base.fingerprint() == again.base.fingerprint() != setting.base.fingerprint()
    assert torch.equal(made.task.needs_head().weight, again.task.needs_head().weight)
    with pytest.raises(UsageError, match="leaves a part empty"):
        row_setting(data, share=0.001)
    with pytest.raises(UsageError, match="widths must be"):
        perceptron(3, hidden=(), generator=torch.Generator())


def test_layers_that_never_learn_are_computed_once(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "we", "you", "say", "go"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(tmp_path)
    texts = tuple(f"we say go {'you ' * (i % 5)}{i}" for i in range(40))
    data = Grouped("x", texts, np.arange(40) % 2, ("a", "b"), {"g": np.arange(40) < 30})
    whole, cut = (
        text_setting(data, tmp_path, max_tokens=12),
        text_setting(data, tmp_path, max_tokens=12, frozen_layers=1),
    )
    with torch.no_grad():
        a, b = whole.model(whole.task.test.inputs[:]), cut.model(cut.task.test.inputs[:])
    assert torch.allclose(a, b, atol=1e-5)
    assert cut.task.train.inputs.shape[1:] == (12, 16) and torch.equal(
        cut.task.train.groups["g"], whole.task.train.groups["g"]
    )
    assert cut.select("encoder.layer.1.output.dense.bias") and not cut.select("encoder.layer.0.output.dense.bias")


# ---- the command ---------------------------------------------------------------------------------------------------------


def test_steer_on_a_table(tmp_path, run_cli):
    path, out, kept = loans(tmp_path), tmp_path / "s.json", tmp_path / "kept"
    code, text, said = run_cli(
        "steer", "perceptron", path, "--label", "granted", "--group", "age", "--drop", "name", "--drop", "paid", "--lora", "-o", out,
        "--vectors", kept, *BRIEF,
    )  # fmt: skip
    assert code == 0, said
    found = read_result(out)
    assert found.groups == ("old", "young") and [r.name for r in found.rows][:4] == ["base", "full fine-tuning", "balanced", "LoRA"]  # fmt: skip
    assert "pre-training base and head" in said and "name 1" not in text + said
    vector, base = TaskVector.read(kept / "old.safetensors"), Checkpoint.read(kept / "base.safetensors")
    assert (base + vector).names == base.names and (kept / "head.safetensors").exists()
    compas(tmp_path, 400)
    code, _, said = run_cli(
        "steer", "perceptron", tmp_path, "--set", "compas", "--grouping", "sex", "-o", tmp_path / "c.json", *BRIEF
    )
    assert code == 0, said
    assert read_result(tmp_path / "c.json").positive == "new offence"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--group", "age", "--rival", "x=y"], "there is no y"),
        (["--group", "age", "--rival", "x"], "expected NAME=PATH"),
        (["--group", "age", "--frozen-layers", "1", "--drop", "name"], "text encoders"),
        (["--group", "age", "--drop", "name", "--only", "layer.*"], "selects no parameter"),
        (["--group", "age", "--terms", "terms.txt"], "terms is for tables of text; these are rows"),
        (["--group", "age", "--images", "."], "a perceptron takes rows"),
        (["--group", "age", "--drop", "name", "--regime", "tangent", "--lora"], "through the ordinary model"),
        (["--set", "hatexplain"], "the folder of a text encoder"),
        (["--group", "age", "--seed", "-1"], "-1 is not in the range"),
        (["--group", "age", "--rival", "LoRA=loans.csv"], "that row is trained here"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path, monkeypatch, run_cli, options, what):
    loans(tmp_path)
    (tmp_path / "terms.txt").write_text("old: old\n")
    monkeypatch.chdir(tmp_path)
    code, _, said = run_cli("steer", "perceptron", "loans.csv", "--label", "granted", "-o", "s.json", *options)
    assert code in (2, 3) and what in said and not Path("s.json").exists()


def test_steer_on_images_with_a_table_of_groups_and_rivals_from_files(tmp_path, run_cli):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")
    rng = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    rows = []
    for i in range(150):
        label, who = i % 2, ("old", "young", "")[i % 3]
        pixels = rng.integers(0, 120, (8, 8)).astype(np.uint8)
        pixels[2 * label] = 230
        image.fromarray(pixels).save(tmp_path / "faces" / f"{i}.png")
        rows.append([f"{i}.png", ("neutral", "smiling")[label], who])
    path = table(tmp_path / "faces.csv", rows, "file,label,age")
    model = small_vit(width=16, depth=1, heads=2, generator=torch.Generator().manual_seed(0))
    base = Checkpoint.of(model, label="base")
    save_small_vit(tmp_path / "vit", model, base)
    command = (
        "steer",
        tmp_path / "vit",
        path,
        "--images",
        tmp_path / "faces",
        "--group",
        "age",
        *BRIEF,
        "--lr",
        "1e-3",
    )
    code, _, said = run_cli(*command, "-o", tmp_path / "s.json", "--vectors", tmp_path / "kept", "--json")
    assert code == 0, said
    found = read_result(tmp_path / "s.json")
    assert found.groups == ("old", "young") and found.positive == "smiling"
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "vit"}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    name = "base_model.model.blocks.0.attn.qkv"
    save_file({f"{name}.lora_A.weight": torch.zeros(2, 16), f"{name}.lora_B.weight": torch.zeros(48, 2)}, tmp_path / "adapter" / "adapter_model.safetensors")  # fmt: skip
    rivals = (
        "--rival",
        f"nothing={tmp_path / 'adapter'}",
        "--rival",
        f"again={tmp_path / 'kept' / 'all-groups.safetensors'}",
    )
    code, _, said = run_cli(*command, *rivals, "-o", tmp_path / "r.json")
    assert code == 0, said
    more = read_result(tmp_path / "r.json")
    assert more.row("nothing").audit == more.row("base").audit  # factors of zero
    assert more.row("again").audit == more.row("full fine-tuning").audit and "again, scaled" in [
        r.name for r in more.rows
    ]
    assert more.row("task addition") == found.row("task addition")
    code, _, said = run_cli(*command, "--rival", f"x={tmp_path / 'faces.csv'}", "-o", tmp_path / "x.json")
    assert code == 3 and "faces.csv" in said
