"""The detectors that ask a scorer questions. Each returns findings; none decides what becomes of them.

    audit_scorer(open_scorer, stream, windows, chunk, settings, ledger)
        T1 T2 T2b T3 of a `Scorer`, and T0: its replay against the ledger of a finished pass
    audit_whole_stream(evaluate, tokens, vocab, settings, claims)
        T1 T2 T2b T3 T4 T6 T8 T17, and T9 where it is claimed, of a `WholeStream`
    audit_events(events, targets)
        T4 T8 of what `evaluate` wrote into its ledger, or of a journal that a fixture keeps

`open_scorer` opens it in another process (`stages/audit/remote.py`) or, for fixtures, in this one.
"""

from __future__ import annotations

from stages.audit.events import audit_events
from stages.audit.scored import audit_scorer
from stages.audit.whole import audit_whole_stream

__all__ = ["audit_events", "audit_scorer", "audit_whole_stream"]
