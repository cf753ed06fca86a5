"""An entropy coder for quantised weights: interleaved range-ANS, with contexts that learn row and column sizes.

Trained rows and columns differ in size (columns of `mlp.down` by 40 % in a small run), which a byte compressor cannot
see. The expected magnitude of a code is (its row's mean so far) x (its column's mean so far) / (the matrix's), and each
of a few buckets of that number has a frequency table of its own. Method: J. Duda, arXiv:1311.2540 (2013); interleaving:
F. Giesen, arXiv:1402.3392 (2014). Numpy only: a call codes one stretch of a row of all matrices of a bank at once.

Encoder and decoder must agree to the last bit on every machine: contexts are integers, or single IEEE operations on
integers that float64 holds exactly.

Letters: M matrices of a bank, R rows, C columns, G columns coded together, S symbols, B buckets.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from model.grid import pack, unpack

SYMBOL_BITS = 6  # of a wider code the lower bits are noise and are stored as they are
TABLE_BITS = 14  # frequencies of a bucket sum to 2^14
LOWEST_STATE = 1 << 16  # a lane's state stays in [2^16, 2^32); 16 bits move at a time
GROUP_COLUMNS = 64  # fewer learn a row's size sooner, more are faster: 0.03 % larger than 32, twice as fast
PRIOR_ROW, PRIOR_COLUMN = 32, 4  # how many codes a row's (column's) first guess is worth
PRIOR_MAGNITUDE = 8
RAREST_BUCKET = 4096  # codes; a table costs some 60 bytes, and rarer buckets join their neighbour
EDGES = np.array([math.isqrt(math.isqrt(1 << (32 + k))) / 256 for k in range(-16, 20)])  # 2^(k/4): quarter octaves
HEADER = struct.Struct("<HBBI")  # lanes, first and last bucket with a table, bytes of the tables

Visit = Callable[[int, slice, np.ndarray], np.ndarray]  # (row, columns, bucket_MG) -> magnitude_MG


def encode(arrays: Sequence[np.ndarray], bits: int) -> bytes:
    """Code integer arrays [..., R, C] with values in [-2^(bits-1), 2^(bits-1))."""
    low_bits = max(0, bits - SYMBOL_BITS)
    symbols: list[np.ndarray] = []
    buckets: list[np.ndarray] = []
    for codes_MRC in map(_bank, arrays):
        symbol_MRC = (codes_MRC >> low_bits) + (1 << (bits - low_bits - 1))
        magnitude_MRC = np.abs(codes_MRC >> low_bits)

        def visit(row: int, columns: slice, bucket_MG: np.ndarray) -> np.ndarray:
            symbols.append(symbol_MRC[:, row, columns].ravel())  # noqa: B023 - called within this iteration
            buckets.append(bucket_MG.ravel().astype(np.uint8))
            return magnitude_MRC[:, row, columns]  # noqa: B023

        _walk(codes_MRC.shape, visit)
    first, last = _kept_buckets(buckets)
    buckets = [np.clip(bucket, first, last) - first for bucket in buckets]
    frequency_BS = _frequencies(symbols, buckets, last - first + 1, 1 << (bits - low_bits))
    tables = zlib.compress(frequency_BS.astype(">u2").view(np.uint8).reshape(-1, 2).T.tobytes(), 9)
    lanes = _lanes(sum(array.size for array in arrays))
    states, words = _encode_lanes(symbols, buckets, frequency_BS, lanes)
    header = HEADER.pack(lanes, first, last, len(tables)) + tables
    lowest = [(array.reshape(-1) & ((1 << low_bits) - 1)).astype(np.int16) for array in arrays]
    noise = (
        pack(np.concatenate(lowest or [np.zeros(0, np.int16)]) - (1 << low_bits >> 1), low_bits) if low_bits else b""
    )
    return header + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + noise


def decode(data: bytes, shapes: Sequence[tuple[int, ...]], bits: int) -> list[np.ndarray]:
    """int8 arrays of `shapes`. Raises ValueError where `data` is not what `encode` wrote for them."""
    low_bits = max(0, bits - SYMBOL_BITS)
    count = sum(math.prod(shape) for shape in shapes)
    noise_bytes = -(-count * low_bits // 8)
    if len(data) < HEADER.size + noise_bytes:
        raise ValueError(f"coded weights end after {len(data)} bytes")
    lanes, first, last, table_bytes = HEADER.unpack_from(data)
    planes = zlib.decompress(data[HEADER.size : HEADER.size + table_bytes])
    frequency_BS = (
        np.frombuffer(planes, np.uint8).reshape(2, last - first + 1, 1 << (bits - low_bits)).astype(np.uint32)
    )
    frequency_BS = frequency_BS[0] << 8 | frequency_BS[1]
    coder = _Decoder(frequency_BS, lanes, data[HEADER.size + table_bytes : len(data) - noise_bytes])
    found: list[np.ndarray] = []
    offset = 1 << (bits - low_bits - 1)
    for shape in shapes:
        codes_MRC = _bank(np.empty(shape, np.int8))

        def visit(row: int, columns: slice, bucket_MG: np.ndarray) -> np.ndarray:
            bucket = np.clip(bucket_MG.ravel(), first, last) - first
            code_MG = coder.decode(bucket).reshape(bucket_MG.shape).astype(np.int64) - offset
            codes_MRC[:, row, columns] = code_MG  # noqa: B023 - called within this iteration
            return np.abs(code_MG)

        _walk(codes_MRC.shape, visit)
        found.append(codes_MRC.reshape(shape))
    coder.finish()
    if low_bits:
        lowest = unpack(data[len(data) - noise_bytes :], low_bits, count) + (1 << low_bits >> 1)
        ends = np.cumsum([array.size for array in found])
        for array, end in zip(found, ends, strict=True):
            array[...] = (array << low_bits) | lowest[end - array.size : end].reshape(array.shape)
    return found


def _bank(array: np.ndarray) -> np.ndarray:
    """Any array as [M, R, C]."""
    shape = (1, 1, *array.shape)
    return array.reshape(math.prod(shape[:-2]), *shape[-2:])


def _walk(shape: tuple[int, ...], visit: Visit) -> None:
    """Visit a bank row by row in groups of columns, with the bucket of each code's expected magnitude."""
    matrices, rows, columns = shape
    sum_MC = np.full((matrices, columns), PRIOR_COLUMN * PRIOR_MAGNITUDE, np.int64)
    for row in range(rows if columns else 0):
        total_M1 = sum_MC.sum(1, keepdims=True)
        relative_MC = sum_MC * (columns * 256) // total_M1  # a column's size over the mean one, in 1/256
        row_sum_M1 = PRIOR_ROW * (total_M1 / (columns * (PRIOR_COLUMN + row)))
        row_weight_M1 = np.full((matrices, 1), PRIOR_ROW * 256, np.int64)
        for start in range(0, columns, GROUP_COLUMNS):
            group = slice(start, start + GROUP_COLUMNS)
            relative_MG = relative_MC[:, group]
            expected_MG = row_sum_M1 / row_weight_M1 * relative_MG
            magnitude_MG = visit(row, group, np.searchsorted(EDGES, expected_MG))
            row_sum_M1 = row_sum_M1 + magnitude_MG.sum(1, keepdims=True)
            row_weight_M1 = row_weight_M1 + relative_MG.sum(1, keepdims=True)
            sum_MC[:, group] += magnitude_MG


