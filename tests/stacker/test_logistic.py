"""The small solver behind the logistic blends, against LAPACK."""

import numpy as np
import pytest

from stacker._logistic import solve_positive


@pytest.mark.parametrize("n", [1, 2, 7, 13])
def test_the_small_solver_equals_lapack(n):
    """A wrong step of Newton's method still ends near the optimum, only later."""
    rng = np.random.default_rng(n)
    half = rng.normal(size=(n, n))
    matrix, right = half @ half.T + 1e-3 * np.eye(n), rng.normal(size=n)
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(solve_positive(np.tril(matrix), right), expected, rtol=1e-6)
