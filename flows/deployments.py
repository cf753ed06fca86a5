"""The flows that a server's workers run: `score` is a run of a recipe, `stage` one stage of such a run elsewhere.

Workers import this module from their own checkout (its name is the deployments' entry point). `score` keys with that
checkout; `stage` runs what it is sent. What a person fills in - types, choices, defaults - is in `deploy.py`.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from artifacts.errors import StoreError
from flows.launch import StageFailed
from flows.pipeline import conduct
from flows.prepare import Prepared, Request, prepare
from flows.remote_stage import carry_out, home
from flows.session import Event
from flows.vigil import WORDS, Vigil
from stages.contract import StageError

REVIVALS = 5  # times that the automation of `deploy` may start a crashed run again
GRACE_S = 7.0  # of a stage beside the flow: cancelling frees the machine within 15 s
_THREADS: Any = ThreadPoolTaskRunner(max_workers=16)  # Prefect's own annotations disagree here


def score_name() -> str:
    """`pr714 full seed 42`, for lists of runs."""
    asked = flow_run.parameters
    name = _own_name(asked.get("toml") or "") or asked.get("recipe", "")
    seed = "" if asked.get("seed") is None else f" seed {asked['seed']}"
    return f"{name} {asked.get('scale', '')}{seed}"


@flow(name="score", flow_run_name=score_name, task_runner=_THREADS, persist_result=False, validate_parameters=False)
def score(
    recipe: str = "quickstart",
    scale: str = "full",
    seed: int | None = None,
    overrides: list[str] | None = None,
    toml: str = "",
    store: str = ".fairway",
    pool: str = "",
) -> Any:
    """From documents to a scored, size-checked archive; only what the store does not have runs.

    Args:
        recipe: a built-in recipe.
        scale: smoke, one-gpu or full.
        seed: of the training; empty takes the recipe's.
        overrides: lines such as train.muon.lr=0.02.
        toml: a whole recipe as text instead of a built-in one.
        store: URL of the store that all workers reach.
        pool: Prefect work pool of the accelerated stages; empty runs them beside the flow.
    """
    if (flow_run.run_count or 1) > REVIVALS + 1:
        return Failed(message=f"this run has crashed {REVIVALS} times and is not revived again; look at its logs")
    os.chdir(home())
    lines = tuple(line.strip() for line in overrides or () if line.strip())
    try:
        with _recipe(recipe, toml) as named:
            asked = Request(
                recipe=named, scale=scale, seed=seed, overrides=lines, store=store, pool=pool, grace_s=GRACE_S
            )
            with prepare(asked, _to_log()) as prepared:
                return follow(prepared)
    except (StageError, StageFailed, StoreError) as error:  # as the rule that was broken, without a traceback
        return Failed(message=str(error))


def follow(prepared: Prepared) -> Any:
    """Conduct a run inside a worker's flow; cancelling, a lost worker and SIGTERM end it as what they are."""
    session = prepared.session
    _tag([session.recipe, session.scale, f"seed-{session.seed}"])
    vigil = Vigil(_own_id())
    with vigil.watching(session.cancel.set):
        ended = conduct(prepared)
        reason = vigil.verdict() if isinstance(ended, State) else ""
    if reason == "cancelled":
        return Cancelled(message=vigil.message or WORDS[reason])
    return Crashed(message=WORDS[reason]) if reason else ended


@flow(name="stage", persist_result=False, validate_parameters=False)
def stage(
    stage: str,
    part: str,
    key: str,
    source: str,
    store: str,
    config: dict[str, Any],
    components: dict[str, Any],
    inputs: dict[str, Any],
    seed: int | None = None,
    device: dict[str, Any] | None = None,
    attempt: int = 0,
    forced: bool = False,
    deadline_s: float | None = None,
    run: str = "",
    provenance: dict[str, Any] | None = None,
    format: int = 0,
) -> Any:
    """One stage of a run, sent by value; see `remote.Assignment`."""
    sent = dict(locals())
    os.chdir(home())
    return carry_out({**sent, "provenance": provenance or {}}, _own_id(), get_run_logger())


def _own_id() -> UUID | None:
    return UUID(flow_run.id) if flow_run.id else None


def _to_log() -> Any:
    """Events as log lines of the flow run; progress has its own place."""
    log = get_run_logger()

    def tell(event: Event) -> None:
        if event.kind != "progress":
            done = f"{event.outcome.state} {event.outcome.artifact} " if event.outcome is not None else ""
            log.log(40 if event.kind == "failed" else 20, "%s: %s %s%s", event.label, event.kind, done, event.text)

    return tell


@contextmanager
def _recipe(name: str, toml: str) -> Iterator[str]:
    """What `load_recipe` takes: the name, or a file with the text. Its own name is the file's."""
    if not toml.strip():
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{_own_name(toml) or 'form'}.toml"
        path.write_text(toml, encoding="utf-8")
        yield str(path)


def _own_name(toml: str) -> str:
    try:
        name = tomllib.loads(toml).get("name", "")
    except tomllib.TOMLDecodeError:
        return ""
    return name if isinstance(name, str) and "/" not in name else ""


def _tag(tags: list[str]) -> None:
    """Tags of this run, for the page's filters."""
    own = _own_id()
    if own is None:
        return
    try:
        with get_client(sync_client=True) as client:
            there = client.read_flow_run(own).tags
            client.update_flow_run(own, tags=sorted({*there, *tags}))
    except (httpx.HTTPError, PrefectException):
        return  # for the eye only
