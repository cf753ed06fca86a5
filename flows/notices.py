"""Automations on what runs tell (`news.py`): made by `deploy`, harmless until somebody says whom to notify.

At first their action is to do nothing: each firing shows in the server's event feed and nowhere else. `fairway deploy
--notify BLOCK` gives both a notification; on the page any other action can be chosen, which `deploy` then leaves alone.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import ActionTypes, DoNothing, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows.news import AUDIT_FAILED, NEW_BEST
from stages.contract import StageError

_BODY = "{{ event.payload.says }}\n{{ event.payload.link }}"
_NOTICES = (
    ("fairway: an audit failed", AUDIT_FAILED, "A run's score is not legal by some policy of the audit."),
    ("fairway: a new best score", NEW_BEST, "The lowest legal score of a recipe at a scale, on the same data."),
)


def notices(client: SyncPrefectClient, notify: str, tag: str) -> list[str]:
    """Make what is missing; with `notify` (type/name of a block) let both send it messages. Their names.

    Raises:
        StageError: the server has no such block.
    """
    action = _sends(client, notify) if notify else None
    for name, event, about in _NOTICES:
        there = client.read_automations_by_name(name)
        if there and action is None:
            continue  # whoever has changed it meant it
        wanted = AutomationCore(
            name=name,
            description=f"{about} `fairway deploy --notify TYPE/NAME` sends it somewhere.",
            tags=[tag],
            trigger=EventTrigger(
                expect={event},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[action or DoNothing()],
        )
        if there:
            client.update_automation(there[0].id, wanted)
        else:
            client.create_automation(wanted)
    return [name for name, _, _ in _NOTICES]


def _sends(client: SyncPrefectClient, block: str) -> ActionTypes:
    kind, slash, name = block.partition("/")
    try:
        if not slash:
            raise ObjectNotFound(ValueError(block))
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise StageError(
            f"messages go through a notification block of the server, named TYPE/NAME; it has no {block!r}; make one "
            "on the page (Blocks), such as slack-webhook/team"
        ) from error
    return SendNotification(block_document_id=found.id, subject="{{ event.resource.name }}", body=_BODY)
