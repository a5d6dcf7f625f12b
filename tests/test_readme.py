"""README's Python blocks run as a reader would paste them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.load_slice import load_slice

README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A folder with the files a reader would have: OOF arrays per model and a labels CSV."""
    data = load_slice()
    known, new = slice(0, 240), slice(240, 300)
    for name, probs in zip(("se101", "pnas"), data["probabilities"][[0, 4]], strict=True):
        np.save(tmp_path / f"{name}_oof.npy", probs[known])
        np.save(tmp_path / f"{name}_test.npy", probs[new])
    names = [" ".join(data["classes"][row > 0]) for row in data["labels"][known]]
    labels = pd.DataFrame({"image_id": data["image_id"][known], "labels": names})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "classes.txt").write_text("\n".join(data["classes"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_readme_python_blocks_run_in_order(own_files):
    """A reader who pastes README's code into a fresh session gets no error."""
    blocks = python_blocks()
    assert blocks, "README shows no Python example"
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
