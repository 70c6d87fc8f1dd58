"""Blocks: groups of rows that may depend on each other, such as the flights of a day, and sums over them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trellis.errors import DataError

MOST_ROW_BLOCKS = 1_000


@dataclass(frozen=True)
class BlockSums:
    """Sums over the rows of every block, in the blocks' order.

    Attributes:
        rows: Number of rows per block.
        sums: Sum of each named column per block.
    """

    rows: tuple[int, ...]
    sums: Mapping[str, tuple[float, ...]]


def blocks_of(time: NDArray[np.datetime64] | None, row_id: NDArray[Any]) -> NDArray[np.int64]:
    """Return the block of every row, from 0 without gaps.

    With a time a block is one UTC day: rows of a day share weather, traffic or a campaign, so only days are taken to
    be independent. Without, rows with different ids are taken to be independent; beyond 1,000 of them a fixed hash of
    the id (CRC-32) groups them, which changes no expectation and keeps the sums small.

    Args:
        time: Time of every row, ``datetime64``; None for rows without one.
        row_id: Id of every row, shape ``(n,)``.

    Raises:
        DataError: A time is missing (NaT), the two differ in length, or there are no rows.
    """
    if len(row_id) == 0 or (time is not None and len(time) != len(row_id)):
        raise DataError(
            f"{len(row_id)} row ids and {0 if time is None else len(time)} times make no blocks.",
            remedy="Give one id, and one time or none, per row.",
        )
    if time is not None:
        days = np.asarray(time, dtype="datetime64[D]")
        if np.isnat(days).any():
            raise DataError(f"{int(np.isnat(days).sum())} rows have no time.", remedy="Remove or mend these rows.")
        return np.unique(days, return_inverse=True)[1].astype(np.int64)
    unique, own = np.unique(np.asarray(row_id).astype(str), return_inverse=True)
    if len(unique) > MOST_ROW_BLOCKS:
        hashed = np.array([zlib.crc32(name.encode()) % MOST_ROW_BLOCKS for name in unique.tolist()])
        return np.unique(hashed[own], return_inverse=True)[1].astype(np.int64)
    return own.astype(np.int64)


def block_sums(
    losses: Mapping[str, NDArray[Any]],
    blocks: NDArray[Any],
    segments: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, dict[str, BlockSums]]:
    """Sum columns over blocks, for all rows and within every segment.

    Args:
        losses: Named columns of numbers, each ``(n,)``, for example the candidate's and the champion's losses.
        blocks: Block of every row, as ``blocks_of`` returns.
        segments: Columns by which the rows are also split, each ``(n,)``.

    Returns:
        ``{"": {"": all rows}, column: {value: rows of that value}}``; every block appears in each, if need be with
        0 rows.

    Raises:
        DataError: A column differs in length, or a loss is not finite.
    """
    codes = np.asarray(blocks)
    if len(codes) == 0 or not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
        raise DataError("Blocks are not whole numbers from 0.", remedy="Make them with blocks_of.")
    count = int(codes.max()) + 1
    for name, column in (*losses.items(), *(segments or {}).items()):
        if len(column) != len(codes):
            raise DataError(f"{name!r} has {len(column)} rows, the blocks {len(codes)}.", remedy="Give the same rows.")
    values = {name: np.asarray(column, dtype=np.float64) for name, column in losses.items()}
    for name, column in values.items():
        if not np.isfinite(column).all():
            raise DataError(f"{name!r} has values that are not finite.", remedy="Remove or mend these rows.")

    def summed(group: NDArray[np.int64], groups: int) -> list[BlockSums]:
        place = group * count + codes
        rows = np.bincount(place, minlength=groups * count).reshape(groups, count)
        sums = {k: np.bincount(place, v, groups * count).reshape(groups, count) for k, v in values.items()}
        return [
            BlockSums(tuple(rows[g].tolist()), {k: tuple(v[g].tolist()) for k, v in sums.items()})
            for g in range(groups)
        ]

    result = {"": {"": summed(np.zeros(len(codes), dtype=np.int64), 1)[0]}}
    for name, column in (segments or {}).items():
        labels, own = np.unique(np.asarray(column).astype(str), return_inverse=True)
        parts = summed(own.astype(np.int64), len(labels))
        result[name] = dict(zip(labels.tolist(), parts, strict=True))
    return result
