"""Sentence files as tasks: what is read, what is refused, and that no sentence crosses from training to test."""

import gzip
import os
from pathlib import Path

import pytest
import torch

from taskvec.demo.text import FILES, find_files
from taskvec.errors import InputError, UsageError
from taskvec.tasks.text import (
    QUOTATIONS,
    order_task,
    origin_task,
    quoting,
    read_sentences,
    sentences_task,
    split_indices,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def tokenise(texts):
    """Texts as padded code points: enough to tell sentences apart, and back."""
    codes = [[ord(c) for c in t] for t in texts]
    return torch.tensor([row + [0] * (400 - len(row)) for row in codes])


def read_back(split):
    return ["".join(chr(c) for c in row if c) for row in split.inputs.tolist()]


@pytest.fixture
def write(tmp_path):
    def make(content, name="some_labelled.txt", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        return path

    return make


@pytest.fixture
def many(write):
    def make(name, n=40):
        return read_sentences(
            write("".join(f"word{i} of {name} number {i}\t{i % 2}\n" for i in range(n)), f"{name}.txt")
        )

    return make


# ---- reading ----------------------------------------------------------------------------------------------------------


def test_lines_with_the_label_last(write):
    found = read_sentences(write("Good.\t1\r\n Bad\tand late. \t0\r\n\r\n"))
    assert found.texts == ("Good.", "Bad\tand late.")
    assert found.labels == (1, 0)
    assert found.classes == ("0", "1")
    assert found.name == "some_labelled"


def test_lines_with_the_label_first_packed_and_latin_1(tmp_path):
    path = tmp_path / "questions.all.gz"
    path.write_bytes(gzip.compress("2 what is a café ?\n0 who ?\n".encode("latin-1")))
    found = read_sentences(path, layout="label-text", separator=" ", encoding="latin-1")
    assert found.texts == ("what is a café ?", "who ?")
    assert (found.labels, found.classes) == ((1, 0), ("0", "2"))


def test_csv_with_quotes_and_line_breaks(write):
    found = read_sentences(write('id,text,label\n1,"a, b\nc",yes\n2,d,no\n', "x.csv"), layout="csv")
    assert found.texts == ("a, b\nc", "d")
    assert found.labels == (1, 0)


def test_empty_and_repeated_texts_are_left_out_and_counted(write):
    found = read_sentences(write("Fine.\t1\n  \t0\nfine.\t1\nBad.\t0\n"))
    assert found.texts == ("Fine.", "Bad.")
    assert (found.empty, found.repeated) == (1, 1)


def test_a_line_separator_inside_a_sentence_does_not_cut_it(write):
    """U+0085 and its like occur in the UCI film reviews; ``str.splitlines`` would cut there."""
    found = read_sentences(write("The film\x85 was\u2028 long.\t0\nGood.\t1\n"))
    assert found.texts == ("The film\x85 was\u2028 long.", "Good.")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("fine\t1\nno label here\n", {}, r"line 2: expected 'text\\tlabel', got a line of 13 characters"),
        ("fine\t1\nno label\t\n", {}, "line 2"),
        ("0 a\n1\n", {"layout": "label-text", "separator": " "}, "line 2"),
        ("only\t1\none class\t1\n", {}, "labels of 1 kind "),
        ("", {}, "0 sentences"),
        ("text,label\na,1\nb\n", {"layout": "csv"}, "line 3: expected 2 fields"),
        ("txt,label\na,1\n", {"layout": "csv"}, "no column 'text'.*Did you mean 'txt'"),
        ('text,label\n"a,1\n', {"layout": "csv"}, "line 2: "),
    ],
)
def test_malformed_rows_are_named_by_file_and_line(write, content, options, message):
    with pytest.raises(InputError, match=message) as caught:
        read_sentences(write(content), **options)
    assert "some_labelled.txt" in str(caught.value)


def test_unreadable_files_are_named(write, tmp_path):
    with pytest.raises(InputError, match="cannot read the sentences"):
        read_sentences(tmp_path / "absent.txt")
    with pytest.raises(InputError, match=r"line 2: not utf-8 text.*`encoding`"):
        read_sentences(write("fine\t1\ncafé\t0\n", encoding="latin-1"))
    with pytest.raises(InputError, match="not a gzip file"):
        read_sentences(write("plain", "x.gz"))
    with pytest.raises(UsageError, match="layout is 'json'"):
        read_sentences(write("a\t1\n"), layout="json")  # type: ignore[arg-type]


# ---- splitting --------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_cover_all_and_follow_the_seed():
    parts = split_indices(101, seed=3)
    assert sorted(i for part in parts for i in part) == list(range(101))
    assert parts == split_indices(101, seed=3)
    assert parts != split_indices(101, seed=4)
    with pytest.raises(InputError, match="too few"):
        split_indices(2)
    with pytest.raises(UsageError, match="sum to 1"):
        split_indices(10, parts=(0.5, 0.5, 0.5))


