"""`fairway seeds`: several seeds of one recipe, declared, run and tested; without a recipe, the sets in the store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.store import Store
from flows import show
from flows.prepare import Prepared, Request, local_folder, sweep
from flows.references import Reference, reference
from flows.seeds import Show, declare, find_set, result_of, run_set, set_as_reference
from flows.server import quiet
from flows.sets import SeedSet, present_state
from flows.tables import Table, print_json, print_table
from flows.verdicts import words
from stages.contract import StageError

FAILED = 1


def seeds(arguments: argparse.Namespace) -> int:
    """Run a set of seeds and print what they say; exit code 1 if a seed has no result."""
    store = Store.open(arguments.store)
    if not arguments.recipe:
        return _list(store, arguments.json)
    row = find_reference(store, arguments.reference) if arguments.reference else None
    request = request_of(arguments)
    declared = declare(request, parse_seeds(arguments.seeds), arguments.protocol)
    say(f"set {declared.id}: seeds {', '.join(map(str, declared.document['seeds']))}, declared")
    run_set(declared, request, conduct, Show(show.viewer, say))
    result = result_of(store, declared, row, arguments.protocol)
    result["report"] = str(write_report(result, local_folder(store), row))
    if arguments.json:
        print_json(result)
    else:
        print_result(result)
    return 0 if result["state"] == "completed" else FAILED


def request_of(arguments: argparse.Namespace) -> Request:
    """What every run of a set is asked for; the seed comes later."""
    return Request(
        recipe=arguments.recipe,
        scale=arguments.scale,
        overrides=tuple(arguments.set),
        store=arguments.store,
        cores=arguments.cores,
        stage_limit_s=arguments.stage_limit,
        argv=tuple(sys.argv),
    )


def conduct(prepared: Prepared) -> Mapping[str, Any]:
    """Run under Prefect, which a wrong recipe must not wait for."""
    quiet()
    from flows import pipeline

    return pipeline.run(prepared)


def say(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def parse_seeds(text: str) -> list[int]:
    """`42,1337,2025`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise StageError(f"--seeds takes whole numbers from 0; got {text!r}; write for instance --seeds 42,1337,2025")
    return [int(word) for word in words]


def find_reference(store: Store, text: str) -> Reference:
    """A set of seeds in the store, a row of the public board, or a file."""
    if not text.endswith((".toml", ".json")) and (found := find_set(store, text)) is not None:
        return set_as_reference(store, found)
    return reference(text)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Runs, scores and tests of a set."""
    runs = [
        [
            run["seed"],
            run["state"] if run["counts"] or run["state"] != "completed" else "superseded",
            number(run["bpb"]),
            number(run["nats_per_token"]),
            "" if run["bytes"] is None else f"{run['bytes']:,}",
            words(run["verdict"]) or "not audited",
            run["run"],
            run["error"],
        ]
        for run in result["runs"]
    ]
    scores = [
        [name, s["n"], number(s["mean"]), number(s["std"]), interval(s), number(s["mean"] * s["nats_per_bpb"]),
         " ".join([*s["marks"], *(f"breaks {rule}" for rule in s["rules_broken"])])]
        for name, s in result["scores"].items()
    ]  # fmt: skip
    title = f"{result['recipe']} · {result['scale']} · {result['protocol']}"
    headings = ["seed", "state", "BPB", "nats/token", "bytes", "audit", "run", "error"]
    found = [Table(f"{title}: every run", headings, runs, "seed BPB nats/token bytes")]
    headings = ["score", "n", "mean-BPB", "std", "95%-interval", "nats/token", "marks"]
    found.append(Table("mean over seeds (sample deviation, ddof 1)", headings, scores, "n mean-BPB std nats/token"))
    if result["test"]:
        found.append(readings_table(result["test"], result["reference"]["name"]))
        if pairs := result["test"]["paired"]:
            found.append(paired_table(pairs, f"against {result['reference']['name']}"))
    return found


def paired_table(pairs: Mapping[str, Any], title: str) -> Table:
    """The paired test: a seed's luck is the same on both sides."""
    row = [
        pairs["n"][0], number(pairs["improvement"], "+"), interval(pairs), number(pairs["t"], digits=4),
        number(pairs["df"], digits=0), p_text(pairs["p"]) or pairs["note"],
    ]  # fmt: skip
    headings = ["pairs", "improvement", "95%-interval", "t", "df", "p"]
    return Table(f"{title}: paired differences in BPB, equal seeds", headings, [row], "pairs improvement t df p")


