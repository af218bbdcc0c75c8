"""A study made small."""

from __future__ import annotations

from typing import Any

from .spec import Study


def tried(study: Study, *, steps: int | None = None, limit: int | None = None) -> Study:
    """The same study made small, to see whether all of it runs: results are marked as a try-out and measure nothing.

    Args:
        steps: updates of every vector and every pre-training, at most.
        limit: samples of every part, of a batch and of a pre-training's batch, at most; grids then have three points, and
            subsets of tasks are pairs at most.
    """
    table: dict[str, Any] = study.model_dump()
    table["tryout"] = True
    table["protocols"] = {name: said for name, said in table["protocols"].items() if said is not None}
    language = table["language"]
    if steps is not None:
        language |= {n: min(steps, language[n]) for n in ("steps", "head_steps")}
    if limit is not None:
        language |= {"batch": min(limit, language["batch"]), "copies": 1}
    changed = [table["fit"], *table["bases"].values(), *table["regimes"].values()]
    if steps is not None:
        # People learn in epochs, however many updates that makes.
        table["fit"]["steps"] = min(steps, (study.fit.steps or steps) if study.people else study.fit.updates)
        for said in (*changed, *table["people"].values()):
            if said["steps"] or said.get("pretrain") or said.get("perceptron"):
                said["steps"] = min(steps, said["steps"] or steps)
    if limit is not None:
        for said in changed:
            if said is table["fit"] or said.get("batch") or said.get("pretrain") or said.get("perceptron"):
                said["batch"] = min(limit, said["batch"] or limit)
        for said in table["tasks"].values():
            for part in ("limit", "validation_limit", "test_limit"):
                said[part] = min(limit, said[part] or limit)
        for said in table["protocols"].values():
            if "coefficients" in said:
                said["coefficients"]["points"] = min(3, said["coefficients"]["points"])
            if said.get("subsets") == "all":
                said["subsets"] = "pairs"
            if "samples" in said:
                said["samples"] = max(1, min(said["samples"], limit // 2))
            if "perplexity_ratio" in said:
                said |= {"tokens": min(8, said["tokens"]), "window": min(8, said["window"])}
                said["unprompted"] = said["unprompted"] and tuple(min(limit, n) for n in said["unprompted"])
            if "min_cases" in said:  # of fairness: groups are as small as their samples are few
                said |= {"min_n": 2, "min_cases": 1, "bootstrap": 100}
                for grid in (said["injections"], said["each"] or {"points": 2}):
                    grid["points"] = min(3, grid["points"])
        for said in table["people"].values():
            # Enough that every group has somebody in each part.
            said["most"] = min(max(limit, 40), said["most"] or max(limit, 40))
            said["batch"] = min(limit, said["batch"] or limit)
        for name, said in table["texts"].items():
            asked = study.protocols.toxicity
            # Enough for a window of each part in training, for telling words apart, and for labels of all kinds.
            few = 300 if asked is None or name in (asked.toxic, asked.clean, asked.labelled) else limit
            said["limit"] = min(max(few, limit), said["limit"] or few)
    return Study.model_validate(table)
