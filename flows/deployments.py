"""The flows that people start on a server: `score`, `seeds` and `sweep`. What they send elsewhere: `deployed_stage.py`.

Workers import this module from their own checkout (its name is the deployments' entry point), and the flows key with
that checkout. What a person fills in - types, choices, defaults - is in `deploy.py`.

None of them starts a run of another one: whoever waits, waits for a pool in which nobody waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from artifacts.store import Store
from configs.load import load_recipe
from flows.headline import says
from flows.identity import Identity
from flows.naming import run_title
from flows.panels import set_says
from flows.plan import is_done, plan
from flows.points import Sweep, grid_points, parse_grid
from flows.prepare import Request, local_folder, look_outside, prepare
from flows.present import show_set, show_sweep
from flows.seeds import Show, check_seeds, declare, result_of, run_set
from flows.supervise import (
    Conduct,
    LogView,
    Unchanged,
    named_recipe,
    own_name,
    request,
    scheduled_for,
    supervised,
)
from flows.sweep import check_points, run_sweep, sweep_result
from stages.contract import StageError

THREE_SEEDS = (42, 1337, 2025)
_THREADS: Any = ThreadPoolTaskRunner(max_workers=16)  # Prefect's own annotations disagree here


def run_name() -> str:
    """`pr714 full seed 42`, `pr714 full seeds 42 1337`, `sweep pr714 full`: for lists of runs."""
    asked = flow_run.parameters
    name = own_name(asked.get("toml") or "") or asked.get("recipe", "")
    changed = [*(asked.get("grid") or []), *(asked.get("overrides") or [])]
    title = run_title(name, asked.get("scale") or "", asked.get("seed"), asked.get("seeds") or (), changed)
    return f"sweep {title}" if "grid" in asked else title


@flow(name="score", flow_run_name=run_name, task_runner=_THREADS, persist_result=False, validate_parameters=False)
def score(
    recipe: str = "quickstart",
    scale: str = "full",
    seed: int | None = None,
    overrides: list[str] | None = None,
    toml: str = "",
    store: str = ".fairway",
    credentials: str = "",
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
        credentials: the Prefect block that has them; empty: the worker's own.
        pool: Prefect work pool of the accelerated stages; empty runs them beside the flow.
    """

    said: list[str] = []

    def work(conduct: Conduct) -> Mapping[str, Any]:
        with (
            named_recipe(recipe, toml) as named,
            prepare(request(named, scale, overrides, store, pool, seed=seed), LogView()) as prepared,
        ):
            result = conduct(prepared)
            said.append(says(prepared.session.run.snapshot()))
            return result

    return supervised(work, store, credentials, lambda result: said[-1])


@flow(name="seeds", flow_run_name=run_name, task_runner=_THREADS, persist_result=False, validate_parameters=False)
def seeds(
    recipe: str = "quickstart",
    scale: str = "full",
    seeds: list[int] | None = None,
    overrides: list[str] | None = None,
    toml: str = "",
    protocol: str = "",
    fresh: bool = False,
    watch: bool = False,
    store: str = ".fairway",
    credentials: str = "",
    pool: str = "",
) -> Any:
    """Several seeds of one configuration: declared, run one after the other, reported whole.

    Args:
        recipe: a built-in recipe.
        scale: smoke, one-gpu or full.
        seeds: of the training, each once.
        overrides: lines such as train.muon.lr=0.02.
        toml: a whole recipe as text instead of a built-in one.
        protocol: whose score is tested; empty: the recipe's last.
        fresh: a true repeat: the time that this run was scheduled for enters the keys of accelerated stages.
        watch: run only if code, configuration or data changed, and say so in seconds if not.
        store: URL of the store that all workers reach.
        credentials: the Prefect block that has them; empty: the worker's own.
        pool: Prefect work pool of the accelerated stages; empty runs them beside the flow.
    """

    def work(conduct: Conduct) -> Mapping[str, Any]:
        chosen = check_seeds(seeds or THREE_SEEDS)
        if fresh and watch:
            raise StageError("a schedule repeats or watches; got fresh and watch, which is both; drop one of them")
        with named_recipe(recipe, toml) as named:
            asked = request(named, scale, overrides, store, pool, repeat=scheduled_for() if fresh else None)
            if watch and unchanged(asked, chosen):
                counted = "the seed is" if len(chosen) == 1 else f"all {len(chosen)} seeds are"
                raise Unchanged(f"{counted} in the store: code, configuration and data are as they were")
            declared = declare(asked, chosen, protocol)
            run_set(declared, asked, conduct, Show(LogView, get_run_logger().info))
            result = result_of(Store.open(store), declared, None, protocol)
        show_set(result, get_run_logger().warning)
        return _complete(result)

    return supervised(work, store, credentials, set_says)


@flow(name="sweep", flow_run_name=run_name, task_runner=_THREADS, persist_result=False, validate_parameters=False)
def sweep(
    recipe: str = "quickstart",
    grid: list[str] | None = None,
    scale: str = "full",
    seeds: list[int] | None = None,
    overrides: list[str] | None = None,
    toml: str = "",
    protocol: str = "",
    store: str = ".fairway",
    credentials: str = "",
    pool: str = "",
) -> Any:
    """Many points around one recipe, each a set of seeds; what they share runs once; one table.

    Args:
        recipe: a built-in recipe.
        grid: lines such as quantize.matrices.bits=5,6; every combination is a point.
        scale: smoke, one-gpu or full.
        seeds: of every point; empty: the recipe's own.
        overrides: of every point.
        toml: a whole recipe as text instead of a built-in one.
        protocol: whose score is tested; empty: the recipe's last.
        store: URL of the store that all workers reach.
        credentials: the Prefect block that has them; empty: the worker's own.
        pool: Prefect work pool of the accelerated stages; empty runs them beside the flow.
    """

    def work(conduct: Conduct) -> Mapping[str, Any]:
        axes = [parse_grid(line) for line in grid or () if line.strip()]
        if not axes:
            raise StageError("a sweep has points; its grid is empty; add a line such as quantize.matrices.bits=5,6")
        with named_recipe(recipe, toml) as named:
            asked = Sweep(name=Path(named).stem, recipe=named, points=grid_points(axes))
            ready = check_points(asked, request(named, scale, overrides, store, pool), protocol)
            show = Show(LogView, get_run_logger().info)
            document, sets = run_sweep(asked, ready, tuple(seeds or ()), conduct, show)
            result = sweep_result(Store.open(store), document.document, sets)
        show_sweep(result, get_run_logger().warning)
        return _complete(result)

    return supervised(work, store, credentials)


def unchanged(asked: Request, seeds: Sequence[int]) -> bool:
    """Whether every step of every seed is in the store, found without writing anything."""
    loaded = load_recipe(asked.recipe, asked.scale, asked.overrides)
    store = Store.open(asked.store)
    cache = local_folder(store) / "cache"
    identity = Identity(asked.source_root, cache / "closures.json")
    outside, _ = look_outside(loaded.recipe, identity, cache)
    return all(is_done(plan(loaded, seed, outside, store, identity)) for seed in seeds)


def _complete(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result, unless some seed or point has none: the others are safe, and the next run tries again."""
    if result["state"] == "completed":
        return result
    failed = [str(line.get("seed", line.get("name"))) for line in result.get("runs", result.get("points", []))
              if line["state"] != "completed"]  # fmt: skip
    raise StageError(f"a set is complete when all of it has a result; without one: {', '.join(failed)}; see the log")
