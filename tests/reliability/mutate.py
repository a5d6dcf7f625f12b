"""Mutation testing: cosmic-ray's changes of a file, each in a copy of the sources, its tests on it.

Imports once and forks a child for each mutant. numba runs as plain Python: compiled anew for each
mutant it would take most of the time. Changes that are none (of annotations, of numba's
decorators) are left out. Usage: ``python tests/reliability/mutate.py NUMBER [FILE ...]``; NUMBER
mutants of each file, drawn with a seed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("cnn_extract", "features", "stacker", "tests", "pyproject.toml")
TARGETS = {
    "features/combinations.py": [
        "tests/features/test_combinations.py",
        "tests/features/blocks/test_combinations.py",
    ],
    "stacker/fbeta.py": ["tests/stacker/test_fbeta.py"],
    "stacker/decision.py": [
        "tests/stacker/test_decision.py",
        "tests/stacker/test_threshold_search.py",
        "tests/stacker/test_decision_gains.py",
    ],
    "features/store.py": [
        "tests/features/test_store_tables.py",
        "tests/features/test_store.py",
        "tests/features/test_store_rows.py",
        "tests/features/test_store_values.py",
    ],
}
# Without numba these take longer than all the others together.
LEFT_OUT = (
    "test_fbeta.py::test_many_likely_labels_fall_back_to_all_candidates",
    "test_threshold_search.py::test_leaving_pairs_out_changes_no_threshold[too high-group",
    "test_decision_gains.py::test_expected_sets_win",
    "test_decision_gains.py::test_shrunk_class_thresholds_beat_raw_and_global",
    "test_store_rows.py::test_a_process_killed_outright",
)
HEAVY = ("hypothesis", "numba", "numpy", "pandas", "pyarrow.parquet", "pytest", "scipy.sparse")
HEAVY += ("scipy.special", "sklearn.ensemble", "typer", "xarray", "zarr")
SLOWEST = 10.0  # times the tests' own time


def main() -> None:
    """Mutate each file, and print how many of the mutants a test has found."""
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # before numba is imported, and in this program only
    number, files = int(sys.argv[1]), sys.argv[2:] or list(TARGETS)
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        os.chdir(folder)
        # The installed package is the original.
        sys.path.insert(0, folder)
        for file in files:
            mutate(file, number)


def mutate(file: str, number: int) -> None:
    """Try some mutants of a file."""
    import cosmic_ray.plugins
    from cosmic_ray.commands.init import _all_work_items
    from cosmic_ray.mutating import use_mutation

    begun = time.monotonic()
    assert passes(file, 600.0), f"the tests of {file} fail without a mutant"
    limit = max(30.0, SLOWEST * (time.monotonic() - begun))
    items = list(_all_work_items([Path(file)], {}))
    random.Random(0).shuffle(items)
    survived, n_tried = [], 0
    for item in items:
        (spec,) = item.mutations
        operator = cosmic_ray.plugins.get_operator(spec.operator_name)(**dict(spec.operator_args))
        with use_mutation(Path(file), operator, spec.occurrence) as (before, after):
            if after is None or meaning(before) == meaning(after):
                continue
            n_tried += 1
            if passes(file, limit):
                survived.append(f"{file}:{spec.start_pos[0]} {spec.operator_name}")
        if n_tried == number:
            break
    print(f"{file}: {n_tried - len(survived)} of {n_tried} mutants found", flush=True)
    print("\n".join(f"  survived {where}" for where in sorted(survived)), flush=True)


class _Bare(ast.NodeTransformer):
    """Leaves out what changes nothing: annotations, docstrings, numba's decorators."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        node.decorator_list = [d for d in node.decorator_list if "njit" not in ast.unparse(d)]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(0)
        return node


def meaning(source: str) -> str:
    """What a source does, as text; sources that differ in annotations alone have the same."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return source


def passes(file: str, limit: float) -> bool:
    """Whether the tests of a file pass, in a child that ends after some seconds."""
    process = os.fork()
    if not process:
        os.setpgid(0, 0)
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        import pytest

        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
        # Plain Python warns of a division by zero that compiled code computes.
        options += ["-W", "ignore::RuntimeWarning"]
        options += [f"--deselect=tests/stacker/{name}" for name in LEFT_OUT]
        options += [f"--deselect=tests/features/{name}" for name in LEFT_OUT]
        code = 1
        with contextlib.suppress(BaseException):
            code = pytest.main([*options, *TARGETS[file]])
        os._exit(0 if code == 0 else 1)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


if __name__ == "__main__":
    main()
