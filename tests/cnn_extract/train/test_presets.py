"""Every preset trains: on 24 drawings in the ordinary tests, on 300 in the slow ones."""

import time

import numpy as np
import pytest

from cnn_extract.train.presets import preset_names
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.run import train
from features._console import Reporter
from features.store import FeatureStore

# What a preset needs beyond images and labels, or names that openclipart's groups do not have.
NEEDS = {
    "herbarium": {"settings": ("stage.group_weights={category=0.2, creator=0.3, tag=1.0}",)},
    "recursion": {"domain": "domain"},
    "inclusive": {"domain": "domain"},
}


def preset_request(name, folder, out, **changes):
    given = {
        "images": folder / "images",
        "labels": folder / "labels.csv",
        "metadata": folder / "meta.csv",
        "recipe": name,
        "out": out,
        "workers": 0,
        "device": "cpu",
    }
    needs = NEEDS.get(name, {})
    settings = (*changes.pop("settings", ()), *needs.get("settings", ()))
    return TrainRequest(**{**given, **needs, **changes, "settings": settings})


@pytest.fixture(scope="session")
def teacher(clipart, tmp_path_factory):
    """Make stores of predictions to distil, by number of images."""
    made = {}

    def make(n_images):
        if n_images not in made:
            folder, path = clipart(n_images), tmp_path_factory.mktemp("teacher") / "store"
            lines = (folder / "labels.csv").read_text().splitlines()[1:]
            labels = [line.partition(",")[2].split() for line in lines]
            classes = sorted({name for names in labels for name in names})
            rng = np.random.default_rng(0)
            FeatureStore.from_arrays(
                path,
                image_ids=[line.partition(",")[0] for line in lines],
                classes=classes,
                probabilities={"t": rng.random((len(lines), len(classes)))},
            )
            made[n_images] = path
        return made[n_images]

    return make


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_for_real(name, clipart, teacher, tmp_path):
    """A preset names a setting that breaks when it is run."""
    request = preset_request(
        name,
        clipart(24),
        tmp_path / "out",
        model="test_resnet=none",
        size=32,
        epochs=1,
        folds=2,
        settings=("batch.size=8", "batch.effective=16"),
        teacher=str(teacher(24)) if name == "imet-9th" else None,
    )
    assert train(request, Reporter(quiet=True)).complete
    probs = FeatureStore.open(tmp_path / "out" / "store").probability_array(name)
    assert probs.shape[0] == 24
    assert ((probs >= 0) & (probs <= 1)).all()
    assert probs.std(0).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_takes_less_than_three_minutes_on_300_drawings(
    name, clipart, teacher, tmp_path
):
    """A preset needs hours for what should be minutes, or `stacker fit` refuses its store."""
    request = preset_request(
        name,
        clipart(300, 5),
        tmp_path / "out",
        model="test_resnet=none",
        size=96,
        epochs=2,
        settings=("batch.size=16", "batch.effective=32"),
        teacher=str(teacher(300)) if name == "imet-9th" else None,
    )
    start = time.monotonic()
    assert train(request, Reporter(quiet=True)).complete
    seconds = time.monotonic() - start
    print(f"{name}: {seconds:.0f} s")
    assert seconds < 180
    fit_stack(tmp_path / "out" / "store", tmp_path / "model")


def fit_stack(store, out):
    """`stacker fit` in a process of its own: torch and LightGBM do not share one."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "stacker.cli", "fit", str(store), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
