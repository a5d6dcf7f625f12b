"""pairstack beside its peers: same data, same folds, one table.

    make peers          (creates .venv-peers, runs this, writes benchmarks/results/peers.md)
    PYTHONPATH=benchmarks .venv-peers/bin/python benchmarks/peers/run.py openclipart_oof.npz

Every (peer, outer fold) is a process of its own and leaves a file in --work, so a run that was
stopped goes on where it was; remove the file to measure again.
"""

import argparse
import inspect
import io
import json
import os
import subprocess
import sys
import tokenize
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from data import TOP, read
from measure import table, write_section
from methods import PEERS
from one import OURS, pairstack

from stacker.evaluation import bootstrap_fbeta, bootstrap_map, mean_average_precision
from stacker.fbeta import fbeta_score

HERE = Path(__file__).parent
AT_ONCE = 2  # processes, of one thread each
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
TITLE = {"pairstack": "**pairstack**", "pairstack_bare": "pairstack, given probabilities only"}
TITLE |= {key: peer.name for key, peer in PEERS.items()}


def code_lines(function: Callable[..., Any]) -> int:
    """Lines of code in a function's body: no docstring, comment or empty line."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    skip |= {tokenize.ENDMARKER}
    source = io.StringIO(inspect.getsource(function)).readline
    lines: set[int] = set()
    for token in tokenize.generate_tokens(source):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines) - 1  # without the signature


def lines_of(name: str) -> int:
    """Lines that a user of a peer writes, its helpers among them."""
    if name in OURS:
        return code_lines(pairstack) - 1  # without what gathers its two results
    return code_lines(PEERS[name].method) + sum(map(code_lines, PEERS[name].helpers))


def run_one(
    data: str, peer: str, fold: int, work: Path, *, top: bool, kept: bool
) -> dict[str, Any] | None:
    """Cost and predictions of a peer on an outer fold; None where it failed or was not run."""
    name = f"{peer}-{Path(data).stem}-{'top' if top else 'all'}-{fold}"
    cost, found = work / f"{name}.json", work / f"{name}.npz"
    if not cost.exists():
        if kept:
            return None
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


def joined(parts: list[dict[str, Any]], n_folds: int) -> dict[str, Any]:
    """Arrays of the first outer folds, one after the other."""
    keys = ("labels", "groups", "sets", "rule", "proba")
    return {k: np.concatenate([part[k] for part in parts[:n_folds]]) for k in keys}


def scores(name: str, parts: list[dict[str, Any]]) -> list[str]:
    """Scores and costs of a peer over its folds."""
    all_of = joined(parts, len(parts))
    labels, sets = all_of["labels"], all_of["sets"]
    return [
        TITLE[name],
        str(len(parts)),
        f"{fbeta_score(labels, sets):.4f}",
        f"{fbeta_score(labels, all_of['rule']):.4f}",
        f"{fbeta_score(labels, sets, average='macro'):.4f}",
        f"{fbeta_score(labels, sets, average='micro'):.4f}",
        f"{mean_average_precision(labels, all_of['proba']):.4f}",
        f"{np.mean([part['seconds'] for part in parts]):,.0f}",
        f"{max(part['peak'] for part in parts):.1f}",
        str(lines_of(name)),
    ]


def differences(name: str, ours: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[str]:
    """How far pairstack is ahead of a peer on the same images, with 95% intervals."""
    own, peer = joined(ours, len(parts)), joined(parts, len(parts))
    labels, groups = own["labels"], own["groups"]
    gains = [
        bootstrap_fbeta(labels, own["sets"], peer["sets"], groups),
        bootstrap_fbeta(labels, own["rule"], peer["rule"], groups),
        bootstrap_fbeta(labels, own["sets"], peer["sets"], groups, average="macro"),
        bootstrap_fbeta(labels, own["sets"], peer["sets"], groups, average="micro"),
        bootstrap_map(labels, own["proba"], peer["proba"], groups),
    ]
    return [TITLE[name], *(f"{g:+.4f} [{low:+.4f}, {high:+.4f}]" for g, low, high in gains)]


# What an hour has room for with many classes: one fold, and no decision rules.
MANY_CLASSES = 200
SHAPE = ("mean", "logistic_per_class", "lightgbm_per_class", "naive_pairs")
METRICS = ["F2 samples", "with our rule", "F2 macro", "F2 micro", "mAP"]
HEADER = ["", "folds", *METRICS, "CPU s a fold", "peak GB", "lines"]


def compared(
    data: str, wanted: dict[str, int], work: Path, *, kept: bool, top: bool = False
) -> str | None:
    """Two tables: scores and costs of every peer on so many outer folds, and the differences."""
    jobs = [(name, fold) for name, n_folds in wanted.items() for fold in range(n_folds)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda job: run_one(data, *job, work, top=top, kept=kept), jobs))
    results: dict[str, list[dict[str, Any]]] = {}
    for name in wanted:
        found = [run for (peer, _), run in zip(jobs, runs, strict=True) if peer == name]
        if found[0] is not None:
            # Those before the first that is not there: every peer is compared on the same folds.
            results[name] = [part for part in takewhile(lambda one: one is not None, found) if part]
    if "pairstack" not in results or (kept and len(results) < len(wanted) / 2):
        return None
    n_folds = len(results["pairstack"])
    results = {name: parts[:n_folds] for name, parts in results.items()}
    ahead = [
        differences(name, results["pairstack"], parts)
        for name, parts in results.items()
        if name != "pairstack"
    ]
    text = table(HEADER, [scores(name, parts) for name, parts in results.items()])
    text += "\n\npairstack minus each, on the same images, with 95% intervals:\n\n"
    text += table(["", *METRICS], ahead)
    failed = [TITLE[name] for name in wanted if name not in results]
    return text + (f"\n\nNot run, or failed: {'; '.join(failed)}." if failed else "")


def decided(data: str, work: Path, *, kept: bool) -> str | None:
    """Table of decision rules, kept in a file."""
    file = work / f"decisions-{Path(data).stem}.md"
    if not file.exists():
        if kept:
            return None
        command = [sys.executable, str(HERE / "decisions.py"), data]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_THREAD
        )
        file.write_text(done.stdout)
    return file.read_text().strip()


def sections(path: str, options: argparse.Namespace, picked: list[str]) -> dict[str, str | None]:
    """Tables on the predictions of one file, by title."""
    data = read(path)
    n_images, n_classes = data.labels.shape
    name = f"openclipart, {n_images:,} images, {n_classes} classes"
    many = n_classes > MANY_CLASSES
    if many:
        wanted = dict.fromkeys((*OURS, *(p for p in SHAPE if p in picked)), 1)
    else:
        wanted = {"pairstack": options.folds, "pairstack_bare": options.slow_folds}
        wanted |= {
            p: options.slow_folds if PEERS[p].slow else options.folds
            for p in picked
            if not PEERS[p].top
        }
    work, kept = options.work, options.kept
    return {
        name: compared(path, wanted, work, kept=kept),
        f"{name}: the {TOP} most frequent": compared(
            path, dict.fromkeys((*OURS, *picked), 1), work, kept=kept, top=True
        ),
        f"{name}: decisions on the same probabilities": (
            None if many else decided(path, work, kept=kept)
        ),
    }


def shape_sections(options: argparse.Namespace, picked: list[str]) -> dict[str, str | None]:
    """Tables on iMet's shape, by title."""
    title = f"iMet's shape (synthetic), {options.images:,} images, 1,103 classes, ten models"
    data, work, kept = str(options.images), options.work, options.kept
    some = ["pairstack", *(name for name in SHAPE if name in picked)]
    return {
        title: compared(data, dict.fromkeys(some, 1), work, kept=kept),
        f"{title}: the {TOP} most frequent": compared(
            data, dict.fromkeys((*OURS, *picked), 1), work, kept=kept, top=True
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="+", help="'embedded', or a file of predictions")
    parser.add_argument("--work", type=Path, default=Path(".peers"))
    parser.add_argument("--folds", type=int, default=2, help="outer folds")
    parser.add_argument("--slow-folds", type=int, default=1, help="of slow peers")
    parser.add_argument("--images", type=int, default=4_000, help="of iMet's shape; 0: leave out")
    parser.add_argument("--kept", action="store_true", help="run nothing: only what is in --work")
    parser.add_argument("--peers", help="comma separated; default: all")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    picked = options.peers.split(",") if options.peers else list(PEERS)
    parts: dict[str, str | None] = {}
    for path in options.path:
        parts |= sections(path, options, picked)
    if options.images:
        parts |= shape_sections(options, picked)
    text = (HERE / "about.md").read_text()
    for title, body in parts.items():
        if body is not None:
            text += f"\n### {title}\n\n{body}\n"
    write_section("peers", text)


if __name__ == "__main__":
    main()