def readings_table(test: Mapping[str, Any], name: str) -> Table:
    """Every reading of the rule, one row each; the strictest is marked."""
    rows = []
    for reading in test["readings"]:
        welch, single = reading["welch"], reading["one_sample"]
        rows.append(
            [
                f"{reading['name']}{' (strictest)' if reading['strictest'] else ''}",
                reading["unit"],
                number(welch["margin"]),
                number(welch["improvement"], "+"),
                interval(welch),
                number(welch["t"], digits=4),
                number(welch["df"], digits=3),
                p_text(welch["p"]) or welch["note"],
                p_text(single["p"]),
            ]
        )
    headings = ["improvement-above", "unit", "margin", "improvement", "95%-interval", "t", "df", "p-(Welch)"]
    headings.append("p-(one-sample)")
    n_new, n_old = test["readings"][0]["welch"]["n"]
    title = f"against {name}: one-sided tests, n = {n_new} and {n_old}"
    return Table(title, headings, rows, "margin improvement t df p-(Welch) p-(one-sample)")


def number(value: float | None, sign: str = "", digits: int = 5) -> str:
    """A number with the digits that the board uses; nothing for none."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def p_text(p: float | None) -> str:
    """A p-value with three telling digits."""
    return "" if p is None else f"{p:.3g}"


def interval(estimate: Mapping[str, Any]) -> str:
    """`1.12010 .. 1.12404`."""
    return "" if estimate["low"] is None else f"{estimate['low']:.5f} .. {estimate['high']:.5f}"


def print_result(result: Mapping[str, Any]) -> None:
    """Tables and what to know about them."""
    for table in tables(result):
        table.print()
    for note in result["notes"]:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(f"set {result['set']}: {result['state']}, {result['n']} of {len(result['seeds'])} seeds\n")
    sys.stdout.write(f"report: {result['report']}\n")


def write_report(result: Mapping[str, Any], local: Path, row: Reference | None) -> Path:
    """The set's page, beside the reports of runs."""
    from flows import plots  # draws with matplotlib, half a second to import
    from flows.pages import Page, write_page

    groups = plots.groups_of(result, row)
    page = Page(
        f"{result['recipe']} · {result['scale']} · {len(result['seeds'])} seeds",
        f"set {result['set']}, declared {result['declared']}, {result['state']}",
        tables(result),
        plots.dots(groups) if groups else None,
        "Every seed, mean and 95 % interval",
        result["notes"],
    )
    return write_page(page, local / "reports" / result["set"])


def _list(store: Store, as_json: bool) -> int:
    sweep(store, local_folder(store))  # a killed run is seen as one
    documents = sorted(store.list_sets(), key=lambda each: each["declared"])
    if as_json:
        names = ("id", "kind", "recipe", "scale", "seeds", "protocol", "state", "declared")
        lines = [
            {**{name: each.get(name) for name in names}, "state": present_state(store, each)} for each in documents
        ]
        print_json({"sets": lines})
        return 0
    rows = [[each["id"], *_done(store, each), present_state(store, each), each["declared"]] for each in documents]
    print_table(["set", "done", "score", "mean-BPB", "state", "declared"], rows, right="mean-BPB")
    return 0


def _done(store: Store, document: Mapping[str, Any]) -> list[str]:
    """How much of a set has a result, of which protocol, and the mean."""
    if document["kind"] != "seeds":
        return [f"{len(document['points'])} points", "", ""]
    results = SeedSet(store, dict(document)).results().values()
    protocol = document["protocol"]
    scores = [attempt["scores"][protocol]["bpb"] for attempt in results if protocol in attempt["scores"]]
    mean = number(sum(scores) / len(scores)) if scores else ""
    return [f"{len(results)}/{len(document['seeds'])} seeds", protocol, mean]
