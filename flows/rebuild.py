"""`artifacts verify --rebuild`: run a cached stage again on its stored inputs and compare its output byte for byte."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.digest import hash_file
from artifacts.record import File, Record, digest_files
from artifacts.records import scan_folder
from configs.load import load_recipe
from flows.account import account_of
from flows.identity import key_of, unknown_roles
from flows.river import Outside, Step, StepId, river
from flows.session import Session
from flows.step import made
from stages.contract import StageError


@dataclass(frozen=True)
class Rebuilt:
    """What became of one step."""

    label: str
    key: str
    state: str  # "same" | "differs" | "changed"
    text: str
    roles: Mapping[str, bool]  # role -> whether its digest came out again


def rebuild(session: Session, run: Mapping[str, Any], outside: Outside, stages: Collection[str]) -> Iterator[Rebuilt]:
    """Rebuild the CPU steps of `stages` ("all": every one) of a finished run, one after the other."""
    recorded = {(step["stage"], step["part"]): step.get("key") for step in run["steps"]}
    recipe = load_recipe(run["asked"], run["scale"], run["overrides"]).recipe
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    records: dict[StepId, Record | None] = {}
    for step in river(recipe, run["seed"], outside, outputs, account_of(records.get)):
        key = recorded.get(step.id)
        record = session.store.get(step.stage, key) if key else None
        outputs[step.id], records[step.id] = record.files if record else None, record
        if record is None or not ("all" in stages or step.stage in stages):
            continue
        if step.device is not None and step.device.kind != "cpu":
            if step.stage in stages:
                raise StageError(f"--rebuild compares bytes, which a GPU does not repeat; {step.label} ran on one")
            continue
        yield _rebuild(step, record, session)


def _rebuild(step: Step, record: Record, session: Session) -> Rebuilt:
    components = session.identity.components(step)
    if unknown_roles(components) or key_of(components) != record.key:
        text = f"the tree would make another key; see `fairway why {record.key[:12]}`"
        return Rebuilt(step.label, record.key, "changed", text, {})
    with made(step, record.key, session) as result:
        files = tuple(File(path, *hash_file(result.out / path)) for path in scan_folder(result.out))
    roles = {}
    for role in step.config.SPEC.outputs:
        again = digest_files(f.below(role) for f in files if f.path.startswith(f"{role}/"))
        roles[role] = again == record.role_digest(role)
    wrong = [role for role, same in roles.items() if not same]
    if wrong:
        return Rebuilt(step.label, record.key, "differs", f"other bytes in {', '.join(wrong)}", roles)
    return Rebuilt(step.label, record.key, "same", f"{len(files)} files, byte for byte", roles)
