"""What `fairway deploy` puts on a Prefect server: pools, deployments with their forms, automations. Idempotent.

The forms are made here and not from the flows' signatures: their choices are the recipes and scales of this checkout,
and the server itself then refuses a wrong one. A server's deployments are upserted, their schedules are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from artifacts.safety import refuse_credentials
from configs.load import DEFAULT_SCALE, names
from flows import blocks
from flows.deployments import THREE_SEEDS
from flows.notices import notices
from flows.supervise import REVIVALS
from flows.vigil import HEARTBEAT, HEARTBEAT_S, TAG  # what `--prune` deletes has the tag
from stages.contract import StageError

COMMAND = "python -m prefect.engine"  # straight: Prefect's supervisor would import everything twice, five seconds more
DEFAULT_CPU_POOL, DEFAULT_GPU_POOL = "cpu", "gpu"
DEAD_AFTER_S = 3 * int(HEARTBEAT_S)

OVERRIDE = r"^\s*[A-Za-z_][\w.\"*-]*\s*=[\s\S]*$"


@dataclass(frozen=True)
class Plan:
    """What to deploy."""

    store: str
    cpu_pool: str = DEFAULT_CPU_POOL
    gpu_pool: str = DEFAULT_GPU_POOL
    prune: bool = False
    credentials: str = ""  # the Prefect block with the store's; empty: the workers' own
    notify: str = ""  # type/name of a notification block for failed audits and new bests; empty leaves them as they are
    cpu_limit: int | None = None  # runs under way at once, over all workers; None leaves the pool as it is


@dataclass(frozen=True)
class Deployed:
    """What there is now."""

    deployments: Mapping[str, UUID]
    pools: tuple[str, ...]
    automations: tuple[str, ...]
    pruned: tuple[str, ...]


@dataclass(frozen=True)
class _Deployment:
    flow: str
    name: str
    pool: str
    description: str
    schema: dict[str, Any]
    tags: tuple[str, ...]

    @property
    def full_name(self) -> str:
        return f"{self.flow}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """A module: each worker imports its own."""
        return f"flows.{'deployed_stage' if self.flow == 'stage' else 'deployments'}.{self.flow}"


def shared_store(store: str) -> str:
    """The store as every worker must know it: a URL without credentials, or an absolute path."""
    return refuse_credentials(store) if "://" in store else str(Path(store).absolute())


def deploy(plan: Plan) -> Deployed:
    """Make the server know this checkout's recipes. StageError for a plan that cannot work."""
    if plan.cpu_pool == plan.gpu_pool:
        raise StageError(
            f"runs and the stages that they wait for are in different pools, or a full pool waits for itself; both are "
            f"{plan.cpu_pool!r}; give --cpu-pool and --gpu-pool two names"
        )
    blocks.register()
    if plan.credentials:
        plan = replace(plan, credentials=blocks.read(plan.credentials, plan.store).name)
    wanted = deployments(plan)
    with get_client(sync_client=True) as client:
        for pool in (plan.cpu_pool, plan.gpu_pool):
            _pool(client, pool)
        if plan.cpu_limit is not None:
            client.update_work_pool(plan.cpu_pool, WorkPoolUpdate(concurrency_limit=plan.cpu_limit))
        made = {each.full_name: _upsert(client, each) for each in wanted}
        automations = [_automation(client, each) for each in _automations()] + notices(client, plan.notify, TAG)
        pruned = _prune(client, made) if plan.prune else []
    return Deployed(made, (plan.cpu_pool, plan.gpu_pool), tuple(automations), tuple(pruned))


