"""Makers for the training tests: samples, feeds and networks without images; tiny runs."""

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from cnn_extract.train.curves import Curves
from cnn_extract.train.loop import Job
from cnn_extract.train.machine import make_accelerator
from cnn_extract.train.networks import make_network
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.samples import Samples
from cnn_extract.train.toml import parse_recipe
from cnn_extract.weights import Weights
from features._console import Reporter
from features.store import FeatureStore
from stacker.datasets import load_openclipart

TINY = "test_resnet"
SIDE = 32


def samples_of(labels, **changes):
    """Make samples of a 0/1 matrix: image k is row k."""
    matrix = csr_array(np.asarray(labels, dtype=np.int8))
    n_rows = matrix.shape[0]
    given = {
        "rows": np.arange(n_rows),
        "labels": matrix,
        "weights": np.ones(n_rows, np.float32),
        "listed_hard": np.zeros(n_rows, bool),
    }
    return Samples(**(given | changes))


def recipe_of(text="", name="test"):
    """Make a recipe of a tiny model from TOML."""
    return parse_recipe(f"{text}", name=name)


@dataclass
class ArrayFeed:
    """Gives fixed tensors for rows; a view's seed is remembered, not used."""

    images: object
    seen: list

    def batches(self, batches):
        for views in batches:
            self.seen.append(list(views))
            yield self.images[[view.index for view in views]].clone()

    def mirror(self, views, batch):
        return batch.flip(3)


@pytest.fixture
def make_job(tmp_path):
    """Make a training job over random tensors."""
    import torch

    def make(text, labels, *, folder="net", network=None, held_out=None, groups=None, **changes):
        recipe = recipe_of(text)
        labels = np.asarray(labels)
        groups = groups or [""] * labels.shape[1]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(len(labels), 3, SIDE, SIDE, generator=generator)
        job = {
            "recipe": recipe,
            "stages": recipe.stage,
            "network": network or tiny_network(recipe, groups),
            "feed": ArrayFeed(images, []),
            "samples": samples_of(labels),
            "held_out": samples_of(labels[:0]) if held_out is None else held_out,
            "class_group": groups,
            "folder": tmp_path / folder,
            "seed": 7,
            "accelerator": make_accelerator("cpu", recipe.batch.precision),
            "report": Reporter(quiet=True),
            "name": folder,
            "curves": Curves(Reporter(quiet=True)),
        }
        return Job(**(job | changes))

    return make


def tiny_network(recipe, groups, seed=0):
    """Make the recipe's network with a tiny random backbone, the same for a seed."""
    from dataclasses import replace

    import torch

    model = replace(recipe.model, name=TINY)
    share = np.full(len(groups), 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_network(model, Weights("none"), groups, share, size=SIDE)


def state_of(network):
    """Copy a network's tensors."""
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="session")
def clipart(tmp_path_factory):
    """Make a folder of openclipart images with labels.csv and meta.csv, by number of images."""
    made = {}

    def make(n_images, min_images=3):
        if n_images not in made:
            made[n_images] = write_clipart(
                tmp_path_factory.mktemp(f"clipart{n_images}"), n_images, min_images
            )
        return made[n_images]

    return make


def write_clipart(folder, n_images, min_images):
    data = load_openclipart(n_images, min_images=min_images)
    with zipfile.ZipFile(data.archive) as bundle:
        for image_id, member in zip(data.image_ids, data.members, strict=True):
            (folder / "images").mkdir(exist_ok=True)
            (folder / "images" / f"{image_id}.webp").write_bytes(bundle.read(member))
    lists = [data.classes[data.labels[[k]].indices] for k in range(n_images)]
    write_table(
        folder / "labels.csv",
        ["image_id", "labels"],
        ([i, " ".join(names)] for i, names in zip(data.image_ids, lists, strict=True)),
    )
    # Two domains by class: has the drawing the first class or not?
    domain = ["first" if data.classes[0] in names else "rest" for names in lists]
    write_table(
        folder / "meta.csv",
        ["image_id", "split_group", "domain"],
        zip(data.image_ids, data.split_group, domain, strict=True),
    )
    return folder


def write_table(path, header, lines):
    """Write a CSV file."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)
    return path


RECIPE = """
folds = 2
[batch]
size = 8
[input]
crop = "squash"
[[stage]]
epochs = 1
train = "head"
lr = 0.01
[[stage]]
epochs = 1
train = "all"
lr = 0.001
"""


@pytest.fixture
def request_of(tmp_path, make_set):
    """Make a request for a tiny run."""

    def make(text=RECIPE, n_images=16, n_labelled=None, **changes):
        folder, labels, _ = make_set(n_images, n_labelled)
        recipe = tmp_path / "mine.toml"
        recipe.write_text(text)
        given = {
            "images": folder,
            "labels": labels,
            "recipe": str(recipe),
            "out": tmp_path / "out",
            "model": "test_resnet=none",
            "size": 32,
            "workers": 0,
            "device": "cpu",
            "chunk_images": 8,
        }
        return TrainRequest(**(given | changes))

    return make


def store_of(request):
    return FeatureStore.open(request.store or request.out / "store")


def probs_of(request, name="mine"):
    return store_of(request).probability_array(name)


def train_checkpoint(tmp_path):
    """Write a checkpoint of a tiny model, as a user would have one."""
    from cnn_extract._torchvision import import_timm

    path = tmp_path / "weights.pth"
    torch.save(import_timm().create_model("test_resnet").state_dict(), path)
    return path
