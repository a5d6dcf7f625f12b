"""pairstack beside its peers: same data, same folds, one table.

    make peers          (creates .venv-peers, runs this, writes benchmarks/results/peers.md)
    PYTHONPATH=benchmarks .venv-peers/bin/python benchmarks/peers/run.py openclipart_oof.npz

Every (peer, outer fold) is a process of its own and leaves a file in --work, so a run that was
stopped goes on where it was. Scores are of the label sets: "one threshold" is the peer's own best
threshold, "our rule" pairstack's decision on the peer's probabilities.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import table, write_section
from methods import PEERS

from stacker.evaluation import mean_average_precision, paired_bootstrap
from stacker.fbeta import fbeta_per_image, fbeta_score

HERE = Path(__file__).parent
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
TITLE = {"pairstack": "**pairstack**", **{key: peer.name for key, peer in PEERS.items()}}


def run_one(data: str, peer: str, fold: int, work: Path, top: bool) -> dict[str, Any] | None:
    """Cost and predictions of a peer on an outer fold; None where it failed."""
    name = f"{peer}-{Path(data).stem}-{'top' if top else 'all'}-{fold}"
    cost, found = work / f"{name}.json", work / f"{name}.npz"
    if not cost.exists():
        command = [sys.executable, str(HERE / "one.py"), data, peer, "--fold", str(fold)]
        command += ["--out", str(found), *(["--frequent"] if top else [])]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | ONE_THREAD
        )
        if done.returncode:
            print(f"{name}: failed, exit code {done.returncode}", flush=True)
            return None
        cost.write_text(done.stdout.splitlines()[-1])
        print(name, cost.read_text(), flush=True)
    with np.load(found) as arrays:
        return {**json.loads(cost.read_text()), **{k: arrays[k] for k in arrays.files}}


def row(name: str, ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> list[str]:
    """Scores of a peer over its folds, and how far pairstack is ahead on the same images."""
    joined = {k: np.concatenate([f[k] for f in peer]) for k in ("labels", "sets", "rule", "proba")}
    groups = np.concatenate([f["groups"] for f in peer])
    own = np.concatenate([f["sets"] for f in ours[: len(peer)]])
    labels, sets = joined["labels"], joined["sets"]
    gain, low, high = paired_bootstrap(
        fbeta_per_image(labels, own), fbeta_per_image(labels, sets), groups, random_state=0
    )
    ahead = "" if name == "pairstack" else f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]"
    return [
        TITLE[name],
        str(len(peer)),
        f"{fbeta_score(labels, sets):.4f}",
        ahead,
        f"{fbeta_score(labels, joined['rule']):.4f}",
        f"{fbeta_score(labels, sets, average='macro'):.4f}",
        f"{fbeta_score(labels, sets, average='micro'):.4f}",
        f"{mean_average_precision(labels, joined['proba']):.4f}",
        f"{np.mean([f['seconds'] for f in peer]):,.0f}",
        f"{max(f['peak'] for f in peer):.1f}",
        str(peer[0]["lines"]),
    ]


HEADER = ["", "folds", "F2 samples", "pairstack ahead by", "with our rule", "F2 macro", "F2 micro"]
HEADER += ["mAP", "CPU s a fold", "peak GB", "lines"]


def compared(data: str, names: list[str], work: Path, folds: int, top: bool = False) -> str:
    """One table: every peer on as many outer folds as it has room for."""
    results: dict[str, list[dict[str, Any]]] = {}
    for name in ["pairstack", *names]:
        wanted = folds if name == "pairstack" else min(folds, PEERS[name].folds)
        found = [run_one(data, name, fold, work, top) for fold in range(wanted)]
        if found and all(part is not None for part in found):
            results[name] = [part for part in found if part is not None]
    rows = [row(name, results["pairstack"], parts) for name, parts in results.items()]
    failed = [TITLE[name] for name in names if name not in results]
    return table(HEADER, rows) + (f"\n\nFailed: {', '.join(failed)}." if failed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--work", type=Path, default=Path(".peers"))
    parser.add_argument("--folds", type=int, default=2, help="outer folds, at most")
    parser.add_argument("--images", type=int, default=4_000, help="of the synthetic iMet shape")
    parser.add_argument("--peers", help="comma separated; default: all")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    picked = options.peers.split(",") if options.peers else list(PEERS)
    everywhere = [name for name in picked if not PEERS[name].top]
    shape = [name for name in ("mean", "multi_output", "naive_pairs") if name in picked]
    parts = {
        "openclipart OOF, 488 classes": compared(
            options.path, everywhere, options.work, options.folds
        ),
        "The 20 most frequent classes": compared(options.path, picked, options.work, 1, top=True),
        f"iMet's shape, {options.images:,} images, 1,103 classes, ten models (synthetic)": compared(
            str(options.images), shape, options.work, 1
        ),
    }
    text = (HERE / "about.md").read_text()
    for title, body in parts.items():
        text += f"\n### {title}\n\n{body}\n"
    write_section("peers", text)


if __name__ == "__main__":
    main()
