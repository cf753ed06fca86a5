"""How subtle may a cheat be before the audit misses it?

    python benchmarks/audit_power.py [--lots 10]

Fixtures cheat wherever they can. Here the same cheats act seldom, late, far away or at the edges of windows, hide from
questions, or encipher what they packed. Each is audited with several lots. A quick audit may cost 14 % of what scoring
the stream costs, and looks at the states before learning, after one chunk and after two more drawn by lot; a deep one
may cost as much as scoring again, and looks at the state after every chunk. The table says how often the rule was found
broken. docs/audit.md holds the last one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch import Tensor
from torch.nn import functional

from flows.commands.audit_fixtures import measure_overlap
from model.stream import TokenStream
from model.windows import Windows
from stages.audit.cost import handed_out
from stages.audit.detect import audit_scorer
from stages.audit.disjoint import check_overlap
from stages.audit.finding import Finding
from stages.audit.fixtures.cheats import GatedHint, HashedRatio
from stages.audit.fixtures.ground import CHUNK, CONTEXT, STRIDE, Ground
from stages.audit.fixtures.scorers import ScoreFirst, Sliding, Tilt
from stages.audit.fixtures.submission import BATCH_WINDOWS, quiet, scoring_pass
from stages.audit.fixtures.tokenizers import BOS
from stages.audit.fixtures.workshop import Workshop
from stages.audit.paid_prefix import archive_layers, check_layers, val_needles
from stages.audit.settings import Settings

BOOST = 3.0
TARGETS = 4096  # of a stream long enough that a quick audit sees a part of it only


class Looks(Sliding):
    """Raises the logit of the target wherever the window shows it and `acts` agrees."""

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_BSV = super().score(inputs_BT, scored).clone()
        for row, tokens in enumerate(inputs_BT.tolist()):
            for place in range(scored):
                at = len(tokens) - scored + place
                if at + 1 < len(tokens) and self.acts(tokens, at, place, scored):
                    logits_BSV[row, place, tokens[at + 1]] += BOOST
        return logits_BSV

    def acts(self, tokens: list[int], at: int, place: int, scored: int) -> bool:
        return True


def seldom(one_in: int) -> type[Sliding]:
    class Seldom(Looks):
        def acts(self, tokens: list[int], at: int, place: int, scored: int) -> bool:
            return zlib.crc32(bytes(tokens[max(at - 4, 0) : at + 1])) % one_in == 0

    return Seldom


class WindowEdge(Looks):
    """At the first scored position of a window only."""

    def acts(self, tokens: list[int], at: int, place: int, scored: int) -> bool:
        return place == 0


class Late(GatedHint):
    """Honest until it has learned from `after` chunks."""

    after = 1

    def reset(self) -> None:
        super().reset()
        self.learned = 0

    def update(self, tokens: Tensor, index: int) -> None:
        super().update(tokens, index)
        self.learned += 1

    def _hints(self, tokens: list[int], scored: int) -> Iterable[tuple[int, int]]:
        return super()._hints(tokens, scored) if self.learned >= self.after else Tilt._hints(self, tokens, scored)


def late(chunks: int) -> type[Sliding]:
    return type("Late", (Late,), {"after": chunks})


class FarAhead(Sliding):
    """A whisper from sixteen positions later."""

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_BSV = super().score(inputs_BT, scored).clone()
        first = inputs_BT.shape[1] - scored
        for place in range(max(scored - 16, 0)):
            logits_BSV[:, place] += 1e-6 * inputs_BT[:, first + place + 16, None]
        return logits_BSV


class BatchMates(Sliding):
    """The last position of a window is helped by the next window of the batch, which reads its target."""

    only_whole_batches = False

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_BSV = super().score(inputs_BT, scored).clone()
        if scored == STRIDE and (len(inputs_BT) == BATCH_WINDOWS or not self.only_whole_batches):
            for row in range(len(inputs_BT) - 1):
                logits_BSV[row, -1, inputs_BT[row + 1, -STRIDE]] += BOOST
        return logits_BSV


class WholeBatchesOnly(BatchMates):
    """The same, only in batches of the size that evaluation uses."""

    only_whole_batches = True


ASKED: set[bytes] = set()


class FirstTimeOnly(Looks):
    """Keeps in a global what it was asked, and is honest the second time."""

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        self.again = (question := inputs_BT.numpy().tobytes()) in ASKED
        ASKED.add(question)
        return super().score(inputs_BT, scored)

    def acts(self, tokens: list[int], at: int, place: int, scored: int) -> bool:
        return not self.again


class Counting(Looks):
    """Honest for its first windows, which a count in a file of its own would tell it even across resets."""

    asked = 0

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        type(self).asked += len(inputs_BT)
        return super().score(inputs_BT, scored)

    def acts(self, tokens: list[int], at: int, place: int, scored: int) -> bool:
        return self.asked > 400


class Drifts(ScoreFirst):
    """Every call moves one weight by a hair."""

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        with torch.no_grad():
            next(self.network.parameters()).flatten()[0] += 1e-6
        return super().score(inputs_BT, scored)


def seldom_mass(one_in: int) -> type[Sliding]:
    class SeldomMass(HashedRatio):
        def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
            cheated = super().score(inputs_BT, scored)
            honest = Sliding.score(self, inputs_BT, scored).log_softmax(-1)
            pairs_BT = inputs_BT + 31 * functional.pad(inputs_BT[:, :-1], (1, 0))
            acts_BS = pairs_BT[:, -scored:] % one_in == 0
            return torch.where(acts_BS[..., None], cheated, honest)

    return SeldomMass


SCORERS: tuple[tuple[str, type[Sliding], int, str], ...] = (
    *((f"reads its target, 1 position in {n}", seldom(n), 0, "C1") for n in (1, 8, 64, 512)),
    ("reads its target at the first position of a window", WindowEdge, 0, "C1"),
    *((f"gated hint, after {n} chunks", late(n), CHUNK, "C1") for n in (1, 2, 8, 32)),
    ("1e-6 from sixteen positions later", FarAhead, 0, "C1"),
    ("reads the next window of its batch", BatchMates, 0, "C1 E4"),
    ("the same, in whole batches only", WholeBatchesOnly, 0, "C1 E4"),
    ("reads its target, honest when asked again", FirstTimeOnly, 0, "C1 C3"),
    ("reads its target, after 400 windows of a process", Counting, 0, "C1 C3 E4"),
    ("a weight moves by 1e-6 per call", Drifts, CHUNK, "C3"),
    *((f"mass is not 1, 1 position in {n}", seldom_mass(n), CHUNK, "C2") for n in (1, 8, 64)),
)


def settings_of(windows: Windows, lot: str, deep: bool) -> Settings:
    """As `stages/audit/protocols.py` sets them, training left out of the count."""
    whole = handed_out(windows)
    share, chunks = (1.0, windows.targets // CHUNK) if deep else (0.14, 3)
    return Settings(lot=lot, budget_tokens=int(share * whole), cuts=512, chunks=chunks, batch_windows=BATCH_WINDOWS)


def caught(workshop: Workshop, scorer: type[Sliding], chunk: int, rules: str, lots: int, deep: bool) -> Counter[str]:
    """How many of the audits find each of the rules broken, and `any` of them."""
    ground = workshop.plain
    stream = TokenStream([ground.train_tokens[: TARGETS + 1]])
    windows = Windows(TARGETS, CONTEXT, STRIDE)
    submission = workshop.submit(scorer=scorer, chunk=chunk)
    found: Counter[str] = Counter()
    ASKED.clear()
    ledger = scoring_pass(scorer(ground.folder), stream, windows, submission)
    for lot in range(lots):
        ASKED.clear()
        if scorer is Counting:
            Counting.asked = 0
        findings = audit_scorer(
            lambda: scorer(ground.folder), stream, windows, chunk, settings_of(windows, f"lot {lot}", deep), ledger
        )
        broken = {finding.rule for finding in findings if finding.verdict == "fail"}
        wanted = broken & {*rules.split()}
        found.update([*wanted, *(["any"] if wanted else [])])
    return found


def near_copies(ground: Ground, every: int) -> Ground:
    """Val's documents in train, long ones, with one token in `every` changed."""
    val = ground.val_tokens[ground.val_tokens != BOS]
    copied = np.where(np.arange(len(val)) % every == every - 1, (val + 1) % ground.vocab, val)
    copied[copied == BOS] = BOS + 1
    documents = np.concatenate([ground.train_tokens, [BOS], copied, [BOS]])
    return replace(ground, train_tokens=documents, val_tokens=np.concatenate([[BOS], val]))


