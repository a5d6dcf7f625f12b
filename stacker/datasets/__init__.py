"""Small real data sets that ship with the package, and one made up."""

from stacker.datasets._openclipart import load_openclipart, openclipart_archive, read_images
from stacker.datasets._openclipart_oof import load_openclipart_oof
from stacker.datasets._subset import stratified_subset
from stacker.datasets._synthetic import make_wide_stack

__all__ = [
    "load_openclipart",
    "load_openclipart_oof",
    "make_wide_stack",
    "openclipart_archive",
    "read_images",
    "stratified_subset",
]