def deployments(plan: Plan) -> list[_Deployment]:
    """Every deployment of this checkout."""
    return [
        _Deployment(
            "score",
            "score",
            plan.cpu_pool,
            "Run a recipe: from documents to a scored, size-checked archive. Only what the store does not have runs.",
            score_form(plan),
            (TAG,),
        ),
        _Deployment(
            "seeds",
            "seeds",
            plan.cpu_pool,
            "Several seeds of one configuration, declared, run and reported whole. `fairway schedule` uses it too.",
            seeds_form(plan),
            (TAG,),
        ),
        _Deployment(
            "sweep",
            "sweep",
            plan.cpu_pool,
            "Many points around one recipe; what they share runs once.",
            sweep_form(plan),
            (TAG,),
        ),
        _Deployment(
            "stage",
            plan.gpu_pool,
            plan.gpu_pool,
            "One stage of a run, sent by value by the run that needs it. Not to be started by hand.",
            form(
                {
                    "store": {"type": "string", "default": shared_store(plan.store)},
                    # A worker of an older checkout does not know the field: it is there for those who use it.
                    **({"credentials": {"type": "string", "default": plan.credentials}} if plan.credentials else {}),
                }
            ),
            (TAG, "stages"),
        ),
    ]


def score_form(plan: Plan) -> dict[str, Any]:
    """The form of `score`."""
    seed = {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
        "default": None,
        "description": "Seed of the training. Empty: the recipe's own.",
    }
    return form({**_recipe_fields(), "seed": seed, **_CHANGES, **place(plan)})


def seeds_form(plan: Plan) -> dict[str, Any]:
    """The form of `seeds`."""
    chosen = whole_numbers(list(THREE_SEEDS), "Seeds of the training, each once.")
    fresh = switch("A true repeat: the scheduled time enters the keys, so that accelerated stages run again.")
    watch = switch("Run only if code, configuration or data changed; otherwise say so in seconds.")
    return form(
        {**_recipe_fields(), "seeds": chosen, **_CHANGES, **_PROTOCOL, "fresh": fresh, "watch": watch, **place(plan)}
    )


def sweep_form(plan: Plan) -> dict[str, Any]:
    """The form of `sweep`."""
    grid = {
        "type": "array",
        "items": {"type": "string", "pattern": OVERRIDE},
        "minItems": 1,
        "description": "Lines such as quantize.matrices.bits=5,6; every combination is a point.",
    }
    chosen = whole_numbers([], "Seeds of every point. Empty: the recipe's own.")
    return form({**_recipe_fields(), "grid": grid, "seeds": chosen, **_CHANGES, **_PROTOCOL, **place(plan)}, ["grid"])


def _recipe_fields() -> dict[str, Any]:
    scales = "smoke: seconds on a CPU; one-gpu: ten minutes; full: as published."
    return {
        "recipe": choice(names("recipe"), "quickstart", "A built-in recipe."),
        "scale": choice(names("scale"), DEFAULT_SCALE, scales),
    }


_CHANGES: dict[str, Any] = {
    "overrides": {
        "type": "array",
        "items": {"type": "string", "pattern": OVERRIDE},
        "default": [],
        "description": "Fields to set, one path=value per line, such as train.muon.lr=0.02.",
    },
    "toml": {
        "type": "string",
        "default": "",
        "description": 'A whole recipe as TOML text, instead of a built-in one; it may say extends = "pr714".',
    },
}
_PROTOCOL: dict[str, Any] = {
    "protocol": {"type": "string", "default": "", "description": "Whose score is tested. Empty: the recipe's last."}
}


def whole_numbers(default: list[int], description: str) -> dict[str, Any]:
    """A list of numbers from 0."""
    items = {"type": "integer", "minimum": 0}
    return {"type": "array", "items": items, "uniqueItems": True, "default": default, "description": description}


def switch(description: str) -> dict[str, Any]:
    """Yes or no; no at first."""
    return {"type": "boolean", "default": False, "description": description}


def place(plan: Plan) -> dict[str, Any]:
    """Fields of every form: where results go and where accelerated stages run."""
    return {
        "store": {
            "type": "string",
            "default": shared_store(plan.store),
            "description": "The artifact store, which all workers reach.",
        },
        "credentials": {
            "type": "string",
            "default": plan.credentials,
            "description": "The Prefect block with the store's credentials, type/name. Empty: the workers' own.",
        },
        "pool": choice(
            [plan.gpu_pool, ""],
            plan.gpu_pool,
            "Work pool of train, quantize, evaluate and audit. Empty: beside the flow.",
        ),
    }


