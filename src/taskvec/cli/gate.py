"""`taskvec gate`: properties of molecules; further ones are added as modules on a frozen network."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import BaseMismatch, UsageError, nearest, plain
from ..files import replace_text
from .commands import Group, cli, json_flag, overwrite_flag
from .terminal import note, print_json, training_bar

EMBEDDINGS = ("graph", "fingerprint")
_out = click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The folder to write.")
smiles_option = click.option("--smiles", metavar="COLUMN", help="The column of SMILES; else the one called so.")
LEARNING = [
    click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Updates at most."),
    click.option("--lr", type=float, default=1e-3, show_default=True),
    click.option("--batch", type=click.IntRange(1), default=64, show_default=True),
    click.option(
        "--factor",
        "factors",
        multiple=True,
        metavar="TERM=NUMBER",
        help="What a loss weighs: regression, autoencoding, consistency, mapping or displacement; 0 leaves it out. Repeat.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
]
SIZES = [
    click.option(
        "--embedding", default="graph", show_default=True, help=f"What reads molecules: {' or '.join(EMBEDDINGS)}."
    ),
    click.option(
        "--width",
        type=click.IntRange(1, 65536),
        default=96,
        show_default=True,
        help="Of the embedding and hidden layers.",
    ),
    click.option(
        "--latent",
        type=click.IntRange(1, 65536),
        default=32,
        show_default=True,
        help="Of latents and the common frame.",
    ),
    click.option("--depth", type=click.IntRange(1, 64), default=3, show_default=True, help="Steps of message passing."),
]


def with_options(options: list[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@cli.group(cls=Group, short_help="Properties of molecules: pre-train, add, predict, evaluate.")
def gate() -> None:
    """Regression on molecules where task addition adds modules, not weights (geometric alignment, arXiv:2409.16645).

    \b
    taskvec gate pretrain properties.csv --target homo --target gap -o sources/
    taskvec gate add sources/ few.csv --target solubility -o more/
    taskvec gate predict more/ new.csv -o predicted.csv
    taskvec gate join more/ elsewhere/ -o both/
    taskvec gate inspect both/ held-out.csv -o inspection.json
    """


@gate.command(short_help="Learn several properties together, on a shared embedding.")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="A property to learn; repeat. Else all columns of numbers.")  # fmt: skip
@smiles_option
@_out
@with_options(SIZES)
@with_options(LEARNING)
@overwrite_flag
@json_flag
def pretrain(
    data: tuple[Path, ...], targets: tuple[str, ...], smiles: str | None, out: Path, embedding: str, width: int, latent: int,
    depth: int, steps: int, lr: float, batch: int, factors: tuple[str, ...], seed: int, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Learn the properties in the CSV files DATA together: the sources to which further properties are added.

    One molecule in eight chooses when to stop. Nothing is tested here; `taskvec gate evaluate` does that.
    """
    free(out, overwrite)
    losses, spec, shape = losses_of(factors), spec_of(steps, lr, batch, seed), shape_of(embedding, width, latent, depth)
    import numpy as np

    from ..gate import gather, holdout, inputs_for, save
    from ..gate import pretrain as learn

    molecules = gather(data, smiles=smiles, targets=targets or None)
    tell_counts(molecules)
    train, validation = holdout(np.arange(len(molecules)), seed=seed)
    with training_bar() as (tell, bar):
        tell(f"learning {len(molecules.targets)} properties of {len(molecules)} molecules")
        made = learn(
            inputs_for(shape.embedding, molecules.smiles), molecules.targets, train, validation, shape=shape, losses=losses, spec=spec,
            progress=bar,
        )  # fmt: skip
    _say(made)
    save(made.model, out, learned={"pre-training": _facts(made, losses, spec, len(molecules))}, overwrite=overwrite)
    _done("gate pretrain", out, made, as_json)


