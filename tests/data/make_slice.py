"""Cut ``openclipart_slice.npz`` (300 images x 60 classes) out of the whole OOF file.

    python tests/data/make_slice.py PATH/openclipart_oof.npz tests/data/openclipart_slice.npz

See the README beside this file for the whole file's keys and the command that rebuilds it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stacker.datasets import stratified_subset

N_IMAGES, N_CLASSES = 300, 60
PER_IMAGE = (
    "image_id",
    "fold",
    "split_group",
    "embedding_lite0",
    "embedding_lite1",
    "imagenet_logits_lite0",
    "image_stats",
)


def cut(source: Path) -> dict[str, NDArray[np.generic]]:
    """Cut the slice's arrays: the 60 most frequent classes, whole split groups, all six models."""
    with np.load(source, allow_pickle=False) as whole:
        counts = whole["labels"].sum(axis=0)
        columns = np.sort(np.argsort(-counts, kind="stable")[:N_CLASSES])
        labels = whole["labels"][:, columns]
        labelled = np.flatnonzero(labels.any(axis=1))
        groups = whole["split_group"][labelled]
        picked = stratified_subset(csr_array(labels[labelled]), groups, N_IMAGES)
        rows = labelled[picked]
        return {
            "model": whole["model"],
            "classes": whole["classes"][columns],
            "labels": labels[rows],
            "probabilities": whole["probabilities"][:, rows][:, :, columns],
            **{key: whole[key][rows] for key in PER_IMAGE},
        }


if __name__ == "__main__":
    np.savez_compressed(sys.argv[2], **cut(Path(sys.argv[1])))  # type: ignore[arg-type]
