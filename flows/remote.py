"""A stage as a value: everything that another machine needs to run it, and nothing that it could take from elsewhere.

The flow publishes the source - the stage's import closure, and that of the program which keys and runs it - as one
object. A worker unpacks it, keys the assignment again *with that source* and refuses unless the key comes out the same.
So the keyed code is the code that runs, whatever the worker's own checkout holds. Nothing here imports Prefect.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from artifacts.keyring import held
from artifacts.record import File, check_files, check_key, digest_files
from configs.recipe import DeviceConfig, Recipe
from flows.identity import Components, key_of
from flows.leaves import leaves
from flows.river import Input, Step
from flows.session import Session
from flows.snapshot import copy_files, pack
from stages.config import StageConfig
from stages.contract import StageError

FORMAT = 1
PROGRAM = "flows.worker"  # what a worker executes from the published source


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One step by value. Every field is a JSON value, since it travels as the parameters of a Prefect run."""

    stage: str
    part: str
    key: str
    source: str  # sha256 of the published source
    store: str  # URL that both machines can reach
    config: dict[str, Any]  # all of the stage's configuration
    components: dict[str, Any]  # of the key: resolved slice, code, input digests, libraries, device
    inputs: dict[str, Any]  # role -> {"digest", "files": [[path, sha256, bytes]], "from": [producer]}
    seed: int | None = None
    device: dict[str, Any] | None = None  # as requested
    attempt: int = 0
    forced: bool = False  # run even if the record is there
    deadline_s: float | None = None
    run: str = ""  # id of the run that asked first
    provenance: dict[str, Any] = field(default_factory=dict)  # of the submitter: commit, user, command
    format: int = FORMAT
    credentials: str = ""  # the Prefect block that has them; empty: the worker's own

    @property
    def label(self) -> str:
        """`stage` or `stage[part]`."""
        return f"{self.stage}[{self.part}]" if self.part else self.stage

    def to_json(self) -> dict[str, Any]:
        """As parameters; what is not used does not travel, so that a worker need not know it."""
        return {name: value for name, value in asdict(self).items() if name != "credentials" or value}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Assignment:
        """From parameters; StageError if they are of another version of Fairway."""
        known = {each.name for each in fields(cls)}
        if raw.get("format") != FORMAT or not raw.keys() <= known:
            raise StageError(
                f"an assignment has format {FORMAT}; this one has {raw.get('format')!r} "
                f"{sorted(raw.keys() - known) or ''}; install one version of Fairway on the server's workers"
            )
        return cls(**raw)

    def step(self) -> Step:
        """The step as the river made it, its configuration checked by the classes of this source tree.

        Raises:
            StageError: a role's files are not those of its digest.
            BadName: a path leaves its folder.
        """
        inputs = {role: _input(role, each) for role, each in self.inputs.items()}
        device = None if self.device is None else DeviceConfig.model_validate(self.device)
        config = config_type(self.stage).model_validate(self.config)
        return Step(self.stage, self.part, config, inputs, self.seed, device)


def assign(step: Step, key: str, components: Components, session: Session, source: str) -> Assignment:
    """The assignment of a step whose inputs are in the store."""
    lineage = session.lineage(step)
    inputs = {
        role: {
            "digest": given.digest,
            "files": [[file.path, file.sha256, file.bytes] for file in given.files],
            "from": lineage[role]["from"],
        }
        for role, given in step.inputs.items()
    }
    captured = session.provenance()
    keys = held(session.store.url)
    return Assignment(
        stage=step.stage,
        part=step.part,
        key=key,
        source=source,
        store=session.store.url,
        config=step.config.model_dump(mode="json"),
        components=components,
        inputs=inputs,
        seed=step.seed,
        device=None if step.device is None else step.device.model_dump(mode="json"),
        forced=step.stage in session.force,
        deadline_s=session.deadline_s,
        run=session.run.id,
        provenance={name: captured[name] for name in ("git", "user", "argv") if captured.get(name)},
        credentials=keys.name if keys is not None else "",
    )


def check_components(assignment: Assignment, found: Components) -> None:
    """Refuse an assignment whose key does not come out the same here, and say what differs. StageError."""
    if key_of(found) == assignment.key:
        return
    told = assignment.components
    different = [name for name in sorted({*told, *found}) if told.get(name) != found.get(name)]
    parts = "; ".join(f"{name}: {_difference(told.get(name), found.get(name))}" for name in different)
    raise StageError(
        f"a worker runs what it can key to the same value; {assignment.label} was sent as {assignment.key[:12]} and "
        f"comes out as {key_of(found)[:12]} here ({parts or 'the key is not that of its components'}); "
        "give the worker the same versions as the submitter (requirements.lock)"
    )


def _difference(told: Any, found: Any) -> str:
    """What differs, field by field; the first few, since one cause can touch hundreds."""
    sent, here = (leaves(side) if isinstance(side, Mapping) and side else {"": side} for side in (told, found))
    paths = [path for path in sorted({*sent, *here}) if sent.get(path) != here.get(path)]
    shown, more = paths[:4], len(paths) - 4
    sides = (json.dumps({path: side.get(path) for path in shown}) for side in (sent, here))
    return "sent {}, here {}".format(*sides) + (f", and {more} more" if more > 0 else "")


def publish_source(stage: str, session: Session) -> str:
    """Put the source that a worker needs for a stage into the store; sha256 of the archive."""
    tree = session.identity.tree
    frozen = session.frozen_tree(stage)
    staged = dict(session.identity.closure(stage).files)
    with session.parsing:
        program = dict(tree.closure(PROGRAM).files)
    root = session.scratch / f"published-{stage}"
    copy_files(program.keys() - staged.keys(), tree.root, root)
    copy_files(staged, frozen.root, root)  # as keyed, even if the file was edited since
    archive = root.with_suffix(".tar")
    archive.write_bytes(pack(root, sorted({*program, *staged})))
    return session.store.put_file(archive).sha256


def unpack_source(content: bytes, root: Path) -> None:
    """The published source as a folder. StageError for anything but plain files below it."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:  # by hand: the filter that refuses the same came with Python 3.11.4
            parts = member.name.split("/")
            file = archive.extractfile(member) if member.isfile() else None
            if file is None or "\\" in member.name or any(part in ("", ".", "..") for part in parts):
                raise StageError(
                    f"a source has plain files that stay in its folder; got {member.name!r}; send the assignment again"
                )
            path = root.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())


def config_type(stage: str) -> type[StageConfig]:
    """The configuration class of a stage. StageError for a stage that the recipe does not know."""
    annotations = {name: info.annotation for name, info in Recipe.model_fields.items()}
    candidates = [annotations.get(stage), *getattr(annotations.get(stage), "__args__", ())]
    for found in candidates:
        if isinstance(found, type) and issubclass(found, StageConfig):
            return found
    raise StageError(f"an assignment names a stage of the river; got {stage!r}; send one of {', '.join(annotations)}")


def _input(role: str, raw: Mapping[str, Any]) -> Input:
    files = check_files(tuple(File(path, sha256, size) for path, sha256, size in raw["files"]))
    if digest_files(files) != raw["digest"]:
        raise StageError(
            f"an input's files are those of its digest; those of {role} come out as {digest_files(files)[:12]} and "
            f"were sent as {str(raw['digest'])[:12]}; send the assignment again"
        )
    for producer in raw["from"]:
        check_key(producer["key"])
    origin = tuple((each["stage"], each["part"], each["role"]) for each in raw["from"])
    return Input(raw["digest"], files, origin)
