"""README.md of a submission: what it is, the seeds, what was found out about its legality, how to run it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.techniques import techniques
from flows.submission.claims import Author, hardware, title
from flows.submission.collect import Submission


def write_readme(
    submission: Submission, by: Author, claims: Mapping[str, Any], files: Mapping[int, Mapping[str, str]]
) -> str:
    """The page, from the same figures as submission.json."""
    parts = [
        f"# {title(submission, by)}",
        submission.recipe.about,
        _headline(submission, claims),
        "## Seeds",
        _seeds(claims),
        *_disclosure(claims),
        "## Legality",
        _legality(submission, claims, files),
        "## Size",
        _size(submission, claims),
        "## What is in it",
        _techniques(submission),
        "## Running it again",
        _again(submission, files),
        "## Files",
        _files(files),
        "Every figure here and in `submission.json` was written by `fairway submit` from the records of these runs.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(submission: Submission, claims: Mapping[str, Any]) -> str:
    n, std = claims["n_seeds"], claims["val_bpb_std"]
    spread = f", sample standard deviation {std:.6f} (ddof 1)" if std is not None else " (one seed has no deviation)"
    marks = ", ".join(mark.replace("_", " ") for mark in claims["marks"])
    said = [
        f"**{claims['val_bpb']:.6f} BPB**, mean of {n} seed{'s' if n > 1 else ''}{spread}, by protocol "
        f"`{submission.protocol}`. Trained on {hardware(submission)}, recipe `{submission.recipe.name}` at scale "
        f"`{submission.scale}`."
    ]
    if claims["rules_broken"]:
        said.append(f"The protocol breaks {', '.join(claims['rules_broken'])}: this is not a legal score.")
    if marks:
        said.append(f"To know before comparing the number: {marks}.")
    if "non_record_reason" in claims:
        said.append(f"Not for the record: {claims['non_record_reason']}.")
    return " ".join(said)


def _seeds(claims: Mapping[str, Any]) -> str:
    rows = [
        [seed, f"{r['val_bpb']:.8f}", f"{r['val_loss']:.8f}", f"{r['steps']:,}", f"{r['train_time_s']:.1f} s",
         f"{r['eval_time_s']:.1f} s", f"{r['artifact_bytes']:,}"]
        for seed, r in claims["seed_results"].items()
    ]  # fmt: skip
    return _table(["seed", "val_bpb", "val_loss", "steps", "training", "evaluation", "bytes"], rows)


def _disclosure(claims: Mapping[str, Any]) -> Iterator[str]:
    """Runs that do not count, and runs that were not declared."""
    counted = {each["run"] for each in claims["seed_results"].values()}
    rest = [each for each in claims["runs"] if each["run"] not in counted]
    if rest:
        rows = [[each["seed"], each["run"], each["state"], _number(each["val_bpb"])] for each in rest]
        yield "Other runs of this set, all that there are:\n\n" + _table(["seed", "run", "state", "val_bpb"], rows)
    if claims["undeclared_runs"]:
        rows = [[each["seed"], each["run"], _number(each["bpb"])] for each in claims["undeclared_runs"]]
        text = "Runs of the same configuration under seeds that were not declared for this set:"
        yield f"{text}\n\n" + _table(["seed", "run", "val_bpb"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.8f}"


def _legality(submission: Submission, claims: Mapping[str, Any], files: Mapping[int, Mapping[str, str]]) -> str:
    judged = {each.seed: said for each in submission.seeds if (said := each.judged(submission.protocol))}
    if not judged:
        return (
            "Not audited. The referee that owned the validation tokens scored each target once and in order and "
            "normalised the logits itself; causality inside a window was not tested."
        )
    policies = list(next(iter(judged.values()))["verdict"])
    rows = [
        [seed, *(said["verdict"][policy].replace("_", " ") for policy in policies), f"`{files[seed]['audit']}`"]
        for seed, said in judged.items()
    ]
    rules = [
        [rule, said["verdict"], ", ".join(f"`{name}`" for name in said["evidence"])]
        for rule, said in claims["compliance"].items()
        if "verdict" in said and not rule.startswith("policy ")
    ]
    because = [f"- {policy}, {text}" for policy, text in _because(judged, policies)]
    parts = [_table(["seed", *policies, "evidence"], rows), "\n".join(because)]
    return "\n\n".join([*filter(None, parts), _table(["rule", "verdict", "evidence"], rules)])


def _because(judged: Mapping[int, Mapping[str, Any]], policies: Sequence[str]) -> list[tuple[str, str]]:
    """Why a policy does not call it legal, each reason once."""
    found = {
        (policy, text): None
        for said in judged.values()
        for policy in policies
        for text in said["policies"][policy]["because"]
    }
    return list(found)


def _size(submission: Submission, claims: Mapping[str, Any]) -> str:
    share = 100 * claims["bytes_total"] / submission.cap_bytes
    return (
        f"{claims['bytes_total']:,} bytes in the largest seed (code {claims['bytes_code']:,}, model "
        f"{claims['bytes_model']:,}), {share:.2f} % of {submission.cap_bytes:,}. The code is `train_gpt.py` as it lies "
        f"here, sha256 `{claims['code_sha256']}`; it needs no other file of this folder."
    )


def _techniques(submission: Submission) -> str:
    return "\n".join(f"- {each}" for each in techniques(submission.recipe))


def _again(submission: Submission, files: Mapping[int, Mapping[str, str]]) -> str:
    ranks, first = submission.recipe.devices.train.count, submission.first.seed
    archive = files[first].get("archive", "final_model.fwy")
    run = submission.first.run
    overrides = "".join(f" --set {json.dumps(text)}" for text in run.get("overrides", []))
    return f"""\
In this folder, with the packages of `requirements.txt`:

```
export DATA_PATH=...       # folder of fineweb_train_*.bin and fineweb_val_*.bin
export TOKENIZER_PATH=...  # the SentencePiece .model of these shards
SEED={first} PROTOCOL={submission.protocol} torchrun --standalone --nproc_per_node={ranks} train_gpt.py
PROTOCOL={submission.protocol} python train_gpt.py --score-only {archive}
```

With Fairway: `fairway run {Path(run["asked"]).name} --scale {submission.scale} --seed {first}{overrides}`"""


def _files(files: Mapping[int, Mapping[str, str]]) -> str:
    says = {"log": "log of seed {}", "archive": "archive of seed {}", "audit": "audit of seed {}"}
    lines = ["- `train_gpt.py`: trains, makes the archive and scores it; packed, one file", "- `submission.json`"]
    lines += [f"- `{name}`: {says[what].format(seed)}" for seed, names in files.items() for what, name in names.items()]
    return "\n".join([*lines, "- `requirements.txt`"])


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
