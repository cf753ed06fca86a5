"""Puts tables and pictures where Prefect's page shows them, and news where automations hear. No run fails by it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from flows import panels
from flows.news import news
from flows.rundoc import hours_text
from flows.session import Event, Outcome, Session


def show_run(session: Session, outcomes: Sequence[Outcome], result: Mapping[str, Any], pictures: Path) -> None:
    """Summary, scores, verdict, sizes and lineage of a run; `pictures` is the folder of its report."""
    document, about = session.run.snapshot(), panels.title(result)
    with _told(lambda text: session.tell(Event("note", "prefect", text))):
        _markdown("fairway-summary", panels.summary(result, document, hours_text(document), pictures), about)
        create_table_artifact(key="fairway-scores", table=panels.scores(result, document), description=about)
        create_table_artifact(key="fairway-verdict", table=panels.verdict(result), description=about)
        create_table_artifact(key="fairway-bytes", table=panels.sizes(result), description=about)
        _markdown("fairway-lineage", panels.lineage(result, outcomes), about)


def announce(session: Session, outcomes: Sequence[Outcome]) -> None:
    """Tell the server's automations what is new; `news.py` says what that is."""
    document = session.run.snapshot()
    with _told(lambda text: session.tell(Event("note", "prefect", text))):
        for each in news(session.store, document, outcomes):
            payload = {**each.payload, "store": session.store.url, "link": _link()}
            emit_event(each.event, dict(each.resource), payload=payload)
            session.tell(Event("note", "news", payload["says"]))


def _link() -> str:
    """Where a person sees this run."""
    settings = get_current_settings()
    base = settings.ui_url or str(settings.api.url or "").removesuffix("/api")
    return f"{base}{panels.page(str(flow_run.id))}"


def show_set(result: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Mean and noise of a set of seeds, and a row per seed."""
    from flows.plots import groups_of  # draws with matplotlib, half a second to import

    about = panels.set_says(result)
    with _told(log):
        create_table_artifact(key="fairway-seeds", table=panels.set_rows(result), description=about)
        _markdown("fairway-set", _page(result["notes"], groups_of(result, None)), about)


def show_sweep(result: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """The points of a sweep, as a table and side by side."""
    from flows.plots import Group

    about = f"{result['sweep']}: {result['state']}"
    groups = [
        Group(line["name"], list(line["values"].values()), line["low"], line["high"]) for line in result["points"]
    ]
    with _told(log):
        create_table_artifact(key="fairway-sweep", table=panels.point_rows(result), description=about)
        _markdown("fairway-points", _page(result["notes"], groups), about)


def _page(notes: Sequence[str], groups: Sequence[Any]) -> str:
    from flows.charts import png
    from flows.plots import dots

    lines = [f"- {note}" for note in notes]
    if any(group.values for group in groups):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dots.png"
            png(dots(groups), path)
            lines += ["", f"![scores]({panels.picture(path, panels.PICTURES['ladder'])})"]
    return "\n".join(lines)


def _markdown(key: str, text: str, about: str) -> None:
    create_markdown_artifact(key=key, markdown=text, description=about)


@contextmanager
def _told(tell: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told, not raised
        tell(f"the server's page could not be told: {error}")
