"""`fairway artifacts`: list, check, take out, move and clean up what stages made."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.hub import HubFile, is_hub
from artifacts.record import Record
from artifacts.store import Store
from artifacts.transfer import Transferred
from flows.hauling import on_terminal
from flows.provenance import user
from flows.rundoc import label_of
from flows.tables import bytes_text, print_json, print_table, seconds_text
from stages.contract import StageError

FOUND_DAMAGE = 1


def artifacts(arguments: argparse.Namespace) -> int:
    """Do one action."""
    actions: dict[str, Callable[[Store, argparse.Namespace], int]] = {
        "ls": _ls,
        "show": _show,
        "verify": _verify,
        "get": _get,
        "reject": _reject,
        "gc": _gc,
        "du": _du,
        "export": _export,
        "import": _import,
        "pin": _pin,
        "unpin": _unpin,
        "push": _push,
        "pull": _pull,
    }
    return actions[arguments.action](Store.open(arguments.store), arguments)


def _ls(store: Store, arguments: argparse.Namespace) -> int:
    lines = [
        {
            "artifact": record.label,
            "key": record.key,
            "bytes": record.bytes,
            "made": record.provenance.get("published", ""),
            "names": names,
        }
        for record, names in store.all_records(arguments.stage or None)
    ]
    if arguments.json:
        print_json({"artifacts": lines})
        return 0
    if not lines:
        sys.stderr.write(f"fairway: {store.url} has no {arguments.stage or 'artifacts'} yet\n")
    rows = [
        [line["artifact"], line["key"][:12], bytes_text(line["bytes"]), line["made"][:16], " ".join(line["names"])]
        for line in lines
    ]
    print_table(["artifact", "key", "size", "made", "names"], rows, right="size")
    return 0


def _show(store: Store, arguments: argparse.Namespace) -> int:
    record = store.resolve(arguments.artifact)
    rejection = store.rejection(record)
    if arguments.json:
        print_json({**asdict(record), "rejected": rejection})
        return 0
    made = record.provenance
    facts = {
        "artifact": record.label,
        "key": record.key,
        "made": f"{made.get('published', '?')} by {made.get('user', '?')} on {made.get('host', '?')}",
        "took": seconds_text(made["seconds"]) if "seconds" in made else "",
        "commit": _commit(made.get("git", {})),
        "rejected": rejection or "",
    }
    sys.stdout.writelines(f"{name:<9} {value}\n" for name, value in facts.items() if value)
    print_table(
        ["file", "bytes", "sha256"], [[f.path, f"{f.bytes:,}", f.sha256[:16]] for f in record.files], right="bytes"
    )
    made_from = [[role, label_of(p), p["key"][:12]]
                 for role, given in record.inputs.items() for p in given["from"]]  # fmt: skip
    if made_from:
        print_table(["made from", "artifact", "key"], made_from)
    print_table(["report", "value"], [[name, _short(value)] for name, value in record.report.items()])
    print_table(["key component", "value"], [[n, _short(v)] for n, v in record.components.items() if n != "code"])
    return 0


def _commit(git: dict[str, Any]) -> str:
    return f"{git['commit'][:12]} on {git['branch']}{', with changes' if git['dirty'] else ''}" if git else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _verify(store: Store, arguments: argparse.Namespace) -> int:
    if arguments.rebuild:
        from flows.commands.rebuild import rebuild

        return rebuild(store, arguments)
    findings = store.verify(arguments.artifact)
    if arguments.json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    elif findings:
        print_table(["what", "where", "more"], [[f.kind, f.path, f.text] for f in findings])
        sys.stdout.write("the next run sets damaged artifacts aside and makes them again\n")
    else:
        sys.stdout.write("every byte is what it was\n")
    return FOUND_DAMAGE if findings else 0


def _get(store: Store, arguments: argparse.Namespace) -> int:
    record = store.resolve(arguments.artifact)
    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StageError(f"`get` writes into a new or empty folder; {folder} is neither; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    with on_terminal() as tell:
        store.fetch(record.files, folder, verify="full", link=False, tell=tell)
    if arguments.json:
        print_json({"folder": str(folder), "files": [asdict(file) for file in record.files]})
    else:
        sys.stdout.write(f"{len(record.files)} files, {bytes_text(record.bytes)} in {folder}\n")
    return 0


def _reject(store: Store, arguments: argparse.Namespace) -> int:
    rejected = store.reject(arguments.artifact, arguments.reason, user())
    if arguments.json:
        print_json({"rejected": [{"artifact": r.label, "key": r.key} for r in rejected]})
    else:
        print_table(["rejected", "key"], [[r.label, r.key[:12]] for r in rejected])
    return 0


def _gc(store: Store, arguments: argparse.Namespace) -> int:
    gone = store.gc(delete=arguments.yes, grace_s=arguments.grace_days * 86_400, keep_last=arguments.keep_last)
    if arguments.json:
        files = [entry.path for entry in gone.removed]
        print_json({"dry_run": gone.dry_run, "bytes": gone.bytes, "stages": gone.stages, "files": files})
        return 0
    if gone.stages:
        print_table(["stage", "artifacts"], sorted(gone.stages.items()), right="artifacts")
    if not gone.removed:
        sys.stdout.write(
            f"nothing to remove: everything has a name, belongs to a run, is pinned or in use, or is younger than "
            f"{arguments.grace_days:g} days (--grace-days); --keep-last N drops older names\n"
        )
        return 0
    verb = "would go; say --yes to remove them" if gone.dry_run else "are gone"
    sys.stdout.write(f"{len(gone.removed)} files, {bytes_text(gone.bytes)}, {verb}\n")
    return 0


def _du(store: Store, arguments: argparse.Namespace) -> int:
    used = store.du()
    if arguments.json:
        print_json(used)
        return 0
    stages = [[n, u["records"], bytes_text(u["bytes"]), bytes_text(u["own_bytes"])] for n, u in used["stages"].items()]
    print_table(["stage", "artifacts", "size", "its own"], stages, right="artifacts size own")
    kinds = [[name, f"{u['files']:,}", bytes_text(u["bytes"])] for name, u in used["kinds"].items()]
    print_table(["kind", "files", "size"], kinds, right="files size")
    sys.stdout.write(f"{bytes_text(used['bytes'])} together\n")
    return 0


def _export(store: Store, arguments: argparse.Namespace) -> int:
    hub = HubFile.parse(arguments.file) if is_hub(arguments.file) else None
    with tempfile.TemporaryDirectory() as folder, on_terminal() as tell:
        path = Path(folder, "artifact.tar") if hub else Path(arguments.file)
        record = store.export(arguments.artifact, path, closure=arguments.closure, tell=tell)
        size_bytes = path.stat().st_size
        commit = {"commit": hub.send(path, f"{record.label} {record.key[:12]}")} if hub else {}
    if arguments.json:
        said = {"artifact": record.label, "key": record.key, "file": arguments.file, "bytes": size_bytes, **commit}
        print_json(said)
    else:
        sys.stdout.write(f"{record.label} {record.key[:12]}: {bytes_text(size_bytes)} in {arguments.file}\n")
    return 0


def _import(store: Store, arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder, on_terminal() as tell:
        path = Path(arguments.file)
        if is_hub(arguments.file):
            path = Path(folder, "artifact.tar")
            HubFile.parse(arguments.file).fetch(path, tell)
        done = store.import_(path, tell)
    return _transferred(done, arguments)


def _push(store: Store, arguments: argparse.Namespace) -> int:
    with on_terminal() as tell:
        done = store.push(Store.open(arguments.other), [arguments.artifact], tell=tell)
    return _transferred(done, arguments)


def _pull(store: Store, arguments: argparse.Namespace) -> int:
    with on_terminal() as tell:
        done = store.pull(Store.open(arguments.other), [arguments.artifact], tell=tell)
    return _transferred(done, arguments)


def _transferred(done: Transferred, arguments: argparse.Namespace) -> int:
    lines = [{"artifact": p.record.label, "key": p.record.key, "outcome": p.outcome} for p in done.published]
    if arguments.json:
        print_json({"artifacts": lines, "objects": done.objects, "bytes": done.bytes})
    else:
        print_table(["artifact", "key", "outcome"], [[n["artifact"], n["key"][:12], n["outcome"]] for n in lines])
        sys.stdout.write(f"{done.objects} objects, {bytes_text(done.bytes)} copied; the rest was there\n")
    return 0


def _pin(store: Store, arguments: argparse.Namespace) -> int:
    record = store.pin(arguments.artifact, who=user())
    return _said(record, "pinned", arguments)


def _unpin(store: Store, arguments: argparse.Namespace) -> int:
    record = store.resolve(arguments.artifact)
    store.unpin(arguments.artifact)
    return _said(record, "unpinned", arguments)


def _said(record: Record, what: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({what: record.key, "artifact": record.label})
    else:
        sys.stdout.write(f"{what} {record.label} {record.key[:12]}\n")
    return 0
