"""What each feature block is worth: nested F2 without it, paired with all blocks.

    python benchmarks/measure_ablation.py openclipart_oof.npz [--folds 0,1] [--only ranks] [--out F]

For each outer fold of the file, features and boosters are fitted on the other four with a fixed
number of rounds, and label sets are those of the highest expected F2: nothing is chosen, so
nothing can be chosen on the held-out fold. All variants share the rows, the bins and the seed.
Intervals are paired bootstraps over split groups.
"""

import argparse
from pathlib import Path

import numpy as np
from nested_openclipart import read

from features.numeric import logit, sigmoid
from stacker import PairStacker, expected_fbeta_sets
from stacker._training_set import read_training_set
from stacker.boosters import LightGBMBooster
from stacker.evaluation import paired_bootstrap
from stacker.fbeta import fbeta_per_image

ROUNDS = 120
Scores = dict[str, tuple[np.ndarray, np.ndarray]]
ALL = [
    "probabilities",
    "logits",
    "combinations",
    "agreement",
    "ranks",
    "image_context",
    "image_stats",
    "class_similarity",
    "class_prior",
    "cooccurrence",
    "neighbours",
]
ADDED = ("imagenet", "class_id")
# Too much alike to be judged apart.
TOGETHER = {
    "neighbours, class_similarity": ("neighbours", "class_similarity"),
    "logits, combinations, agreement": ("logits", "combinations", "agreement"),
    "ranks, image_context": ("ranks", "image_context"),
    "combinations, agreement": ("combinations", "agreement"),
    "combinations, agreement, ranks": ("combinations", "agreement", "ranks"),
}


def variants(blocks: list[str]) -> dict[str, tuple[str, ...]]:
    """Blocks left out of each variant; the rows of all hold every block and the added ones."""
    named = [b for b in blocks if b not in ADDED]
    return {
        "all": ADDED,
        **{f"without {b}": (b, *ADDED) for b in named},
        **{f"without {n}": (*own, *ADDED) for n, own in TOGETHER.items()},
        **{f"with {b} too": tuple(a for a in ADDED if a != b) for b in ADDED},
    }


def one_fold(
    data: tuple, k: int, jobs: int | None, only: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """F2 and log loss of every held-out image under every variant."""
    stack, labels, fold, groups = data
    train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
    blocks = [*ALL, *ADDED]
    model = PairStacker(base="logit_mean", blocks=tuple(blocks), n_jobs=jobs, random_state=0)
    known = read_training_set(
        stack[train], labels[train], groups[train], None, None, cv=5, random_state=0
    )
    rows, _ = model._make_rows(known)
    binned = LightGBMBooster({"feature_pre_filter": False}, jobs, 0).bin(rows)
    block_of = np.array([column.block for column in model.columns_])
    new = stack[test]
    base, _ = model.base_.predict(new)
    batches = [(b.row_image, b.row_class, b.features.copy()) for b in model.features_.batches(new)]
    image, cls, features = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    truth, found = labels[test], {}
    for name, without in variants(blocks).items():
        if only not in name and name != "all":
            continue
        used = ~np.isin(block_of, without)
        params = {"feature_pre_filter": False, "feature_contri": used.astype(float).tolist()}
        booster = LightGBMBooster(params, jobs, 0).fit(binned, rows, ROUNDS)
        proba = base.copy()
        proba[image, cls] = sigmoid(logit(base[image, cls]) + booster.correction(features))
        score = fbeta_per_image(truth, expected_fbeta_sets(proba))
        loss = image_losses(logit(proba), truth.toarray())
        found[name] = score, loss
        print(f"fold {k}  {name:45s} {score.mean():.4f}  {loss.mean():.4f}", flush=True)
    return found


def image_losses(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Log loss of each image, summed over classes."""
    return (np.maximum(logits, 0) - truth * logits + np.log1p(np.exp(-np.abs(logits)))).sum(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0,1,2,3,4")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = read(options.path)
    outer = [int(k) for k in options.folds.split(",")]
    parts = [one_fold(data, k, options.jobs, options.only) for k in outer]
    groups = np.concatenate([data[3][data[2] == k] for k in outer])
    joined = {
        name: [np.concatenate(p) for p in zip(*(f[name] for f in parts), strict=True)]
        for name in parts[0]
    }
    whole = joined["all"]
    lines = ["| blocks | F2 | difference | 95% interval | log loss an image |"]
    lines.append("|---|---|---|---|---|")
    for name, (score, loss) in joined.items():
        diff, low, high = paired_bootstrap(score, whole[0], groups)
        gap = "" if score is whole[0] else f"{diff:+.4f} | {low:+.4f} to {high:+.4f}"
        lines.append(f"| {name} | {score.mean():.4f} | {gap or ' | '} | {loss.mean():.3f} |")
    table = "\n".join(lines)
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
