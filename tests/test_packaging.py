"""What the source archive holds belongs together."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_sdist_holds_no_test_of_a_folder_that_it_leaves_out():
    """Tests of docs and notebooks failed for everybody who unpacked the archive without them."""
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    left_out = [line.split()[1] for line in lines if line.startswith("prune")]
    excluded = {name for line in lines if line.startswith("exclude") for name in line.split()[1:]}
    assert {"docs", "notebooks", "benchmarks"} <= set(left_out)
    looks_at = re.compile(rf'/ "({"|".join(left_out)})"|from tests.reliability.errors import')
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if looks_at.search(path.read_text(encoding="utf-8")) and path != Path(__file__):
            assert name in excluded, name
    assert all((ROOT / name).is_file() for name in excluded)
