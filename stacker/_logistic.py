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
    n_models = len(logits)
    flat = logits.reshape(n_models, 1, -1).transpose(1, 2, 0)
    own = labels.reshape(1, -1)
    start = np.append(np.full(n_models, 1 / n_models), 0.0)
    return fit_per_class(flat, own, np.ones_like(own), start, RIDGE)[0]


def fit_per_class(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weight: NDArray[np.float32],
    prior: NDArray[np.float64],
    precision: float,
) -> NDArray[np.float64]:
    """Fit each class's weights on the same number of images, with a Gaussian prior.

    Parameters
    ----------
    logits : float32 array of shape (n_classes, n_images, n_models)
    labels : float32 array of shape (n_classes, n_images), 0/1
    weight : float32 array of shape (n_classes, n_images)
        How many images a pair speaks for.
    prior : float64 array of shape (n_models + 1,)
        Its mean.
    precision : float
        Of the prior, the same for every weight.

    Returns
    -------
    float64 array of shape (n_classes, n_models + 1)
    """
    n_classes, n_images, n_models = logits.shape
    flat = logits.reshape(-1, n_models), labels.reshape(-1), weight.reshape(-1)
    return fit_pairs(*flat, np.arange(n_classes + 1) * n_images, prior, precision)


def fit_pairs(
    logits: NDArray[np.float32],
    labels: NDArray[np.floating],
    weight: NDArray[np.floating],
    starts: NDArray[np.int64],
    prior: NDArray[np.float64],
    precision: float,
) -> NDArray[np.float64]:
    """Fit each class's weights on its own pairs, with a Gaussian prior.

    Parameters
    ----------
    logits : float32 array of shape (n_pairs, n_models)
        Sorted by class.
    labels, weight : float array of shape (n_pairs,)
    starts : int64 array of shape (n_classes + 1,)
        Class c has the pairs from starts[c] up to starts[c + 1].
    prior, precision
        As in `fit_per_class`.

    Returns
    -------
    float64 array of shape (n_classes, n_models + 1)
    """
    coef = np.tile(prior, (len(starts) - 1, 1))
    given = (np.ascontiguousarray(values) for values in (logits, labels, weight, starts))
    _newton(*given, prior, precision, coef)
    return coef


@njit(parallel=True, cache=True)
def _newton(logits, labels, weight, starts, prior, precision, coef):  # type: ignore[no-untyped-def]
    """Run damped Newton steps for every class, in place."""
    n_models = logits.shape[1]
    width = n_models + 1
    for c in prange(len(coef)):
        own = slice(starts[c], starts[c + 1])
        given = (logits[own], labels[own], weight[own], prior, precision)
        x = np.ones(width)
        previous = _objective(*given, coef[c])
        for _ in range(STEPS):
            gradient = precision * (coef[c] - prior)
            hessian = np.zeros((width, width))
            for a in range(width):
                hessian[a, a] = precision
            for i in range(starts[c], starts[c + 1]):
                n = weight[i]
                if n == 0.0:
                    continue
                z = coef[c, n_models]
                for m in range(n_models):
                    x[m] = logits[i, m]
                    z += coef[c, m] * x[m]
                p = 1.0 / (1.0 + np.exp(-z))
                residual = n * (p - labels[i])
                curvature = n * p * (1.0 - p)
                for a in range(width):
                    gradient[a] += residual * x[a]
                    for b in range(a + 1):
                        hessian[a, b] += curvature * x[a] * x[b]
            step = solve_positive(hessian, gradient)
            # Halve until it helps: a full step can overshoot on nearly separable classes.
            scale = 1.0
            value = _objective(*given, coef[c] - step)
            while value > previous and scale > 1e-3:
                scale *= 0.5
                value = _objective(*given, coef[c] - scale * step)
            if value >= previous - 1e-9 * abs(previous):
                break
            coef[c] -= scale * step
            previous = value


@njit(cache=True)
def _objective(logits, labels, weight, prior, precision, weights):  # type: ignore[no-untyped-def]
    """Penalised log loss (sum, nats) of one class."""
    n_models = logits.shape[1]
    total = 0.0
    for a in range(n_models + 1):
        total += 0.5 * precision * (weights[a] - prior[a]) ** 2
    for i in range(len(logits)):
        if weight[i] == 0.0:
            continue
        z = weights[n_models]
        for m in range(n_models):
            z += weights[m] * logits[i, m]
        total += weight[i] * (max(z, 0.0) - labels[i] * z + np.log1p(np.exp(-abs(z))))
    return total


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
