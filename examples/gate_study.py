"""Do frozen properties with many labels help those with few? Task addition by geometric alignment on public data, beside its rivals.

    python examples/gate_study.py --root FOLDER --seeds 0 1 2 -o OUT

Sources: solubility and six computed descriptors (AqSolDB), lipophilicity (MoleculeNet), and band gap, heat capacity and polarisability
(QM9), at most --most molecules of each file. Targets, each with at most --labels labels: hydration energy (FreeSolv), pIC50 (BACE), first
excitation energy (QM8) and atomisation energy (QM7), of at most --most-tested molecules. Molecules are split for all properties
together, at random and by scaffold; test molecules train nothing.

Each seed and split writes OUT/SPLIT-SEED.json and is left out when that is there; OUT/pooled/SPLIT.json joins the seeds. `taskvec report`
draws both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from taskvec.gate import GateSpec, Losses, Molecules, Shape, evaluate, pooled, read_molecules, together
from taskvec.results import read_result

SOURCES = {
    "aqsoldb/aqsoldb.csv.gz": {
        "Solubility": "solubility",
        "MolLogP": "computed logP",
        "MolMR": "computed refractivity",
        "TPSA": "polar surface",
        "NumHDonors": "hydrogen donors",
        "NumHAcceptors": "hydrogen acceptors",
        "NumAromaticRings": "aromatic rings",
    },
    "moleculenet/Lipophilicity.csv.gz": {"exp": "lipophilicity"},
    "qm_properties/qm9_30k_3props.csv.gz": {
        "band_gap": "band gap",
        "heat_capacity": "heat capacity",
        "isotropic_polarizability": "polarisability",
    },
}
TARGETS = {
    "moleculenet/FreeSolv_SAMPL.csv.gz": {"expt": "hydration energy"},
    "moleculenet/bace.csv.gz": {"pIC50": "BACE pIC50"},
    "qm_properties/qm8_e1.csv.gz": {"E1-CAM": "excitation energy"},
    "qm_properties/qm7.csv.gz": {"u0_atom": "atomisation energy"},
}


def read(root: Path, most: int, tested: int) -> Molecules:
    """All sets together; of each at most so many molecules, the same ones for every seed."""
    sets = []
    for file, columns in (SOURCES | TARGETS).items():
        found = read_molecules(root / file, targets=list(columns))
        for line in found.counts.said():
            print(f"{file}: {line}", file=sys.stderr)
        kept = np.sort(np.random.default_rng(0).permutation(len(found))[: most if file in SOURCES else tested])
        smiles = tuple(found.smiles[i] for i in kept)
        sets.append(Molecules(smiles, {columns[n]: v[kept] for n, v in found.targets.items()}))
    return together(sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, required=True, help="the folder with aqsoldb, moleculenet and qm_properties"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--splits", nargs="+", default=["random", "scaffold"])
    parser.add_argument("--most", type=int, default=3000)
    parser.add_argument("--most-tested", type=int, default=1500)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="a learning curve over these and all labels")
    parser.add_argument("--ablate", action="store_true", help="every addition again without each loss")
    parser.add_argument("--chemprop", metavar="COMMAND", help="of an installed chemprop 2, one more rival")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pretraining-steps", type=int, default=3000)
    parser.add_argument("--embedding", default="graph")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    molecules = None
    for by in options.splits:
        results = []
        for seed in options.seeds:
            path = options.out / f"{by}-{seed}.json"
            if not path.exists():
                molecules = molecules or read(options.root, options.most, options.most_tested)
                began = time.process_time()
                evaluate(
                    molecules, sources=[n for c in SOURCES.values() for n in c.values()], by=by, labels=options.labels,
                    targets=[n for c in TARGETS.values() for n in c.values()], shape=Shape(embedding=options.embedding, width=64),
                    sizes=[*options.sizes, None] if options.sizes else [], ablate=options.ablate, chemprop=options.chemprop, losses=Losses(perturbations=1, routes=1),
                    spec=GateSpec(steps=options.steps, seed=seed), pretraining=GateSpec(steps=options.pretraining_steps, check=100),
                    title=f"Few labels beside many, {by} split",
                    progress=lambda line: print(f"{time.process_time() - began:6.0f} s  {line}", file=sys.stderr),  # noqa: B023
                ).write(path)  # fmt: skip
            results.append(read_result(path))
        whole = pooled(results)
        whole.write(options.out / "pooled" / f"{by}.json")
        for target, row in whole.relative.items():
            print(f"{by}  {target}  " + "; ".join(f"{m} {r}" for m, r in row.items()))


if __name__ == "__main__":
    main()
