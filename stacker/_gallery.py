"""Held-out images for people to look at: what the stack changed, for better and for worse."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stacker.fbeta import fbeta_per_image

__all__ = ["Card", "data_uri", "gallery", "thumbnail_uri"]

# Formats that every browser shows, by their first bytes; SVG is left out, it can hold scripts.
SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
MAX_BYTES, SMALL_BYTES = 150_000, 30_000
# What a thumbnail is made of: Pillow knows more, and hands PostScript to a program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")


@dataclass(frozen=True)
class Card:
    """One image: its labels, and what the stack added and removed against the blend.

    Attributes
    ----------
    image_id : str
    picture : str
        A ``data:`` URI, or "" when there is no picture to show.
    score, blend_score : float
        F-beta of the stack's and of the blend's labels on this image.
    true, added, removed, kept : list of (name, is_right)
        Labels; right means that adding (removing, keeping) it agrees with the truth.
    missed : list of str
        True labels that neither found.
    """

    image_id: str
    picture: str
    score: float
    blend_score: float
    true: list[str]
    kept: list[tuple[str, bool]]
    added: list[tuple[str, bool]]
    removed: list[tuple[str, bool]]
    missed: list[str]


def gallery(
    image_ids: NDArray[np.str_],
    Y: csr_array,
    stack_sets: csr_array,
    blend_sets: csr_array,
    classes: NDArray[np.str_],
    *,
    read_image: Callable[[str], bytes | None] | None = None,
    beta: float = 2.0,
    n_cards: int = 12,
) -> list[Card]:
    """Cards of the images whose score changed most: half gains, a quarter losses, the rest any.

    Parameters
    ----------
    image_ids : str array of shape (n_images,)
    Y, stack_sets, blend_sets : csr_array of shape (n_images, n_classes)
    classes : str array of shape (n_classes,)
    read_image : callable, optional
        Gives the file of an image id, or None when there is none.
    n_cards : int, default 12

    Returns
    -------
    list of Card
        Gains first, then losses, then the rest.
    """
    ours = fbeta_per_image(Y, stack_sets, beta=beta)
    theirs = fbeta_per_image(Y, blend_sets, beta=beta)
    changed = np.asarray(abs(stack_sets - blend_sets).sum(axis=1)).ravel() > 0
    cards = []
    for i in _pick(ours - theirs, changed, n_cards):
        file = read_image(str(image_ids[i])) if read_image else None
        truth, stack, blend = (_names(m, i, classes) for m in (Y, stack_sets, blend_sets))
        cards.append(
            Card(
                image_id=str(image_ids[i]),
                picture=data_uri(file),
                score=float(ours[i]),
                blend_score=float(theirs[i]),
                true=sorted(truth),
                kept=[(name, name in truth) for name in sorted(stack & blend)],
                added=[(name, name in truth) for name in sorted(stack - blend)],
                removed=[(name, name not in truth) for name in sorted(blend - stack)],
                missed=sorted(truth - stack - blend),
            )
        )
    return cards


def _pick(gain: NDArray[np.float64], changed: NDArray[np.bool_], n: int) -> list[int]:
    """Half the largest gains, a quarter the largest losses, the rest evenly over the order."""
    order = np.argsort(-gain, kind="stable")
    ups = [int(i) for i in order if gain[i] > 0][: n // 2]
    downs = [int(i) for i in order[::-1] if gain[i] < 0][: n // 4]
    pool = [int(i) for i in order if i not in {*ups, *downs}]
    pool = [i for i in pool if changed[i]] + [i for i in pool if not changed[i]]
    n_rest = min(n - len(ups) - len(downs), len(pool))
    head = pool[: max(n_rest, int(changed.sum()) - len(ups) - len(downs))]
    spread = np.linspace(0, max(len(head) - 1, 0), n_rest).astype(int)
    return ups + downs + [head[k] for k in spread]


def _names(matrix: Any, row: int, classes: NDArray[np.str_]) -> set[str]:
    cells = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return {str(classes[c]) for c in matrix.indices[cells][matrix.data[cells] != 0]}


def data_uri(file: bytes | None) -> str:
    """Give an image file as a ``data:`` URI; "" for anything a browser would not show.

    Large files are shrunk where pillow is installed, and left out where it is not.

    Examples
    --------
    >>> data_uri(b"GIF89a")
    'data:image/gif;base64,R0lGODlh'
    >>> data_uri(b"<svg onload=alert(1)>"), data_uri(None)
    ('', '')
    """
    if file is None:
        return ""
    mime = next((m for head, m in SIGNATURES.items() if file.startswith(head)), None)
    if mime is None or len(file) > MAX_BYTES:
        file, mime = _thumbnail(file), "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(file).decode('ascii')}" if file else ""


def thumbnail_uri(file: bytes | None, side: int = 160) -> str:
    """Give an image file as a small ``data:`` URI; without pillow, only if the file is small.

    Examples
    --------
    >>> thumbnail_uri(None), thumbnail_uri(b"<svg onload=alert(1)>")
    ('', '')
    """
    if file is None:
        return ""
    small = _thumbnail(file, side) or (file if len(file) <= SMALL_BYTES else None)
    return data_uri(small)


def _thumbnail(file: bytes, side: int = 320) -> bytes:
    """Shrink an image to a small JPEG; b"" if it is none or pillow is not installed."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return b""
    Image.init()
    known, out = [kind for kind in FORMATS if kind in Image.OPEN], io.BytesIO()
    try:
        with Image.open(io.BytesIO(file), formats=known) as image:
            image.thumbnail((side, side))
            _on_white(image).save(out, "JPEG", quality=80)
    except Exception:  # a damaged picture ends in any of a dozen: the report goes without
        return b""
    return out.getvalue()


def _on_white(image: Any) -> Any:
    """Give the image as RGB; what is transparent becomes white, not black."""
    from PIL import Image

    if image.mode in ("RGB", "L", "CMYK"):
        return image.convert("RGB")
    own = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", own.size, "white"), own).convert("RGB")
