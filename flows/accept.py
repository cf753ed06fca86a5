"""`fairway accept OLD NEW --reason`: proof that two states of a stage's code give equal bytes, kept in the store.

An edit that changes no result still changes the code's digest: a rename, a faster loop. The proof runs the stage from
both sources at smoke scale, on the same inputs, and compares every byte. It shows what smoke scale exercises on a CPU,
so the reason is a person's word and is kept with it. From then on records made by either code serve the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.digest import hash_file
from artifacts.record import File, Record, digest_files
from artifacts.records import scan_folder
from artifacts.verdicts import Acceptance
from configs.introduced import resolved
from flows.identity import Identity
from flows.prepare import Prepared
from flows.river import Step, StepId, river
from flows.session import Event, Session
from flows.step import hit_or_run, made
from flows.why import Source, published_source
from stages.contract import StageError

SCALE = "smoke"


def accept(prepared: Prepared, old: Record, reason: str, new: Record | None = None, who: str = "") -> Acceptance:
    """Prove that the code of `old` and that of `new` give equal bytes, and record it.

    Args:
        prepared: a request for a recipe at smoke scale; stages above run from its source tree where they must.
        old: a record whose published source is the one side.
        reason: why the bytes are equal, in a sentence.
        new: a record whose source is the other side; None takes the source tree.
        who: who says so.

    Raises:
        StageError: the codes are equal already, a source is gone, or the bytes differ.
        StageFailed: one of the sides failed.
    """
    session, stage = prepared.session, old.stage
    if new is not None and new.stage != stage:
        raise StageError(f"two codes of one stage can be equal; got {old.label} and {new.label}; name two of a kind")
    with _source_of(old, session) as before, _source_of(new, session) as after:
        codes = [dict(identity.closure(stage).digests) for identity in (before, after)]
        if codes[0] == codes[1]:
            raise StageError(
                f"codes that differ can be accepted; those of {stage} are the same; there is nothing to do"
            )
        _refuse_foreign_code(old, codes[0])
        evidence = _compare(prepared, stage, before, after)
    return session.store.accept(stage, codes[0], codes[1], reason, who, evidence)


@contextmanager
def _source_of(record: Record | None, session: Session) -> Iterator[Identity]:
    """The identity of a record's published source, unpacked; of the session's tree for None."""
    if record is None:
        yield session.identity
        return
    source = published_source(record, session.store)
    if source is None:
        raise StageError(
            f"accept runs the code that made an artifact; the source of {record.label} {record.key[:12]} is not in the "
            "store any more; name an artifact that has its source"
        )
    yield Identity(_unpack(source, session.scratch / f"source-{record.key[:12]}"))


def _unpack(source: Source, root: Path) -> Path:
    for name, text in source.items():
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise StageError(f"a published source stays in its folder; it names {name!r}; do not use this store")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return root


def _refuse_foreign_code(old: Record, code: Mapping[str, str]) -> None:
    if code != old.components["code"]:
        raise StageError(
            f"the code that is compared is the code in the key; the source of {old.label} {old.key[:12]} has other "
            "digests, so another version of Fairway keyed it; run the stage again instead"
        )


def _compare(prepared: Prepared, stage: str, before: Identity, after: Identity) -> dict[str, Any]:
    """Run every step of a stage from both sources on the same inputs; what was compared."""
    session = prepared.session
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    compared: dict[str, Any] = {}
    for step in river(prepared.loaded.recipe, session.seed, prepared.outside, outputs):
        if step.stage == stage:
            outputs[step.id] = None  # parts of one stage do not read one another
            compared[step.label] = _compare_step(step, session, before, after)
        elif compared:
            break
        else:
            outputs[step.id] = hit_or_run(step, session).record.files
    return {"recipe": session.recipe, "scale": session.scale, "seed": session.seed, "compared": compared}


def _compare_step(step: Step, session: Session, before: Identity, after: Identity) -> dict[str, str]:
    """The digest of each role, equal on both sides."""
    made_by = [_digests(step, replace(session, identity=identity, stages=())) for identity in (before, after)]
    differing = [role for role, digest in made_by[0].items() if made_by[1][role] != digest]
    if differing:
        raise StageError(
            f"codes are accepted if they give equal bytes; {step.label} at {session.scale} scale gives others in "
            f"{', '.join(differing)}; run the stage again instead of accepting"
        )
    session.tell(Event("note", step.label, "equal bytes from both codes"))
    return made_by[0]


def _digests(step: Step, session: Session) -> dict[str, str]:
    # Fields that are off are left to their defaults: the older code may not know them.
    with made(step, "accept", session, config=resolved(step.config)) as result:
        files = [File(path, *hash_file(result.out / path)) for path in scan_folder(result.out)]
    return {role: digest_files(f for f in files if f.path.startswith(f"{role}/")) for role in step.config.SPEC.outputs}
