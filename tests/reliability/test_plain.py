"""The kernels as plain Python give what they give compiled.

numba reads and writes beyond an array's end without a word; Python stops there.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("plain.py")
ROOT = Path(__file__).parents[2]


def run(out, **setting):
    """Run the script in a process with some settings; the arrays it wrote."""
    done = subprocess.run(
        [sys.executable, SCRIPT, out],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **setting},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out) as found:
        return dict(found)


def test_plain_python_gives_what_compiled_kernels_give(tmp_path):
    """An index beyond the end, or an integer that wraps, is a wrong number that nobody sees."""
    plain = run(tmp_path / "plain.npz", NUMBA_DISABLE_JIT="1")
    compiled = run(tmp_path / "compiled.npz")
    assert plain.keys() == compiled.keys()
    for name, values in plain.items():
        # Fused multiply-adds of compiled code round once.
        np.testing.assert_allclose(values, compiled[name], rtol=1e-4, atol=1e-5, err_msg=name)
