"""Newton's method for the pooled and the per-class logistic blend."""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

STEPS = 12
RIDGE = 1e-3  # keeps the pooled Hessian regular where two models agree everywhere


def fit_pooled(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fit one logistic regression over all pairs.

    Parameters
    ----------
    logits : float32 array of shape (n_models, n_images, n_classes)
    labels : float32 array of shape (n_images, n_classes), 0/1

    Returns
    -------
    float64 array of shape (n_models + 1,)
        Weights, then the intercept.
    """
    flat = logits.reshape(1, logits.shape[0], -1).transpose(1, 0, 2)
    start = np.append(np.full(len(logits), 1 / len(logits)), 0.0)
    own = labels.reshape(1, -1)
    return fit_per_class(flat, own, np.ones_like(own), start, RIDGE)[0]


def fit_per_class(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weight: NDArray[np.float32],
    prior: NDArray[np.float64],
    precision: float,
) -> NDArray[np.float64]:
    """Fit each class's weights, with a Gaussian prior around `prior`.

    Parameters
    ----------
    logits : float32 array of shape (n_models, n_classes, n_images)
    labels : float32 array of shape (n_classes, n_images), 0/1
    weight : float32 array of shape (n_classes, n_images)
        How many images a pair speaks for.
    prior : float64 array of shape (n_models + 1,)
    precision : float
        Of the prior, the same for every weight.

    Returns
    -------
    float64 array of shape (n_classes, n_models + 1)
    """
    coef = np.tile(prior, (labels.shape[0], 1))
    given = (np.ascontiguousarray(values) for values in (logits, labels, weight))
    _newton(*given, prior, precision, coef)
    return coef


@njit(parallel=True, cache=True)
def _newton(logits, labels, weight, prior, precision, coef):  # type: ignore[no-untyped-def]
    """Run damped Newton steps for every class, in place."""
    n_models = logits.shape[0]
    width = n_models + 1
    for c in prange(len(labels)):
        x = np.ones(width)
        previous = _objective(logits, labels, weight, prior, precision, c, coef[c])
        for _ in range(STEPS):
            gradient = precision * (coef[c] - prior)
            hessian = np.zeros((width, width))
            for a in range(width):
                hessian[a, a] = precision
            for i in range(labels.shape[1]):
                n = weight[c, i]
                if n == 0.0:
                    continue
                z = coef[c, n_models]
                for m in range(n_models):
                    x[m] = logits[m, c, i]
                    z += coef[c, m] * x[m]
                p = 1.0 / (1.0 + np.exp(-z))
                residual = n * (p - labels[c, i])
                curvature = n * p * (1.0 - p)
                for a in range(width):
                    gradient[a] += residual * x[a]
                    for b in range(a + 1):
                        hessian[a, b] += curvature * x[a] * x[b]
            step = solve_positive(hessian, gradient)
            # Halve until it helps: a full step can overshoot on nearly separable classes.
            scale = 1.0
            value = _objective(logits, labels, weight, prior, precision, c, coef[c] - step)
            while value > previous and scale > 1e-3:
                scale *= 0.5
                there = coef[c] - scale * step
                value = _objective(logits, labels, weight, prior, precision, c, there)
            if value >= previous - 1e-9 * abs(previous):
                break
            coef[c] -= scale * step
            previous = value


@njit(cache=True)
def solve_positive(matrix, right):  # type: ignore[no-untyped-def]
    """Solve a small positive definite system by Cholesky, in place of its lower triangle.

    LAPACK's solver gives the same and takes long to compile.
    """
    n = len(right)
    x = right.copy()
    for a in range(n):
        for b in range(a + 1):
            value = matrix[a, b]
            for k in range(b):
                value -= matrix[a, k] * matrix[b, k]
            matrix[a, b] = value / matrix[b, b] if b < a else np.sqrt(max(value, 1e-300))
    for a in range(n):
        for k in range(a):
            x[a] -= matrix[a, k] * x[k]
        x[a] /= matrix[a, a]
    for a in range(n - 1, -1, -1):
        for k in range(a + 1, n):
            x[a] -= matrix[k, a] * x[k]
        x[a] /= matrix[a, a]
    return x


@njit(cache=True)
def _objective(logits, labels, weight, prior, precision, c, weights):  # type: ignore[no-untyped-def]
    """Penalised log loss (sum, nats) of one class."""
    n_models = logits.shape[0]
    total = 0.0
    for a in range(n_models + 1):
        total += 0.5 * precision * (weights[a] - prior[a]) ** 2
    for i in range(labels.shape[1]):
        if weight[c, i] == 0.0:
            continue
        z = weights[n_models]
        for m in range(n_models):
            z += weights[m] * logits[m, c, i]
        total += weight[c, i] * (max(z, 0.0) - labels[c, i] * z + np.log1p(np.exp(-abs(z))))
    return total
