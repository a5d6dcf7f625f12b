"""Out-of-fold predictions of six models on a part of openclipart: level one without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.utils import Bunch

from features.numeric import sigmoid
from features.schema import Stack

__all__ = ["load_openclipart_oof"]

STATS = [f"{s}_{c}" for s in ("mean", "median", "std", "max", "min") for c in "rgb"]
STATS += ["brightness", "colourfulness", "longer_side", "height_over_width"]


def load_openclipart_oof() -> Any:
    """Load real out-of-fold predictions of six models, ready to be stacked.

    =====================  ==================================================
    Images                 1,592 of openclipart, stratified by label
    Classes                170 that at least ten of these images have
    Models                 three ImageNet backbones, a linear and an MLP head each
    Context                64 principal components of an embedding, 19 statistics
    =====================  ==================================================

    Returns
    -------
    sklearn.utils.Bunch
        stack : Stack of the six models, with embeddings and image statistics
        probabilities : dict of model to float32 array (n_images, n_classes)
        labels : int8 csr_array of shape (n_images, n_classes)
        image_ids : str array of shape (n_images,)
        classes : str array of shape (n_classes,), as ``group::name``
        fold : int64 array of shape (n_images,), five folds that the predictions were made in
        split_group : str array of shape (n_images,); images of one group must not part

    Notes
    -----
    Logits are kept in steps of 0.08. `load_openclipart` has the images, by id.
    ``benchmarks/make_openclipart_oof.py`` made the file.

    Examples
    --------
    >>> from stacker.datasets import load_openclipart_oof
    >>> data = load_openclipart_oof()
    >>> data.stack.models
    ['lite0_lin', 'lite0_mlp', 'lite1_lin', 'lite1_mlp', 'lite2_lin', 'lite2_mlp']
    """
    path = Path(__file__).parent / "data" / "openclipart_oof.npz"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    logits = data["logits"].astype(np.float32) * np.float32(20 / 255) - np.float32(10)
    probs = dict(zip(data["model"].tolist(), sigmoid(logits), strict=True))
    ids, classes = data["image_id"], data["classes"]
    ones = np.ones(len(data["label_indices"]), dtype=np.int8)
    shape = (len(ids), len(classes))
    stack = Stack(
        probs,
        image_ids=ids,
        classes=classes,
        embeddings={"lite0": data["embedding"].astype(np.float32) / 32},
        image_stats=pd.DataFrame(data["image_stats"].astype(np.float32), ids, STATS),
    )
    return Bunch(
        stack=stack,
        probabilities=probs,
        labels=csr_array((ones, data["label_indices"], data["label_indptr"]), shape=shape),
        image_ids=ids,
        classes=classes,
        fold=data["fold"].astype(np.int64),
        split_group=data["split_group"],
    )
