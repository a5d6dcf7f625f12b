"""The training loop: accumulation, freezing, replay, resuming, determinism."""

import csv

import numpy as np
import pytest
import torch

from cnn_extract.train.checkpoint import load_progress
from cnn_extract.train.loop import train_network
from tests.cnn_extract.train.conftest import recipe_of, samples_of, state_of, tiny_network

LABELS = (np.random.default_rng(3).random((12, 4)) < 0.4).astype(int)
PLAIN = "[[stage]]\nepochs = {epochs}\nlr = 0.05\noptimiser = 'momentum'\nmomentum = 0.0\n"
# Batch norm sees the micro-batch; without it accumulation is exact.
STILL = "train = 'head'\n"


def trained(make_job, text, labels=LABELS, **changes):
    return state_of(train_network(make_job(text, labels, **changes)))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_accumulation_gives_the_step_of_one_big_batch(make_job):
    """A3: gradients of micro-batches are averaged wrongly; the last one is smaller here."""
    stage = PLAIN.format(epochs=1) + STILL
    small = trained(make_job, "[batch]\nsize = 5\neffective = 12\n" + stage, folder="small")
    big = trained(make_job, "[batch]\nsize = 12\n" + stage, folder="big")
    for name in big:
        torch.testing.assert_close(small[name], big[name], rtol=1e-5, atol=1e-7)
    start = state_of(tiny_network(recipe_of(), [""] * 4))
    assert not torch.equal(big["head.1.weight"], start["head.1.weight"])


def test_accumulation_follows_the_weights_of_the_images(make_job):
    """A7: with weights each micro-batch counts alike, whatever its images weigh."""
    weights = np.linspace(0.1, 2, 12).astype(np.float32)
    samples = samples_of(LABELS, weights=weights)
    stage = PLAIN.format(epochs=1) + STILL
    small = trained(
        make_job, "[batch]\nsize = 4\neffective = 12\n" + stage, folder="small", samples=samples
    )
    big = trained(make_job, "[batch]\nsize = 12\n" + stage, folder="big", samples=samples)
    torch.testing.assert_close(small["head.1.weight"], big["head.1.weight"])
    plain = trained(make_job, "[batch]\nsize = 12\n" + stage, folder="plain")
    assert not torch.allclose(plain["head.1.weight"], big["head.1.weight"])


def test_the_step_is_the_gradient_of_the_mean_loss(make_job):
    """The loss is scaled, so learning rates mean something else."""
    network = tiny_network(recipe_of(), [""] * 4)
    job = make_job("[batch]\nsize = 12\n" + PLAIN.format(epochs=1) + STILL, LABELS, network=network)
    with torch.no_grad():
        features = network.eval().features(job.feed.images)
    weight = network.head[1].weight.detach().clone().requires_grad_()
    bias = network.head[1].bias.detach()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    logits = features @ weight.T + bias
    (bce(logits, torch.tensor(LABELS).float(), reduction="sum") / 12).backward()
    with torch.no_grad():
        wanted = weight - 0.05 * (weight.grad + 0.01 * weight)
    torch.testing.assert_close(train_network(job).head[1].weight.detach(), wanted)


@pytest.mark.parametrize(
    ("train", "still"),
    [("head", "backbone."), ("last-stage", ("backbone.layer3", "backbone.conv1"))],
)
def test_frozen_parameters_stay_bit_for_bit(make_job, train, still):
    """A19, A27, C3, D1: weight decay, momentum or batch statistics move frozen layers."""
    start = state_of(tiny_network(recipe_of(), [""] * 4))
    text = f"[batch]\nsize = 4\n[[stage]]\nepochs = 2\ntrain = '{train}'\nweight_decay = 0.1\n"
    end = trained(make_job, text)
    frozen = [name for name in start if name.startswith(still)]
    assert frozen
    assert all(torch.equal(start[name], end[name]) for name in frozen)
    assert not torch.equal(start["head.1.weight"], end["head.1.weight"])


def test_stages_unfreeze_one_after_the_other(make_job):
    """A19, A27: the second stage trains what the first one did."""
    text = "[batch]\nsize = 6\n[[stage]]\ntrain = 'head'\n[[stage]]\ntrain = 'all'\n"
    states = []
    job = make_job(text, LABELS)
    job.after_epoch = lambda stage, epoch: states.append(state_of(job.network))
    train_network(job)
    name = "backbone.layer1.0.conv1.weight"
    start = state_of(tiny_network(recipe_of(), [""] * 4))
    assert torch.equal(states[0][name], start[name])
    assert not torch.equal(states[1][name], start[name])


def test_the_optimiser_changes_with_the_stage(make_job, monkeypatch):
    """A20: AdamW goes on where the recipe says SGD."""
    from cnn_extract.train import loop

    made = []
    original = loop.make_optimiser
    monkeypatch.setattr(
        loop, "make_optimiser", lambda *args: made.append(original(*args)) or made[-1]
    )
    trained(
        make_job,
        "[[stage]]\noptimiser = 'adamw'\nlr = 1e-4\n[[stage]]\noptimiser = 'sgd'\nlr = 1e-3\n",
    )
    assert [type(o).__name__ for o in made] == ["AdamW", "SGD"]


