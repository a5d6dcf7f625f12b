"""`stacker import`: refuses and names the option where nobody can be asked; asks on a terminal."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from features import FeatureStore
from stacker import _import_command
from stacker.cli import app


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """Logits of two models, and labels."""
    Y = (rng.random((50, 6)) < 0.4).astype(np.int8)
    for model in ("a", "b"):
        np.save(tmp_path / f"{model}_oof.npy", 4 * Y - 2 + rng.normal(size=Y.shape))
    names = [" ".join(np.array(list("uvwxyz"))[row > 0]) for row in Y]
    pd.DataFrame({"id": range(50), "tags": names}).to_csv(tmp_path / "labels.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more):
    words = ["import", "a_oof.npy", "b_oof.npy", "--labels", "labels.csv", "--out", "store"]
    return CliRunner().invoke(app, [*words, *more])


def test_logits_are_refused_by_the_name_of_the_option_that_repairs_them(files):
    """A script hangs on a question, or a store of logits is written."""
    done = run()
    assert done.exit_code == 2
    assert "range: model 'a' has values from" in done.stderr
    assert "--logits" in done.stderr
    assert not (files / "store").exists()
    assert run("--logits", "--quiet").exit_code == 0
    assert FeatureStore.open("store").models == ["a", "b"]
    assert run("--logits").exit_code == 2  # it exists
    assert run("--logits", "--force").exit_code == 0


def test_context_joins_by_patterns_and_names(files, rng):
    """Most of the gain comes from embeddings, and a folder of arrays needed Python for them."""
    vectors = rng.normal(size=(60, 3))
    np.save("v_train.npy", vectors[:50])
    np.save("v_test.npy", vectors[50:])
    for model in "ab":
        np.save(f"{model}_test.npy", rng.normal(size=(10, 6)))
    rows = pd.Index([*range(50), *(f"test{i}" for i in range(10))], name="image_id")
    pd.DataFrame({"width": range(60)}, rows).to_csv("stats.csv")
    done = run(
        *("--test", "a_test.npy", "--test", "b_test.npy", "--logits"),
        *("--embeddings", "v_*.npy", "--imagenet-logits", "lite0=v_train.npy"),
        *("--image-stats", "stats.csv"),
    )
    assert done.exit_code == 2
    assert "imagenet_logits 'lite0' has 50 rows; there are 50 labelled and 10 test" in done.stderr
    done = run(
        *("--test", "a_test.npy", "--test", "b_test.npy", "--logits"),
        *("--embeddings", "v_*.npy", "--image-stats", "stats.csv"),
    )
    assert done.exit_code == 0, done.stderr
    assert "embeddings" in done.stdout
    stack = FeatureStore.open("store").to_stack()
    np.testing.assert_allclose(stack.embeddings["v"], vectors, rtol=1e-3)
    assert stack.image_stats["width"].tolist() == list(range(60))


def test_on_a_terminal_it_asks(files, monkeypatch):
    """The question names the mismatch; yes repairs it, no refuses."""
    asked = []
    monkeypatch.setattr(_import_command, "_ask", lambda text: asked.append(text) or True)
    assert run().exit_code == 0
    assert "shall a sigmoid be applied" in asked[0]
    monkeypatch.setattr(_import_command, "_ask", lambda text: False)
    assert run("--force").exit_code == 2


def test_nobody_is_asked_without_a_terminal():
    """Under cron or in CI the answer is no."""
    assert _import_command._ask("Repair it?") is False


def test_the_shell_completes_commands():
    """`stacker im<tab>` finds the command, in bash as Typer's own completion does it."""
    asked = {"_STACKER_COMPLETE": "complete_bash", "COMP_WORDS": "stacker im", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, [], prog_name="stacker", env=asked)
    assert done.output.split() == ["import"]
