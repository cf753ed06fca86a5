"""Other futures: streams that agree with the true one up to a cut, or differ from it in a single token."""

from __future__ import annotations

from typing import Literal

import numpy as np

from model.stream import TokenStream

Kind = Literal["text", "noise", "swap"]
KINDS: tuple[Kind, ...] = ("swap", "text", "noise")


def other_future(
    tokens_N: np.ndarray, cut: int, kind: Kind, donor_M: np.ndarray, lot: np.random.Generator
) -> np.ndarray:
    """`tokens_N` with tokens from `cut` on replaced; a copy in which token `cut` itself always differs.

    text   by tokens from elsewhere, which look like any others: a scorer cannot tell what it is asked
    noise  by ids drawn from those of `donor_M`, in no order
    swap   token `cut` alone, by one of those: the target swap
    """
    other_N = tokens_N.copy()
    length = len(tokens_N) - cut
    if kind == "text" and len(donor_M) > length:
        begin = int(lot.integers(len(donor_M) - length))
        other_N[cut:] = donor_M[begin : begin + length]
    elif kind == "swap":
        other_N[cut] = lot.choice(donor_M)
    else:
        other_N[cut:] = lot.choice(donor_M, length)
    if other_N[cut] == tokens_N[cut]:
        different = donor_M[donor_M != tokens_N[cut]]
        other_N[cut] = lot.choice(different) if len(different) else tokens_N[cut] ^ 1
    return other_N


def donor(stream: TokenStream, limit: int = 1 << 16) -> np.ndarray:
    """Text to take other futures from: the stream's end, which is far from what is audited."""
    return stream.read(max(len(stream) - limit, 0), len(stream))
