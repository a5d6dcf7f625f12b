"""One label per image and one image per class, within each domain."""

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from stacker._inputs import check_probs
from stacker._splits import group_codes

__all__ = ["assign_one_to_one"]


def assign_one_to_one(proba: ArrayLike, domains: ArrayLike | None = None) -> NDArray[np.int64]:
    """Give each image of a domain a class of its own, the most probable way overall.

    Where a domain (a plate, an experiment) holds every class at most once, the assignment that
    maximises the product of probabilities beats the most probable class of each image. Used on
    plates by the top systems of Recursion Cellular Image Classification (2019).

    Parameters
    ----------
    proba : array-like or sparse matrix of shape (n_images, n_classes)
        Probabilities in [0, 1].
    domains : array-like of shape (n_images,) or None
        Domain of each image; one domain when None. With more images than classes in a domain,
        each class may be used ceil(n_images / n_classes) times.

    Returns
    -------
    int64 array of shape (n_images,)
        Class position of each image.

    Examples
    --------
    >>> from stacker.decision import assign_one_to_one
    >>> assign_one_to_one([[0.9, 0.8], [0.9, 0.1]]).tolist()
    [1, 0]
    """
    probs = check_probs(proba, dtype=np.float64)
    n_images, n_classes = probs.shape
    if n_images and not n_classes:
        raise ValueError(f"proba must have at least one class. Got shape {probs.shape}.")
    codes = np.zeros(n_images, np.intp) if domains is None else group_codes(domains, n_images)
    assigned = np.zeros(n_images, np.int64)
    for code in np.unique(codes):
        mine = np.flatnonzero(codes == code)
        block = probs[mine].toarray() if sp.issparse(probs) else probs[mine]
        repeats = -(-len(mine) // n_classes)
        gain = np.log(np.maximum(np.tile(block, (1, repeats)), 1e-300))
        assigned[mine] = linear_sum_assignment(gain, maximize=True)[1] % n_classes
    return assigned
