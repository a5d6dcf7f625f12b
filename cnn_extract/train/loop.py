"""Train one network through the stages of its recipe, resumable after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn_extract._torchvision import import_timm, import_torch
from cnn_extract.train.checkpoint import (
    Progress,
    load_progress,
    read_model,
    save_model,
    save_progress,
)
from cnn_extract.train.curves import Curves
from cnn_extract.train.feeds import Feed, views_of
from cnn_extract.train.freeze import set_trained, train_mode
from cnn_extract.train.losses import SOFTMAX, Loss, make_loss, to_probabilities
from cnn_extract.train.machine import sum_over_ranks
from cnn_extract.train.mixing import mix, seeded
from cnn_extract.train.samples import Samples, draw_epoch, split_steps
from cnn_extract.train.schedules import make_optimiser, make_schedule
from features._console import Reporter

if TYPE_CHECKING:
    import torch

    from cnn_extract.train.recipe import Recipe, Stage

__all__ = ["Job", "train_network"]


@dataclass
class Job:
    """One network to train.

    Parameters
    ----------
    recipe : Recipe
    stages : sequence of Stage
        Of the recipe: those that are the network's own.
    network : Network
        With the weights that training begins with.
    feed : Feed
    samples, held_out : Samples
        To learn from; to draw the curves with. Held-out images decide nothing.
    class_group : sequence of str, n_classes long
    folder : Path
        For checkpoints and curves.
    seed : int
        Everything drawn depends on it and on the stage and epoch, so a resumed run draws alike.
    accelerator : Accelerator
    report : Reporter
    name : str
        What the log calls the network.
    curves : Curves
    """

    recipe: Recipe
    stages: Sequence[Stage]
    network: Any
    feed: Feed
    samples: Samples
    held_out: Samples
    class_group: Sequence[str]
    folder: Path
    seed: int
    accelerator: Any
    report: Reporter
    name: str
    curves: Curves
    about: dict[str, Any] = field(default_factory=dict)
    after_epoch: Callable[[int, int], None] | None = None

    @property
    def device(self) -> Any:
        """Where the network runs."""
        return self.accelerator.device


def train_network(job: Job) -> Any:
    """Train, or go on where a killed run stopped; the network that predicts, in prediction mode.

    Writes ``last.safetensors`` after every epoch, ``model.safetensors`` and ``model.json`` at the
    end. With a moving average of the weights (`batch.ema`) it is the average that is returned.
    """
    complete = read_model(job.folder)
    if complete is not None:
        job.network.load_state_dict(complete[0])
        return job.network.to(job.device).eval()
    progress = load_progress(job.folder) or Progress()
    if progress.weights:
        job.network.load_state_dict(progress.weights)
    job.network.to(job.device, memory_format=import_torch().channels_last)
    ema = _make_ema(job, progress)
    for number in range(progress.stage, len(job.stages)):
        _run_stage(job, number, ema, progress)
    final = job.network if ema is None else ema.module
    if job.accelerator.is_main_process:
        save_model(job.folder, final.state_dict(), {**job.about, "log": progress.log})
    job.accelerator.wait_for_everyone()
    return final.eval()


def _make_ema(job: Job, progress: Progress) -> Any:
    if not job.recipe.batch.ema:
        return None
    import_timm()
    from timm.utils import ModelEmaV3

    # The warm-up keeps the fresh head of the first steps out of the average.
    ema: Any = ModelEmaV3(job.network, decay=job.recipe.batch.ema, use_warmup=True)
    if progress.ema:
        ema.module.load_state_dict(progress.ema)
    return ema


@dataclass
class _Running:
    """What one stage trains with."""

    stage: Stage
    model: Any
    optimiser: Any
    schedule: Any
    loss: Loss
    ema: Any
    steps_per_epoch: int


def _run_stage(job: Job, number: int, ema: Any, progress: Progress) -> None:
    """Run one stage from the epoch where `progress` stands."""
    stage = job.stages[number]
    set_trained(job.network, stage.train)
    running = _start_stage(job, stage, ema)
    if progress.optimiser and progress.stage == number:
        running.optimiser.load_state_dict(progress.optimiser)
        running.schedule.load_state_dict(progress.schedule)
    first = progress.epoch if progress.stage == number else 0
    for epoch in range(first, stage.epochs):
        start = time.monotonic()
        train_loss = _run_epoch(job, running, number, epoch, progress)
        lr = running.optimiser.param_groups[0]["lr"]
        running.schedule.after_epoch(train_loss)
        row = {
            "stage": stage.name or str(number + 1),
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": train_loss,
            **_validate(job, running),
            "seconds": round(time.monotonic() - start, 2),
        }
        progress.log.append(row)
        _save(job, running, number, epoch, progress)
        if job.after_epoch is not None:
            job.after_epoch(number, epoch)
    progress.stage, progress.epoch, progress.optimiser = number + 1, 0, {}


def _start_stage(job: Job, stage: Stage, ema: Any) -> _Running:
    recipe = job.recipe
    optimiser = make_optimiser(job.network, stage)
    n_steps = math.ceil(_epoch_length(job) / _effective(recipe))
    loss = make_loss(
        stage,
        job.class_group,
        job.samples.counts,
        scale=recipe.model.scale,
        device=str(job.device),
    )
    model = job.network
    if recipe.batch.compile:
        model = import_torch().compile(model)
    if job.accelerator.num_processes > 1:
        model = job.accelerator.prepare_model(model)
    prepared = job.accelerator.prepare_optimizer(optimiser)
    schedule = make_schedule(optimiser, stage, n_steps)
    return _Running(stage, model, prepared, schedule, loss, ema, n_steps)


def _effective(recipe: Recipe) -> int:
    return recipe.batch.effective or recipe.batch.size


def _epoch_length(job: Job) -> int:
    """Images that an epoch shows, the hardest of the last one included."""
    replayed = round(job.recipe.sampling.hard_share * len(job.samples))
    return len(job.samples) + int(job.samples.listed_hard.sum()) + replayed


def _run_epoch(job: Job, running: _Running, number: int, epoch: int, progress: Progress) -> float:
    """One epoch; the mean training loss. Leaves each sample's loss in `progress.losses`."""
    seeds = np.random.SeedSequence([job.seed, number, epoch])
    draw, torch_seed = seeds.spawn(2)
    rng = np.random.default_rng(draw)
    order = draw_epoch(job.samples, job.recipe.sampling, rng, progress.losses)
    rank, n_ranks = job.accelerator.process_index, job.accelerator.num_processes
    # A last step of fewer images than processes would leave one of them waiting for ever.
    steps = [s for s in split_steps(order, _effective(job.recipe)) if len(s) >= n_ranks]
    plan = [_micro_batches(step, job.recipe.batch.size, rank, n_ranks) for step in steps]
    view_seeds = rng.integers(0, 2**63, len(order), dtype=np.uint64)
    feed = _feed_plan(job, plan, steps, view_seeds)
    losses = np.full(len(job.samples), np.nan, dtype=np.float32)
    label = f"{job.name} {running.stage.name or number + 1}/{epoch + 1}"
    with (
        seeded(int(torch_seed.generate_state(1)[0])),
        train_mode(job.network),
        job.report.progress(label, len(order)) as advance,
    ):
        for k, (step, micro) in enumerate(zip(steps, plan, strict=True)):
            running.schedule.before_step(epoch * running.steps_per_epoch + k)
            _one_step(job, running, step, micro, feed, losses)
            running.schedule.after_step()
            if running.ema is not None:
                progress.ema_steps += 1
                running.ema.update(job.network, step=progress.ema_steps)
            advance(len(step))
    progress.losses = _gather_losses(job, losses)
    return float(np.nanmean(progress.losses))