def test_no_sentence_is_trained_on_in_one_task_and_tested_in_another(many):
    files = [many("phones"), many("films")]
    origin = origin_task(files, tokenise=tokenise, seed=5)
    tasks = [sentences_task(f, tokenise=tokenise, seed=5) for f in files]
    tasks += [sentences_task(quoting(files[0], seed=5), tokenise=tokenise, seed=5)]
    assert origin.classes == ("phones", "films")

    def core(texts):
        return {t.split("I say: ")[-1] for t in texts}

    for task in tasks:
        for part in ("train", "validation", "test"):
            assert core(read_back(getattr(task, part))) <= set(read_back(getattr(origin, part)))
    assert not set(read_back(origin.train)) & set(read_back(origin.test))
    for text, label in zip(read_back(origin.test), origin.test.labels.tolist(), strict=True):
        assert origin.classes[label] in text


def test_shuffled_sentences_have_the_words_of_one_sentence_in_another_order(many):
    films = many("films", 200)
    task = order_task(films, tokenise=tokenise, seed=1)
    known = {tuple(sorted(t.split())): t for t in films.texts}
    seen = []
    for split in (task.train, task.validation, task.test):
        for text, label in zip(read_back(split), split.labels.tolist(), strict=True):
            assert (known[tuple(sorted(text.split()))] == text) == (label == 0)
            seen.append(label)
    assert 70 < sum(seen) < 130


def test_quotations_tell_nothing_of_the_label_and_change_nothing_else(many):
    films = many("films", 400)
    quoted = quoting(films, seed=2)
    assert quoted.labels == films.labels
    praise = [t.startswith(QUOTATIONS[1]) for t in quoted.texts]
    assert all(q.endswith(t) and q != t for q, t in zip(quoted.texts, films.texts, strict=True))
    agree = sum(p == y for p, y in zip(praise, quoted.labels, strict=True))
    assert 160 < agree < 240
    assert quoting(films, seed=2) == quoted != quoting(films, seed=3)


def test_one_file_has_no_origin_to_tell(many):
    with pytest.raises(UsageError, match="at least two files"):
        origin_task([many("phones")], tokenise=tokenise)


# ---- the demo's data --------------------------------------------------------------------------------------------------


def test_the_demo_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKVEC_DATA", raising=False)
    with pytest.raises(InputError, match=r"Sentiment Labelled Sentences.*amazon_cells_labelled.txt"):
        find_files()
    (tmp_path / "imdb_labelled.txt").write_text("a\t1\n")
    with pytest.raises(InputError, match=r"lacks amazon_cells_labelled.txt, yelp_labelled.txt\."):
        find_files(tmp_path)
    for file in FILES.values():
        (tmp_path / file).write_text("a\t1\n")
    monkeypatch.setenv("TASKVEC_DATA", str(tmp_path))
    assert find_files() == tmp_path


@pytest.fixture(scope="module")
def reviews():
    folder = Path(os.environ.get("TASKVEC_DATA", SHARED / "uci_sentiment_sentences"))
    try:
        return find_files(folder)
    except InputError as error:
        pytest.skip(str(error))


def test_the_real_files_are_read_whole(reviews):
    found = {n: read_sentences(reviews / f, name=n) for n, f in FILES.items()}
    assert {n: len(s) + s.repeated + s.empty for n, s in found.items()} == dict.fromkeys(FILES, 1000)
    assert {n: s.repeated for n, s in found.items()} == {"phones": 13, "films": 3, "restaurants": 4}
    assert all(s.classes == ("0", "1") for s in found.values())


def test_question_types_are_read(tmp_path):
    path = SHARED / "sentence_tasks" / "TREC.test.all.gz"
    if not path.exists():
        pytest.skip("the TREC questions are not here")
    found = read_sentences(path, layout="label-text", separator=" ", encoding="latin-1")
    assert len(found) + found.repeated == 500
    assert len(found.classes) == 6


@pytest.mark.slow
def test_the_text_demo_runs(reviews, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra: hf)")
    from taskvec.demo import run
    from taskvec.errors import MissingExtra
    from taskvec.models.hub import minilm_folder
    from taskvec.results import read_results
    from taskvec.weights import Checkpoint, TaskVector

    try:
        folder = minilm_folder()
    except MissingExtra as error:
        pytest.skip(str(error))
    results = run(tmp_path / "out", text=True, data=reviews, quick=True)
    assert read_results(tmp_path / "out" / "results") == results
    vector = TaskVector.read(tmp_path / "out" / "vectors" / "site.safetensors")
    assert {n.split(".")[2] for n in vector.names} == {"4", "5"}
    (Checkpoint.read(folder) + vector).save(
        tmp_path / "edited"
    )  # the packaged model is the base that the demo recorded


def test_no_text_is_repeated_where_a_file_has_no_header(write):
    """The first line of such a file may be offensive."""
    with pytest.raises(
        InputError, match=r"no column 'text'; it has \(text\), '1'\. Is its first line a header\?"
    ) as caught:
        read_sentences(write("some sentence that nobody wants to read,1\nother,0\n", "a.csv"), layout="csv")
    assert "sentence that" not in str(caught.value)
