"""The networks of a run: one a fold, a class group where these are apart, a domain."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract.decode import DecodePool
from cnn_extract.train.checkpoint import read_model, write_text
from cnn_extract.train.curves import Curves
from cnn_extract.train.data import TrainData
from cnn_extract.train.feeds import Feed, ImageFeed, views_of
from cnn_extract.train.loop import Job, train_network
from cnn_extract.train.losses import SOFTMAX, columns_of, group_weights
from cnn_extract.train.machine import main_first
from cnn_extract.train.mixing import seeded
from cnn_extract.train.networks import make_network, network_input
from cnn_extract.train.predict import predict_rows
from cnn_extract.train.recipe import Recipe, Stage
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.samples import Samples
from cnn_extract.train.trunk import TrunkFeed, check_cut, cut_point, keep_activations
from cnn_extract.weights import Weights
from features._console import Reporter, clock
from features._seal import file_sha256, read_document, save_array, seal

__all__ = ["Trainer", "Unit", "list_units", "read_predictions", "unit_stages"]

PREDICTIONS = "predictions.npy"


@dataclass(frozen=True)
class Unit:
    """One network, or one for each domain: its fold and its classes.

    Parameters
    ----------
    fold : int
    group : str or None
        The class group it is of; None: all classes.
    columns : int array
        Positions of its classes.
    folder : str
        Inside the run's folder.

    Examples
    --------
    >>> Unit(0, "tag", np.array([2, 3]), "fold0/group1").folder
    'fold0/group1'
    """

    fold: int
    group: str | None
    columns: NDArray[np.intp]
    folder: str


def list_units(recipe: Recipe, data: TrainData, only_folds: Sequence[int] = ()) -> list[Unit]:
    """List the networks of a run, or those of some folds.

    Raises
    ------
    ValueError
        For a fold that is not there.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from cnn_extract.train.toml import parse_recipe
    >>> data = SimpleNamespace(fold=np.array([0, 1]), store=SimpleNamespace(n_classes=2))
    >>> [unit.folder for unit in list_units(parse_recipe("", name="x"), data)]
    ['fold0', 'fold1']
    """
    n_folds = int(data.fold.max()) + 1
    wrong = [k for k in only_folds if not 0 <= k < n_folds]
    if wrong:
        raise ValueError(f"--fold must be from 0 to {n_folds - 1}; got {wrong[0]}")
    everything = np.arange(data.store.n_classes)
    units = []
    for fold in sorted(set(only_folds)) or range(n_folds):
        if not recipe.model.separate:
            units.append(Unit(fold, None, everything, f"fold{fold}"))
            continue
        for k, (group, columns) in enumerate(columns_of(data.class_group).items()):
            units.append(Unit(fold, group, columns, f"fold{fold}/group{k}"))
    return units


def unit_stages(recipe: Recipe, unit: Unit, class_group: Sequence[str]) -> tuple[Stage, ...]:
    r"""Stages of a unit: those that count its class group's loss (A8).

    Raises
    ------
    ValueError
        When stages name groups that are not there, or leave a network none.

    Examples
    --------
    >>> from cnn_extract.train.toml import parse_recipe
    >>> recipe = parse_recipe("[[stage]]\n[[stage]]\ngroups = ['tag']", name="x")
    >>> culture = Unit(0, "culture", np.array([0]), "fold0/group0")
    >>> len(unit_stages(recipe, culture, ["culture", "tag"]))
    1
    """
    for stage in recipe.stage:
        group_weights(stage, class_group)
    if unit.group is None:
        return recipe.stage
    mine = tuple(
        replace(stage, groups=(), group_weights={})
        for stage in recipe.stage
        if group_weights(stage, class_group)[unit.group] > 0
    )
    if not mine:
        raise ValueError(f"recipe {recipe.name!r} has no stage for class group {unit.group!r}")
    return mine


@dataclass
class Trainer:
    """Trains units and keeps their predictions."""

    request: TrainRequest
    recipe: Recipe
    weights: Weights
    data: TrainData
    pool: DecodePool
    accelerator: Any
    report: Reporter

    def __post_init__(self) -> None:
        self.cut: str | None = None
        self.trunk_feed: Feed | None = None
        self.config = network_input(
            self.recipe.model.name,
            size=self.recipe.size,
            n_channels=self.data.n_channels,
            collected=self.data.moments,
        )

    def run(self, unit: Unit) -> str:
        """Train a unit's networks and predict with them, or find it done; a line about it."""
        folder = self.request.out / unit.folder
        if (folder / PREDICTIONS).is_file():
            return f"{unit.folder}: complete already"
        if self.recipe.input.cache_trunk:
            self._keep_trunk()
        start = time.monotonic()
        stages = unit_stages(self.recipe, unit, self.data.class_group)
        n_shared = next((k for k, s in enumerate(stages) if s.domain == "each"), len(stages))
        samples = self.data.training(unit.fold).columns(unit.columns)
        held_out = self.data.held_out(unit.fold).columns(unit.columns)
        network = self._network(unit, samples)
        domain = self.data.domain
        if n_shared or domain is None:
            shared = stages[:n_shared] if domain is not None else stages
            network = self._train(unit, network, shared, samples, held_out, folder)
        if domain is None or n_shared == len(stages):
            probs = self._predict(network, unit, self.data.to_predict(unit.fold))
        else:
            probs = self._by_domain(unit, network, stages[n_shared:], samples, held_out)
        self._keep(folder / PREDICTIONS, probs)
        return f"{unit.folder}: {len(samples):,} images, {clock(time.monotonic() - start)}"

    def _network(self, unit: Unit, samples: Samples) -> Any:
        """Make the network that training begins with."""
        groups = self._groups(unit)
        share = samples.counts / max(1, len(samples))
        # All folds begin alike: kept activations of a random backbone are those of every fold.
        with seeded(self.request.seed):
            network = make_network(
                self.recipe.model,
                self.weights,
                groups,
                share,
                n_channels=self.data.n_channels,
                size=self.config.size,
            )
        if self.request.init is not None:
            self._begin_from(self.request.init, unit, network)
        return network

    def _groups(self, unit: Unit) -> list[str]:
        return [self.data.class_group[k] for k in unit.columns]

    def _seed(self, unit: Unit, track: str = "") -> int:
        words = [self.request.seed, zlib.crc32(f"{unit.folder}/{track}".encode())]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def _begin_from(self, run: Path, unit: Unit, network: Any) -> None:
        """Load another run's network of the same fold; its head only for the same classes (D1)."""
        found = read_model(run / unit.folder)
        if found is None:
            raise ValueError(f"--init {run} has no finished network {unit.folder}")
        state, about = found
        self._refuse_other_folds(run, unit.fold)
        if about["classes"] != self.data.store.classes[unit.columns].tolist():
            state = {k: v for k, v in state.items() if k.startswith("backbone.")}
            self.report.log(f"{run} knows other classes: only its backbone is used")
        try:
            _, unknown = network.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ValueError(f"--init {run} has networks of another shape: {error}") from error
        if unknown:
            raise ValueError(f"--init {run} has networks of another model: {unknown[:3]}")

    def _refuse_other_folds(self, run: Path, fold: int) -> None:
        """Refuse a network that has seen an image which is held out here: that would leak."""
        from features.store import FeatureStore

        note = json.loads((run / "run.json").read_text(encoding="utf-8"))
        other = FeatureStore.open(note["store"])
        theirs = dict(zip(other.image_ids.tolist(), other.fold.tolist(), strict=True))
        held_out = self.data.store.image_ids[self.data.fold == fold].tolist()
        seen = [name for name in held_out if theirs.get(name, -1) not in (-1, fold)]
        if seen:
            raise ValueError(
                f"--init {run} trained fold {fold} on {len(seen):,} images that are held out "
                f"here, first: {seen[0]!r}; use the same store, and so the same folds, for both"
            )

    def _by_domain(
        self,
        unit: Unit,
        network: Any,
        stages: Sequence[Stage],
        samples: Samples,
        held_out: Samples,
    ) -> NDArray[np.float32]:
        """Train a copy for each domain; each image is predicted by its domain's copy (C4, D1)."""
        import copy

        domain = self.data.domain
        assert domain is not None
        rows = self.data.to_predict(unit.fold)
        probs = np.empty((len(rows), len(unit.columns)), dtype=np.float32)
        for k, name in enumerate(sorted(set(domain.tolist()))):
            mine = samples.take(domain[samples.rows] == name)
            other = held_out.take(domain[held_out.rows] == name)
            folder = self.request.out / unit.folder / f"domain{k}"
            own = copy.deepcopy(network)
            if len(mine):
                own = self._train(unit, own, stages, mine, other, folder, track=str(name))
            else:
                self.report.log(f"domain {name!r} has no image to train on: not adapted")
            here = domain[rows] == name
            probs[here] = self._predict(own, unit, rows[here])
        return probs

    def _train(
        self,
        unit: Unit,
        network: Any,
        stages: Sequence[Stage],
        samples: Samples,
        held_out: Samples,
        folder: Path,
        track: str = "",
    ) -> Any:
        """Train one network through the stages, into its folder; the network that predicts."""
        inside = folder.relative_to(self.request.out)
        board = self.request.out / "tensorboard" / inside if self.request.tensorboard else None
        job = Job(
            recipe=self.recipe,
            stages=stages,
            network=network,
            feed=self.trunk_feed or self._feed(),
            samples=samples,
            held_out=held_out,
            class_group=self._groups(unit),
            folder=folder,
            seed=self._seed(unit, track),
            accelerator=self.accelerator,
            report=self.report,
            name=str(inside),
            curves=Curves(self.report, board),
            about=self._about(unit, track, len(samples)),
        )
        # Kept activations enter behind the frozen stages; images enter at the front again.
        network.begin_at(self.cut)
        made = train_network(job)
        network.begin_at(None)
        made.begin_at(None)
        return made

    def _about(self, unit: Unit, track: str, n_images: int) -> dict[str, Any]:
        """Describe a network for ``model.json``, but for its stages."""
        return {
            "timm_name": self.recipe.model.name,
            "fold": unit.fold,
            "group": unit.group,
            "domain": track or None,
            "classes": self.data.store.classes[unit.columns].tolist(),
            "class_group": self._groups(unit),
            "input": {
                "size": self.config.size,
                "mean": list(self.config.mean),
                "std": list(self.config.std),
            },
            "softmax": self._softmax,
            "model": self.recipe.as_dict()["model"],
            "n_images": n_images,
        }

    def _keep_trunk(self) -> None:
        """Run the frozen stages over all images, once for all networks of the run."""
        if self.trunk_feed is not None:
            return
        if self.request.init is not None or self.recipe.batch.compile:
            raise ValueError("[input] cache_trunk goes neither with --init nor with batch.compile")
        recipe, device = self.recipe, self.accelerator.device
        unit = list_units(recipe, self.data)[0]
        network = self._network(unit, self.data.samples.columns(unit.columns)).to(device).eval()
        self.cut = cut_point(recipe, network.backbone)
        rows = np.flatnonzero(self.data.readable)
        check_cut(network, self.cut, next(self._feed().batches([views_of(rows[:2])])))
        with main_first(self.accelerator):
            kept = keep_activations(
                network,
                self._feed(),
                rows,
                len(self.data.fold),
                self._trunk_path(),
                cut=self.cut,
                flips=recipe.input.hflip > 0,
                batch_size=recipe.batch.size,
                report=self.report,
            )
        self.trunk_feed = TrunkFeed(kept, recipe.input.hflip, device)

    def _feed(self) -> Feed:
        return ImageFeed(self.pool, self.recipe.input, self.config, self.accelerator.device)

    def _trunk_path(self) -> Path:
        """Name the file by everything that the activations depend on: runs may share it."""
        told = {
            "images": self.data.fingerprint["images"],
            "model": [self.recipe.model.name, self.recipe.model.partial_conv],
            "weights": [self.weights.kind, self.weights.sha256()],
            "seed": self.request.seed if self.weights.kind == "none" else None,
            "input": [asdict(self.config), self.recipe.input.crop, self.recipe.input.limit],
            "cut": [self.cut, self.recipe.model.reads, self.recipe.input.hflip > 0],
        }
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        folder = self.request.cache or self.request.out
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"trunk-{key}.npy"

    @property
    def _kept_will_do(self) -> bool:
        """Whether the activations that training kept are those that prediction needs."""
        asked, given = self.recipe.predict, self.recipe.input
        whole = asked.views == 0 and asked.precision == "float32"
        return self.trunk_feed is not None and whole and (given.hflip > 0 or not asked.hflip)

    @property
    def _softmax(self) -> bool:
        return self.recipe.stage[-1].loss in SOFTMAX

    def _predict(self, network: Any, unit: Unit, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Predict images, each process its share."""
        rank, n_ranks = self.accelerator.process_index, self.accelerator.num_processes
        mine = rows[rank::n_ranks]
        feed = self._feed()
        if self._kept_will_do:
            assert self.trunk_feed is not None
            feed = self.trunk_feed
            network.begin_at(self.cut)
        with self.report.progress(f"{unit.folder} predict", len(mine)) as advance:
            probs = predict_rows(
                network,
                feed,
                mine,
                self.recipe.predict,
                self._groups(unit),
                softmax=self._softmax,
                batch_size=self.recipe.batch.size,
                device=self.accelerator.device,
                seed=self.request.seed,
                advance=advance,
            )
        network.begin_at(None)
        if n_ranks == 1:
            return probs
        return self._gather(probs, len(rows))

    def _gather(self, probs: NDArray[np.float32], n_rows: int) -> NDArray[np.float32]:
        """Put the processes' shares together again."""
        from accelerate.utils import gather_object

        rank, n_ranks = self.accelerator.process_index, self.accelerator.num_processes
        together = np.empty((n_rows, probs.shape[1]), dtype=np.float32)
        for k, part in gather_object([(rank, probs)]):
            together[k::n_ranks] = part
        return together

    def _keep(self, path: Path, probs: NDArray[np.float32]) -> None:
        if self.accelerator.is_main_process:
            temporary = path.with_name(f".{path.name}.partial")
            with temporary.open("wb") as file:
                save_array(file, probs)
                file.flush()
                os.fsync(file.fileno())
            # The note first: the predictions say that the unit is complete.
            note = seal({"sha256": file_sha256(temporary)})
            write_text(path.with_suffix(".json"), json.dumps(note) + "\n")
            temporary.replace(path)
        self.accelerator.wait_for_everyone()


def read_predictions(out: Path, unit: Unit) -> NDArray[np.float32] | None:
    """Open a unit's predictions, on disk until they are used; None when there are none.

    Raises
    ------
    ValueError
        When the file was changed since it was written.

    Examples
    --------
    >>> read_predictions(Path("run"), Unit(0, None, np.arange(2), "fold0")) is None
    True
    """
    path = out / unit.folder / PREDICTIONS
    if not path.is_file():
        return None
    note = path.with_suffix(".json")
    told = read_document(note) if note.is_file() else {}
    if told.get("sha256") != file_sha256(path):
        raise ValueError(
            f"{path} is damaged: it does not have its checksum. Remove it and run the same "
            "command again: the network is trained, it predicts anew."
        )
    return np.load(path, mmap_mode="r")
