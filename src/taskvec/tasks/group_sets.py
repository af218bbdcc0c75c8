"""Known data sets with groups: where label and groups stand in each, as a row of a table.

Several hold hateful texts. They are read and counted here, and never printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..errors import InputError, UnknownName, nearest
from .group_files import group_columns, labels_of, numbers_of, without_empty
from .groups import Encode, Grouped, chosen_groups, grouped_task, mentions, merged_repeats
from .masks import group_values, intersections
from .tables import columns, read_table
from .tabular import columns_of
from .task import Task
from .text import PARTS

# Who a text speaks of, in words that are no slurs; a list of one's own (`read_terms`) serves better in one's own domain.
TERMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "women": ("woman", "women", "female", "females", "girl", "girls"),
        "black": ("black", "blacks", "african american", "african americans"),
        "white": ("white", "whites", "caucasian", "caucasians"),
        "muslim": ("muslim", "muslims", "islam", "islamic"),
        "jewish": ("jew", "jews", "jewish", "judaism"),
        "gay": ("gay", "gays", "lesbian", "lesbians", "lgbt", "homosexual", "homosexuals"),
        "migrants": ("immigrant", "immigrants", "migrant", "migrants", "refugee", "refugees"),
    }
)
CIVIL = (
    "male", "female", "transgender", "other_gender", "heterosexual", "homosexual_gay_or_lesbian", "bisexual", "christian", "jewish",
    "muslim", "hindu", "buddhist", "atheist", "black", "white", "asian", "latino",
)  # fmt: skip
HATEFUL = ("not hateful", "hateful")
ADULT_NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
GERMAN_NUMBERS = (
    "month", "credit_amount", "investment_as_income_percentage", "residence_since", "age", "number_of_credits", "people_liable_for",
)  # fmt: skip
COMPAS_NUMBERS = ("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count")
COMPAS_WORDS = ("sex", "race", "c_charge_degree")


@dataclass(frozen=True)
class GroupSet:
    """A data set with groups.

    Args:
        read: the files found -> samples with all groups that are known of them.
        files: names that the set's files go by, the first set of which is there is read; all of a set are needed.
        kind: ``"text"``, ``"images"``, or ``"rows"`` of a table.
        origin: where it comes from and under what licence, for people.
        groupings: groups that go together, by the name of the attribute; the first one is taken unless told.
    """

    read: Callable[[Sequence[Path]], Grouped]
    files: tuple[tuple[str, ...], ...]
    kind: str
    origin: str
    groupings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_group_set(name: str, root: str | Path, *, grouping: str | None = None) -> Grouped:
    """A known set (`GROUP_SETS`) from its folder, or from one in which that folder lies.

    Args:
        grouping: which attribute makes the groups; the set's first one unless told; ``"all"`` for all groups there are.
    Raises:
        UnknownName: no such set or attribute; says the nearest.
        InputError: its files are not there or not as expected.
    """
    if name not in GROUP_SETS:
        raise UnknownName(f"no set {name!r} with groups; there are {', '.join(GROUP_SETS)}.{nearest(name, GROUP_SETS)}")
    row = GROUP_SETS[name]
    if grouping not in (None, "all", *row.groupings):
        raise UnknownName(f"{name} has no groups by {grouping!r}; it has {', '.join((*row.groupings, 'all'))}.{nearest(str(grouping), row.groupings)}")  # fmt: skip
    data = replace(row.read(_found(name, row, Path(root))), name=name)
    attribute = grouping or next(iter(row.groupings), "all")
    if attribute == "all":
        return data
    some_there = [g for g in row.groupings[attribute] if g in data.groups and data.groups[g].any()]
    return chosen_groups(data, some_there)


def group_task(
    name: str, *, root: str | Path, encode: Encode | None = None, grouping: str | None = None,
    parts: tuple[float, float, float] = PARTS, seed: int = 0,
) -> Task:  # fmt: skip
    """A known set with groups as a task.

    Args:
        name: one of `GROUP_SETS`, for example ``"hatecheck"``.
        root: its folder, or one in which that lies.
        encode: texts -> inputs, for example `taskvec.models.hub.tokenizer(folder)`, or paths -> inputs, `images_encoder(prepare)`;
            tables need none.
        grouping: as in `read_group_set`.
        parts, seed: as in `grouped_parts`.
    Raises:
        UsageError: texts or images without `encode`; and what `read_group_set` and `grouped_task` raise.
    """
    data = read_group_set(name, root, grouping=grouping)
    if GROUP_SETS[name].kind == "rows":
        return grouped_task(data, encode=columns_of, fitted=True, parts=parts, seed=seed)
    if encode is None:
        raise InputError(
            f"{name} holds texts: give encode, the tokenizer of the model, for example hub.tokenizer(folder)."
        )
    return grouped_task(data, encode=encode, parts=parts, seed=seed)


def _found(name: str, row: GroupSet, root: Path) -> list[Path]:
    for folder in (root, root / name, *(p for p in sorted(root.glob("*")) if p.is_dir() and p.name.startswith(name))):
        for files in row.files:
            paths = [next((folder / n for n in (f, f"{f}.gz") if (folder / n).is_file()), None) for f in files]
            if row.kind == "images":
                paths = [*sorted(folder.glob(files[0]))]
            if paths and all(paths):
                return [p for p in paths if p is not None]
    wanted = " or ".join(" with ".join(f) for f in row.files)
    raise InputError(f"no {name} in {root}: expected {wanted} (or packed, .gz) there or in {name}/. It comes from {row.origin}.")  # fmt: skip


def _hatecheck(paths: Sequence[Path]) -> Grouped:
    where = str(paths[0])
    table = read_table(paths[0])
    texts, marks, who, template = columns(table, ["test_case", "label_gold", "target_ident", "templ_id"], where)
    labels, _, has = labels_of(marks, classes={"non-hateful": HATEFUL[0], "hateful": HATEFUL[1]}, where=where)
    # Cases of one template differ in the group named: a model must not meet its sentences in training and test.
    return without_empty("", texts, labels, HATEFUL, group_values(who), has, tuple(template))


def _hatexplain_json(paths: Sequence[Path]) -> Grouped:
    try:
        posts = json.loads(paths[0].read_text(encoding="utf-8"))
        texts, labels, groups = [], [], []
        for post in posts.values():
            marks = [a["label"] != "normal" for a in post["annotators"]]
            named = [set(a["target"]) - {"None", "Other"} for a in post["annotators"]]
            texts.append(" ".join(post["post_tokens"]))
            labels.append(int(2 * sum(marks) > len(marks)))
            groups.append({g for n in named for g in n if 2 * sum(g in other for other in named) > len(named)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{paths[0]} is not HateXplain's dataset.json: {type(error).__name__}.") from error
    inside = {g: np.array([g in s for s in groups], bool) for g in sorted(set().union(*groups))}
    every = np.ones(len(texts), bool)
    return merged_repeats(without_empty("", texts, np.array(labels, np.int64), HATEFUL, inside, every))


def _hatexplain(paths: Sequence[Path]) -> Grouped:
    if paths[0].name.startswith("dataset.json"):
        return _hatexplain_json(paths)
    tables = [read_table(p) for p in paths]
    texts, marks = ([v for t, p in zip(tables, paths, strict=True) for v in columns(t, [n], str(p))[0]] for n in ("text", "label"))  # fmt: skip
    classes = {"normal": HATEFUL[0], "offensive": HATEFUL[1], "hatespeech": HATEFUL[1]}
    labels, _, has = labels_of(marks, classes=classes, where=str(paths[0]))
    return merged_repeats(without_empty("", texts, labels, HATEFUL, mentions(texts, TERMS), has))


def _davidson(paths: Sequence[Path]) -> Grouped:
    texts, marks = columns(read_table(paths[0]), ["tweet", "class"], str(paths[0]))
    labels, _, has = labels_of(marks, classes={"2": HATEFUL[0], "1": HATEFUL[1], "0": HATEFUL[1]}, where=str(paths[0]))
    return merged_repeats(without_empty("", texts, labels, HATEFUL, mentions(texts, TERMS), has))


def _measuring(paths: Sequence[Path]) -> Grouped:
    where, table = str(paths[0]), read_table(paths[0])
    texts, marks = columns(table, ["text", "hate_speech_score"], where)
    # "above 0.5 is approximately hate speech", as the card of the data says.
    labels, _, has = labels_of(marks, threshold=0.5, above=True, where=where)
    members = {c.removeprefix("target_").replace("_", " ", 1): c for c in table if c.startswith(("target_race_", "target_gender_", "target_religion_"))}  # fmt: skip
    return merged_repeats(without_empty("", texts, labels, HATEFUL, group_columns(table, members, where=where), has))


def _civil(paths: Sequence[Path]) -> Grouped:
    where, table = str(paths[0]), read_table(paths[0])
    mark = "toxicity" if "toxicity" in table else "target"
    texts, marks = columns(table, ["comment_text", mark], where)
    labels, _, has = labels_of(marks, threshold=0.5, where=where)
    members = {c.replace("_", " "): c for c in CIVIL if c in table}
    return merged_repeats(without_empty("", texts, labels, ("not toxic", "toxic"), group_columns(table, members, where=where), has))  # fmt: skip


def _rows(
    path: Path, label: str, classes: Mapping[str, str], numbers: Sequence[str], without: Sequence[str] = ()
) -> tuple[Grouped, Mapping[str, Sequence[str]]]:
    """The rows that have a label as samples, without groups, and their columns to make groups of."""
    where, table = str(path), read_table(path)
    (marks,) = columns(table, [label], where)
    labels, order, has = labels_of(marks, classes=classes, where=where)
    kept = np.flatnonzero(has)
    table = {n: [v[i] for i in kept] for n, v in table.items()}
    values = {n: numbers_of(v, f"{where}, column {n!r}") for n, v in zip(numbers, columns(table, numbers, where), strict=True)}  # fmt: skip
    used = [n for n in table if n not in (label, *without)]
    items = tuple({n: float(values[n][i]) if n in values else table[n][i] for n in used} for i in range(len(kept)))
    same = tuple(map(repr, zip(*table.values(), strict=True)))  # people alike in everything stay in one split
    return Grouped("", items, labels[kept], order, {}, same), table


def _bands(ages: np.ndarray, cuts: Sequence[int]) -> dict[str, np.ndarray]:
    edges = [0, *cuts, 200]
    names = [f"under {cuts[0]}", *(f"{a}-{b - 1}" for a, b in pairwise(cuts)), f"{cuts[-1]} or more"]
    return {n: (ages >= a) & (ages < b) for n, (a, b) in zip(names, pairwise(edges), strict=True)}


def _adult(paths: Sequence[Path]) -> Grouped:
    classes = {"<=50K": "50K or less", ">50K": "more than 50K"}
    # fnlwgt is the weight of the sample in the census, not a property of the person.
    data, table = _rows(paths[0], "income-per-year", classes, ADULT_NUMBERS, ("fnlwgt",))
    sex, race = group_values(table["sex"]), group_values(table["race"])
    age = _bands(np.array(table["age"], float), (30, 50))
    return data.with_groups({**sex, **race, **age, **intersections(sex, age, joint=", ")})


def _german(paths: Sequence[Path]) -> Grouped:
    data, table = _rows(paths[0], "credit", {"2": "bad credit", "1": "good credit"}, GERMAN_NUMBERS)
    # A92 and A95 are the codes of women in the column that tells sex and marital status.
    women = np.array([v in ("A92", "A95") for v in table["personal_status"]])
    sex = {"Female": women, "Male": ~women}
    age = _bands(np.array(table["age"], float), (26,))
    return data.with_groups({**sex, **age, **intersections(sex, age, joint=", ")})


def _compas(paths: Sequence[Path]) -> Grouped:
    """Rows that ProPublica's analysis keeps; the score of COMPAS itself, and what was known only later, are no inputs."""
    where, table = str(paths[0]), read_table(paths[0], first=True)  # priors_count and decile_score stand there twice
    names = [*COMPAS_NUMBERS, *COMPAS_WORDS, "age_cat", "days_b_screening_arrest", "is_recid", "two_year_recid"]
    table = dict(zip(names, columns(table, names, where), strict=True))
    days = numbers_of(table["days_b_screening_arrest"], f"{where}, column 'days_b_screening_arrest'")
    kept = np.flatnonzero((np.abs(days) <= 30) & np.array([r != "-1" for r in table["is_recid"]]) & np.array([c != "O" for c in table["c_charge_degree"]]))  # fmt: skip
    left = len(days) - len(kept)
    table = {n: [v[i] for i in kept] for n, v in table.items()}
    labels, order, has = labels_of(table["two_year_recid"], classes={"0": "no new offence", "1": "new offence"}, where=where)  # fmt: skip
    values = {n: numbers_of(table[n], f"{where}, column {n!r}") for n in COMPAS_NUMBERS}
    items = tuple({n: float(values[n][i]) if n in values else table[n][i] for n in (*COMPAS_NUMBERS, *COMPAS_WORDS)} for i in range(len(kept)))  # fmt: skip
    sex, race, age = (group_values(table[n]) for n in ("sex", "race", "age_cat"))
    groups = {**sex, **race, **age, **intersections(sex, race, joint=", ")}
    note = (f"{left:,} rows left out as in ProPublica's analysis: screened more than 30 days from the arrest, or no case of their own",)  # fmt: skip
    data = Grouped("", items, labels, order, groups, tuple(map(repr, zip(*table.values(), strict=True))), note if left else ())  # fmt: skip
    return data if has.all() else data.take(np.flatnonzero(has))


