"""Classification heads on frozen embeddings, one fit a fold (docs/recipes.md: A27, D1).

Only the fresh layers are trained, on standardised embeddings, so a head costs seconds where a
network costs hours, and every fold model sees embeddings that knew nothing of the labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cnn_extract._lanes import Lanes, torch_lanes
from cnn_extract._torchvision import import_torch
from cnn_extract.decode import in_order
from cnn_extract.extract import open_chunks
from features._console import Reporter

if TYPE_CHECKING:
    import torch

    from features.store import FeatureStore

__all__ = ["HEADS", "Head", "HeadConfig", "check_heads", "combine_folds", "fit_head", "write_head"]


@dataclass(frozen=True)
class HeadConfig:
    """How a head is trained; `hidden` 0 is a linear head.

    Fitted with AdamW on a one-cycle schedule, binary cross-entropy summed over classes.

    Examples
    --------
    >>> HEADS["mlp"].hidden
    512
    """

    hidden: int
    epochs: int
    lr: float
    weight_decay: float
    dropout: float
    batch_size: int = 256
    # Small data sets have few batches an epoch; they get more epochs.
    min_steps: int = 200


# Chosen on one fold of openclipart with efficientnet-lite0.
HEADS = {
    "linear": HeadConfig(hidden=0, epochs=20, lr=5e-3, weight_decay=1.0, dropout=0.5),
    "mlp": HeadConfig(hidden=512, epochs=20, lr=4e-3, weight_decay=1.0, dropout=0.4),
}
# Keeps the first bias finite for classes that no or every training image has.
RAREST = 1e-4
ROWS_AT_ONCE = 4096


def check_heads(names: Sequence[str]) -> tuple[str, ...]:
    """Return the heads' names, refusing unknown ones and repeats.

    Examples
    --------
    >>> check_heads(["linear", "mlp"])
    ('linear', 'mlp')
    """
    unknown = [n for n in names if n not in HEADS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"heads must be some of {', '.join(HEADS)}, each once; got {', '.join(names) or 'none'}"
        )
    return tuple(names)


@dataclass(frozen=True)
class Head:
    """A fitted head: the embeddings' mean and scale, and (weight, bias) of each layer.

    Examples
    --------
    >>> import torch
    >>> head = Head(torch.zeros(2), torch.ones(2), ((torch.zeros(1, 2), torch.zeros(1)),))
    >>> head.predict(np.ones((3, 2))).tolist()
    [[0.5], [0.5], [0.5]]
    """

    mean: torch.Tensor
    scale: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def predict(self, embeddings: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities, float32 of shape (n_images, n_classes)."""
        torch = import_torch()
        with torch.inference_mode():
            batch = self.standardise(embeddings)
            return torch.sigmoid(_logits(self.layers, batch)).numpy()

    def standardise(self, embeddings: NDArray[Any]) -> torch.Tensor:
        """Bring embeddings (n_images, dim) to mean 0 and std 1 of the training images."""
        batch = import_torch().from_numpy(embeddings.astype(np.float32))
        return batch.sub_(self.mean).mul_(self.scale)


def _logits(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    batch: torch.Tensor,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    torch = import_torch()
    for k, (weight, bias) in enumerate(layers):
        if k:
            batch = torch.relu(batch)
        if dropout:
            kept = torch.rand(batch.shape, generator=generator) >= dropout
            batch = batch * kept / (1 - dropout)
        batch = torch.addmm(bias, batch, weight.T)
    return batch


def fit_head(
    embeddings: NDArray[Any], labels: sparse.csr_array, config: HeadConfig, seed: int
) -> Head:
    """Fit one head.

    Parameters
    ----------
    embeddings : float array of shape (n_images, dim)
    labels : CSR of shape (n_images, n_classes)
        0 and 1. Made dense a batch at a time only.
    config : HeadConfig
    seed : int
        The same seed gives the same head, bit for bit.

    Examples
    --------
    >>> embeddings = np.random.default_rng(0).normal(size=(200, 4))
    >>> labels = sparse.csr_array((embeddings[:, :1] > 0).astype(np.int8))
    >>> config = HeadConfig(hidden=0, epochs=1, lr=0.1, weight_decay=0.0, dropout=0.0, min_steps=50)
    >>> head = fit_head(embeddings, labels, config, seed=0)
    >>> head.predict(np.array([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]])).round().tolist()
    [[1.0], [0.0]]
    """
    torch = import_torch()
    generator = torch.Generator().manual_seed(seed)
    mean, scale = _moments(embeddings)
    layers = _first_layers(embeddings.shape[1], labels, config, generator)
    head = Head(mean, scale, layers)
    steps = _schedule(len(embeddings), config)
    optimiser, schedule = _optimiser(layers, config, len(steps))
    order = torch.empty(0, dtype=torch.int64)
    for start in steps:
        if start == 0:
            order = torch.randperm(len(embeddings), generator=generator)
        rows = np.sort(order[start : start + config.batch_size].numpy())
        targets = torch.from_numpy(labels[rows].toarray().astype(np.float32))
        batch = head.standardise(embeddings[rows])
        logits = _logits(layers, batch, config.dropout, generator)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="sum"
        )
        optimiser.zero_grad()
        (loss / len(rows)).backward()
        optimiser.step()
        schedule.step()
    for weight, bias in layers:
        weight.requires_grad_(False)
        bias.requires_grad_(False)
    return head


