"""Notebooks are committed with their outputs, hold no logic, and end with what they show."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

import stacker.datasets
from stacker import fbeta_score

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_quickstart",
    "02_from_images",
    "03_imet_recipe",
    "04_decisions",
    "05_tuning_and_explaining",
    "06_domain_shift",
    "07_thirty_thousand_classes",
    "08_scikit_learn",
)
LARGEST = 400_000


def code_cells(name):
    """Code cells of a notebook."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def python_of(cell):
    """Source of a cell without shell lines and magics."""
    lines = "".join(cell["source"]).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("!", "%")))


def test_every_notebook_is_listed():
    """A notebook that nobody looks at."""
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_run_top_to_bottom_without_error(name):
    """Outputs are of another run, or missing."""
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_no_warning_and_no_path_of_the_machine(name):
    """Readers see log lines to stderr, and a temporary folder that is another one every time."""
    outputs = [output for cell in code_cells(name) for output in cell["outputs"]]
    assert "stderr" not in [output.get("name") for output in outputs]
    for output in outputs:
        shown = {"text": output.get("text", "")} | output.get("data", {})
        text = str({kind: part for kind, part in shown.items() if not kind.startswith("image/")})
        assert not re.search(r"/(tmp|home|root|Users|var|work)/|site-packages|Warning", text)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_ends_with_a_picture_or_a_table(name):
    """It makes no point that one can see."""
    shown = [output.get("data", {}) for output in code_cells(name)[-1]["outputs"]]
    assert any("image/png" in data or "text/html" in data for data in shown)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_defines_no_logic(name):
    """Functions and classes belong in the packages, where they are tested."""
    banned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.If)
    for cell in code_cells(name):
        found = [n for n in ast.walk(ast.parse(python_of(cell))) if isinstance(n, banned)]
        assert not found, ast.unparse(found[0])


# What a notebook has found in the end; noise must score there like the prior.
SCORES = {
    "01_quickstart": lambda names: names["found"].table.scores["f2_samples"],
    "03_imet_recipe": lambda names: names["table"].drop(columns="columns").stack(),
    "04_decisions": lambda names: names["table"]["F2 samples"],
    "06_domain_shift": lambda names: names["table"]["F2 (samples)"][0.0],
    "08_scikit_learn": lambda names: names["table"]["mean"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORES)
def test_noise_as_labels_scores_like_the_prior(name, monkeypatch):
    """A notebook that scores what it was fitted on teaches its readers to."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    data = stacker.datasets.load_openclipart_oof()
    data.labels = data.labels[np.random.default_rng(0).permutation(data.labels.shape[0])]
    monkeypatch.setattr(stacker.datasets, "load_openclipart_oof", lambda: data)
    names = {}
    for cell in code_cells(name):
        exec(python_of(cell), names)
    pyplot.close("all")
    labels = csr_array(names["Y"]) if name == "08_scikit_learn" else data.labels
    found = np.asarray(SCORES[name](names), dtype=float)
    assert len(found) >= 3
    # The best set for all images knows nothing of any; 0.015 is a standard error of 320 images.
    often = np.argsort(-labels.sum(axis=0), kind="stable")
    sets = (np.isin(np.arange(labels.shape[1]), often[:k]) for k in range(1, 30))
    prior = max(fbeta_score(labels, np.tile(s, (labels.shape[0], 1)).astype(int)) for s in sets)
    assert found.max() < prior + 0.045
