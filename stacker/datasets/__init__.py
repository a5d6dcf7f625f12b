"""Small real data sets that ship with the package."""

from stacker.datasets._openclipart import load_openclipart, openclipart_archive, read_images
from stacker.datasets._subset import stratified_subset

__all__ = ["load_openclipart", "openclipart_archive", "read_images", "stratified_subset"]
