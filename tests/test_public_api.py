"""Every public function and class of the libraries shows by example how it is used."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "stacker", "cnn_extract")
# What a module with this name exports is a command line, shown by its --help.
COMMANDS = {"cli.py", "commands.py"}
# The engine of `cnn_extract.train.run.train`: each is run by the example of `train`, and needs a
# whole training run around it.
ENGINE = {
    "Job", "TrainData", "Trainer", "TrunkFeed", "keep_activations", "load_data", "metadata_of",
    "train_network", "write_predictions",
}  # fmt: skip


def public_modules():
    """Source files of modules without a leading underscore in their path."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            private = any(part.startswith("_") and part != "__init__.py" for part in parts)
            if not private and path.name not in COMMANDS:
                yield path


def exported(tree):
    """Names in ``__all__`` of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return {entry.value for entry in node.value.elts}
    return set()


def definitions(path):
    """Public functions and classes that a module, or the private one it exports from, defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = exported(tree)
    trees = {path: tree}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and names & {a.name for a in node.names}:
            source = ROOT / Path(*node.module.split(".")).with_suffix(".py")
            if source.exists():
                trees[source] = ast.parse(source.read_text(encoding="utf-8"))
    for source, parsed in trees.items():
        for node in parsed.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                overload = any(getattr(d, "id", "") == "overload" for d in node.decorator_list)
                if not overload:
                    yield f"{source.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_every_public_function_and_class_has_an_example():
    """A docstring without a doctest: nobody sees how it is called, nothing checks that it works."""
    found = {name: node for path in public_modules() for name, node in definitions(path)}
    assert len(found) > 250
    bare = {
        node.name: name
        for name, node in found.items()
        if ">>>" not in (ast.get_docstring(node) or "")
    }
    assert bare.keys() - ENGINE == set(), bare
    assert bare.keys() >= ENGINE  # what has an example needs no exception