def _schedule(n_images: int, config: HeadConfig) -> list[int]:
    """Give the first position of each batch, epoch after epoch."""
    epoch = list(range(0, n_images, config.batch_size))
    n_epochs = max(config.epochs, -(-config.min_steps // len(epoch)))
    return epoch * n_epochs


def _moments(embeddings: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std of each dimension; dimensions that never vary are left out by scale 0."""
    torch = import_torch()
    total, squares = np.zeros((2, embeddings.shape[1]))
    for start in range(0, len(embeddings), ROWS_AT_ONCE):
        block = embeddings[start : start + ROWS_AT_ONCE].astype(np.float64)
        total += block.sum(axis=0)
        squares += (block**2).sum(axis=0)
    mean = total / len(embeddings)
    std = np.sqrt(np.maximum(squares / len(embeddings) - mean**2, 0))
    # A float16 embedding that never varies still has rounding noise in its sums.
    still = std <= 1e-4 * np.maximum(np.abs(mean), 1e-3)
    scale = np.where(still, 0.0, 1 / np.where(still, 1.0, std))
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))


def _first_layers(
    dim: int, labels: sparse.csr_array, config: HeadConfig, generator: torch.Generator
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Weights before training; the last bias says how frequent each class is."""
    torch = import_torch()
    n_classes = labels.shape[1]
    share = np.asarray(labels.sum(axis=0)).ravel() / max(1, labels.shape[0])
    share = np.clip(share, RAREST, 1 - RAREST)
    last_bias = torch.from_numpy(np.log(share / (1 - share)).astype(np.float32))
    if not config.hidden:
        layers = [(torch.zeros(n_classes, dim), last_bias)]
    else:
        first = torch.randn(config.hidden, dim, generator=generator) * (2 / dim) ** 0.5
        last = torch.randn(n_classes, config.hidden, generator=generator) * 0.01
        layers = [(first, torch.zeros(config.hidden)), (last, last_bias)]
    return tuple((w.requires_grad_(True), b.requires_grad_(True)) for w, b in layers)


def _optimiser(layers: Any, config: HeadConfig, n_steps: int) -> tuple[Any, Any]:
    torch = import_torch()
    groups = [
        {"params": [w for w, _ in layers], "weight_decay": config.weight_decay},
        {"params": [b for _, b in layers], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=config.lr, total_steps=n_steps, pct_start=0.1
    )
    return optimiser, schedule


def write_head(store: FeatureStore, key: str, head: str, *, seed: int, report: Reporter) -> bool:
    """Fit a head for every fold and write its probabilities as model ``<key>.<head>``.

    Labelled images get the probabilities of the one fold model that did not see them; unlabelled
    ones the mean over the fold models, each of which is kept in ``fold_probabilities`` too.

    Parameters
    ----------
    store : FeatureStore
        With ``embeddings/<key>``, labels and folds.
    key, head : str
        The backbone's name in the store; "linear" or "mlp".
    seed : int
        Every head, fold and backbone draws from it on its own.
    report : Reporter

    Returns
    -------
    bool
        False when the store held everything already.

    Examples
    --------
    >>> import tempfile
    >>> from features import FeatureStore
    >>> rng = np.random.default_rng(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = FeatureStore.create(
    ...         folder + "/store",
    ...         image_ids=[str(k) for k in range(40)],
    ...         classes=["x"],
    ...         labels=sparse.csr_array(rng.integers(0, 2, (40, 1)).astype(np.int8)),
    ...         fold=np.arange(40) % 2,
    ...     )
    ...     store.require_array("embeddings/net", (4,), np.float16, ("dim",), {})
    ...     store.write_rows("embeddings/net", 0, rng.normal(size=(40, 4)).astype(np.float16))
    ...     _ = write_head(store, "net", "linear", seed=0, report=Reporter(quiet=True))
    ...     store.models, store.probabilities("net.linear").shape
    (['net.linear'], (40, 1))
    """
    names = _require_arrays(store, key, head, seed)
    chunks = open_chunks(store, names)
    if not chunks:
        return False
    embeddings, fold = store.embeddings(key), store.fold
    with torch_lanes() as lanes:
        fitted = _fit_folds(store, embeddings, f"{key}.{head}", head, seed, lanes, report)
        for chunk in chunks:
            rows = slice(chunk.start, chunk.stop)
            batch = _filled(embeddings[rows])
            every = np.stack(list(lanes.map(lambda model, b=batch: model.predict(b), fitted)))
            own, unlabelled = combine_folds(every, fold[rows])
            for name in names:
                values = own if name.startswith("probabilities") else unlabelled
                store.write_rows(name, chunk.start, values)
    return True


def _require_arrays(store: FeatureStore, key: str, head: str, seed: int) -> list[str]:
    n_folds = int(store.fold.max()) + 1
    made = store.array_attrs(f"embeddings/{key}")
    attrs = {**made, "head": {"kind": head, **asdict(HEADS[head])}, "folds": n_folds, "seed": seed}
    names = [f"probabilities/{key}.{head}"]
    shape = (store.n_classes,)
    if (store.fold < 0).any():
        names.insert(0, f"fold_probabilities/{key}.{head}")
        dims = ("fold", "image", "class")
        store.require_array(names[0], (n_folds, store.n_classes), np.float32, dims, attrs)
    store.require_array(names[-1], shape, np.float32, ("image", "class"), attrs)
    return names


def _fit_folds(
    store: FeatureStore,
    embeddings: NDArray[Any],
    model: str,
    head: str,
    seed: int,
    lanes: Lanes,
    report: Reporter,
) -> list[Head]:
    """Fit a head without each fold, several at a time."""
    labels, fold = store.labels, store.fold
    usable = store.labels_known & ~store.skipped
    n_folds = int(fold.max()) + 1

    def fit(k: int) -> Head:
        rows = np.flatnonzero(usable & (fold != k))
        return fit_head(embeddings[rows], labels[rows], HEADS[head], _child_seed(seed, model, k))

    fitted = []
    with report.progress(model, n_folds, "folds") as advance:
        for one in in_order(lanes, fit, range(n_folds), ahead=lanes.n_lanes):
            fitted.append(one)
            advance(1)
    return fitted


def _child_seed(seed: int, model: str, fold: int) -> int:
    # By name, not by position: another model on the command line changes no head.
    words = [seed, zlib.crc32(model.encode()), fold]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _filled(embeddings: NDArray[Any]) -> NDArray[Any]:
    """Skipped images have no embeddings; the store leaves their predictions out again."""
    return np.nan_to_num(embeddings, nan=0.0)


def combine_folds(
    every: NDArray[np.float32], fold: NDArray[np.int16]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Own-fold or mean probabilities (n_images, n_classes), and (n_folds, ...) of the unlabelled.

    The second is NaN for labelled images: all but one of the fold models have seen them.

    Examples
    --------
    >>> every = np.array([[[0.5], [0.25], [0.0]], [[0.75], [0.125], [1.0]]], np.float32)
    >>> own, unlabelled = combine_folds(every, np.array([0, 1, -1], np.int16))
    >>> own.ravel().tolist()
    [0.5, 0.125, 0.5]
    """
    labelled = fold >= 0
    own = every[np.maximum(fold, 0), np.arange(len(fold))]
    own[~labelled] = every[:, ~labelled].mean(axis=0)
    unlabelled = np.where(labelled[None, :, None], np.float32(np.nan), every)
    return own, unlabelled
