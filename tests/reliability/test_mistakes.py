"""Ten mistakes that new users make; every message says what to do next.

The list stands in ``docs/reliability.md`` with the messages.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from features.store import FeatureStore
from tests.reliability.makers import make_images, make_store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images with labels, a store with labels and folds, one without, as a user has them."""
    folder = make_images(tmp_path_factory.mktemp("mistakes") / "d", 8)
    make_store(folder / "store", n_images=40, n_classes=4)
    store = FeatureStore.open(folder / "store")
    probs = {"m": store.probability_array(store.models[0])}
    names = {"image_ids": store.image_ids, "classes": store.classes}
    FeatureStore.from_arrays(folder / "bare", probabilities=probs, **names)
    FeatureStore.from_arrays(folder / "unfolded", probabilities=probs, labels=store.labels, **names)
    return folder


def run(app, *arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


def extract(place, labels, *extra, out="new"):
    from cnn_extract.cli import app

    given = ("--model", "test_resnet=none", "--workers", 0, "--out", place / out)
    return run(app, "run", place / "images", "--labels", labels, *given, *extra)


def stack(place, *arguments):
    from stacker.cli import app

    return run(app, *(place / a[1:] if str(a).startswith("@") else a for a in arguments))


def semicolons(place):
    """1. A table with semicolons, as some spreadsheets write it."""
    text = (place / "labels.csv").read_text().replace(",", ";")
    (place / "semicolons.csv").write_text(text)
    return extract(place, place / "semicolons.csv")


def extensions(place):
    """2. Image names with their extension as ids."""
    text = re.sub(r"^(i\d\d),", r"\1.png,", (place / "labels.csv").read_text(), flags=re.M)
    (place / "extensions.csv").write_text(text)
    return extract(place, place / "extensions.csv")


def misspelt(place):
    """3. A model's name that timm does not know."""
    return extract(place, place / "labels.csv", "--model", "eficientnet_lite0")


def done_before(place):
    """4. The same output again."""
    shutil.copytree(place / "store", place / "again")
    store = FeatureStore.open(place / "again", "r+")
    store.update_attrs({"cnn_extract": {"settings": {}, "complete": True}})
    return extract(place, place / "labels.csv", out="again")


def logits(place):
    """5. Logits where probabilities belong."""
    store = FeatureStore.open(place / "bare", "r+")
    with pytest.raises(ValueError, match=r"lie in") as found:
        store.add_probabilities("l", np.full((store.n_images, store.n_classes), 3.5))
    return found.value


def swapped(place):
    """6. Store and model in the wrong order."""
    return stack(place, "predict", "@store", "@bare", "--out", "@p.csv")


def folder_of_images(place):
    """7. A folder of images where a store belongs."""
    return stack(place, "fit", "@images", "--out", "@m")


def without_folds(place):
    """8. A store without folds."""
    return stack(place, "compare", "@unfolded")


def without_labels(place):
    """9. A store without labels."""
    return stack(place, "fit", "@bare", "--out", "@m")


def wrong_booster(place):
    """10. A booster's name misspelt."""
    return stack(place, "fit", "@store", "--out", "@m", "--booster", "lightbgm", "--quiet")


MISTAKES = {
    semicolons: r"semicolons: write it with commas",
    extensions: r"without the extension",
    misspelt: r"(did you mean|similar|efficientnet_lite0)",
    done_before: r"choose another --out, or --force",
    logits: r"[Aa]pply a sigmoid",
    swapped: r"Give the folder that PairStacker.save wrote",
    folder_of_images: r"cnn-extract run|stacker import",
    without_folds: r"store\.set_fold\(",
    without_labels: r"store\.set_labels",
    wrong_booster: r"\['lightgbm', 'xgboost'\]",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_message_says_what_to_do_next(mistake, place):
    """A new user stands before a message that says only what is wrong."""
    if mistake in (semicolons, extensions, misspelt, done_before):
        pytest.importorskip("torch")
    found = mistake(place)
    if isinstance(found, Exception):
        said = str(found)
    else:
        assert found.exit_code == 2, found.output
        said = found.stderr.strip()
        assert said.startswith("refused: ")
        assert len(said.splitlines()) == 1
    Path(place, f"{mistake.__name__}.txt").write_text(said)
    assert re.search(MISTAKES[mistake], said), said
    print(f"| {mistake.__doc__} | {said} |")