def _micro_batches(
    step: NDArray[np.intp], size: int, rank: int, n_ranks: int
) -> list[NDArray[np.intp]]:
    """Batches of one process in one step of the optimiser."""
    mine = np.array_split(step, n_ranks)[rank]
    return [mine[k : k + size] for k in range(0, len(mine), size)]


def _feed_plan(
    job: Job,
    plan: Sequence[Sequence[NDArray[np.intp]]],
    steps: Sequence[NDArray[np.intp]],
    view_seeds: NDArray[np.uint64],
) -> Iterator[torch.Tensor]:
    """Give the inputs of all micro-batches of an epoch, one after the other."""
    rank, n_ranks = job.accelerator.process_index, job.accelerator.num_processes
    batches, done = [], 0
    for step, micro in zip(steps, plan, strict=True):
        # Seeds go by the place in the epoch: the views do not depend on how many processes share.
        mine = np.array_split(view_seeds[done : done + len(step)], n_ranks)[rank]
        done += len(step)
        ends = np.cumsum([len(part) for part in micro])[:-1]
        for part, own in zip(micro, np.split(mine, ends), strict=True):
            batches.append(views_of(job.samples.rows[part], own))
    return job.feed.batches(batches)


def _one_step(
    job: Job,
    running: _Running,
    step: NDArray[np.intp],
    micro: Sequence[NDArray[np.intp]],
    feed: Iterator[torch.Tensor],
    losses: NDArray[np.float32],
) -> None:
    """Accumulate the gradient of all micro-batches, then step: as one batch of them all (A3)."""
    accelerator = job.accelerator
    # Of all processes together; DDP takes the mean of the gradients, so times their number.
    total = max(float(job.samples.weights[step].sum()), 1e-12) / accelerator.num_processes
    for k, part in enumerate(micro):
        together = k + 1 < len(micro) and accelerator.num_processes > 1
        context = accelerator.no_sync(running.model) if together else nullcontext()
        with context:
            per_image = _forward_loss(job, running, part, next(feed))
            weights = _tensor(job, job.samples.weights[part])
            accelerator.backward((per_image * weights).sum() / total)
        losses[part] = per_image.detach().float().cpu().numpy()
    if job.recipe.batch.clip_grad:
        accelerator.clip_grad_norm_(job.network.parameters(), job.recipe.batch.clip_grad)
    running.optimiser.step()
    running.optimiser.zero_grad()


