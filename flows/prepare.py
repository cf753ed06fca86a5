"""From a request to a session: everything that can be refused is refused here, before a server or a stage starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from artifacts.backend import explained
from artifacts.errors import StoreError
from artifacts.safety import redact_argv
from artifacts.store import Store
from configs.load import DEFAULT_SCALE, Loaded, load_recipe
from configs.recipe import Recipe
from flows.asked import kept_text
from flows.closure import ROOT
from flows.drive import stages_in_order
from flows.identity import Identity
from flows.launch import GRACE_S
from flows.outside import fingerprint_corpus, fingerprint_model
from flows.provenance import capture
from flows.river import Input, Outside, Step
from flows.rundoc import RunDocument, mark_crashed
from flows.session import Event, Session
from flows.slots import Slots
from flows.snapshot import Packed
from flows.source import bundle_source
from stages.contract import StageError

DEFAULT_STORE = ".fairway"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `fairway run` was asked for."""

    recipe: str
    scale: str = DEFAULT_SCALE
    seed: int | None = None
    overrides: Sequence[str] = ()
    store: str = DEFAULT_STORE
    start: str = ""  # --from
    until: str = ""
    force: Sequence[str] = ()
    cores: int | None = None
    pool: str = ""  # Prefect work pool that runs the accelerated stages; empty: this machine
    repeat: str | None = None  # tells true repeats of accelerated stages apart; None shares results
    stage_limit_s: float | None = None
    grace_s: float = GRACE_S
    argv: Sequence[str] = ()
    source_root: Path = ROOT  # the tree that is keyed and runs


@dataclass(frozen=True)
class Prepared:
    """A request that can run."""

    request: Request
    loaded: Loaded
    session: Session
    outside: Outside
    local: Path  # this machine's folder for logs and reports


@contextmanager
def prepare(request: Request, tell: Callable[[Event], None] = lambda event: None) -> Iterator[Prepared]:
    """Check the request, open the store, write the run's document; scratch lives as long as the `with`.

    Raises:
        StageError: the recipe, a field or a stage's name is wrong.
        StoreError: the store cannot be opened or written.
    """
    loaded = load_recipe(request.recipe, request.scale, request.overrides)
    recipe = loaded.recipe
    order = stages_in_order(recipe)
    for option, names in {"--from": [request.start], "--until": [request.until], "--force": request.force}.items():
        for name in names:
            if name and name not in order:
                raise StageError(f"{option} names a stage; got {name!r}; the stages are {', '.join(order)}")
    seed = recipe.seed if request.seed is None else request.seed
    store = Store.open(request.store)
    local = local_folder(store)
    identity = Identity(request.source_root, local / "cache" / "closures.json")
    outside, outside_provenance = look_outside(recipe, identity, local / "cache")
    run = RunDocument(
        store,
        {
            "recipe": recipe.name,
            "asked": request.recipe,
            **kept_text(request.recipe),
            "scale": loaded.scale,
            "seed": seed,
            "overrides": redact_argv(list(request.overrides)),
            "argv": redact_argv(list(request.argv)),
            "resolved": recipe.model_dump(mode="json"),
            "origins": dict(loaded.origins),
            "outside": outside_provenance,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        },
    )
    sweep(store, local)
    with scratch_folder(local / "scratch", run.id, lambda: close(run, store)) as scratch:
        session = Session(
            store=store,
            identity=identity,
            run=run,
            recipe=recipe.name,
            scale=loaded.scale,
            seed=seed,
            scratch=scratch,
            logs=local / "logs" / run.id,
            slots=Slots(request.cores),
            provenance=cache(lambda: capture(request.source_root, list(request.argv))),
            tell=tell,
            force=frozenset(request.force),
            stages=order,
            packed=Packed(identity.tree.root, outside.source.files),
            outside=lambda step: fingerprint(step, recipe, local / "cache"),
            frozen=frozenset(order[: order.index(request.start)] if request.start else ()),
            repeat=request.repeat,
            deadline_s=request.stage_limit_s,
            grace_s=request.grace_s,
        )
        run.write()
        try:
            yield Prepared(request, loaded, session, outside, local)
        except BaseException as error:
            run.abandon(error)
            raise
        finally:
            identity.save()


def close(run: RunDocument, store: Store) -> bool:
    """The last of a run, however it ended; whether its final state is written. No index is waited for in vain."""
    settled = run.settle()
    if settled:
        store.leave_index()
    return settled


def look_outside(recipe: Recipe, identity: Identity, cache_folder: Path) -> tuple[Outside, dict[str, Any]]:
    """Fingerprints of what comes from outside the river, and where it was."""
    digest, provenance = fingerprint_corpus(recipe.corpus, cache_folder)
    model = Input(fingerprint_model(recipe.vocabulary.model)) if recipe.vocabulary.model else None
    source = bundle_source(identity.tree.root, identity.tree)
    return Outside(corpus=Input(digest), source=source, vocabulary=model), {"corpus": provenance}


def fingerprint(step: Step, recipe: Recipe, cache_folder: Path) -> str | None:
    """The digest of what a step reads outside the store, as it is now; None if it reads nothing there."""
    if step.stage == "corpus":
        return fingerprint_corpus(recipe.corpus, cache_folder)[0]
    if step.stage == "vocabulary" and recipe.vocabulary.model:
        return fingerprint_model(recipe.vocabulary.model)
    return None


def local_folder(store: Store) -> Path:
    """Where this machine keeps scratch, logs and reports: in the store if it is a folder, else in `.fairway` here."""
    return Path(DEFAULT_STORE).absolute() if "://" in store.url else Path(store.url)


@contextmanager
def scratch_folder(root: Path, run_id: str, settled: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """A folder for this run, gone afterwards. While its lock is held, the run is alive.

    A lock that stays behind, since the run's last word could not be written, lets `sweep` say it.
    """
    folder, lock_path = root / run_id, root / f"{run_id}.lock"
    with explained(str(root), "make the scratch folder", run_id):
        root.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("w", encoding="ascii")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go when we die, whatever kills us
        with explained(str(root), "make the scratch folder", run_id):
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if settled():
                lock_path.unlink(missing_ok=True)


def sweep(store: Store, local: Path) -> None:
    """Clear up after runs of this machine that were killed: their scratch goes, their documents say `crashed`."""
    for lock_path in (local / "scratch").glob("*.lock"):
        try:
            with lock_path.open("r+", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                with suppress(StoreError):  # said another time, when the store can be written again
                    mark_crashed(store, lock_path.stem)
                    lock_path.unlink(missing_ok=True)
        except (FileNotFoundError, BlockingIOError):
            continue  # its run is alive, or somebody else swept it
