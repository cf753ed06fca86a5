"""What a lab can be told: automations of the server fire on a failed audit and on a new best score, each once.

One recipe, run again and again with other scores, on a real server whose messages go to a web server of our own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from lab import Lab, wait_for
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_URL, temporary_settings

pytestmark = pytest.mark.slow


@pytest.fixture
def heard(lab: Lab) -> Iterator[list[dict[str, str]]]:
    """Messages that arrive at a webhook, which the automations are told to use."""
    messages: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with temporary_settings({PREFECT_API_URL: lab.api}):
        CustomWebhookNotificationBlock(
            name="hook",
            url=f"http://127.0.0.1:{server.server_port}/",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        ).save("hook", overwrite=True)
    lab.submitter.fairway("deploy", "--store", lab.store, "--notify", "custom-webhook/hook")
    try:
        yield messages
    finally:
        for each in lab.post("automations/filter", automations={"name": {"any_": list(NAMES.values())}}):
            lab.http.delete(f"automations/{each['id']}").raise_for_status()
        lab.submitter.fairway("deploy", "--store", lab.store)  # harmless again
        server.shutdown()
        thread.join()
        server.server_close()


NAMES = {
    "fairway.audit.failed": "fairway: an audit failed",
    "fairway.score.best": "fairway: a new best score",
}


def say(lab: Lab, stage: str, was: str, now: str) -> None:
    """Let a toy report something else."""
    path = lab.submitter.tree / "stages" / stage / "stage.py"
    text = path.read_text(encoding="utf-8")
    assert was in text, text
    path.write_text(text.replace(was, now), encoding="utf-8")


def events(lab: Lab, name: str, recipe: str) -> list[dict[str, Any]]:
    """Those of a recipe, oldest first."""
    found = lab.post("events/filter", filter={"event": {"name": [name]}, "order": "ASC"}, limit=50)["events"]
    return [each for each in found if each["payload"].get("recipe") == recipe]


def fired(lab: Lab, event: str) -> int:
    """How often the automation on an event was triggered."""
    found = lab.post("events/filter", filter={"event": {"name": ["prefect.automation.triggered"]}}, limit=50)["events"]
    return sum(each["resource"]["prefect.resource.name"] == NAMES[event] for each in found)


def test_a_better_score_and_a_failed_audit_are_told_once_and_nothing_else_is(
    lab: Lab, recipe: str, heard: list[dict[str, str]]
):
    name = f"told-{uuid4().hex[:6]}"
    toml = recipe.replace('name = "toy"', f'name = "{name}"')
    toml = toml[: toml.index("[evaluate.raw]")] + "[evaluate.roundtrip]\n"

    def run() -> str:
        run_id = lab.score(scale="smoke", toml=toml, pool="")
        assert lab.ended(run_id)["type"] == "COMPLETED"
        return run_id

    def best() -> list[dict[str, Any]]:
        return events(lab, "fairway.score.best", name)

    first = run()
    (told,) = wait_for(best, "the first legal score is told")
    assert told["payload"]["bpb"] == 1.25
    assert told["payload"]["before"] is None
    assert told["payload"]["link"].endswith(f"/runs/flow-run/{first}")
    assert told["resource"]["prefect.resource.id"] == f"fairway.best.{name}.smoke.roundtrip"
    run()  # cached
    say(lab, "evaluate", "'bpb': 1.25", "'bpb': 1.3")
    run()
    say(lab, "evaluate", "'bpb': 1.3", "'bpb': 1.2")
    run()
    wait_for(lambda: len(best()) == 2, "the better score is told")
    assert [each["payload"]["before"] for each in best()] == [None, 1.25]

    assert events(lab, "fairway.audit.failed", name) == []
    say(lab, "audit", "'board': 'legal'", "'board': 'not_legal'")
    say(
        lab,
        "audit",
        "'board': {'verdict': 'legal', 'because': []",
        "'board': {'verdict': 'not_legal', 'because': ['C1: it looks ahead']",
    )
    say(lab, "evaluate", "'bpb': 1.2", "'bpb': 1.1")
    failed = run()
    (told,) = wait_for(lambda: events(lab, "fairway.audit.failed", name), "the failed audit is told")
    assert "C1: it looks ahead" in told["payload"]["says"]
    assert f"prefect.flow-run.{failed}" in {each["prefect.resource.id"] for each in told["related"]}
    run()  # cached
    assert len(best()) == 2, "a score that is not legal is no best one"
    assert len(events(lab, "fairway.audit.failed", name)) == 1

    wait_for(lambda: fired(lab, "fairway.audit.failed") >= 1, "the automation on failed audits fires")
    wait_for(lambda: fired(lab, "fairway.score.best") >= 2, "the automation on new bests fires")
    wait_for(lambda: any("C1: it looks ahead" in each["body"] for each in heard), "the message arrives")
    wait_for(lambda: any("-0.05000 against 1.25000" in each["body"] for each in heard), "the message arrives")
    assert all("/runs/flow-run/" in each["body"] for each in heard)
