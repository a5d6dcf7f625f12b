"""Results as DataFrames: pandas with ids in the index, polars with ids in a column."""

from __future__ import annotations

from typing import Any

import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from stacker._align import read_new

__all__ = ["LIBRARIES", "FrameMixin", "to_frame"]

LIBRARIES = ("pandas", "polars")
KINDS = ("proba", "sets")


def to_frame(values: Any, image_ids: NDArray[Any], classes: NDArray[Any], library: str) -> Any:
    """Make a DataFrame of a matrix (n_images, n_classes), dense or CSR.

    Raises
    ------
    ValueError
        For another library.

    Examples
    --------
    >>> import numpy as np
    >>> ids, classes = np.array(["i", "j"]), np.array(["a", "b"])
    >>> to_frame(np.eye(2, dtype=int), ids, classes, "pandas").loc["i"].to_dict()
    {'a': 1, 'b': 0}
    """
    if library not in LIBRARIES:
        raise ValueError(f"library must be of {LIBRARIES}. Got {library!r} instead.")
    dense = values.toarray() if sparse.issparse(values) else values
    if library == "pandas":
        index = pd.Index(image_ids, name="image_id")
        return pd.DataFrame(dense, index=index, columns=pd.Index(classes))
    import polars

    columns = {str(name): dense[:, c] for c, name in enumerate(classes)}
    return polars.DataFrame({"image_id": image_ids.tolist(), **columns})


class FrameMixin:
    """Gives a fitted stack `predict_frame`."""

    def predict_frame(self: Any, X: Any, kind: str = "proba", library: str = "pandas") -> Any:
        """Predictions as a DataFrame, images by classes.

        Parameters
        ----------
        X : as for `predict`
        kind : {"proba", "sets"}
        library : {"pandas", "polars"}
            pandas has the ids in the index, polars in the column ``image_id``.

        Raises
        ------
        ValueError
            For another `kind` or `library`.

        Examples
        --------
        >>> import numpy as np
        >>> from stacker import PairStacker
        >>> rng = np.random.default_rng(0)
        >>> Y = pd.DataFrame(rng.integers(0, 2, (60, 3)), columns=["cat", "dog", "owl"])
        >>> X = {m: 0.6 * Y + 0.4 * rng.random(Y.shape) for m in "ab"}
        >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
        >>> model.predict_frame(X, "sets").loc["0"].tolist() == Y.loc[0].tolist()
        True
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be of {KINDS}. Got {kind!r} instead.")
        stack = read_new(X, self.seen_)
        values = self.predict_proba(stack) if kind == "proba" else self.predict(stack)
        return to_frame(values, stack.image_ids, self.classes_, library)
