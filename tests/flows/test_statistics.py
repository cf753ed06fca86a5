"""The test of the challenge, against p-values that its organisers published and against hand-worked values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flows import statistics as fairway
from flows.references import reference
from flows.statistics import Estimate, Scores, compare, detectable, estimate, holm, one_sample, paired, summary, welch

FIVE_OF_1769 = [1.06356801, 1.0641313, 1.06466993, 1.06509678, 1.06516558]


def row(number: str) -> Estimate:
    found = reference(number).scores.bpb
    return estimate(FIVE_OF_1769) if number == "1769 best five" else found


# t, df and p of the public board: new row, old row, and what the organisers printed of p.
PUBLISHED = [
    ("1514", "1493", 3.7890, 2.614, 0.02042, "0.020"),
    ("1529", "1514", 8.1869, 3.611, 0.00093, "0.001"),
    ("2135", "2014", 3.4262, 3.901, 0.01385, "0.014"),
]


@pytest.mark.parametrize(("new", "old", "t", "df", "p", "printed"), PUBLISHED)
def test_published_p_values_are_a_one_sided_welch_test_on_bpb(
    new: str, old: str, t: float, df: float, p: float, printed: str
):
    found = welch(row(new), row(old))
    assert found.t == pytest.approx(t, abs=5e-5)
    assert found.df == pytest.approx(df, abs=5e-4)
    assert found.p == pytest.approx(p, abs=5e-6)
    assert f"{found.p:.3f}" == printed


def test_dropping_the_two_worst_of_seven_seeds_halves_p():
    """#1769 ran seven seeds and reports the five lowest."""
    five, seven = estimate(FIVE_OF_1769), reference("1769").scores.bpb
    assert set(FIVE_OF_1769) == set(sorted(seven.values)[:5])
    found = welch(five, row("1736"))
    assert (found.t, found.df, found.p) == (
        pytest.approx(1.9093, abs=5e-5), pytest.approx(4.228, abs=5e-4), pytest.approx(0.06250, abs=5e-6)
    )  # fmt: skip
    honest = welch(seven, row("1736"))
    assert (honest.t, honest.df, honest.p) == (
        pytest.approx(1.4986, abs=5e-5), pytest.approx(3.814, abs=5e-4), pytest.approx(0.10585, abs=5e-6)
    )  # fmt: skip


def test_a_row_of_which_only_a_summary_is_known_can_be_tested():
    """#1967 pools six seeds of #1855, and prints mean and deviation only."""
    found = welch(summary(6, 1.060755, 0.000933), estimate([1.06083288, 1.06090748, 1.06248776]))
    assert (found.t, found.df) == (pytest.approx(0.9907, abs=5e-4), pytest.approx(4.084, abs=5e-3))
    assert found.p == pytest.approx(0.18842, abs=1e-4)


MORE = [
    ("1530", "1514", 0.00051),
    ("1610", "1530", 0.20212),
    ("1626", "1610", 0.09657),
    ("1667", "1626", 0.22774),
    ("1729", "1667", 0.00310),
    ("1736", "1729", 0.00617),
    ("1868", "1787", 0.01098),
    ("1855", "1868", 0.32422),
    ("2014", "1953", 0.0202),
    ("1953", "1945", 0.0903),
    ("1945", "1855", 0.0560),
]


@pytest.mark.parametrize(("new", "old", "p"), MORE)
def test_p_of_further_rows(new: str, old: str, p: float):
    digits = 5e-6 if len(str(p)) > 6 else 6e-5
    assert welch(row(new), row(old)).p == pytest.approx(p, abs=digits)


def test_p_of_1787_against_the_five_reported_seeds_of_1769():
    assert welch(row("1787"), estimate(FIVE_OF_1769)).p == pytest.approx(0.02270, abs=5e-6)


def test_1019_beats_549_by_five_thousandths_of_a_nat_per_token_as_the_readme_asks():
    new, old = reference("1019").scores.in_nats(), reference("549").scores.in_nats()
    assert new is not None
    assert old is not None
    plain, strict = welch(new, old), welch(new, old, 0.005)
    assert (plain.t, plain.df) == (pytest.approx(11.8338, abs=5e-5), pytest.approx(3.3063, abs=5e-5))
    assert plain.p == pytest.approx(0.000403, abs=5e-7)
    assert (strict.t, strict.p) == (pytest.approx(4.2888, abs=5e-5), pytest.approx(0.00955, abs=5e-6))
    early = one_sample(new, old.mean, 0.005)
    assert (early.t, early.df, early.p) == (
        pytest.approx(8.239, abs=5e-4), 2, pytest.approx(0.00721, abs=5e-6)
    )  # fmt: skip


@pytest.mark.parametrize(("old", "t", "p"), [("2014", -3.78, 0.990), ("1855", 3.404, 0.0293)])
def test_2135_misses_the_readmes_margin_against_either_row(old: str, t: float, p: float):
    found = compare(reference("2135").scores, reference(old).scores)
    nats = next(r.welch for r in found.readings if r.unit == "nats/token" and r.welch.margin == 0.005)
    assert nats.t == pytest.approx(t, abs=1.2e-2)
    assert nats.p == pytest.approx(p, abs=6e-4 if old == "2014" else 6e-5)
    assert nats.p > 0.01


