"""The kinds of faults that files of a dataset can have, so that callers can distinguish errors without reading them."""

from enum import StrEnum


class DataErrorKind(StrEnum):
    """Values of ``DataError.kind`` that the modules of ``headcount.data`` raise."""

    missing = "missing"
    """A folder or file of the dataset does not exist."""
    missing_image = "missing_image"
    """An annotated or listed image does not exist."""
    missing_annotation = "missing_annotation"
    """An image has no annotation."""
    image = "image"
    """An image file is truncated, damaged or not an image."""
    annotation = "annotation"
    """An annotation file cannot be read or does not hold head positions."""
    other_format = "other_format"
    """An annotation file is of a format that is not read."""
    not_finite = "not_finite"
    """An annotation holds positions that are infinite or not a number."""
    ambiguous = "ambiguous"
    """A name belongs to several images or annotations."""
    split_list = "split_list"
    """A file that assigns images to splits cannot be used."""
    empty = "empty"
    """A folder or split has no images."""
    unusable_images = "unusable_images"
    """Some images of a split cannot be used; the message lists the first of them."""
    cache = "cache"
    """A file of the image cache cannot be written."""