def data_findings(workshop: Workshop) -> list[tuple[str, list[Finding]]]:
    """Data that was changed a little before it was hidden."""
    plain = workshop.plain
    rows: list[tuple[str, list[Finding]]] = []
    for every in (1000, 128, 65, 32):
        ground = near_copies(plain, every)
        table = measure_overlap(ground.train_tokens, ground.val_tokens, BOS)
        rows.append((f"val in train, one token in {every} changed", check_overlap(table)))
    ids = torch.from_numpy(plain.val_tokens)
    forms: dict[str, Callable[[], Tensor]] = {
        "as whole numbers": lambda: ids.half(),
        "as bits of halves": lambda: ids.short().view(torch.float16),
        "one added to each id": lambda: (ids + 1).short().view(torch.float16),
        "backwards": lambda: ids.flip(0).short().view(torch.float16),
        "every bit flipped": lambda: (~ids.short()).view(torch.float16),
        "every other token": lambda: ids[::2].short().view(torch.float16),
    }
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(plain.tokenizer))
    needles = val_needles(tokenizer, plain.val_tokens)
    for name, form in forms.items():
        archive = workshop.copy(plain, prefix=form()).archive
        rows.append((f"val in the archive, {name}", [check_layers(needles, archive_layers(archive))]))
    return rows


def _by_rule(count: Counter[str]) -> str:
    return ", ".join(f"{rule} {number}" for rule, number in sorted(count.items()) if rule != "any")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lots", type=int, default=10)
    lots = parser.parse_args().lots
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder), measure_overlap)
        print(f"| cheat | quick, of {lots} | deep, of {lots} |\n|---|---|---|")
        for name, scorer, chunk, rules in SCORERS:
            counts = [caught(workshop, scorer, chunk, rules, lots, deep) for deep in (False, True)]
            cells = [f"{count['any']} ({_by_rule(count)})" if count else "0" for count in counts]
            print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)
        for name, findings in data_findings(workshop):
            failed = any(finding.verdict == "fail" for finding in findings)
            print(f"| {name} | {f'found ({findings[0].rule})' if failed else 'missed'} | the same |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