def _kept_buckets(buckets: Sequence[np.ndarray]) -> tuple[int, int]:
    """The first and last bucket that get a table: those outside are too rare to pay for one."""
    counts = np.zeros(len(EDGES) + 1, np.int64)
    for bucket in buckets:
        counts += np.bincount(bucket, minlength=len(counts))
    rarest = min(RAREST_BUCKET, int(counts.max()))
    kept = np.flatnonzero((counts.cumsum() >= rarest) & (counts[::-1].cumsum()[::-1] >= rarest))
    return int(kept[0]), int(kept[-1])


def _frequencies(
    symbols: Sequence[np.ndarray], buckets: Sequence[np.ndarray], bucket_count: int, symbol_count: int
) -> np.ndarray:
    """Tables [B, S] that sum to 2^TABLE_BITS; every symbol that occurs has at least 1."""
    counts_BS = np.zeros((bucket_count, symbol_count), np.int64)
    for symbol, bucket in zip(symbols, buckets, strict=True):
        counts_BS += np.bincount(bucket.astype(np.int32) * symbol_count + symbol, minlength=counts_BS.size).reshape(
            counts_BS.shape
        )
    counts_BS[counts_BS.sum(1) == 0, 0] = 1  # a bucket between two used ones
    table_BS = counts_BS * (1 << TABLE_BITS) // counts_BS.sum(1, keepdims=True)
    table_BS = np.where(counts_BS > 0, np.maximum(table_BS, 1), 0)
    peak_B = table_BS.argmax(1)
    table_BS[np.arange(bucket_count), peak_B] += (1 << TABLE_BITS) - table_BS.sum(1)
    return table_BS


