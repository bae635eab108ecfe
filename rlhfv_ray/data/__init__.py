"""Read and write files of preference pairs and examples, and decode their images."""

from rlhfv_ray.data.audit import AnswerLengths, Audit, audit_pairs
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.pair_formats import FORMATS
from rlhfv_ray.data.reading import (
    ReadOptions,
    Slice,
    data_digest,
    list_slices,
    load_pairs,
    read_slice,
)
from rlhfv_ray.data.sft_formats import EXAMPLE_FORMATS
from rlhfv_ray.data.writing import write_pairs

__all__ = [
    "EXAMPLE_FORMATS",
    "FORMATS",
    "AnswerLengths",
    "Audit",
    "ReadOptions",
    "Slice",
    "audit_pairs",
    "data_digest",
    "decode_image",
    "list_slices",
    "load_pairs",
    "read_slice",
    "write_pairs",
]
