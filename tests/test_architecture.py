"""Imports run one way, and nothing that runs code out of a file comes in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cnn_extract", "features", "stacker")
UNSAFE = {"pickle", "_pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
DEEP = {"torch", "torchvision", "timm", "accelerate", "safetensors"}
BOOSTERS = {"lightgbm", "xgboost", "optuna"}
# The rooms of features that cnn_extract may enter; the private ones are the store's own.
STORE_ROOMS = {"features.store", "features.schema", "features.folds"}
# How a command logs and ends is the same for all three; see docs/design.md.
SHARED = {"features._console"}


def modules_of(package):
    """List every source file of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path):
    """Give every module that a file imports, anywhere in it, with its line.

    ``from a import b`` counts as both a and a.b: b may be a module. Imports by a constant name
    (``importlib.import_module("x")``, ``__import__("x")``) count too.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            yield node.args[0].value, node.lineno


def _imports_by_name(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    first = call.args[0] if call.args else None
    return name in ("import_module", "__import__") and isinstance(
        getattr(first, "value", None), str
    )


def found(package, forbidden):
    """List what a package imports of the forbidden, by top-level name."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules_of(package)
        for name, line in imports_of(path)
        if name.split(".")[0] in forbidden
    ]


def public_modules():
    """Modules of features by dotted name, without the packages themselves."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in modules_of("features"))
    return {".".join(path.parts) for path in paths if path.name != "__init__"}


def test_every_package_is_seen():
    """The tests below pass because they look at no file."""
    assert all(len(modules_of(package)) > 3 for package in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_imports_what_runs_code_out_of_a_file(package):
    """A model or store from a stranger could run code."""
    assert found(package, UNSAFE) == []


def test_features_import_neither_their_neighbours_nor_networks_nor_boosters():
    """The middle storey stops being usable by itself."""
    assert found("features", {"stacker", "cnn_extract"} | DEEP | BOOSTERS) == []


def test_stacker_imports_neither_cnn_extract_nor_networks():
    """Torch and LightGBM load in one process: their OpenMP runtimes clash."""
    assert found("stacker", {"cnn_extract"} | DEEP) == []


def test_cnn_extract_imports_no_stacker_and_no_booster():
    """The first storey depends on the third."""
    assert found("cnn_extract", {"stacker"} | BOOSTERS) == []


def test_cnn_extract_enters_features_by_the_store_alone():
    """Extraction starts to depend on blocks or rows."""
    rooms = public_modules()
    entered = {
        f"{path.relative_to(ROOT)}:{line}": name
        for path in modules_of("cnn_extract")
        for name, line in imports_of(path)
        if name in rooms or (name.split(".")[0] == "features" and name.count(".") == 0)
    }
    allowed = STORE_ROOMS | SHARED | store_private_rooms()
    assert {where: name for where, name in entered.items() if name not in allowed} == {}


def store_private_rooms():
    """Private modules that the store's own modules import, and those that these import."""
    reached, new = set(), set(STORE_ROOMS)
    while new:
        reached |= new
        paths = [ROOT / Path(*name.split(".")).with_suffix(".py") for name in new]
        names = {name for path in paths for name, _ in imports_of(path)}
        new = {n for n in names & public_modules() if n.startswith("features._")} - reached
    return reached


def test_the_import_reader_sees_every_form(tmp_path):
    """An import inside a function, or by a string, goes unseen."""
    path = tmp_path / "a.py"
    path.write_text(
        "import numpy as np\n"
        "def f():\n"
        "    from features import store\n"
        "    import importlib\n"
        "    importlib.import_module('pickle')\n"
    )
    assert {name for name, _ in imports_of(path)} == {
        "numpy",
        "features",
        "features.store",
        "importlib",
        "pickle",
    }


def loaded_after(statement):
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_torch_stays_out_of_the_upper_storeys():
    """`import stacker, features` loads torch through some dependency."""
    assert loaded_after("import stacker, features") & (DEEP | {"cnn_extract"}) == set()


def test_boosters_stay_out_of_the_lower_storeys():
    """Building pair rows or extracting loads LightGBM, which clashes with torch."""
    loaded = loaded_after("import features, features.cli, features.store, cnn_extract")
    assert loaded & (BOOSTERS | {"stacker"}) == set()
