"""Training logs of the challenge as values: sizes, clocks, scores and the code that they say they come from.

Every participant prints them in a way of their own, so each fact has a few spellings here and a line that matches none
is skipped. A log may hold several runs one after another, and the whole source of the script that wrote it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"
_STAMP = re.compile(r"^\d{9,}\.\d+\s+")  # some loggers begin each line with the clock
_RULE = re.compile(r"^\s*={20,}\s*$")  # what separates the source from the log
_CODE_LINE = re.compile(r"^\s*(?:def |class |import |from \w[\w.]* import )")
_SOURCE_LINES = 20  # with fewer such lines a block is no script

_SCORE = re.compile(
    rf"\b(?:val_loss|vl)\s*[:=]\s*(?P<loss>{_NUMBER})\s+(?:val_bpb|bpb)\s*[:=]\s*(?P<bpb>{_NUMBER})", re.IGNORECASE
)
_CURVE = re.compile(r"^\W*(?:s|step)?[\s:=]*\d+\s*/\s*\d+", re.IGNORECASE)
_TOOK = re.compile(r"\b(?:eval_time|elapsed|time|t)\s*[:=]\s*(\d+\.?\d*)\s*(ms|s)\b")
_LEAST, _MOST = Decimal("1e-6"), Decimal("1e6")  # of anything that may be a loss or a score
# Scores of float weights, or of the network before something else happened to it: no claim rests on them.
_DIAGNOSTIC = re.compile(r"diag|pre[-_]quant|post[-_ ](?:ema|swa)|\bema\b|\bswa\b", re.IGNORECASE)


@dataclass(frozen=True)
class Score:
    """A line with nats per token and bits per byte."""

    label: str
    val_loss: Decimal  # as printed: the number of digits is part of what it says
    val_bpb: Decimal
    seconds: float | None
    line: int  # of the log, from 1
    diagnostic: bool

    @property
    def name(self) -> str:
        """The label without what says how it is printed: `ttt` of `final_ttt_exact`."""
        return self.label.removeprefix("final_").removesuffix("_exact")

    @property
    def decimals(self) -> int:
        """Digits after the point that both numbers have."""
        return min(decimals(self.val_loss), decimals(self.val_bpb))


@dataclass
class LogRun:
    """What one run printed; None is what it did not print."""

    seed: int | None = None
    val_tokens: int | None = None
    train_shards: int | None = None
    steps: int | None = None
    train_s: float | None = None  # when the loop stopped
    after_train_s: dict[str, float] = field(default_factory=dict)  # what read train data after that
    production_s: float | None = None  # from the start to the closed artifact
    eval_s: float | None = None  # of the whole evaluation
    code_bytes: int | None = None
    packed_code_bytes: int | None = None
    model_bytes: int | None = None
    total_bytes: int | None = None
    code_sha256: str | None = None
    model_sha256: str | None = None
    targets: dict[str, tuple[int, int]] = field(default_factory=dict)  # score -> targets and bytes, where they are told
    eval_times_s: dict[str, float] = field(default_factory=dict)  # score -> seconds, on a line of their own
    scores: list[Score] = field(default_factory=list)

    @property
    def counted_code_bytes(self) -> int | None:
        """The code as the log counts it against the cap."""
        return self.packed_code_bytes if self.packed_code_bytes is not None else self.code_bytes

    @property
    def counted_total_bytes(self) -> int | None:
        """Code and model as the log counts them."""
        if self.total_bytes is not None:
            return self.total_bytes
        code, model = self.counted_code_bytes, self.model_bytes
        return None if code is None or model is None else code + model

    @property
    def counted_model_bytes(self) -> int | None:
        """The model's file: as printed, or what is left of the total without the code."""
        if self.model_bytes is not None:
            return self.model_bytes
        code, total = self.counted_code_bytes, self.total_bytes
        return None if code is None or total is None else total - code

    @property
    def final_scores(self) -> list[Score]:
        """What a claim may rest on, in the order of the log."""
        return [score for score in self.scores if not score.diagnostic]