def _utkface(paths: Sequence[Path]) -> Grouped:
    races = ("White", "Black", "Asian", "Indian", "Others")
    found = []
    for path in paths:  # age_gender_race_date.jpg; a few lack one of the numbers
        age, *codes = path.name.split("_")
        if len(codes) == 3 and age.isdecimal() and codes[0] in "01" and codes[1] in "01234":
            found.append((path, int(age), int(codes[0]), int(codes[1])))
    if not found:
        raise InputError(f"{paths[0].parent}: no image is named as UTKFace names them, age_gender_race_date.jpg.")
    kept, age, gender, race = zip(*found, strict=True)
    groups = {n: np.array(gender) == i for i, n in enumerate(("Male", "Female"))}
    groups |= {n: np.array(race) == i for i, n in enumerate(races)}
    left = len(paths) - len(kept)
    notes = (f"{left:,} images left out, whose names lack a number",) if left else ()
    labels = (np.array(age) > 30).astype(np.int64)
    return Grouped("", kept, labels, ("30 or younger", "over 30"), groups, notes=notes)


_COMPAS_RACES = ("African-American", "Asian", "Caucasian", "Hispanic", "Native American", "Other")
_SEX, _AGES = ("Female", "Male"), ("under 30", "30-49", "50 or more")
_RACES = ("Amer-Indian-Eskimo", "Asian-Pac-Islander", "Black", "Other", "White")
GROUP_SETS: Mapping[str, GroupSet] = MappingProxyType(
    {
        "hatecheck": GroupSet(
            _hatecheck, (("test_suite_cases.csv",), ("hatecheck_cases_final_study.csv",)), "text",
            "github.com/paul-rottger/hatecheck-data (CC BY 4.0, arXiv:2012.15606)",
        ),
        "hatexplain": GroupSet(
            _hatexplain, (("dataset.json",), ("train.tsv", "valid.tsv", "test.tsv")), "text",
            "github.com/hate-alert/HateXplain (MIT, arXiv:2012.10289)",
        ),
        "davidson": GroupSet(
            _davidson, (("labeled_data.csv",),), "text",
            "github.com/t-davidson/hate-speech-and-offensive-language (MIT, arXiv:1703.04009)",
        ),
        "measuring-hate-speech": GroupSet(
            _measuring, (("measuring-hate-speech.parquet",), ("measuring-hate-speech.csv",)), "text",
            "huggingface.co/datasets/ucberkeley-dlab/measuring-hate-speech (CC BY 4.0, arXiv:2009.10277)",
            {
                "gender": tuple(f"gender {n}" for n in ("men", "women", "non_binary", "transgender_men", "transgender_women", "transgender_unspecified", "other")),
                "race": tuple(f"race {n}" for n in ("asian", "black", "latinx", "middle_eastern", "native_american", "pacific_islander", "white", "other")),
                "religion": tuple(f"religion {n}" for n in ("atheist", "buddhist", "christian", "hindu", "jewish", "mormon", "muslim", "other")),
            },
        ),
        "civil-comments": GroupSet(
            _civil, (("all_data_with_identities.csv",), ("train.csv",)), "text",
            "WILDS, or Kaggle's Jigsaw Unintended Bias (CC0, arXiv:1903.04561)",
            {
                "gender": ("male", "female", "transgender", "other gender"),
                "race": ("black", "white", "asian", "latino"),
                "religion": ("christian", "jewish", "muslim", "hindu", "buddhist", "atheist"),
            },
        ),
        "utkface": GroupSet(
            _utkface, (("*.jpg",),), "images", "susanqq.github.io/UTKFace (research only)",
            {"race": ("White", "Black", "Asian", "Indian", "Others"), "gender": ("Male", "Female")},
        ),
        "adult": GroupSet(
            _adult, (("adult.csv",),), "rows", "archive.ics.uci.edu/dataset/2 (CC BY 4.0), with a header and income-per-year",
            {"sex x age": tuple(f"{s}, {a}" for s in _SEX for a in _AGES), "race": _RACES, "sex": _SEX, "age": _AGES},
        ),
        "german": GroupSet(
            _german, (("german.csv",),), "rows", "archive.ics.uci.edu/dataset/144 (CC BY 4.0), with a header and credit",
            {
                "sex x age": tuple(f"{s}, {a}" for s in _SEX for a in ("under 26", "26 or more")),
                "sex": _SEX, "age": ("under 26", "26 or more"),
            },
        ),
        "compas": GroupSet(
            _compas, (("compas-scores-two-years.csv",),), "rows",
            "github.com/propublica/compas-analysis (people's names are in the file, and are never read as inputs)",
            {
                "race": _COMPAS_RACES, "sex": _SEX, "age": ("Less than 25", "25 - 45", "Greater than 45"),
                "sex x race": tuple(f"{s}, {r}" for s in _SEX for r in _COMPAS_RACES),
            },
        ),
    }
)  # fmt: skip
