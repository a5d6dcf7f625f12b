"""Ideas beyond the default blocks, on predictions as filed and with level one trained anew.

    python benchmarks/measure_ideas.py openclipart_oof.npz [--folds 0] [--ideas kernel_ridge,lent]

Each idea adds columns to the default blocks; rounds and rule are fixed, so nothing can be chosen
on the outer fold. "As filed": the out-of-fold predictions of the file, whose level-one models saw
the outer fold's labels when they predicted the training images. "Anew": level one trained without
the outer fold (measure_fold_models.py), as it is for images that come tomorrow.

kernel_ridge  the block of that name, which is off by default
seeds    no columns: the mean log-odds of three boosters
counts   how many labels the nearest training images have
wide     votes of 100 neighbours with flatter weights
lent     the out-of-fold probability that the nearest training images were given for the class.
         A leak: those predictions come from models that trained on the image itself and carry its
         label back to it, for training images always, for held-out ones only "as filed".
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from measure_ablation import image_losses
from measure_fold_models import level_one, with_probs
from nested_openclipart import read

from features.blocks import BLOCKS
from features.blocks.neighbours import NEIGHBOURS_BLOCK, nearest_images
from features.blocks.types import Batch, Block, Column, Float, State, Training
from features.numeric import logit, sigmoid
from features.schema import Stack
from stacker import PairStacker, expected_fbeta_sets, fbeta_score
from stacker._training_set import read_training_set

ROUNDS = 200
SHARPNESS, FLATTER = 15.0, 5.0


def named(name: str, stack: Stack, state: State, per_space: int = 1) -> list[Column]:
    spaces = [*state.get("spaces", []), "all"]
    return [
        Column(f"{name}{j}:{s}", name, name, (s,), True) for s in spaces for j in range(per_space)
    ]


def fit_lent(train: Training) -> State:
    return NEIGHBOURS_BLOCK.fit(train) | {"values": train.blend}


def fit_votes(train: Training) -> State:
    state = NEIGHBOURS_BLOCK.fit(train)
    return state | {"values": state["labels"].toarray().astype(np.float32)}


def fill_votes(
    ks: tuple[int, ...], sharpness: float, batch: Batch, state: State, out: Float
) -> None:
    """Weighted means of the neighbours' values for the row's class."""
    for s, (ids, similarity) in enumerate(nearest_images(batch, state, max(ks))):
        weight = np.exp(sharpness * (similarity - similarity[:, :1])) * (ids >= 0)
        for j, k in enumerate(ks):
            own = weight[:, :k] / weight[:, :k].sum(axis=1, keepdims=True)
            mean = np.stack([w @ state["values"][i] for w, i in zip(own, ids[:, :k], strict=True)])
            out[:, len(ks) * s + j] = mean[batch.row_image, batch.row_class]


def fill_counts(batch: Batch, state: State, out: Float) -> None:
    sizes = state["values"].sum(axis=1)
    for s, (ids, similarity) in enumerate(nearest_images(batch, state, 15)):
        weight = np.exp(SHARPNESS * (similarity - similarity[:, :1])) * (ids >= 0)
        mean = (weight * sizes[ids]).sum(axis=1) / weight.sum(axis=1)
        out[:, s] = mean[batch.row_image]


def add(name: str, fit: Callable, fill: Callable, per_space: int = 1) -> None:
    columns = partial(named, name, per_space=per_space)
    BLOCKS[name] = Block(name, fit, columns, fill, default=False, compares_images=True)


add("lent", fit_lent, partial(fill_votes, (15, 60), SHARPNESS), 2)
add("wide", fit_votes, partial(fill_votes, (100,), FLATTER))
add("counts", fit_votes, fill_counts)
IDEAS = ("kernel_ridge", "lent", "seeds", "counts", "wide")


def scored(
    train: Stack, new: Stack, Y: tuple, groups: np.ndarray, idea: str
) -> tuple[float, float]:
    """F2 and log loss an image of the default blocks and an idea's columns."""
    blocks = "default" if idea in ("default", "seeds") else ("default", idea)
    model = PairStacker(base="logit_mean", blocks=blocks, n_jobs=1, random_state=0)
    known = read_training_set(train, Y[0], groups, None, None, cv=5, random_state=0)
    rows, _ = model._make_rows(known)
    boosters = []
    for seed in range(3 if idea == "seeds" else 1):
        adapter = model.set_params(random_state=seed)._adapter("lightgbm")
        boosters.append(adapter.fit(adapter.bin(rows), rows, ROUNDS))
    proba, _ = model.base_.predict(new)
    for batch in model.features_.batches(new):
        at = batch.row_image, batch.row_class
        moved = sum(booster.correction(batch.features) for booster in boosters) / len(boosters)
        proba[at] = sigmoid(logit(proba[at]) + moved)
    loss = image_losses(logit(proba), Y[1].toarray()).mean()
    return fbeta_score(Y[1], expected_fbeta_sets(proba)), float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--folds", default="0")
    parser.add_argument("--ideas", default=",".join(IDEAS))
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    print("| outer fold | idea | F2 as filed | log loss an image | F2 anew | log loss an image |")
    print("|---|---|---|---|---|---|")
    for outer in map(int, options.folds.split(",")):
        inside, outside = np.flatnonzero(fold != outer), np.flatnonzero(fold == outer)
        made = {n: level_one(e, labels.toarray(), fold, outer) for n, e in stack.embeddings.items()}
        as_filed = stack[inside], stack[outside]
        anew = (
            with_probs(stack[inside], {n: oof[inside] for n, (oof, _) in made.items()}),
            with_probs(stack[outside], {n: new.mean(axis=0) for n, (_, new) in made.items()}),
        )
        Y = labels[inside], labels[outside]
        for idea in ("default", *options.ideas.split(",")):
            found = [
                *scored(*as_filed, Y, groups[inside], idea),
                *scored(*anew, Y, groups[inside], idea),
            ]
            print(f"| {outer} | {idea} | {' | '.join(f'{x:.4f}' for x in found)} |", flush=True)


if __name__ == "__main__":
    main()