@dataclass(frozen=True)
class Log:
    """One file."""

    name: str
    runs: tuple[LogRun, ...]
    sources: tuple[str, ...]  # scripts that the log holds; the first lines of one may be missing
    text: str


def read_log(name: str, text: str) -> Log:
    """A log's facts. Never fails: what is not understood is not there."""
    lines = text.splitlines()
    scripts = _scripts(lines)
    skipped = {number for lo, hi in scripts for number in range(lo, hi)}
    reader = _Reader()
    for number, line in enumerate(lines):
        if number not in skipped:
            reader.read(_STAMP.sub("", line.strip()), number + 1)
    return Log(name, tuple(reader.runs), tuple("\n".join(lines[lo:hi]) for lo, hi in scripts), text)


def decimals(value: Decimal) -> int:
    """Digits after the point, as written: 0.00090 has five."""
    exponent = value.as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def _scripts(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Where scripts stand in a log, as ranges of lines: a rule ends one, but need not begin it."""
    edges = [0, *(number for number, line in enumerate(lines) if _RULE.match(line)), len(lines)]
    found: list[tuple[int, int]] = []
    for lo, hi in itertools.pairwise(edges):
        code = [number for number in range(lo, hi) if _CODE_LINE.match(lines[number])]
        if len(code) >= _SOURCE_LINES:
            scores = [number for number in range(lo, code[0]) if _SCORE.search(lines[number])]
            start = code[0] if scores else lo + (lo > 0)
            found.append((start, hi))
    return found


class _Reader:
    """Reads lines into runs. A new run begins where what comes first in a log follows what comes last."""

    def __init__(self) -> None:
        self.runs: list[LogRun] = []
        self._ended = False  # the run that is read has printed a final score
        self._facts: list[tuple[re.Pattern[str], Callable[[LogRun, re.Match[str]], None], bool]] = [
            (re.compile(pattern, re.IGNORECASE), note, opens) for pattern, note, opens in _FACTS
        ]

    def read(self, line: str, number: int) -> None:
        if score := _score(line, number):
            self._run(opens=score.diagnostic).scores.append(score)
            self._ended = self._ended or not score.diagnostic
            return
        for pattern, note, opens in self._facts:
            if match := pattern.search(line):
                with suppress(ValueError, OverflowError):  # a number of thousands of digits is none
                    note(self._run(opens), match)

    def _run(self, opens: bool) -> LogRun:
        if not self.runs or (opens and self._ended):
            self.runs.append(LogRun())
            self._ended = False
        return self.runs[-1]


def _score(line: str, number: int) -> Score | None:
    match = _SCORE.search(line)
    if match is None or _CURVE.match(line):
        return None
    try:
        loss, bpb = Decimal(match["loss"]), Decimal(match["bpb"])
    except InvalidOperation:
        return None
    if not all(value.is_finite() and _LEAST < value < _MOST for value in (loss, bpb)):
        return None
    label = line[: match.start()].strip(" :|")
    took = _TOOK.search(line, match.end())
    seconds = float(took[1]) / (1000 if took[2] == "ms" else 1) if took else None
    return Score(label, loss, bpb, seconds, number, bool(_DIAGNOSTIC.search(label)))


def _keep(name: str) -> Callable[[LogRun, re.Match[str]], None]:
    """Note an integer; of several the last counts, since raw sizes are printed before packed ones."""

    def note(run: LogRun, match: re.Match[str]) -> None:
        setattr(run, name, int(match[1].replace(",", "")))

    return note


def _stop(run: LogRun, match: re.Match[str]) -> None:
    run.train_s, run.steps = int(match[1]) / 1000, int(match[2])


def _curve(run: LogRun, match: re.Match[str]) -> None:
    if run.model_bytes is None and run.total_bytes is None:  # a stop that is printed comes later and counts
        run.steps, run.train_s = int(match[1]), float(match[2]) / 1000


def _model(run: LogRun, match: re.Match[str]) -> None:
    run.model_bytes = int(match[1])


def _after(run: LogRun, match: re.Match[str]) -> None:
    run.after_train_s["calibration"] = run.after_train_s.get("calibration", 0.0) + float(match[1])


def _seconds(name: str) -> Callable[[LogRun, re.Match[str]], None]:
    def note(run: LogRun, match: re.Match[str]) -> None:
        setattr(run, name, float(match[1]))

    return note


def _sha256(name: str) -> Callable[[LogRun, re.Match[str]], None]:
    def note(run: LogRun, match: re.Match[str]) -> None:
        setattr(run, name, match[1].lower())

    return note


def _sums(run: LogRun, match: re.Match[str]) -> None:
    run.targets[match[1]] = int(match[2]), int(match[3])


def _eval_time(run: LogRun, match: re.Match[str]) -> None:
    run.eval_times_s[match[1]] = int(match[2]) / 1000


# Pattern, what to note of it, and whether it stands at the beginning of a run or at least before its scores.
_FACTS: Sequence[tuple[str, Callable[[LogRun, re.Match[str]], None], bool]] = (
    (r"(?:^|\s)(?:seed|s)\s*[:=]\s*(\d+)$", _keep("seed"), True),
    (r"\bseed=(\d+)\b", _keep("seed"), True),
    (r"\b(?:train_shards|shards)\s*[:=]\s*(\d+)\b", _keep("train_shards"), True),
    (r"^val_tokens\s*[:=]\s*(\d+)\b", _keep("val_tokens"), True),
    (r"^val_loader:.*\btokens:(\d+)\b", _keep("val_tokens"), True),
    (r"^val:.*\bn:(\d+)\b", _keep("val_tokens"), True),
    (r"^(?:step|s)?[\s:]*(\d+)/\d+\b.*\b(?:train_time|tt|t)\s*[:=]\s*(\d+\.?\d*)ms", _curve, True),
    (r"^stop\w*\b.*\b(?:train_time|tt):\s*(\d+)ms\s+(?:step|s):\s*(\d+)", _stop, True),
    (r"^Serialized model [^:]+:\s*(\d+) bytes", _model, True),
    (r"^INT\d\S* model:\s*(\d+) bytes", _model, True),
    (r"^q:(\d+)B$", _model, True),
    (r"^Code size:\s*(\d+) bytes", _keep("code_bytes"), True),
    (r"\bcode:\s*(\d{3,})(?:B| bytes)?\b", _keep("code_bytes"), True),
    (r"^Code size \(uncompressed\):\s*(\d+) bytes", _keep("code_bytes"), True),
    (r"^Code size \(compressed\):\s*(\d+) bytes", _keep("packed_code_bytes"), True),
    (r"\bTotal submission(?: size)?[^:]*:\s*(\d+) bytes", _keep("total_bytes"), True),
    (r"^total:(\d+)B$", _keep("total_bytes"), True),
    (r"^budget:(\d+)/\d+", _keep("total_bytes"), True),
    (r"\bcollected \d+ hessians in (\d+\.?\d*)s", _after, True),
    (r"^artifact_production_wallclock:\s*(\d+\.?\d*)s", _seconds("production_s"), False),
    (r"^total_eval_time:\s*(\d+\.?\d*)s", _seconds("eval_s"), False),
    (r"^(?:code_sha256[:=]|train_gpt\.py sha256:)\s*([0-9a-f]{64})\b", _sha256("code_sha256"), True),
    (r"^Serialized model:.* sha256:([0-9a-f]{64})\b", _sha256("model_sha256"), True),
    (r"^Serialized model:\s*(\d+) bytes sha256:", _model, True),
    (r"^final_(\S+)_sums nats:\S+ targets:(\d+) bytes:(\d+)", _sums, False),
    (r"^final_(\S+) eval_time:(\d+)ms$", _eval_time, False),
)
