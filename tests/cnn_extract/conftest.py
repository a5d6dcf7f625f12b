"""Makers of small images, folders and label files for the CNN tests."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_extract.run import Request
from features._console import Reporter

# timm's smallest convolutional model: 0.5 million parameters.
TINY = "test_resnet"


@pytest.fixture(autouse=True)
def one_thread():
    """Run torch on one core: its threads wait for each other where tests share the machine."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def silent():
    return Reporter(quiet=True)


def picture(rng, height, width):
    """Coloured blocks and noise: a picture with structure, unlike any other."""
    blocks = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    coarse = np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    noise = rng.integers(-20, 21, coarse.shape)
    return np.clip(coarse.astype(int) + noise, 0, 255).astype(np.uint8)


def write_labels(path, lists):
    """Write {image id: labels} as labels.csv."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "labels"])
        writer.writerows([i, " ".join(names)] for i, names in lists.items())
    return Path(path)


@pytest.fixture
def make_set(tmp_path, rng):
    """Make a folder of images and their label file; give both paths and the labels."""

    def make(n_images=24, n_labelled=None, side=40):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        lists = {}
        for k in range(n_images):
            pixels = picture(rng, side + k % 5, side + 2 * (k % 3))
            Image.fromarray(pixels).save(folder / f"i{k:03}.png")
            names = [f"tag::{'abc'[k % 3]}", "tag::common"] + (["culture::x"] if k % 2 else [])
            lists[f"i{k:03}"] = names
        known = list(lists.items())[: n_images if n_labelled is None else n_labelled]
        return folder, write_labels(tmp_path / "labels.csv", dict(known)), lists

    return make


@pytest.fixture
def request_for(tmp_path):
    """Make a Request for a tiny random model, with everything small."""

    def make(folder, labels, **changes):
        given = {
            "images": folder,
            "labels": labels,
            "models": [f"{TINY}=none"],
            "out": tmp_path / "store",
            "heads": ("linear",),
            "folds": 3,
            "size": 32,
            "batch_size": 4,
            "workers": 0,
            "chunk_images": 8,
        }
        return Request(**(given | changes))

    return make


def arrays_of(path):
    """Every array of a store by its path, for comparison bit for bit."""
    import zarr

    root = zarr.open_group(str(path), mode="r", use_consolidated=False)
    return {
        name: node[...] for name, node in root.members(max_depth=None) if hasattr(node, "shape")
    }


def assert_same_arrays(one, other):
    """Refuse any difference between two stores' arrays."""
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.dtype == second[name].dtype, name
        if values.dtype.kind in "fiub":
            assert values.tobytes() == second[name].tobytes(), name
        else:
            assert values.tolist() == second[name].tolist(), name
