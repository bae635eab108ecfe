"""Several data sources mixed by blocks, as Muffin mixes VQAv2 and UniMM-Chat.

With weights w_1 ... w_k, a block is the next w_1 rows of the first source, then the next w_2 of the
second, and so on; a source that ends starts again. There are as many blocks as the longest source
fills: max(n_s // w_s) for sources of n_s rows (thunlp/Muffin, MultiDataSourceDataset).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data.reading import ReadOptions, Slice, data_digest, list_slices
from rlhfv_ray.data.reference_table import UNUSABLE
from rlhfv_ray.errors import DataError


def list_sources(data: DataConfig, *, rows: int = 64) -> list[Slice]:
    """Return the slices of all sources of fine-tuning data, in order.

    Raises:
        DataError: as `list_slices`.
    """
    slices: list[Slice] = []
    for source, path in enumerate((data.path, *data.mixed_with)):
        options = ReadOptions.of(data)
        parts = list_slices(path, format=data.format, rows=rows, examples=True, options=options)
        for part in parts:
            slices.append(replace(part, index=len(slices), source=source))
    return slices


def digest_sources(data: DataConfig) -> list[str]:
    """Return the digest of every source in `mixed_with`."""
    options = ReadOptions.of(data)
    return [
        data_digest(path, format=data.format, examples=True, options=options)
        for path in data.mixed_with
    ]


def mixture_rows(sizes: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Return the rows of a mixture, counted through all sources, in its order.

    Args:
        sizes: rows of each source, >= 1.
        weights: rows of each source in a block, >= 1.

    Example:
        Two sources of five rows and one, two to one: blocks of 0 1, 2 3.

        >>> mixture_rows([5, 1], [2, 1])
        [0, 1, 5, 2, 3, 5]
    """
    blocks = max(size // weight for size, weight in zip(sizes, weights, strict=True))
    rows: list[int] = []
    for block in range(max(1, blocks)):
        first = 0  # row of the source
        for size, weight in zip(sizes, weights, strict=True):
            rows += [first + (block * weight + turn) % size for turn in range(weight)]
            first += size
    return rows


def mixed_rows(pairs: Any, data: DataConfig) -> Sequence[int]:
    """Return the rows of a folder's examples that training goes through, mixed if the data is.

    Args:
        pairs: from `load_reference`.
        data: the job's.

    Raises:
        DataError: a source has no row that can be used.
    """
    if not data.mixed_with:
        return range(len(pairs))
    weights = data.source_weights
    return mixture_rows(source_sizes(pairs, len(weights)), weights)


def source_sizes(pairs: Any, sources: int) -> list[int]:
    """Return the number of examples from each source of mixed data.

    Args:
        pairs: from `load_reference`.
        sources: their number.

    Raises:
        DataError: a source has no row that can be used.
    """
    numbers = pairs.data.column("source").to_numpy()
    sizes = np.bincount(numbers, minlength=sources).tolist()
    if 0 in sizes:
        number = sizes.index(0) + 1
        raise DataError(
            f"no_data: no row of source {number} of the mixed data can be used. {UNUSABLE} lists "
            "the reasons."
        )
    return sizes
