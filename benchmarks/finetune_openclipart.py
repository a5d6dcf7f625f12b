"""Does fine-tuning beat a fresh head, and what do curated tables do? openclipart, CPU.

A. 2,000 images, efficientnet-lite0 with ImageNet weights: head only against last stage plus head,
   F2 (samples) of grouped out-of-fold predictions, threshold chosen on the other folds, with a
   paired bootstrap interval over split groups.
B. `stacker curate` and back: 1,200 labelled images, 400 without labels to pick pseudo-labels from,
   400 to score (mean of the fold networks, threshold chosen out of fold). Heads trained without
   curated tables, with ``--drop``, with ``--pseudo``, with both.

Every step is a command that resumes, so the benchmark may be stopped and called again; with
``--step`` it does one thing only.

    python benchmarks/finetune_openclipart.py --work build/finetune --size 160
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.store import FeatureStore
from stacker import FBetaDecision
from stacker.datasets import load_openclipart
from stacker.evaluation import paired_bootstrap
from stacker.fbeta import fbeta_per_image

MODEL = "tf_efficientnet_lite0=package"
INPUT = """
folds = {folds}
[model]
name = "tf_efficientnet_lite0"
dropout = 0.3
[input]
size = {size}
crop = "squash"
cache_trunk = true
[batch]
size = 64
[predict]
hflip = true
"""
HEAD = """
[[stage]]
name = "head"
epochs = 30
train = "head"
lr = 3e-3
schedule = "cosine"
warmup = 1.0
"""
FINE = """
[[stage]]
name = "head"
epochs = 10
train = "head"
lr = 3e-3
[[stage]]
name = "last stage"
epochs = 8
train = "last-stage"
lr = 1e-3
backbone_lr = 0.3
schedule = "cosine"
warmup = 0.5
"""
N_IMAGES, MIN_IMAGES = 2000, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--step", choices=STEPS, nargs="*", default=list(STEPS))
    parser.add_argument("--fold", type=int, nargs="*", default=())
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    write_data(given.work)
    for step in given.step:
        start = time.monotonic()
        STEPS[step](given)
        print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)


def write_data(work: Path) -> None:
    """Write images, labels and split groups; roles of the images for part B."""
    if (work / "roles.json").is_file():
        return
    data = load_openclipart(N_IMAGES, min_images=MIN_IMAGES)
    (work / "images").mkdir(exist_ok=True)
    with zipfile.ZipFile(data.archive) as bundle:
        for name, member in zip(data.image_ids, data.members, strict=True):
            (work / "images" / f"{name}.webp").write_bytes(bundle.read(member))
    lists = [" ".join(data.classes[data.labels[[k]].indices]) for k in range(N_IMAGES)]
    rows = list(zip(data.image_ids.tolist(), lists, strict=True))
    write_csv(work / "labels.csv", ("image_id", "labels"), rows)
    groups = zip(data.image_ids.tolist(), data.split_group.tolist(), strict=True)
    write_csv(work / "meta.csv", ("image_id", "split_group"), groups)
    roles = choose_roles(data.split_group)
    named = dict(zip(data.image_ids.tolist(), roles.tolist(), strict=True))
    labelled = [row for row in rows if named[row[0]] == "train"]
    write_csv(work / "labels_b.csv", ("image_id", "labels"), labelled)
    (work / "roles.json").write_text(json.dumps(named))


def choose_roles(groups: NDArray[np.str_]) -> NDArray[np.str_]:
    """Give whole split groups to train (60%), pool (20%) and test (20%)."""
    names = np.unique(groups)
    order = np.random.default_rng(0).permutation(len(names))
    share = np.arange(len(names)) / len(names)
    kinds = np.where(share < 0.6, "train", np.where(share < 0.8, "pool", "test"))
    role = dict(zip(names[order].tolist(), kinds.tolist(), strict=True))
    return np.array([role[g] for g in groups.tolist()])


def write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def train(
    given: argparse.Namespace, name: str, stages: str, *, part_b: bool, **tables: Path
) -> None:
    """Call ``cnn-extract train``; a finished run is left alone."""
    work: Path = given.work
    out = work / name
    note = out / "run.json"
    if note.is_file() and json.loads(note.read_text())["complete"]:
        return
    recipe = work / f"{name}.toml"
    recipe.write_text(INPUT.format(size=given.size, folds=3 if part_b else 5) + stages)
    store = work / ("store_b" if part_b else "store_a")
    command = [
        sys.executable, "-m", "cnn_extract", "train", str(work / "images"),
        "--labels", str(work / ("labels_b.csv" if part_b else "labels.csv")),
        "--metadata", str(work / "meta.csv"), "--recipe", str(recipe), "--out", str(out),
        "--store", str(store), "--model", MODEL, "--no-embeddings", "--device", "cpu",
        "--workers", "0", "--cache", str(work / "trunks"),
    ]  # fmt: skip
    for fold in given.fold:
        command += ["--fold", str(fold)]
    for key, path in tables.items():
        command += [f"--{key}", str(path)]
    subprocess.run(command, check=True)


def head_only(given: argparse.Namespace) -> None:
    train(given, "head_only", HEAD, part_b=False)


def fine_tuned(given: argparse.Namespace) -> None:
    train(given, "fine_tuned", FINE, part_b=False)


def plain(given: argparse.Namespace) -> None:
    train(given, "plain", HEAD, part_b=True)


def curate(given: argparse.Namespace) -> None:
    """Let `stacker curate` write drop.csv and pseudo.csv; keep pseudo-labels of the pool only."""
    work: Path = given.work
    out = work / "curated"
    command = [
        sys.executable, "-m", "stacker.cli", "curate", str(work / "store_b"), "--out", str(out),
        "--force",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    roles = json.loads((work / "roles.json").read_text())
    with (out / "pseudo.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if roles[row["image_id"]] == "pool" and row["labels"]]
        fields = list(reader.fieldnames or ())
    write_csv(work / "pseudo.csv", fields, ([row[f] for f in fields] for row in rows))


def curated(given: argparse.Namespace) -> None:
    drop, pseudo = given.work / "curated" / "drop.csv", given.work / "pseudo.csv"
    train(given, "drop", HEAD, part_b=True, drop=drop)
    train(given, "pseudo", HEAD, part_b=True, pseudo=pseudo)
    train(given, "both", HEAD, part_b=True, drop=drop, pseudo=pseudo)


def report(given: argparse.Namespace) -> None:
    """Print both tables as Markdown."""
    print(f"efficientnet-lite0, ImageNet weights, input {given.size} pixels\n")
    store = FeatureStore.open(given.work / "store_a")
    scores = {name: out_of_fold_f2(store, name) for name in ("head_only", "fine_tuned")}
    print("| networks | F2, out of fold | gain over head only (95% interval) |\n|---|---|---|")
    print_rows(scores, "head_only", store.split_group)
    if (given.work / "both" / "run.json").is_file():
        report_b(given)


def report_b(given: argparse.Namespace) -> None:
    roles = json.loads((given.work / "roles.json").read_text())
    store = FeatureStore.open(given.work / "store_b")
    truth = FeatureStore.open(given.work / "store_a")
    test = np.array([roles[name] == "test" for name in store.image_ids.tolist()])
    names = store.image_ids[test]
    view = truth.subset(names)
    column = [truth.classes.tolist().index(c) for c in store.classes.tolist()]
    labels = view.labels.toarray()[:, column]
    scores = {n: held_out_f2(store, n, test, labels) for n in ("plain", "drop", "pseudo", "both")}
    n_drop, n_pseudo = (count_lines(given.work / p) for p in ("curated/drop.csv", "pseudo.csv"))
    print(f"\n{n_drop} images dropped, {n_pseudo} pseudo-labelled; {len(names)} images to score\n")
    print("| networks | F2, unseen images | gain over plain (95% interval) |\n|---|---|---|")
    print_rows(scores, "plain", view.split_group)


def count_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1


def print_rows(scores: dict[str, NDArray[Any]], base: str, groups: NDArray[np.str_]) -> None:
    for name, score in scores.items():
        gain, low, high = paired_bootstrap(score, scores[base], groups)
        text = "" if name == base else f"{gain:+.4f} ({low:+.4f} to {high:+.4f})"
        print(f"| {name.replace('_', ' ')} | {score.mean():.4f} | {text} |")


def out_of_fold_f2(store: FeatureStore, model: str) -> NDArray[Any]:
    """F2 of each image, its threshold chosen on the other folds."""
    probs, labels = np.asarray(store.probability_array(model)), store.labels.toarray()
    given = np.zeros_like(labels)
    for fold in np.unique(store.fold):
        own = store.fold == fold
        rule = FBetaDecision(strategy="global").fit(probs[~own], labels[~own])
        given[own] = rule.predict(probs[own])
    return np.asarray(fbeta_per_image(labels, given, beta=2.0))


def held_out_f2(
    store: FeatureStore, model: str, test: NDArray[np.bool_], labels: NDArray[Any]
) -> NDArray[Any]:
    probs, known = np.asarray(store.probability_array(model)), store.labels_known
    rule = FBetaDecision(strategy="global").fit(probs[known], store.labels.toarray()[known])
    return np.asarray(fbeta_per_image(labels, rule.predict(probs[test]), beta=2.0))


STEPS = {
    "head_only": head_only,
    "fine_tuned": fine_tuned,
    "plain": plain,
    "curate": curate,
    "curated": curated,
    "report": report,
}

if __name__ == "__main__":
    main()
