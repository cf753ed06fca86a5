"""What scoring and auditing cost, in tokens that go forward through the network, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model.protocol import Protocol, chunk_targets, phases_of
from model.windows import Windows

REQUESTS = 4  # of one probe: the true windows twice, a swapped target, another future


@dataclass
class Meter:
    """Forward tokens that an audit has spent."""

    forward_tokens: int = 0  # inputs sent to be scored
    trained_tokens: int = 0  # inputs that adaptation trained on

    @property
    def total(self) -> int:
        """All that went forward."""
        return self.forward_tokens + self.trained_tokens


def handed_out(windows: Windows) -> int:
    """Inputs of all windows: what `evaluate` reports as forward_tokens."""
    whole = sum(windows.length(window) for window in (windows.count - 1, *range(windows.count, windows.total)))
    return (windows.count - 1) * windows.context + whole


def trained_on(protocol: Protocol, windows: Windows) -> int:
    """Inputs that adaptation sends forward, at most: adapters that forget at each document see less of a chunk."""
    context = protocol.context_tokens
    if protocol.protocol == "ttt":
        spans = list(windows.spans(protocol.ttt.chunk_tokens))[:-1]  # the last chunk is not trained on
        return sum(update_cost(protocol, len(span.chunk)) for span in spans)
    rows = windows.targets // context
    phases = phases_of(protocol).values()
    usable = {phase: rows // phase.batch_sequences * phase.batch_sequences for phase in phases}
    return sum(phase.epochs * context * (usable[phase] if phase.drop_tail else rows) for phase in phases)


def update_cost(protocol: Protocol, chunk: int) -> int:
    """Inputs that training on one chunk sends forward."""
    rows = chunk // protocol.context_tokens
    return protocol.ttt.epochs * rows * protocol.context_tokens if protocol.protocol == "ttt" else 0


def exposed_targets(protocol: Protocol, targets: int) -> int:
    """Targets of the shortest stream on which the first phase of an adaptation before scoring takes a step."""
    if protocol.protocol != "pre_eval":
        return 0
    first = protocol.pre_eval.first
    rows = max(first.batch_sequences if first.drop_tail else 1, 4)
    return min(rows * protocol.context_tokens, targets)


def least(protocol: Protocol, windows: Windows) -> int:
    """Forward tokens of the smallest audit that sees every state: one probe of each, and what training costs."""
    if protocol.protocol == "pre_eval":
        return 2 * (exposed_targets(protocol, windows.targets) + windows.context)
    chunk = chunk_targets(protocol)
    states = 2 if chunk and chunk < windows.targets else 1
    return states * REQUESTS * windows.context + (states - 1) * update_cost(protocol, chunk)


def budgets(of: Mapping[str, tuple[Protocol, Windows]], audited: set[str], share: float) -> dict[str, int]:
    """Forward tokens that the audit of each protocol may cost.

    Together they are at most `share` of the inputs that evaluation hands out. Each protocol gets the least that its
    audit needs, where that is there, and the rest is divided as evaluation's own cost is.
    """
    pool = int(share * sum(handed_out(windows) for _, windows in of.values()))
    needs = {name: least(*of[name]) for name in sorted(audited)}
    costs = {name: handed_out(of[name][1]) + trained_on(*of[name]) for name in needs}
    spare = max(pool - sum(needs.values()), 0)
    scale = min(pool / max(sum(needs.values()), 1), 1.0)
    return {name: int(needs[name] * scale + spare * costs[name] / sum(costs.values())) for name in needs}