def _forward_loss(
    job: Job, running: _Running, part: NDArray[np.intp], batch: torch.Tensor
) -> torch.Tensor:
    """Loss of each image of a micro-batch, after erasing and mixing."""
    targets = _tensor(job, job.samples.targets(part, job.recipe.distill.weight))
    batch, shares = mix(batch, job.recipe.input)
    if shares is not None:
        targets = shares @ targets
    with job.accelerator.autocast():
        logits = running.model(batch)
    return running.loss(logits, targets)


def _tensor(job: Job, values: NDArray[Any]) -> torch.Tensor:
    return import_torch().from_numpy(values).to(job.device)


def _gather_losses(job: Job, losses: NDArray[np.float32]) -> NDArray[np.float32]:
    """Losses of all processes' samples; NaN for samples that no process saw."""
    if job.accelerator.num_processes == 1:
        return losses
    torch = import_torch()
    seen = ~np.isnan(losses)
    both = np.stack([np.where(seen, losses, 0), seen]).astype(np.float32)
    total, count = sum_over_ranks(job.accelerator, torch.from_numpy(both)).numpy()
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


THRESHOLDS = np.arange(0.05, 0.96, 0.05)


def _validate(job: Job, running: _Running) -> dict[str, float]:
    """Loss and F2 of the held-out images: for the curves alone, nothing is chosen by them.

    The F2 is that of the best of 19 thresholds on these very images, so a little too high.
    """
    torch = import_torch()
    n_images = len(job.held_out)
    if not n_images:
        return {"val_loss": math.nan, "val_f2": math.nan}
    network = job.network if running.ema is None else running.ema.module
    network.eval()
    rank, n_ranks = job.accelerator.process_index, job.accelerator.num_processes
    size = job.recipe.batch.size
    parts = [np.arange(k, min(k + size, n_images)) for k in range(0, n_images, size)][rank::n_ranks]
    feed = job.feed.batches(views_of(job.held_out.rows[part]) for part in parts)
    total, f2 = 0.0, np.zeros(len(THRESHOLDS))
    for part in parts:
        targets = _tensor(job, job.held_out.targets(part, 0.0))
        with torch.inference_mode(), job.accelerator.autocast():
            logits = network(next(feed))
        with torch.inference_mode():
            total += float(running.loss(logits, targets).sum())
            softmax = running.stage.loss in SOFTMAX
            probs = to_probabilities(logits, job.class_group, softmax=softmax)
        f2 += _f2_sums(probs.cpu().numpy(), targets.cpu().numpy() > 0.5)
    sums = sum_over_ranks(job.accelerator, torch.tensor([total, *f2]))
    return {
        "val_loss": float(sums[0]) / n_images,
        "val_f2": float(sums[1:].max()) / n_images,
    }


def _f2_sums(probs: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum over images of F2 at each threshold; 1 for an image without labels and predictions."""
    sums = []
    for threshold in THRESHOLDS:
        given = probs >= threshold
        hits = (given & truth).sum(1)
        below = 4 * truth.sum(1) + given.sum(1)
        sums.append(np.where(below > 0, 5 * hits / np.maximum(below, 1), 1.0).sum())
    return np.array(sums)


def _save(job: Job, running: _Running, number: int, epoch: int, progress: Progress) -> None:
    """Write the checkpoint and the curves; other processes wait."""
    progress.stage, progress.epoch = number, epoch + 1
    progress.optimiser = running.optimiser.state_dict()
    progress.schedule = running.schedule.state_dict()
    if job.accelerator.is_main_process:
        progress.weights = job.network.state_dict()
        progress.ema = {} if running.ema is None else running.ema.module.state_dict()
        save_progress(job.folder, progress)
        job.curves.write(job.folder, progress.log)
    # The state above belongs to this moment; training goes on with the live tensors.
    progress.weights, progress.ema = {}, {}
    job.accelerator.wait_for_everyone()
