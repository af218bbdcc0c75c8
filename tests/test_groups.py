"""Who is in which group, splits that keep copies together, and the files of known data sets. No text of theirs is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from taskvec.errors import InputError, UnknownName, UsageError
from taskvec.models.preprocess import Preprocess
from taskvec.tasks import Head, Split, Task, joined
from taskvec.tasks.group_files import read_grouped, read_grouped_images
from taskvec.tasks.group_sets import GROUP_SETS, TERMS, group_task, read_group_set
from taskvec.tasks.groups import (
    Grouped,
    balanced,
    chosen_groups,
    counts,
    grouped_parts,
    grouped_task,
    members,
    mentions,
    merged_repeats,
    read_terms,
    told,
)
from taskvec.tasks.images import images_encoder
from taskvec.tasks.masks import intersections
from taskvec.tasks.tables import read_table
from taskvec.tasks.tabular import columns_of

SHARED = Path(__file__).parents[2] / "shared" / "data"


def lengths(texts):
    return torch.tensor([[float(len(t))] for t in texts])


def mask(*values):
    return np.array(values, bool)


# ---- membership -----------------------------------------------------------------------------------------------------------


def test_terms_are_whole_words_in_any_case_and_a_text_may_mention_several_groups():
    texts = ["Men, and WOMEN.", "mental women's health", "African  American men", "no one"]
    found = mentions(texts, {"men": ["men"], "women": ["women"], "black": ["african american"]})
    assert found["men"].tolist() == [True, False, True, False]
    assert found["women"].tolist() == [True, True, False, False]
    assert found["black"].tolist() == [False, False, True, False]
    assert mentions(["a.b", "acb"], {"x": ["a.b"]})["x"].tolist() == [True, False]  # a term is no pattern
    with pytest.raises(UsageError, match="at least one term"):
        mentions(texts, {"men": ["  "]})


def test_terms_come_from_a_file(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("# ours\nwomen: woman, women\n\nold people: elderly , old people\n")
    assert read_terms(path) == {"women": ("woman", "women"), "old people": ("elderly", "old people")}
    for wrong in ("women", "women:", "a: b\na: c", "# nothing"):
        path.write_text(wrong)
        with pytest.raises(InputError, match="terms"):
            read_terms(path)


def test_rows_of_one_text_become_one_sample_by_majority():
    data = Grouped(
        "x", ("Same  text", "same text", "SAME TEXT", "other", "torn", "torn"), np.array([1, 0, 1, 0, 1, 0]), ("no", "yes"),
        {"a": mask(1, 1, 0, 0, 1, 1), "b": mask(0, 0, 1, 1, 0, 0)},
    )  # fmt: skip
    out = merged_repeats(data)
    assert out.items == ("Same  text", "other") and out.labels.tolist() == [1, 0]
    assert out.groups["a"].tolist() == [True, False] and out.groups["b"].tolist() == [False, True]
    assert "3 rows repeat" in out.notes[0] and "1 texts left out" in out.notes[0]


def test_equal_texts_of_several_keys_are_never_in_two_parts_and_empty_keys_bind_nothing():
    texts = tuple(f"text {i // 2}" if i < 200 else f"lone {i}" for i in range(300))  # each of the first a hundred twice
    keys = tuple(f"key {i // 5}" if i % 2 and i < 200 else f"own {i}" if i < 200 else "" for i in range(300))
    data = Grouped("x", texts, np.zeros(300, np.int64), ("a", "b"), {}, keys)
    parts = grouped_parts(data, seed=1)
    assert sorted(i for p in parts for i in p) == list(range(300))
    for values in (texts, [k or f"none {i}" for i, k in enumerate(keys)]):
        seen = [{values[i] for i in p} for p in parts]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert all(any(not keys[i] for i in p) for p in parts)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,text\na,b,c\n")
    with pytest.raises(InputError, match="more than one column 'text'"):
        read_table(tmp_path / "t.csv")


def test_equal_keys_are_never_in_two_parts():
    keys = tuple(str(i % 60) for i in range(300))
    data = Grouped("x", tuple(map(str, range(300))), np.zeros(300, np.int64), ("a", "b"), {}, keys)
    parts = grouped_parts(data, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(300))
    seen = [{keys[i] for i in p} for p in parts]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert [p.tolist() for p in grouped_parts(data, seed=3)] == [p.tolist() for p in parts]
    assert grouped_parts(data, seed=4)[0].tolist() != parts[0].tolist()
    alike = Grouped("x", ("One", "one", *(f"t{i}" for i in range(98))), np.zeros(100, np.int64), ("a", "b"), {})
    for part in grouped_parts(alike, seed=0):
        assert (0 in part) == (1 in part)


def test_counts_that_differ_are_refused():
    with pytest.raises(InputError, match="2 samples, but 1 group 'a'"):
        Grouped("x", ("p", "q"), np.array([0, 1]), ("n", "y"), {"a": mask(1)})
    with pytest.raises(InputError, match="group 'a' must be a bool tensor"):
        Split(torch.ones(2, 1), torch.tensor([0, 1]), {"a": torch.tensor([1, 0])})


# ---- tasks ----------------------------------------------------------------------------------------------------------------


def toy(n=400):
    rng = np.random.default_rng(0)
    a, b = rng.random(n) < 0.6, rng.random(n) < 0.1
    labels = (rng.random(n) < np.where(a, 0.8, 0.2)).astype(np.int64)
    return Grouped("toy", tuple(f"text {i}" for i in range(n)), labels, ("no", "yes"), {"a": a, "b": b})


def test_groups_follow_their_samples_into_splits_and_out_again():
    data = toy()
    task = grouped_task(data, encode=lambda texts: torch.tensor([[float(t.split()[1])] for t in texts]))
    for split in (task.train, task.validation, task.test):
        rows = split.inputs[:, 0].long().numpy()
        assert split.labels.tolist() == data.labels[rows].tolist()
        assert split.groups["b"].tolist() == data.groups["b"][rows].tolist()
    own = members(task, "b")
    assert own.name == "toy, b" and own.train.groups["b"].all() and len(own.train) == task.train.groups["b"].sum()
    assert len(own.test) == task.test.groups["b"].sum()
    with pytest.raises(UnknownName, match="no group 'bb'"):
        members(task, "bb")
    both = joined("both", [own.with_head(head := Head(torch.zeros(2, 1), torch.zeros(2))), members(task, "a").with_head(head)])  # fmt: skip
    assert both.train.groups["b"].sum() == len(own.train) + (task.train.groups["a"] & task.train.groups["b"]).sum()


def test_counts_say_how_many_are_where():
    task = grouped_task(toy(), encode=lengths)
    found = counts(task)
    assert list(found) == ["a", "b", "no group", "all"]
    assert sum(found["all"][s][0] for s in found["all"]) == 400
    inside = task.train.groups["a"]
    assert found["a"]["train"] == (int(inside.sum()), int(task.train.labels[inside].sum()))
    assert len(told(task)) == 5 and "'yes'" in told(task)[0]


def test_balanced_samples_make_groups_and_classes_count_alike():
    data = toy(4000)
    b = data.groups["b"]
    apart = data.with_groups({"a": data.groups["a"] & ~b, "b": b})
    task = grouped_task(apart, encode=lengths)
    drawn = balanced(task, seed=1)
    assert len(drawn.train) == len(task.train) and drawn.test is task.test
    split = drawn.train
    neither = ~(split.groups["a"] | split.groups["b"])
    for inside in (
        split.groups["a"],
        split.groups["b"],
        neither,
    ):  # 0.8, about 0.5 and 0.2 of yes before, shares of 0.54, 0.1, 0.36
        assert 0.45 < float(split.labels[inside].float().mean()) < 0.55
        assert 0.3 < float(inside.float().mean()) < 0.37
    assert torch.equal(balanced(task, seed=1).train.inputs, split.inputs)
    assert not torch.equal(balanced(task, seed=2).train.inputs, split.inputs)


def test_a_group_with_nobody_to_train_on_is_refused():
    data = toy().with_groups({"a": toy().groups["a"], "ghosts": np.zeros(400, bool)})
    with pytest.raises(InputError, match="nobody of 'ghosts'"):
        grouped_task(data, encode=lengths)


def test_crossed_and_chosen_groups():
    sex, age = {"f": mask(1, 1, 0), "m": mask(0, 0, 1)}, {"young": mask(1, 0, 1), "old": mask(0, 1, 0)}
    assert {n: m.tolist() for n, m in intersections(sex, age, joint=", ").items()} == {
        "f, young": [True, False, False], "f, old": [False, True, False], "m, young": [False, False, True],
    }  # fmt: skip
    with pytest.raises(UnknownName, match="has no group 'ff'"):
        chosen_groups(Grouped("x", (1, 2, 3), np.zeros(3, np.int64), ("a", "b"), sex), ["ff"])


def test_tables_learn_their_columns_from_the_training_rows_alone():
    encode = columns_of([{"age": 20.0, "job": "clerk"}, {"age": 40.0, "job": "cook"}])
    assert encode([{"age": 30.0, "job": "king"}]).tolist() == [[0.0, 0.0, 0.0]]
    assert encode([{"age": 1e9, "job": "cook"}]).tolist() == [[5.0, 0.0, 1.0]]
    seen = []

    def learn(rows):
        seen.extend(rows)
        return columns_of(rows)

    data = Grouped("x", tuple({"age": float(i)} for i in range(50)), np.arange(50) % 2, ("a", "b"), {})
    task = grouped_task(data, encode=learn, fitted=True)
    assert len(seen) == len(task.train) and abs(float(task.train.inputs.mean())) < 1e-5


# ---- files ----------------------------------------------------------------------------------------------------------------

SECRET = "never to be seen"


def write(path, header, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, r)) for r in [header, *rows]) + "\n")
    return path


def test_groups_come_by_a_column_by_members_or_by_terms(tmp_path):
    path = write(
        tmp_path / "posts.csv", ["text", "label", "who", "f", "m"],
        [["one woman", "ok", "f", 1, 0], ["two men", "bad", "m;x", 0.2, 0.6], ["three", "ok", "", "", "nan"], ["", "ok", "f", 1, 1],
         ["five", "", "f", 1, 1]],
    )  # fmt: skip
    by_column = read_grouped(path, group="who")
    assert by_column.items == ("one woman", "two men", "three") and by_column.classes == ("bad", "ok")
    assert {n: m.tolist() for n, m in by_column.groups.items()} == {
        "f": [True, False, False], "m": [False, True, False], "x": [False, True, False],
    }  # fmt: skip
    assert "2 rows without text or label" in by_column.notes[0]
    by_members = read_grouped(path, members=["f", "m"])
    assert by_members.groups["m"].tolist() == [False, True, False] and by_members.groups["f"].tolist() == [True, False, False]  # fmt: skip
    by_terms = read_grouped(path, terms={"men": ["men"]}, classes={"ok": "fine", "bad": "not fine"})
    assert by_terms.groups["men"].tolist() == [False, True, False] and by_terms.classes == ("fine", "not fine")
    assert by_terms.labels.tolist() == [0, 1, 0]
    for wrong in ({}, {"group": "who", "members": ["f"]}):
        with pytest.raises(UsageError, match="one of group, members or terms"):
            read_grouped(path, **wrong)
    with pytest.raises(InputError, match=r"no column 'whom'.*Did you mean 'who'"):
        read_grouped(path, group="whom")


def test_errors_never_print_what_stands_in_a_file(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text(f"text,label\n{SECRET},x,y\n")
    with pytest.raises(InputError, match="line 2: 3 values") as error:
        read_table(bad)
    assert SECRET not in str(error.value)
    bad.write_text(f"text,label,m\nfine,x,{SECRET}\nfine too,y,1\n")
    with pytest.raises(InputError, match="row 1: expected a number") as error:
        read_grouped(bad, members=["m"])
    assert SECRET not in str(error.value)


def test_quotes_in_tsv_are_text(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n"open quote\tok\nplain\tbad\n')
    assert read_table(path) == {"text": ['"open quote', "plain"], "label": ["ok", "bad"]}


def test_davidson(tmp_path):
    rows = [[i, 3, 0, 0, 3, i % 3, f"a tweet {i} of {'women' if i % 2 else 'nobody'}"] for i in range(12)]
    write(tmp_path / "labeled_data.csv", ["", "count", "hate_speech", "offensive_language", "neither", "class", "tweet"], rows)  # fmt: skip
    data = read_group_set("davidson", tmp_path)
    assert data.labels.tolist() == [1, 1, 0] * 4 and data.groups["women"].sum() == 6 and set(data.groups) == set(TERMS)


def test_measuring_hate_speech_has_a_row_per_annotator(tmp_path):
    header = ["comment_id", "text", "hate_speech_score", "target_race_black", "target_race_asian", "target_race", "target_gender_women"]  # fmt: skip
    rows = [[1, "first", 0.6, True, False, True, False], [1, "first", 0.6, True, False, True, True], [1, "first", 0.6, False, False, True, False],
            [2, "second", 0.5, False, True, True, False]]  # fmt: skip
    write(tmp_path / "measuring-hate-speech.csv", header, rows)
    data = read_group_set("measuring-hate-speech", tmp_path)
    assert data.labels.tolist() == [1, 0]
    assert list(data.groups) == []  # one of three annotators saw women spoken of
    race = read_group_set("measuring-hate-speech", tmp_path, grouping="race")
    assert race.groups["race black"].tolist() == [True, False] and race.groups["race asian"].tolist() == [False, True]
    with pytest.raises(UnknownName, match="gender, race, religion, all"):
        read_group_set("measuring-hate-speech", tmp_path, grouping="age")


def test_civil_comments_by_either_name(tmp_path):
    folder = tmp_path / "civil-comments"
    folder.mkdir()
    write(folder / "train.csv", ["id", "target", "comment_text", "male", "female", "black"], [[1, 0.5, "x", 0.5, "", ""], [2, 0.49, "y", 0.1, 1.0, 1.0]])  # fmt: skip
    data = read_group_set("civil-comments", tmp_path)
    assert data.labels.tolist() == [1, 0] and data.classes == ("not toxic", "toxic")
    assert {n: m.tolist() for n, m in data.groups.items()} == {"male": [True, False], "female": [False, True]}


def test_hatexplain_json_takes_the_majority_of_annotators(tmp_path):
    def post(labels, targets):
        return {"post_tokens": ["some", "post"], "annotators": [{"label": x, "target": t} for x, t in zip(labels, targets, strict=True)]}  # fmt: skip

    posts = {
        "1": post(["hatespeech", "offensive", "normal"], [["Women"], ["Women", "African"], ["None"]]),
        "2": post(["normal", "normal", "offensive"], [["None"], ["African"], ["None"]]) | {"post_tokens": ["another"]},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(posts))
    data = read_group_set("hatexplain", tmp_path)
    assert data.labels.tolist() == [1, 0] and data.groups["Women"].tolist() == [True, False] and "African" not in data.groups  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps({"1": {"post_tokens": [SECRET]}}))
    with pytest.raises(InputError, match=r"not HateXplain's dataset\.json") as error:
        read_group_set("hatexplain", tmp_path)
    assert SECRET not in str(error.value)


def picture(path, grey):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: images)")
    path.parent.mkdir(exist_ok=True, parents=True)
    image.new("RGB", (6, 6), (grey, grey, grey)).save(path)


def test_images_of_a_folder_with_a_table_of_groups(tmp_path):
    for i in range(20):
        picture(tmp_path / "images" / "a" / f"{i}.png", 10 * i)
    table = write(
        tmp_path / "who.csv", ["file", "label", "sex"], [[f"a/{i}.png", i % 2, "fm"[i > 9]] for i in range(20)]
    )
    data = read_grouped_images(tmp_path / "images", table, group="sex")
    prepare = Preprocess(4, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    task = grouped_task(data, encode=images_encoder(prepare))
    shown = (task.train.inputs[:].mean((1, 2, 3)) * 255 / 10).round()
    assert (shown % 2).tolist() == task.train.labels.tolist() and ((shown > 9) == task.train.groups["m"]).all()
    write(table, ["file", "label", "sex"], [["a/1.png", 0, "f"], ["../who.csv", 1, "m"], ["a/99.png", 1, "m"]])
    with pytest.raises(InputError, match="2 of 3 images are not in"):
        read_grouped_images(tmp_path / "images", table, group="sex")
    (tmp_path / "images" / "a" / "3.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="1 images cannot be decoded"):
        grouped_task(data, encode=images_encoder(prepare))


def test_utkface_tells_groups_by_the_names_of_files(tmp_path):
    names = ["25_0_0_1.jpg", "31_1_1_2.jpg", "30_1_4_3.jpg", "61_1_4.jpg", "x_y_z_w.jpg"]
    for n in names:
        picture(tmp_path / "UTKFace" / n, 9)
    data = read_group_set("utkface", tmp_path / "UTKFace", grouping="all")
    assert data.labels.tolist() == [0, 0, 1] and "2 images left out" in data.notes[0]
    assert {g: m.tolist() for g, m in data.groups.items() if m.any()} == {
        "Male": [True, False, False], "Female": [False, True, True], "White": [True, False, False], "Others": [False, True, False],
        "Black": [False, False, True],
    }  # fmt: skip
    assert list(read_group_set("utkface", tmp_path / "UTKFace").groups) == ["White", "Black", "Others"]


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'hatecheck'"):
        group_task("hatchek", root=tmp_path)
    for name in GROUP_SETS:
        with pytest.raises(InputError, match=f"no {name} in"):
            group_task(name, root=tmp_path)


@pytest.mark.parametrize("name, folder, n", [("hatecheck", "hatecheck", 3728), ("hatexplain", "hatexplain_text", 18665), ("adult", "fair_tabular", 32561), ("german", "fair_tabular", 1000)])  # fmt: skip
def test_real_sets(name, folder, n):
    if not (SHARED / folder).is_dir():
        pytest.skip("the real sets with groups are not here (../shared/data)")
    task: Task = group_task(name, root=SHARED / folder, encode=lengths)
    found = counts(task)
    assert sum(k for k, _ in found["all"].values()) == n
    assert len(task.train.groups) >= 4 and len(task.classes) == 2
    if name == "hatecheck":  # the cases of a template name different groups, and are in one part
        data = read_group_set(name, SHARED)
        parts = grouped_parts(data)
        assert not {data.keys[i] for i in parts[0]} & {data.keys[i] for i in parts[2]}
