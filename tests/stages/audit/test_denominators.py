"""T11: the denominator that a loss and a score give away, against those that are known."""

from __future__ import annotations

import math

import pytest

from configs.load import challenge
from stages.audit.denominators import Claim, check_claim, check_score, implied_bytes

KNOWN = challenge()["fingerprint"]
SP1024 = 62_021_632
# Lines of published logs: (loss, bits per byte, what the denominator says).
PUBLISHED = {
    "#398 round trip": (1.93392573, 1.14537975, "pass", None),
    "#398 sliding, stride 64": (1.89463433, 1.12211214, "fail", "tail_rescored"),
    "#417 sliding, stride 32": (1.89474231, 1.12217684, "fail", "tail_rescored"),
    "#714 adapted": (1.88899865, 1.11877436, "fail", "tail_rescored"),
    "#1033 adapted": (0.72790353, 0.43110661, "fail", "tail_rescored"),
    "#1232 round trip, second system": (1.89690246, 1.12345248, "pass", None),
    "#1232 adapted": (1.84534819, 1.09292203, "fail", "tail_rescored"),
}


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_scores_are_recognised_by_their_denominator(line: str):
    nats, bpb, verdict, kind = PUBLISHED[line]
    finding = check_claim(Claim(line, nats, bpb, 8, 8), SP1024, KNOWN)
    assert (finding.verdict, finding.evidence.get("kind")) == (verdict, kind)
    assert finding.evidence["tolerance_bytes"] < 5
    assert finding.rule == ("C4" if kind else "E2")


def test_eight_decimals_tell_a_tail_of_400_bytes_and_four_do_not():
    exact = implied_bytes(Claim("x", 1.93392573, 1.14537975, 8, 8), SP1024)
    rough = check_claim(Claim("x", 1.9339, 1.1454, 4, 4), SP1024, KNOWN)
    assert abs(exact.bytes - 151_080_363) <= exact.tolerance < 3
    assert rough.verdict == "unknown"
    assert "too roughly rounded" in rough.says


def test_operators_counted_as_text_are_known_and_a_double_space_is_an_unknown_way():
    case = Claim("x", 164_594_398 / 47_851_520 * math.log(2) * 0.98, 0.98)
    assert check_claim(case, 47_851_520, KNOWN).verdict == "fail"
    double = Claim("x", 151_080_363 * 1.1671 / SP1024 * math.log(2) * 1.01, 1.01)
    finding = check_claim(double, SP1024, KNOWN)
    assert (finding.verdict, finding.rule) == ("fail", "E2")
    assert finding.evidence["ratio"] == pytest.approx(1.1671, rel=1e-4)


def test_a_part_of_the_set_is_not_taken_for_the_set():
    finding = check_claim(Claim("x", 1.9, 1.1), 9_662_464, KNOWN)
    assert (finding.rule, finding.verdict) == ("E1", "unknown")


def score(**changes: object) -> dict[str, object]:
    sums = {"nats": 1000.0, "tokens": 400, "bytes": 900, "bpb": 1000 / math.log(2) / 900, "nats_per_token": 2.5}
    return {**sums, **changes}


def test_a_score_of_ours_agrees_with_its_own_sums():
    assert [f.verdict for f in check_score(score(), KNOWN)] == ["pass", "not_applicable"]
    (wrong,) = check_score(score(bpb=1.5), KNOWN)
    assert wrong.verdict == "fail"


def test_a_score_of_the_published_set_must_have_its_bytes():
    nats = 1.9 * SP1024
    right = score(nats=nats, tokens=SP1024, bytes=151_080_363, nats_per_token=1.9)
    right["bpb"] = nats / math.log(2) / 151_080_363
    wrong = {**right, "bytes": 151_081_000, "bpb": nats / math.log(2) / 151_081_000}
    assert check_score(right, KNOWN)[1].verdict == "pass"
    assert check_score(wrong, KNOWN)[1].verdict == "fail"
