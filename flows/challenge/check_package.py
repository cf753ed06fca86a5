"""Checks of the package: files, JSON, sizes both ways, and whether the logs are of the code that is shipped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flows.challenge.backing import backing_runs
from flows.challenge.claims import BASELINE
from flows.challenge.findings import Finding, Level, gathered
from flows.challenge.folder import SCRIPT, Evidence, Folder

Rules = Mapping[str, Any]
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}_\S")


def check_files(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """README, submission.json, the script, and at least one log with a score."""
    del rules
    names = {name.lower() for name in folder.files}
    for name, why in (
        ("readme.md", "says what the submission is"),
        ("submission.json", "holds its figures"),
        (SCRIPT, "is what runs"),
    ):
        if name not in names:
            yield Finding("error", "S4", "", f"{name} is missing; a records folder has one, because it {why}")
    if not any(each.run.final_scores for each in folder.evidence):
        yield Finding("error", "S4", "I41", "no log holds a score; the claims have no evidence in this folder")
    if not _NAME.match(folder.path.resolve().name):
        yield Finding("note", "S4", "", f"the folder's name is YYYY-MM-DD_Description; it is {folder.path.name!r}")


def check_json(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """The JSON can be read and says what every submission says."""
    del rules
    if folder.claims_error:
        yield Finding("error", "S4", "", f"submission.json cannot be read: {folder.claims_error}")
    if folder.claims is None:
        return
    raw = folder.claims.raw
    if missing := [name for name in BASELINE if raw.get(name) in (None, "")]:
        yield Finding("note", "S4", "", f"submission.json does not say {', '.join(missing)}")
    if folder.claims.val_bpb is None:
        yield Finding("error", "S4", "", f"val_bpb is the headline, a number; it is {raw.get('val_bpb')!r}")


def sizes(folder: Folder, rules: Rules) -> list[dict[str, Any]]:
    """Per backing run: the total as logged, as it lies in the folder, and with every source file of the folder."""
    del rules
    reached = code_on_disk(folder)
    everything = sum(len(content) for content in folder.code.values())
    rows: list[dict[str, Any]] = []
    for each in backing_runs(folder):
        model = each.run.counted_model_bytes or folder.model_bytes
        rows.append(
            {
                "log": each.log.name,
                "seed": each.seed,
                "logged": each.run.counted_total_bytes,
                "on_disk": None if model is None or reached is None else reached + model,
                "every_source": None if model is None else everything + model,
                "model": model,
            }
        )
    return rows


def code_on_disk(folder: Folder) -> int | None:
    """Bytes of the script and of every code file that it reaches."""
    if folder.script is None:
        return None
    return folder.script.bytes + sum(len(folder.code[name]) for name in folder.script.reaches)


def check_sizes(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """Code and model together against the cap, in every seed, counted in each way (detector T14)."""
    cap, rows = rules["cap_bytes"], sizes(folder, rules)
    ways: tuple[tuple[str, Level, str, str], ...] = (
        ("logged", "error", "I32", "as logged"),
        ("on_disk", "strict", "I33", "as they lie in the folder (the script, what it reaches, and the logged model)"),
        ("every_source", "note", "I33", "with every source file of the folder"),
    )
    told: set[str] = set()
    for way, level, kind, text in ways:
        over = {row["log"]: row[way] for row in rows if row[way] is not None and row[way] > cap}
        if over and not over.keys() <= told:
            told |= over.keys()
            listed = ", ".join(f"{total:,} ({log})" for log, total in over.items())
            yield Finding(level, "B1", kind, f"code and model take at most {cap:,} bytes; {text}: {listed}", over)
    declared = folder.claims.total_bytes if folder.claims else None
    if declared is not None and declared > cap:
        yield Finding("error", "B1", "I32", f"submission.json itself declares {declared:,} bytes, over {cap:,}")
    if rows and all(row["logged"] is None and row["on_disk"] is None for row in rows):
        yield Finding("note", "B1", "", "no log says how large the model is, and none is shipped: the size is unproven")


def check_code(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """The logs are of the shipped script (detector T16), and the script is the code (I33)."""
    del rules
    if folder.script is None:
        return
    script, reached = folder.script, code_on_disk(folder)
    if script.indirect:
        text = f"{SCRIPT} has {script.bytes:,} bytes and executes another file ({script.indirect}): the code is "
        yield Finding("strict", "B1", "I33", text + f"{reached:,} bytes in {', '.join((SCRIPT, *script.reaches))}")
    elif script.reaches:
        yield Finding("note", "B1", "I33", f"{SCRIPT} needs {', '.join(script.reaches)}: together {reached:,} bytes")
    yield from gathered(_check_identity(folder))


def _check_identity(folder: Folder) -> Iterator[Finding]:
    for each in backing_runs(folder):
        if (problem := _not_of(each, folder)) is not None:
            yield Finding("strict", "S4", "I41", f"{each.log.name}: it is not of the shipped {SCRIPT}: {problem}")
        if each.run.code_sha256 and each.run.code_sha256 not in _digests(folder):
            text = f"{each.log.name}: it names code of sha256 {each.run.code_sha256[:12]}; shipped is another"
            yield Finding("error", "S4", "I41", text)


def check_models(folder: Folder, rules: Rules) -> Iterator[Finding]:
    """Where logs name the model by its sha256, the shipped models are those."""
    del rules
    named = {each.run.model_sha256 for each in folder.evidence if each.run.model_sha256}
    for path in folder.models if named else ():
        with (folder.path / path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found not in named:
            text = f"{path} has sha256 {found[:12]}, which no log names: it is not what was scored"
            yield Finding("error", "S4", "I41", text)


def _not_of(each: Evidence, folder: Folder) -> str | None:
    """How a log's code differs from the folder's, or None where it does not, or says nothing."""
    assert folder.script is not None
    shipped = [folder.code[SCRIPT], *folder.script.unpacked, *(folder.code[name] for name in folder.script.reaches)]
    if each.log.sources:
        held = _plain(each.log.text)
        if not any(_plain(text.decode("utf-8", "replace")) in held for text in shipped):
            source = len(each.log.sources[-1].encode())
            return (
                f"it embeds another source, of {each.run.code_bytes or source:,} bytes; shipped are {len(shipped[0]):,}"
            )
        return None
    sizes_there = {len(text) for text in shipped} | {code_on_disk(folder)}
    said = [size for size in (each.run.code_bytes, each.run.packed_code_bytes) if size is not None]
    if said and not sizes_there & set(said):
        return f"it counts {' or '.join(f'{size:,}' for size in said)} bytes of code; shipped are {len(shipped[0]):,}"
    return None


def _plain(text: str) -> str:
    """Text without what a logger may change: line ends and blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _digests(folder: Folder) -> set[str]:
    script = folder.script
    return {hashlib.sha256(text).hexdigest() for text in (folder.code[SCRIPT], *(script.unpacked if script else ()))}