def choice(values: list[str], default: str, description: str) -> dict[str, Any]:
    """A field with a list to choose from."""
    return {"type": "string", "enum": values, "default": default, "description": description}


def form(fields: dict[str, dict[str, Any]], required: list[str] | None = None) -> dict[str, Any]:
    """A form of these fields, in their order; others are refused."""
    properties = {
        name: {"position": position, "title": name, **field} for position, (name, field) in enumerate(fields.items())
    }
    return {
        "type": "object",
        "title": "Parameters",
        "properties": properties,
        "required": required or [],
        "additionalProperties": False,
    }


def _pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        made = WorkPoolCreate(name=name, type="process", base_job_template=template, description="Fairway")
        try:
            client.create_work_pool(made)
        except ObjectAlreadyExists:
            return  # somebody else deploys at this moment


def _upsert(client: SyncPrefectClient, wanted: _Deployment) -> UUID:
    """Create, or change in place: creating again would delete the schedules that people made."""
    properties = wanted.schema["properties"]
    fields: dict[str, Any] = {
        "entrypoint": wanted.entrypoint,
        "work_pool_name": wanted.pool,
        "description": wanted.description,
        "tags": list(wanted.tags),
        "parameters": {name: each["default"] for name, each in properties.items() if each.get("default") is not None},
        "parameter_openapi_schema": wanted.schema,
        "enforce_parameter_schema": wanted.flow != "stage",
        "job_variables": {"command": COMMAND},
    }
    try:
        there = client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        flow = client.create_flow_from_name(wanted.flow)
        return client.create_deployment(flow_id=flow, name=wanted.name, **fields)
    client.update_deployment(there.id, DeploymentUpdate(**fields))
    return there.id


def _automations() -> list[AutomationCore]:
    """Find runs whose worker and machine are gone, and start crashed runs again."""
    ours = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"})
    each_run = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    runs = ResourceSpecification(
        {"prefect.resource.role": "flow", "prefect.resource.name": ["score", "seeds", "sweep"]}
    )
    # Not "Crashed": that event starts `revive`, whose action writes to the database while the server still counts the
    # event for this trigger. SQLite refuses such a write ("database is locked"), the server then drops the event after
    # four tries, and every later one of the same run waits for it: no second revival.
    ended = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "AwaitingRetry", "Cached")}
    silent = AutomationCore(
        name="fairway: a run without heartbeat has crashed",
        description=f"Runs send heartbeats every {HEARTBEAT_S:.0f} s; silent for {DEAD_AFTER_S} s: the machine is gone",
        tags=[TAG],
        trigger=EventTrigger(
            match=each_run,
            match_related=ours,
            after={"prefect.flow-run.Running", HEARTBEAT},
            expect={HEARTBEAT, *ended},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=DEAD_AFTER_S),
        ),
        actions=[_change(StateType.CRASHED, "Crashed", f"no heartbeat for {DEAD_AFTER_S} s", force=False)],
    )
    revive = AutomationCore(
        name="fairway: a crashed run starts again",
        description=f"At most {REVIVALS} times; what was done is in the store, so it goes on from there.",
        tags=[TAG],
        trigger=EventTrigger(
            match=each_run,
            match_related=runs,
            expect={"prefect.flow-run.Crashed"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[_change(StateType.SCHEDULED, "AwaitingRetry", "revived", force=True)],
    )
    return [silent, revive]


def _change(state: StateType, name: str, message: str, force: bool) -> ActionTypes:
    return ChangeFlowRunState(state=state, name=name, message=message, force=force)


def _automation(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    there = client.read_automations_by_name(wanted.name)
    if there:
        client.update_automation(there[0].id, wanted)
    else:
        client.create_automation(wanted)
    return wanted.name


def _prune(client: SyncPrefectClient, keep: Mapping[str, UUID]) -> list[str]:
    """Delete deployments of ours that this checkout does not have any more."""
    ours = client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])))
    stale = [each for each in ours if each.id not in keep.values()]
    for each in stale:
        client.delete_deployment(each.id)
    return [each.name for each in stale]
