"""submission.json: every figure from the records, none typed; of compliance it says where the evidence stands."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.submission.collect import Seed, Submission
from flows.submission.fitness import unfit_for_the_record

DIGITS = 8  # of scores, as the challenge's logs have them
TRACKS = {"record": "10min_16mb", "non-record": "non_record_16mb"}
_LIBRARIES = ("torch", "numpy", "sentencepiece", "zstandard")


@dataclass(frozen=True)
class Author:
    """What no record knows."""

    name: str = ""  # of the submission
    author: str = ""
    github_id: str = ""
    track: str = "non-record"


def claims(submission: Submission, by: Author, files: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    """submission.json as a value. `files`: {seed: {what: name of the file in the folder}}."""
    bpb = [_headline(submission, each)["bpb"] for each in submission.seeds]
    nats = [_headline(submission, each)["nats_per_token"] for each in submission.seeds]
    largest = max(submission.seeds, key=lambda each: each.report("weigh")["total_bytes"]).report("weigh")
    provenance = submission.first.records["train", ""].provenance
    unfit = unfit_for_the_record(submission)
    return {
        "author": by.author,
        "github_id": by.github_id,
        "name": title(submission, by),
        "blurb": submission.recipe.about,
        "date": date(submission),
        "track": TRACKS[by.track],
        "val_loss": round(statistics.fmean(nats), DIGITS),
        "val_bpb": round(statistics.fmean(bpb), DIGITS),
        **_spread(bpb, nats),
        "n_seeds": len(bpb),
        "seeds": [each.seed for each in submission.seeds],
        "seed_results": {str(each.seed): _result(submission, each, files[each.seed]) for each in submission.seeds},
        "bytes_total": largest["total_bytes"],
        "bytes_code": largest["code_bytes"],
        "bytes_model": largest["model_bytes"],
        **({"non_record_reason": "; ".join(unfit)} if unfit else {}),
        "eval_method": submission.protocol,
        "marks": sorted({mark for each in submission.seeds for mark in _headline(submission, each)["marks"]}),
        "rules_broken": rules_broken(submission),
        "hardware": hardware(submission),
        "python_version": provenance["python"],
        "pytorch_version": provenance["packages"]["torch"],
        "code_sha256": submission.code_sha256,
        "recipe": submission.recipe.name,
        "scale": submission.scale,
        "compliance": _compliance(submission, files),
        "runs": [_told(attempt, submission.protocol) for attempt in submission.attempts],
        "undeclared_runs": [dict(each) for each in submission.others],
    }


def title(submission: Submission, by: Author) -> str:
    """The submission's name: as asked for, else recipe and protocol."""
    return by.name or f"{submission.recipe.name} {submission.protocol}"


def date(submission: Submission) -> str:
    """The day on which the last seed finished."""
    return max(each.run["finished"] for each in submission.seeds)[:10]


def rules_broken(submission: Submission) -> list[str]:
    """The rules that the headline's protocol says it breaks."""
    return sorted({b["rule"] for each in submission.seeds for b in _headline(submission, each)["rules_broken"]})


def hardware(submission: Submission) -> str:
    """What trained: ranks and device as the training saw it."""
    ranks, train = submission.recipe.devices.train.count, submission.first.records["train", ""]
    device = train.report["device"]
    cpu = train.provenance.get("cpu", "")
    return f"{ranks} x {device}" + (f" ({cpu})" if device == "cpu" and cpu else "")


def requirements(submission: Submission) -> str:
    """requirements.txt: what the script imports, in the versions that made the archives."""
    packages = submission.first.records["train", ""].provenance["packages"]
    return "".join(f"{name}=={packages[name].partition('+')[0]}\n" for name in _LIBRARIES if name in packages)


def _headline(submission: Submission, seed: Seed) -> Mapping[str, Any]:
    return seed.scores[submission.protocol]


def _spread(bpb: Sequence[float], nats: Sequence[float]) -> dict[str, Any]:
    """Sample standard deviations; one seed has none."""
    if len(bpb) < 2:
        return {"val_bpb_std": None, "val_loss_std": None, "std_ddof": 1}
    return {
        "val_bpb_std": round(statistics.stdev(bpb), DIGITS),
        "val_loss_std": round(statistics.stdev(nats), DIGITS),
        "std_ddof": 1,
    }


def _result(submission: Submission, seed: Seed, files: Mapping[str, str]) -> dict[str, Any]:
    score, train, weigh = _headline(submission, seed), seed.report("train"), seed.report("weigh")
    return {
        "val_loss": round(score["nats_per_token"], DIGITS),
        "val_bpb": round(score["bpb"], DIGITS),
        "val_tokens": score["tokens"],
        "val_bytes": score["bytes"],
        "artifact_bytes": weigh["total_bytes"],
        "bytes_code": weigh["code_bytes"],
        "bytes_model": weigh["model_bytes"],
        "steps": train["steps"],
        "step_avg_ms": round(1000 * train["seconds"] / max(train["steps"], 1), 2),
        "train_time_s": round(train["seconds"], 3),
        "artifact_time_s": round(seed.seconds("train", "average", "quantize", "compress"), 3),
        "eval_time_s": round(seed.records["evaluate", submission.protocol].provenance["seconds"], 3),
        "archive_sha256": seed.archive_sha256,
        "ledger_sha256": score["ledger_sha256"],
        "run": seed.run["id"],
        "log": files["log"],
        **({"archive": files["archive"]} if "archive" in files else {}),
    }


def _compliance(submission: Submission, files: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    """Per rule, what each seed's evidence says and where it stands. No audit, no verdict."""
    logs = [files[each.seed]["log"] for each in submission.seeds]
    found: dict[str, Any] = {"size, training and evaluation time": {"evidence": logs}}
    judged = {each.seed: said for each in submission.seeds if (said := each.judged(submission.protocol))}
    if not judged:
        return {**found, "rules": {"verdict": "not audited", "evidence": []}}
    evidence = [files[seed]["audit"] for seed in judged]
    for policy in next(iter(judged.values()))["verdict"]:
        found[f"policy {policy}"] = {
            "verdict": _agreed(s["verdict"][policy] for s in judged.values()),
            "evidence": evidence,
        }
    for rule in next(iter(judged.values()))["rules"]:
        found[rule] = {"verdict": _agreed(s["rules"][rule] for s in judged.values()), "evidence": evidence}
    unaudited = [each.seed for each in submission.seeds if each.seed not in judged]
    return {**found, **({"not audited": {"seeds": unaudited}} if unaudited else {})}


def _agreed(verdicts: Iterable[str]) -> str:
    """One word where all seeds have the same verdict."""
    return ", ".join(sorted(set(verdicts)))


def _told(attempt: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """One run as it is disclosed, whatever became of it."""
    score = attempt.get("scores", {}).get(protocol, {})
    return {
        "seed": attempt["seed"],
        "run": attempt["run"],
        "state": attempt["state"],
        "val_bpb": score.get("bpb"),
        **({"error": attempt["error"].partition("\n")[0]} if attempt.get("error") else {}),
    }