@gate.command(short_help="Add a property to a network; everything that is there stays as it is.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="COLUMN", help="The property to add.")
@click.option("--name", help="What it is to be called; else as its column.")
@click.option("--against", multiple=True, metavar="PROPERTY", help="Align with this property; repeat. Else with all sources.")  # fmt: skip
@click.option("--unlabelled", type=click.Path(path_type=Path), help="A CSV file of further molecules, which align the frames without labels.")  # fmt: skip
@smiles_option
@_out
@with_options(LEARNING)
@overwrite_flag
@json_flag
def add(
    model: Path, data: Path, target: str, name: str | None, against: tuple[str, ...], unlabelled: Path | None, smiles: str | None,
    out: Path, steps: int, lr: float, batch: int, factors: tuple[str, ...], seed: int, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Learn one more property from the CSV file DATA, against the frozen sources of the network in the folder MODEL.

    The predictions of every property that is there stay the same bits. Properties added to the same sources do not depend on
    one another.
    """
    free(out, overwrite)
    losses, spec = losses_of(factors), spec_of(steps, lr, batch, seed)
    import numpy as np

    from ..gate import add as learn
    from ..gate import holdout, inputs_for, load, read_molecules, save
    from ..gate.files import facts_of
    from ..gate.molecules import canonical
    from ..gate.tables import read_smiles

    network, facts = load(model), facts_of(model)
    molecules = read_molecules(data, smiles=smiles, targets=[target])
    tell_counts(molecules)
    labels = molecules.target(target)
    train, validation = holdout(np.flatnonzero(np.isfinite(labels)), seed=seed)
    known, pool = list(molecules.smiles), None
    if unlabelled is not None:
        found = [c[0] for s in read_smiles(unlabelled, smiles=smiles) if (c := canonical(s))]
        more = [s for s in dict.fromkeys(found) if s not in set(known)]
        pool = np.arange(len(known), len(known) + len(more))
        note(f"{len(more)} further molecules align without labels")
        known += more
        labels = np.concatenate([labels, np.full(len(more), np.nan)])
        pool = pool if len(pool) else None
    with training_bar() as (tell, bar):
        tell(f"adding {plain(name or target)} from {len(train)} molecules, {len(validation)} to validate")
        made = learn(
            network, name or target, inputs_for(network.shape.embedding, known), labels, train, validation, pool=pool,
            against=list(against) or None, losses=losses, spec=spec, progress=bar,
        )  # fmt: skip
    _say(made)
    learned = {**facts.learned, f"adding {name or target}": _facts(made, losses, spec, len(molecules))}
    save(made.model, out, learned=learned, overwrite=overwrite)
    _done("gate add", out, made, as_json)


@gate.command(short_help="Put together what was added to one network in several places.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@_out
@overwrite_flag
@json_flag
def join(models: tuple[Path, ...], out: Path, overwrite: bool, as_json: bool) -> None:
    """One network with the properties of all networks in the folders MODELS, which were added to the same pre-trained network.

    Nothing is learnt: every property keeps its predictions, to the bit.
    """
    free(out, overwrite)
    if len(models) < 2:
        raise UsageError("name two folders or more to join.")
    from ..gate import load, save
    from ..gate.files import facts_of

    made, learned = load(models[0]), dict(facts_of(models[0]).learned)
    for folder in models[1:]:
        before = made.names
        try:
            made = made.joined(load(folder))
        except BaseMismatch as error:
            raise BaseMismatch(f"{plain(folder)}: {error}") from error
        note(f"{plain(folder)}: brings {', '.join(plain(n) for n in made.names if n not in before) or 'nothing new'}")
        learned |= facts_of(folder).learned
    save(made, out, learned=learned, overwrite=overwrite)
    if as_json:
        print_json("gate join", {"output": str(out), "properties": list(made.names)})
        return
    print(f"{plain(out)}: {', '.join(map(plain, made.names))}")


@gate.command(short_help="Predict properties of the molecules in a CSV file.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--property", "names", multiple=True, metavar="NAME", help="A property; repeat. Else all.")
@smiles_option
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The CSV file to write; else standard output.")
@overwrite_flag
@json_flag
def predict(
    model: Path, data: Path, names: tuple[str, ...], smiles: str | None, out: Path | None, overwrite: bool, as_json: bool
) -> None:  # fmt: skip
    """Predict for every row of DATA, in the units of the training labels. Rows without a valid SMILES stay empty."""
    if out is not None:
        free(out, overwrite)
    from ..gate import inputs_for, load
    from ..gate import predict as predicted_by
    from ..gate.molecules import canonical
    from ..gate.tables import read_smiles

    network = load(model)
    written = read_smiles(data, smiles=smiles)
    clean = [found[0] if (found := canonical(s)) else None for s in written]
    unique = list(dict.fromkeys(s for s in clean if s is not None))
    bad = sum(s is None for s in clean)
    if not unique:
        raise UsageError(f"{plain(data)}: none of {len(written)} rows has a valid SMILES. Is it the right column?")
    if bad:
        note(f"{bad} of {len(written)} rows have no valid SMILES; their predictions are empty")
    values = predicted_by(network, inputs_for(network.shape.embedding, unique), list(names) or None)
    at = {s: i for i, s in enumerate(unique)}
    rows = [
        {"smiles": s, **{n: None if c is None else float(f"{v[at[c]]:.7g}") for n, v in values.items()}}
        for s, c in zip(written, clean, strict=True)
    ]
    if as_json:
        print_json("gate predict", {"rows": rows})
    if out is None and as_json:
        return
    text = io.StringIO()
    table = csv.DictWriter(text, ["smiles", *values], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    if out is None:
        print(text.getvalue(), end="")
        return
    replace_text(out, text.getvalue(), what="the predictions")
    note(f"{plain(out)}: {len(rows)} rows, {len(values)} properties")


def free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UsageError(f"{plain(out)} exists. Use --overwrite to replace it, or name another.")


def losses_of(factors: tuple[str, ...]) -> Any:
    from ..gate.losses import TERMS, Losses

    given: dict[str, float] = {}
    for text in factors:
        name, _, number = text.partition("=")
        if name not in TERMS:
            raise UsageError(f"--factor {text!r}: a term is one of {', '.join(TERMS)}.{nearest(name, TERMS)}")
        try:
            given[name] = float(number)
        except ValueError as error:
            raise UsageError(f"--factor {text!r}: expected TERM=NUMBER, for example displacement=0.") from error
    return replace(Losses(), **given)


def spec_of(steps: int, lr: float, batch: int, seed: int) -> Any:
    from ..gate.train import GateSpec

    return GateSpec(steps=steps, lr=lr, batch=batch, seed=seed)


def shape_of(embedding: str, width: int, latent: int, depth: int) -> Any:
    from ..gate.model import Shape

    if embedding not in EMBEDDINGS:
        raise UsageError(f"--embedding {embedding!r}: one of {', '.join(EMBEDDINGS)}.{nearest(embedding, EMBEDDINGS)}")
    return Shape(embedding=embedding, width=width, latent=latent, frame=latent, depth=depth)  # type: ignore[arg-type]


def tell_counts(molecules: Any) -> None:
    for line in molecules.counts.said():
        note(line)


def _say(made: Any) -> None:
    for line in made.notes:
        note(line)


def _facts(made: Any, losses: Any, spec: Any, molecules: int) -> dict[str, Any]:
    return {
        "molecules": molecules, "step": made.step, "validation": round(made.looks[made.step], 4), "losses": vars(losses), "spec": vars(spec),
        "spread": {n: round(v, 6) for n, v in made.spread.items()},
    }  # fmt: skip


def _done(command: str, out: Path, made: Any, as_json: bool) -> None:
    best = made.looks[made.step]
    if as_json:
        said = {"validation_rmse": best, "step": made.step, "spread": dict(made.spread), "terms": dict(made.terms)}
        print_json(command, {"output": str(out), "properties": list(made.model.names), **said})
    else:
        print(
            f"{plain(out)}: {', '.join(map(plain, made.model.names))}; validation RMSE {best:.3f} standard deviations"
        )