def test_the_early_convention_of_one_sample():
    """TrainingOptSeq4096 prints t = 9.06 from a deviation rounded to 0.00187; LoRA TTT prints p = 0.00234486."""
    values = estimate([1.20143417, 1.19945102, 1.20319508])
    found = one_sample(values, 1.21613611, 0.005)
    assert (round(values.std, 5), found.df) == (0.00187, 2)
    assert found.t == pytest.approx(9.06, abs=0.03)
    assert one_sample(summary(3, values.mean, 0.00187), 1.21613611, 0.005).t == pytest.approx(9.06, abs=6e-3)
    assert found.p == pytest.approx(0.006, abs=5e-4)
    assert one_sample(estimate([1.1927, 1.1935, 1.1921, 1.1929]), 1.195).p == pytest.approx(0.00234486, abs=5e-9)


@pytest.mark.parametrize(("nats_per_bpb", "margin_bpb"), [(1.68845, 0.00296), (2.5831, 0.00194), (2.18837, 0.00228)])
def test_five_thousandths_of_a_nat_per_token_are_another_margin_for_each_tokenizer(
    nats_per_bpb: float, margin_bpb: float
):
    scores = Scores(estimate([1.1, 1.2, 1.15]), nats_per_bpb)
    margins = {reading.name: reading.welch.margin for reading in compare(scores, scores).readings}
    assert margins["0.005 nats per token"] in (pytest.approx(margin_bpb, abs=5e-6), 0.005)
    in_bpb = [r for r in compare(scores, scores).readings if r.unit == "BPB"]
    assert [round(r.welch.margin, 5) for r in in_bpb] == [0.0, margin_bpb, 0.00721]


def test_the_strictest_reading_is_marked_once_and_has_the_largest_p():
    found = compare(reference("1855").scores, reference("1493").scores)
    in_bpb = [reading for reading in found.readings if reading.unit == "BPB"]
    assert [reading.strictest for reading in in_bpb] == [False, False, False, True]
    assert found.strictest.name == "0.005 nats per byte"
    assert max(in_bpb, key=lambda reading: reading.welch.p or 0.0) is found.strictest


def test_nats_of_different_tokens_are_not_subtracted():
    found = compare(reference("1855").scores, reference("1493").scores)
    assert {reading.unit for reading in found.readings} == {"BPB"}
    assert any("tokenizers differ" in note for note in found.notes)
    unknown = compare(Scores(estimate([1.0, 1.1])), reference("1493").scores)
    assert any("not known" in note for note in unknown.notes)


def test_three_and_three_seeds_show_no_less_than_two_thousandths():
    """The power statement: deviation 0.0007, three seeds a side, p < 0.01."""
    assert detectable(0.0007, 3, 3) == pytest.approx(0.0021, abs=5e-5)
    assert stats.t.isf(0.01, 4) == pytest.approx(3.75, abs=5e-3)
    assert detectable(0.0007, 5, 5) < detectable(0.0007, 3, 3)


def test_the_deviation_is_the_samples_and_the_interval_is_students():
    """#1855's submission.json says 0.00090, the population's; the sample's is 0.00110608."""
    found = row("1855")
    assert found.std == pytest.approx(0.00110608, abs=5e-9)
    low, high = stats.t.interval(0.95, 2, found.mean, found.std / math.sqrt(3))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


VALUES = st.lists(st.floats(0.9, 1.5), min_size=2, max_size=8, unique=True)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(VALUES, VALUES)
def test_welch_is_scipys_welch(new: list[float], old: list[float]):
    found, theirs = (
        welch(estimate(new), estimate(old)),
        stats.ttest_ind(old, new, equal_var=False, alternative="greater"),
    )
    assert found.t == pytest.approx(theirs.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    interval = stats.ttest_ind(old, new, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.9, 1.5), st.floats(0.9, 1.5)), min_size=2, max_size=8, unique=True))
def test_pairs_are_scipys_pairs(pairs: list[tuple[float, float]]):
    new, old = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired(new, old)
    if found.t is None:
        assert len({b - a for a, b in pairs}) == 1
        return
    theirs = stats.ttest_rel(old, new, alternative="greater")
    assert found.t == pytest.approx(theirs.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)


def test_pairs_find_what_the_noise_of_seeds_hides():
    old = [1.120, 1.131, 1.125]
    new = [value - step for value, step in zip(old, (0.0010, 0.0011, 0.0009), strict=True)]
    assert welch(estimate(new), estimate(old)).p > 0.3
    assert paired(new, old).p < 0.01
    with pytest.raises(ValueError, match="pairs are of equal number; got 3 and 2"):
        paired(new, old[:2])


def test_where_there_is_no_spread_there_is_no_test_and_it_says_so():
    one, two, same = estimate([1.1]), estimate([1.2, 1.3]), estimate([1.1, 1.1, 1.1])
    assert (one.std, one.low, one.high) == (None, None, None)
    assert welch(one, two).p is None
    assert "two values or more on each side; there are 1 and 2" in welch(one, two).note
    assert welch(same, same).p is None
    assert "do not differ" in welch(same, same).note
    assert one_sample(same, 1.2).note == fairway._NO_SPREAD
    assert paired([1.1], [1.2]).improvement == pytest.approx(0.1)
    assert paired([1.1], [1.2]).p is None


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
