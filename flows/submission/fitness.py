"""What keeps a submission out of the record track: refused there, and said in a submission outside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.load import challenge
from flows.challenge.check_scores import judge
from flows.submission.collect import Seed, Submission


def unfit_for_the_record(submission: Submission) -> list[str]:
    """Every reason, one sentence each; none for a submission that fits."""
    rules = challenge()
    wanted, seeds = rules["submission"]["seeds"], submission.seeds
    found = [f"a row needs {wanted} seeds; there are {len(seeds)}"] if len(seeds) < wanted else []
    for each in seeds:
        found += [f"seed {each.seed}: {text}" for text in _limits(submission, each, rules)]
    scores = [each.scores[submission.protocol] for each in seeds]
    if any("partial" in score["marks"] for score in scores):
        found.append("the score is of a part of the validation set")
    broken = sorted({each["rule"] for score in scores for each in score["rules_broken"]})
    if broken:
        found.append(f"protocol {submission.protocol} breaks {', '.join(broken)}")
    level, _, what = judge(scores[0]["bytes"], scores[0]["tokens"], 0.5, rules["fingerprint"])
    if level == "error":
        found.append(f"the score's denominator: {what}")
    train = submission.recipe.devices.train
    if train.kind != rules["device"]["kind"]:
        found.append(f"the track is for {rules['hardware']}; this was trained on {train.kind}")
    return found


def _limits(submission: Submission, seed: Seed, rules: Mapping[str, Any]) -> Iterator[str]:
    total = seed.report("weigh")["total_bytes"]
    if total > rules["cap_bytes"]:
        yield f"{total:,} bytes of {rules['cap_bytes']:,}"
    train_s = seed.report("train")["seconds"]
    if train_s > rules["train_seconds"] + rules["submission"]["step_overrun_seconds"]:
        yield f"trained for {train_s:.1f} s of {rules['train_seconds']}"
    eval_s = seed.records["evaluate", submission.protocol].provenance["seconds"]
    if eval_s > rules["evaluate_seconds"]:
        yield f"evaluated for {eval_s:.1f} s of {rules['evaluate_seconds']}"
    judged = seed.judged(submission.protocol)
    if judged and judged["verdict"].get("board") == "not_legal":
        because = "; ".join(judged["policies"]["board"]["because"])
        yield f"the audit found it not legal ({because})"