def _lanes(count: int) -> int:
    """Lanes coded at once. Each costs 4 bytes, so small models get fewer."""
    return min(1024, max(16, count >> 14))


def _encode_lanes(
    symbols: Sequence[np.ndarray], buckets: Sequence[np.ndarray], frequency_BS: np.ndarray, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Final states [lanes] and the 16-bit words, in the order in which the decoder takes them."""
    symbol_count = frequency_BS.shape[1]
    frequency = frequency_BS.astype(np.uint64).ravel()
    start = (frequency_BS.cumsum(1) - frequency_BS).astype(np.uint64).ravel()
    state = np.full(lanes, LOWEST_STATE, np.uint64)
    words: list[np.ndarray] = []
    for symbol, bucket in zip(reversed(symbols), reversed(buckets), strict=True):
        entry = bucket.astype(np.int32) * symbol_count + symbol
        for begin in reversed(range(0, len(entry), lanes)):
            part = entry[begin : begin + lanes]
            x, f = state[: len(part)], frequency[part]
            full = x >= f << np.uint64(32 - TABLE_BITS)
            words.append(x[full] & np.uint64(0xFFFF))
            x = np.where(full, x >> np.uint64(16), x)
            state[: len(part)] = (x // f << np.uint64(TABLE_BITS)) + x % f + start[part]
    return state, np.concatenate(words[::-1] or [np.zeros(0, np.uint64)])


class _Decoder:
    """Lanes of states, and the words that refill them."""

    def __init__(self, frequency_BS: np.ndarray, lanes: int, data: bytes) -> None:
        buckets, self._symbol_count = frequency_BS.shape
        if (frequency_BS.sum(1) != 1 << TABLE_BITS).any() or len(data) < 4 * lanes or len(data) % 2:
            raise ValueError("coded weights have whole tables, states and words")
        symbols = np.tile(np.arange(self._symbol_count, dtype=np.uint8), buckets)
        self._symbol_of_slot = np.repeat(symbols, frequency_BS.ravel())  # [B * 2^TABLE_BITS]
        self._frequency = frequency_BS.astype(np.uint32).ravel()
        self._start = (frequency_BS.cumsum(1) - frequency_BS).astype(np.uint32).ravel()
        self._state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
        self._words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
        self._next = 0

    def decode(self, bucket: np.ndarray) -> np.ndarray:
        """The next symbols, one per bucket given."""
        symbols = np.empty(len(bucket), np.uint8)
        for begin in range(0, len(bucket), len(self._state)):
            part = slice(begin, begin + len(self._state))
            symbols[part] = self._decode_part(bucket[part])
        return symbols

    def _decode_part(self, bucket: np.ndarray) -> np.ndarray:
        x = self._state[: len(bucket)]
        slot = x & np.uint32((1 << TABLE_BITS) - 1)
        symbol = self._symbol_of_slot[(bucket << TABLE_BITS) + slot]
        entry = bucket * self._symbol_count + symbol
        x = self._frequency[entry] * (x >> np.uint32(TABLE_BITS)) + slot - self._start[entry]
        low = np.flatnonzero(x < LOWEST_STATE)
        words = self._words[self._next : self._next + len(low)]
        if len(words) < len(low):
            raise ValueError("coded weights end too early")
        self._next += len(low)
        x[low] = x[low] << np.uint32(16) | words
        self._state[: len(bucket)] = x
        return symbol

    def finish(self) -> None:
        """Every lane is back where the encoder started, and no word is left: else the data was damaged."""
        if self._next != len(self._words) or (self._state != LOWEST_STATE).any():
            raise ValueError("coded weights do not end where their encoder began")
