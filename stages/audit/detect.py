"""The detectors that ask a scorer questions. Each returns findings; none decides what becomes of them.

    audit_scorer(open_scorer, stream, windows, chunk, settings, ledger)
        T1 T2 T2b T3 T4 T8 of a `Scorer`, and its replay against the ledger of a finished pass
    audit_whole_stream(evaluate, tokens, vocab, settings, claims)
        T1 T2 T2b T3 T4 T6 T8 T17, and T9 where it is claimed, of a `WholeStream`
    audit_ledger(ledger)
        T4 T8 of what `evaluate` wrote

`open_scorer` opens it in another process (`stages/audit/remote.py`) or, for fixtures, in this one.
"""

from __future__ import annotations

import numpy as np

from model.stream import TokenStream
from model.windows import Windows
from stages.audit.finding import Finding
from stages.audit.records import LedgerFile
from stages.audit.settings import Claims, Settings
from stages.audit.subject import OpenScorer, WholeStream


def audit_scorer(
    open_scorer: OpenScorer,
    stream: TokenStream,
    windows: Windows,
    chunk: int,
    settings: Settings,
    ledger: LedgerFile | None = None,
    batch_windows: int = 32,
) -> list[Finding]:
    """Ask a scorer about parts of the stream. `chunk` is the targets between updates, 0 for one that learns nothing."""
    raise NotImplementedError


def audit_whole_stream(
    evaluate: WholeStream, tokens: np.ndarray, vocab: int, settings: Settings, claims: Claims | None = None
) -> list[Finding]:
    """Ask a whole evaluation about changed streams. It is called some `settings.cuts` times: give it short ones."""
    raise NotImplementedError


def audit_ledger(ledger: LedgerFile) -> list[Finding]:
    """Whether the order that a ledger tells of is a legal one, and whether it covers every target once."""
    raise NotImplementedError
