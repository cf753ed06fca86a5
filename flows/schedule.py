"""Schedules of seeds on the server: made by one command, and from then on seen, paused and edited on Prefect's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import ValidationError

from configs.load import load_recipe
from flows.seeds import check_seeds
from stages.contract import StageError

DEPLOYMENT = "seeds/seeds"


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What is to be repeated, and when."""

    recipe: str
    seeds: Sequence[int]
    cron: str
    timezone: str = "UTC"
    scale: str = "full"
    overrides: Sequence[str] = ()
    pool: str = ""
    fresh: bool = False  # a true repeat each time; otherwise it only watches
    store: str = ""  # empty: the deployment's, and so are its credentials
    credentials: str = ""
    name: str = ""
    active: bool = True

    @property
    def slug(self) -> str:
        """Its name on the server."""
        how = "fresh" if self.fresh else "watch"
        return self.name or f"{Path(self.recipe).stem}-{self.scale}-{how}".lower()

    def parameters(self) -> dict[str, Any]:
        """Of the flow `seeds`. StageError if the recipe, a field or a seed is wrong."""
        load_recipe(self.recipe, self.scale, self.overrides)
        own = self.recipe.endswith(".toml")  # a file of this machine travels as text
        named = {"toml": Path(self.recipe).read_text(encoding="utf-8")} if own else {"recipe": self.recipe}
        return {
            **named,
            "scale": self.scale,
            "seeds": list(check_seeds(self.seeds)),
            "overrides": list(self.overrides),
            "fresh": self.fresh,
            "watch": not self.fresh,
            **({"pool": self.pool} if self.pool else {}),
            **({"store": self.store, "credentials": ""} if self.store else {}),
            **({"credentials": self.credentials} if self.credentials else {}),
        }


def add(wanted: Repeated) -> str:
    """Make the schedule, or replace the one of its name; its slug. StageError for a request that cannot work."""
    parameters = wanted.parameters()
    try:
        when = CronSchedule(cron=wanted.cron, timezone=wanted.timezone)
    except ValidationError as error:
        raise StageError(
            f'a schedule is five cron fields and a time zone; got "{wanted.cron}" in {wanted.timezone}: '
            f'{error.errors()[0]["msg"].removeprefix("Value error, ")}; write for instance --cron "0 2 * * *"'
        ) from error
    made = DeploymentScheduleCreate(schedule=when, active=wanted.active, parameters=parameters, slug=wanted.slug)
    with get_client(sync_client=True) as client:
        deployment = _deployment(client)
        _check_pool(wanted.pool, deployment.parameter_openapi_schema)
        for each in client.read_deployment_schedules(deployment.id):
            if each.slug == wanted.slug:
                client.delete_deployment_schedule(deployment.id, each.id)
        try:
            client.create_deployment_schedules(deployment.id, [made])
        except (PrefectHTTPStatusError, httpx.HTTPStatusError) as error:
            raise StageError(f"the server refuses the schedule: {error.response.text}") from error
    return wanted.slug


def listed() -> list[dict[str, Any]]:
    """Every schedule of seeds."""
    with get_client(sync_client=True) as client:
        return [_line(each) for each in client.read_deployment_schedules(_deployment(client).id)]


def remove(slug: str) -> None:
    """Delete a schedule. StageError if there is none."""
    with get_client(sync_client=True) as client:
        deployment = _deployment(client)
        schedules = client.read_deployment_schedules(deployment.id)
        found = [each for each in schedules if each.slug == slug]
        if not found:
            known = ", ".join(str(each.slug) for each in schedules) or "none"
            raise StageError(f"there is no schedule {slug!r}; there is {known}; see `fairway schedule ls`")
        client.delete_deployment_schedule(deployment.id, found[0].id)


def _deployment(client: SyncPrefectClient) -> Any:
    try:
        return client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise StageError(
            f"schedules belong to the deployment {DEPLOYMENT}, which the server does not have; run `fairway deploy`"
        ) from error


def _check_pool(pool: str, form: Mapping[str, Any] | None) -> None:
    """A schedule's runs would wait for ever, each time, for a pool that nobody deployed."""
    known = ((form or {}).get("properties", {}).get("pool") or {}).get("enum")
    if known is not None and pool not in ("", *known):
        raise StageError(
            f"accelerated stages go to a pool that is deployed; got {pool!r}; there is "
            f"{', '.join(filter(None, known)) or 'none'}; leave --pool out, or run `fairway deploy --gpu-pool {pool}`"
        )


def _line(schedule: DeploymentSchedule) -> dict[str, Any]:
    asked = schedule.parameters
    return {
        "schedule": schedule.slug or str(schedule.id),
        "cron": getattr(schedule.schedule, "cron", str(schedule.schedule)),
        "timezone": getattr(schedule.schedule, "timezone", None) or "UTC",
        "active": schedule.active,
        "recipe": asked.get("recipe") or "own recipe",
        "scale": asked.get("scale"),
        "seeds": asked.get("seeds", []),
        "how": "fresh" if asked.get("fresh") else "watch" if asked.get("watch") else "cached",
        "pool": asked.get("pool", ""),
    }
