"""The openclipart data set: human-drawn clip art with folksonomy tags."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.utils import Bunch

from stacker.datasets._subset import stratified_subset

__all__ = ["load_openclipart", "openclipart_archive", "read_images"]

LICENCE = "Public domain (only drawings whose own SVG metadata says so)."


def openclipart_archive() -> Path:
    """Path of the zip file that ships with the package.

    It holds ``labels.csv``, ``meta.csv``, ``README.md`` and ``images/<image_id>.webp``.

    Examples
    --------
    >>> openclipart_archive().name
    'openclipart.zip'
    """
    return Path(__file__).parent / "data" / "openclipart.zip"


def load_openclipart(
    n_images: int | None = None,
    *,
    min_images: int = 1,
    return_images: bool = False,
    sparse: bool = True,
    random_state: int = 0,
) -> Any:
    """Load the openclipart data set (multi-label image tagging).

    =====================  ==================================================
    Images                 5,223 drawings, longest side at most 224 pixels
    Classes                488 in three groups: category, creator, tag
    Labels an image        6.52 on average, at least one
    Split groups           4,395 clusters of near-duplicates
    Licence                public domain
    =====================  ==================================================

    Parameters
    ----------
    n_images : int or None, default None
        Number of images: a deterministic subset stratified by label that keeps split groups
        whole as far as the number allows. None loads all.
    min_images : int, default 1
        Classes with fewer images than this in the subset are left out of `labels` and
        `classes`. The whole set has at least 5 images a class.
    return_images : bool, default False
        Decode the images, too (needs pillow: ``pip install 'pairstack[cnn]'``). Otherwise
        `images` is None; `archive` and `members` say where to find them.
    sparse : bool, default True
        Give `labels` as a scipy CSR array; False gives a dense array.
    random_state : int, default 0
        Which of the possible subsets; the same number gives the same images.

    Returns
    -------
    sklearn.utils.Bunch
        image_ids : str array of shape (n_images,)
        labels : int8 csr_array (or ndarray) of shape (n_images, n_classes)
        classes : str array of shape (n_classes,), as ``group::name``
        class_group : str array of shape (n_classes,)
        split_group : str array of shape (n_images,); images of one group must not part
        metadata : DataFrame with the original size, title and source path of each image
        archive : pathlib.Path of the zip file
        members : list of str, the images' names inside it
        images : list of uint8 arrays of shape (height, width, 3), or None
        DESCR : str, the full description; licence : str

    Raises
    ------
    ValueError
        If `n_images` is not between 1 and 5,223.

    Notes
    -----
    Source: Debian packages openclipart-png and openclipart-svg (Open Clip Art Library).

    Examples
    --------
    >>> from stacker.datasets import load_openclipart
    >>> data = load_openclipart(n_images=100)
    >>> data.labels.shape, sorted({str(name) for name in data.class_group})
    ((100, 488), ['category', 'creator', 'tag'])
    """
    archive = openclipart_archive()
    with ZipFile(archive) as bundle:
        description = bundle.read("README.md").decode("utf-8")
        metadata = _read_metadata(bundle)
        image_ids, labels, classes = _read_labels(bundle)
    if n_images is not None:
        groups = metadata["split_group"].to_numpy()
        rows = stratified_subset(labels, groups, n_images, random_state=random_state)
        image_ids, labels, metadata = image_ids[rows], labels[rows], metadata.iloc[rows]
    frequent = np.asarray((labels != 0).sum(axis=0)).ravel() >= min_images
    # With min_images=1 a subset keeps all classes, seen or not: shapes do not depend on luck.
    columns = np.flatnonzero(frequent) if min_images > 1 else np.arange(len(classes))
    labels, classes = csr_array(labels[:, columns]), classes[columns]
    data = Bunch(
        image_ids=image_ids,
        labels=labels if sparse else labels.toarray(),
        classes=classes,
        class_group=np.array([name.split("::")[0] for name in classes]),
        split_group=metadata["split_group"].to_numpy(dtype=str),
        metadata=metadata.drop(columns="split_group"),
        archive=archive,
        members=[f"images/{name}.webp" for name in image_ids],
        images=None,
        DESCR=description,
        licence=LICENCE,
    )
    if return_images:
        data.images = list(read_images(archive, data.members))
    return data


def read_images(archive: Path, members: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
    """Decode images out of a zip file, one after the other.

    Parameters
    ----------
    archive : pathlib.Path
        The zip file.
    members : iterable of str
        Names inside it.

    Yields
    ------
    uint8 array of shape (height, width, 3)

    Raises
    ------
    ModuleNotFoundError
        If pillow is not installed.

    Examples
    --------
    >>> data = load_openclipart(n_images=2)
    >>> [image.shape[2] for image in read_images(data.archive, data.members)]
    [3, 3]
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Decoding images needs pillow, which is not installed: pip install 'pairstack[cnn]'"
        ) from error
    with ZipFile(archive) as bundle:
        for member in members:
            data = io.BytesIO(bundle.read(member))
            with Image.open(data, formats=("PNG", "JPEG", "WEBP")) as image:
                yield np.asarray(image.convert("RGB"), dtype=np.uint8)


def _read_metadata(bundle: ZipFile) -> pd.DataFrame:
    with bundle.open("meta.csv") as file:
        frame = pd.read_csv(file, dtype={"image_id": str, "split_group": str, "title": str})
    return frame.set_index("image_id")


def _read_labels(bundle: ZipFile) -> tuple[NDArray[np.str_], csr_array, NDArray[np.str_]]:
    """Image ids, CSR label matrix and sorted class names of ``labels.csv``."""
    with bundle.open("labels.csv") as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    names = [row["labels"].split() for row in rows]
    classes, columns = np.unique(np.concatenate(names), return_inverse=True)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in names])])
    ones = np.ones(len(columns), dtype=np.int8)
    labels = csr_array((ones, columns, indptr), shape=(len(rows), len(classes)))
    labels.sort_indices()
    return np.array([row["image_id"] for row in rows]), labels, classes