def test_the_second_epoch_replays_the_hardest(make_job):
    """A6: nothing is replayed, or not what had the highest loss."""
    text = "[batch]\nsize = 12\n[sampling]\nhard_share = 0.25\n[[stage]]\nepochs = 2\nlr = 0.0\n"
    text += "train = 'head'\n"
    job = make_job(text, LABELS)
    losses = []
    job.after_epoch = lambda *_: losses.append(load_progress(job.folder).losses)
    train_network(job)
    shown = [[v.index for v in batch] for batch in job.feed.seen]
    assert sorted(shown[0]) == list(range(12))
    again = sorted(k for k in range(12) if (shown[1] + shown[2]).count(k) == 2)
    assert again == sorted(np.argsort(-losses[0])[:3].tolist())


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "onecycle", "exponential"])
def test_a_killed_run_goes_on_from_its_last_epoch(make_job, schedule):
    """A resumed run ends elsewhere than one that was never stopped."""
    text = (
        "[batch]\nsize = 4\nema = 0.9\n[input]\nmixup = 0.3\nerase = 0.3\n"
        "[sampling]\nhard_share = 0.2\n[model]\ndropout = 0.3\n"
        "[[stage]]\nepochs = 1\ntrain = 'head'\noptimiser = 'adamw'\n"
        f"[[stage]]\nepochs = 3\ntrain = 'all'\nschedule = '{schedule}'\n"
    )
    whole = trained(make_job, text, folder="whole")

    def stop(stage, epoch):
        if (stage, epoch) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_network(make_job(text, LABELS, folder="killed", after_epoch=stop))
    resumed = make_job(
        text, LABELS, folder="killed", network=tiny_network(recipe_of(text), [""] * 4, 9)
    )
    assert_same(state_of(train_network(resumed)), whole)
    assert len(resumed.feed.seen) < 10
    logs = [
        list(csv.DictReader((resumed.folder.parent / name / "log.csv").open()))
        for name in ("whole", "killed")
    ]
    for log in logs:
        for row in log:
            row.pop("seconds")
    assert logs[0] == logs[1]


def test_the_same_seed_gives_the_same_network(make_job):
    """Two runs with one seed differ; two seeds give the same."""
    text = "[batch]\nsize = 4\n[model]\ndropout = 0.5\n[[stage]]\nepochs = 1\n"
    one = trained(make_job, text, folder="one")
    assert_same(one, trained(make_job, text, folder="two"))
    other = trained(make_job, text, folder="other", seed=8)
    assert not torch.equal(one["head.1.weight"], other["head.1.weight"])


def test_the_moving_average_predicts(make_job):
    """The average of the weights is kept but not used."""
    text = "[batch]\nsize = 12\nema = 0.5\n[[stage]]\nepochs = 4\nlr = 0.05\n"
    job = make_job(text, LABELS)
    end = state_of(train_network(job))
    last = state_of(job.network)
    assert not torch.equal(end["head.1.weight"], last["head.1.weight"])


def test_a_finished_network_is_read_not_trained(make_job):
    """A complete fold is trained again."""
    text = "[batch]\nsize = 12\n[[stage]]\nepochs = 1\n"
    one = trained(make_job, text)
    job = make_job(text, LABELS)
    assert_same(state_of(train_network(job)), one)
    assert job.feed.seen == []


def test_training_learns(make_job):
    """The loss does not fall on data that can be learnt by heart."""
    text = "[batch]\nsize = 12\n[[stage]]\nepochs = 12\nlr = 0.01\n"
    job = make_job(text, LABELS, held_out=samples_of(LABELS))
    train_network(job)
    log = load_log(job.folder)
    assert log[-1]["train_loss"] < 0.7 * log[0]["train_loss"]
    assert log[-1]["val_f2"] > log[0]["val_f2"]


def load_log(folder):
    with (folder / "log.csv").open() as file:
        return [
            {k: float(v) for k, v in row.items() if k != "stage"} for row in csv.DictReader(file)
        ]


def test_bf16_training_runs_the_network_in_half(make_job):
    """Mixed precision is accepted and ignored."""
    kinds = set()
    job = make_job("[batch]\nsize = 6\nprecision = 'bf16'\n[[stage]]\nepochs = 1\n", LABELS)
    job.network.backbone.layer4.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    train_network(job)
    assert torch.bfloat16 in kinds


def test_gradients_are_clipped(make_job):
    """`clip_grad` does nothing: steps are as long as without it."""
    stage = "train = 'head'\noptimiser = 'momentum'\nmomentum = 0.0\nweight_decay = 0.0\nlr = 1.0\n"
    text = "[batch]\nsize = 12\nclip_grad = 0.01\n[[stage]]\nepochs = 1\n" + stage
    start = state_of(tiny_network(recipe_of(), [""] * 4))
    end = trained(make_job, text)
    length = sum(((end[n] - start[n]) ** 2).sum() for n in ("head.1.weight", "head.1.bias"))
    assert length.sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_compiling_is_asked_of_torch(make_job, monkeypatch):
    """`compile` is accepted and ignored."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    job = make_job("[batch]\nsize = 12\ncompile = true\n[[stage]]\nepochs = 1\n", LABELS)
    train_network(job)
    assert compiled == [job.network]
