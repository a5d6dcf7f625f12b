"""Run the frozen stages of a network once and train on what they gave.

Where only the head, or the last stages and the head, are trained and the images are not augmented
but by mirroring, the stages below give the same activations in every epoch and every fold. Kept on
disk, they make fine-tuning affordable without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_torch
from cnn_extract.train.augment import View
from cnn_extract.train.checkpoint import write_text
from cnn_extract.train.feeds import Feed, views_of
from cnn_extract.train.freeze import N_STAGES, first_of_last_stages
from cnn_extract.train.networks import FEATURES
from features._console import Reporter

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import Recipe

__all__ = ["TrunkFeed", "cut_point", "keep_activations"]

# The activations of the whole image and of one run through the network in pieces differ by the
# order of sums, no more.
TOLERANCE = 1e-4
# A killed run loses the activations of about this many images.
SAVE_EVERY = 256


def cut_point(recipe: Recipe, backbone: Any) -> str:
    r"""Name of the module that training begins with; "features" where only the head is trained.

    Raises
    ------
    ValueError
        When the recipe trains the whole network.

    Examples
    --------
    >>> from cnn_extract.models import create_model
    >>> from cnn_extract.train.toml import parse_recipe
    >>> recipe = parse_recipe("[[stage]]\ntrain = 'last-stage'", name="x")
    >>> cut_point(recipe, create_model("test_resnet", num_classes=0))
    'layer4'
    """
    trained = {stage.train for stage in recipe.stage}
    if "all" in trained:
        raise ValueError(
            f"recipe {recipe.name!r}: [input] cache_trunk needs stages that train 'head', "
            f"'last-stage' or 'last-two-stages'; one trains 'all'"
        )
    n_stages = max(N_STAGES[train] for train in trained)
    return first_of_last_stages(backbone, n_stages) if n_stages else FEATURES


class _Reached(Exception):
    """The cut was reached; carries what arrived there."""

    def __init__(self, batch: torch.Tensor) -> None:
        super().__init__()
        self.batch = batch


def run_trunk(network: Any, batch: torch.Tensor, cut: str) -> torch.Tensor:
    """Run a batch through the network up to `cut`; what arrives there."""
    if cut == FEATURES:
        features: torch.Tensor = network.features(batch)
        return features

    def stop(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    handle = network.backbone.get_submodule(cut).register_forward_pre_hook(stop)
    try:
        network(batch)
    except _Reached as reached:
        return reached.batch
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass never came to module {cut!r}")


def check_cut(network: Any, cut: str, batch: torch.Tensor) -> None:
    """Refuse a model that does more between its modules than call them one after the other.

    Raises
    ------
    ValueError
        When the kept activations do not lead to the network's own output.
    """
    torch = import_torch()
    with torch.inference_mode():
        want = network(batch)
        kept = run_trunk(network, batch, cut)
        try:
            network.begin_at(cut)
            got = network(kept)
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            got, reason = None, str(error).splitlines()[0]
        else:
            reason = "the outputs differ"
        finally:
            network.begin_at(None)
    scale = want.abs().max()
    if got is None or not torch.allclose(want, got, rtol=TOLERANCE, atol=TOLERANCE * scale):
        raise ValueError(
            f"[input] cache_trunk does not work with this model, cut at {cut!r} ({reason}); "
            f"set it to false"
        )


def keep_activations(
    network: Any,
    feed: Feed,
    rows: NDArray[np.intp],
    n_images: int,
    path: Path,
    *,
    cut: str,
    flips: bool,
    batch_size: int,
    report: Reporter,
) -> NDArray[np.float32]:
    """Compute the activations of images once, go on where a killed run stopped, or open them.

    Parameters
    ----------
    network : Network
        In prediction mode.
    feed : Feed
        Of images.
    rows : int array
        Which images.
    n_images : int
    path : Path
        The ``.npy`` file to write.
    cut : str
    flips : bool
        Also of the mirror images.
    batch_size : int
    report : Reporter

    Returns
    -------
    float32 array of shape (n_images, 1 or 2, ...), on disk
        The second of the second axis is of the mirror image.
    """
    if path.is_file():
        return np.asarray(np.load(path, mmap_mode="r"))
    temporary, note = (path.with_name(f".{path.name}.{end}") for end in ("partial", "done"))
    done = int(note.read_text()) if note.is_file() and temporary.is_file() else 0
    parts = [rows[k : k + batch_size] for k in range(done, len(rows), batch_size)]
    kept: Any = np.lib.format.open_memmap(temporary, "r+") if done else None
    with report.progress("frozen stages", len(rows) - done) as advance:
        outputs = _run_parts(network, feed, parts, cut=cut, flips=flips)
        for part, made in zip(parts, outputs, strict=True):
            if kept is None:
                shape = (n_images, *made.shape[1:])
                kept = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
                reserve(temporary)
            kept[part] = made
            done += len(part)
            if done // SAVE_EVERY != (done - len(part)) // SAVE_EVERY:
                kept.flush()
                write_text(note, str(done))
            advance(len(part))
    kept.flush()
    temporary.replace(path)
    note.unlink(missing_ok=True)
    return np.asarray(np.load(path, mmap_mode="r"))


def reserve(path: Path) -> None:
    """Take the disk space that a file is long: a mapped page without one ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _run_parts(
    network: Any, feed: Feed, parts: Sequence[NDArray[np.intp]], *, cut: str, flips: bool
) -> Iterator[NDArray[np.float32]]:
    """Activations (n_images, 1 or 2, ...) of each part."""
    torch = import_torch()
    for batch in feed.batches(views_of(part) for part in parts):
        with torch.inference_mode():
            views = [batch, batch.flip(3)] if flips else [batch]
            yield torch.stack([run_trunk(network, view, cut) for view in views], 1).cpu().numpy()


@dataclass(frozen=True)
class TrunkFeed:
    """Gives kept activations in place of images.

    Parameters
    ----------
    kept : float32 array of shape (n_images, 1 or 2, ...)
    hflip : float
        Probability of the mirror image's.
    device : torch device or str
    """

    kept: NDArray[np.float32]
    hflip: float
    device: Any = "cpu"

    def batches(self, batches: Iterable[Sequence[View]]) -> Iterator[torch.Tensor]:
        """Activations of each batch of views."""
        torch = import_torch()
        for views in batches:
            rows = [view.index for view in views]
            mirrored = [self._mirrored(view) for view in views]
            yield torch.from_numpy(self.kept[rows, mirrored]).to(self.device)

    def mirror(self, views: Sequence[View], batch: torch.Tensor) -> torch.Tensor:
        """Give the activations of the mirror images."""
        rows = [view.index for view in views]
        return import_torch().from_numpy(self.kept[rows, 1]).to(self.device)

    def _mirrored(self, view: View) -> int:
        if view.seed < 0 or self.kept.shape[1] == 1:
            return 0
        return int(np.random.default_rng(view.seed).random() < self.hflip)
