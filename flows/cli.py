"""The command line. This file only reads arguments and turns errors into one message and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage, or (plan) there is work to do; 3 the input or configuration is wrong;
130 interrupted. With --json, stdout is one JSON object whatever happens; everything else goes to stderr.

Commands are imported when they are called: `fairway plan` must answer before torch or Prefect could be imported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from artifacts.backend import NO_ROOM, room
from artifacts.errors import (
    AmbiguousKey,
    BadArchive,
    BadName,
    LeaseCancelled,
    NotFound,
    StoreError,
    StoreUnsupported,
    UnsafeURL,
)
from flows.commands.serve_arguments import (
    DEFAULT_FOLDER,
    DEFAULT_STORE,
    OPENS_NO_STORE,
    SERVER_COMMANDS,
    add_doctor,
    add_pool,
    add_server,
    add_steering,
)
from flows.launch import Interrupted, StageFailed
from flows.rundoc import STATES
from stages.contract import StageError

DONE, FAILED, USAGE, USER_ERROR, INTERRUPTED = 0, 1, 2, 3, 130
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parser().parse_args(argv)
    try:
        _let_in(arguments)
        return _command(arguments)(arguments)
    except (KeyboardInterrupt, Interrupted, LeaseCancelled) as error:
        return _complain(arguments, "interrupted", str(error) or "stopped; run again to go on", INTERRUPTED)
    except StageError as error:
        return _complain(arguments, "user", str(error), USER_ERROR)
    except StageFailed as error:
        code = USER_ERROR if error.kind == "user" else FAILED
        return _complain(arguments, error.kind, f"{error}\n  log: {error.log}", code)
    except StoreError as error:
        asked_wrongly = isinstance(error, UnsafeURL | StoreUnsupported | BadName | NotFound | AmbiguousKey | BadArchive)
        return _complain(arguments, "store", str(error), USER_ERROR if asked_wrongly else FAILED)
    except BrokenPipeError:  # `fairway artifacts ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno not in NO_ROOM:
            return _complain(arguments, "crash", _unexpected(error), FAILED)
        where = Path(error.filename).parent if isinstance(error.filename, str) else Path()
        return _complain(arguments, "disk", f"{error}{room(where.absolute())}; make room there, run again", FAILED)
    except Exception as error:  # noqa: BLE001 - the last resort: a message for the user, the traceback in a file
        return _complain(arguments, "crash", _unexpected(error), FAILED)


def _let_in(arguments: argparse.Namespace) -> None:
    """Credentials that a Prefect block has, before anything opens the store."""
    named = os.environ.get("FAIRWAY_STORE_CREDENTIALS", "") if "://" in arguments.store else ""
    arguments.credentials = named if arguments.credentials is None else arguments.credentials
    if arguments.credentials and arguments.command not in OPENS_NO_STORE:
        from flows.commands.credentials import let_in

        let_in(arguments.store, arguments.credentials, getattr(arguments, "folder", DEFAULT_FOLDER))


def _complain(arguments: argparse.Namespace, kind: str, message: str, code: int) -> int:
    if getattr(arguments, "json", False):
        sys.stdout.write(json.dumps({"error": {"kind": kind, "message": message}}) + "\n")
    sys.stderr.write(f"fairway: {message}\n")
    return code


def _unexpected(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    folder = Path(".fairway").absolute() / "logs"
    path = folder / f"crash-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        return f"unexpected {type(error).__name__}: {error}\n{text}"
    return f"unexpected {type(error).__name__}: {error}; this is a fault of Fairway's; the traceback is in {path}"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="fairway", description="From documents to a scored, size-checked archive, running only what changed."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_plan(commands)
    _add_runs(commands)
    _add_seeds(commands)
    _add_artifacts(commands)
    _add_submit(commands)
    _add_score(commands)
    _add_audit(commands)
    _common(commands.add_parser("recipes", help="list the built-in recipes"))
    add_doctor(_common(commands.add_parser("doctor", help="check this installation, or the workers of a pool")))
    add_server(commands, _common)
    report = _common(commands.add_parser("report", help="write a run's report again and print its path"))
    report.add_argument("run", nargs="?", default="", help="run id or a part of it; default: the latest completed run")
    report.add_argument("--out", default="", help="folder to write into")
    return top


def _common(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--store", default=DEFAULT_STORE, help="path or URL of the store (default: .fairway)")
    command.add_argument(
        "--credentials", metavar="NAME", help="Prefect block with the store's (default: $FAIRWAY_STORE_CREDENTIALS)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return command


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = _common(commands.add_parser("audit", help="which rules a score breaks, with evidence"))
    audit.add_argument("run", nargs="?", default="", help="run id or a part of it; default: the latest completed run")
    audit.add_argument("--deep", action="store_true", help="ask more than a quick audit does")
    audit.add_argument(
        "--fixtures", action="store_true",
        help="audit submissions that are known to cheat and others that do not; exit code 1 if one is misjudged",
    )  # fmt: skip


def _recipe_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("recipe", help="a built-in recipe (see `fairway recipes`) or a .toml file")
    command.add_argument("--scale", default="full", help="smoke, one-gpu or full (default)")
    command.add_argument("--seed", type=int, help="seed of the training (default: the recipe's)")
    command.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, such as train.muon.lr=0.02"
    )
    return _common(command)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _recipe_arguments(commands.add_parser("run", help="run a recipe: only what is not in the store runs"))
    run.add_argument("--from", dest="start", default="", metavar="STAGE", help="take all stages above from the store")
    run.add_argument("--until", default="", metavar="STAGE", help="stop after this stage")
    run.add_argument(
        "--force", action="append", default=[], metavar="STAGE",
        help="run this stage even if its result is in the store; the stored one stays, a differing one is reported",
    )  # fmt: skip
    add_pool(run)
    run.add_argument("--cores", type=int, help="CPU cores to use at once (default: all that are allowed)")
    run.add_argument("--stage-limit", type=float, metavar="SECONDS", help="end a stage that runs longer than this")


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser("plan", help="what would run, and why; exit code 2 if something would")
    _recipe_arguments(plan)
    why = _common(commands.add_parser("why", help="what differs between two artifacts of one stage"))
    why.add_argument("old", help="name, stage/key or the beginning of a key")
    why.add_argument("new", nargs="?", default="", help="the same; default: the tree as it is now")
    accept = _common(
        commands.add_parser("accept", help="declare two versions of a stage's code equivalent, with proof")
    )
    accept.add_argument("old", help="an artifact made by the older code: name or key")
    accept.add_argument("new", nargs="?", default="", help="one made by the newer code; default: the tree as it is now")
    accept.add_argument("--recipe", default="", help="what to run both codes on (default: the recipe that made OLD)")
    accept.add_argument("--reason", required=True, help="why the results must be equal")


def _add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    runs = commands.add_parser("runs", help="list, show, steer or remove runs")
    actions = runs.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = _common(actions.add_parser("ls", help="every run, newest last"))
    listed.add_argument("--state", choices=STATES, help="only runs in this state")
    listed.add_argument("--recipe", default="", help="only runs of this recipe")
    listed.add_argument("--last", type=int, default=0, metavar="N", help="only the newest N")
    for action, text in (("show", "one run in full"), ("rm", "forget runs; artifacts stay under their names")):
        command = _common(actions.add_parser(action, help=text))
        command.add_argument(
            "run", nargs="+" if action == "rm" else None, help="run id, or a part of it that no other has"
        )
    add_steering(actions, _common)


def _add_seeds(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    seeds = commands.add_parser("seeds", help="several seeds of a recipe, declared, run, tested; alone: list the sets")
    seeds.add_argument("recipe", nargs="?", default="", help="a built-in recipe or a .toml file")
    seeds.add_argument("--seeds", default="42,1337,2025", help="seeds of the training (default: 42,1337,2025)")
    _add_set_options(seeds)
    seeds.add_argument(
        "--reference", default="", metavar="NAME|FILE",
        help="test against a row of the public board (its number), a set in the store, or a .toml or .json file",
    )  # fmt: skip

    sweep = commands.add_parser("sweep", help="many points around one recipe; what they share runs once; one table")
    sweep.add_argument("recipe", help="a recipe with --grid, or a sweep's file such as configs/sweeps/pr398.toml")
    sweep.add_argument(
        "--grid", action="append", default=[], metavar="PATH=V1,V2", help="values of a field; several: all combinations"
    )
    sweep.add_argument("--seeds", default="", help="seeds of every point (default: the recipe's own)")
    _add_set_options(sweep)
    board = commands.add_parser("board", help="the best legal score of every configuration in the store")
    board.add_argument("--scale", default="", help="only this scale")
    board.add_argument("--policy", default="board", help="whose verdict makes a score legal: strict or board (default)")
    _common(board)
    compare = _common(commands.add_parser("compare", help="what differs between two runs, sets, recipes or artifacts"))
    for side in ("a", "b"):
        compare.add_argument(side, help="run id, set id or its beginning, recipe, artifact's name or key")
    compare.add_argument("--scale", default="full", help="of recipes (default: full)")


def _add_set_options(command: argparse.ArgumentParser) -> None:
    """What is common to whoever runs more than one run."""
    command.add_argument("--scale", default="full", help="smoke, one-gpu or full (default)")
    command.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, such as train.muon.lr=0.02"
    )
    command.add_argument("--protocol", default="", help="whose score is tested (default: the recipe's last)")
    command.add_argument("--cores", type=int, help="CPU cores to use at once (default: all that are allowed)")
    command.add_argument("--stage-limit", type=float, metavar="SECONDS", help="end a stage that runs longer than this")
    _common(command)


def _add_artifacts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    artifacts = commands.add_parser("artifacts", help="list, check, take out and clean up what stages made")
    actions = artifacts.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return _common(actions.add_parser(name, help=text, description=text))

    listing = action("ls", "names, keys and sizes")
    listing.add_argument("stage", nargs="?", default="", help="only this stage")
    _artifact(action("show", "one artifact: files, key components, report, provenance"))
    verify = action("verify", "hash every stored byte again; with --rebuild, run cached CPU stages again and compare")
    verify.add_argument("artifact", nargs="*", help="names or keys; default: all")
    verify.add_argument("--rebuild", action="append", default=[], metavar="STAGE", help="a stage, or 'all' CPU stages")
    verify.add_argument("--run", default="", help="with --rebuild: the run whose artifacts are rebuilt (default: last)")
    get = _artifact(action("get", "copy an artifact's files into a folder"))
    get.add_argument("folder", help="a new or empty folder")
    reject = _artifact(action("reject", "taint an artifact and everything that was made from it"))
    reject.add_argument("--reason", required=True, help="why it must not be used")
    gc = action("gc", "remove what no run, name, pin, lease or attempt leads to; dry run unless --yes")
    gc.add_argument("--yes", action="store_true", help="remove; without it only say what would go")
    gc.add_argument("--keep-last", type=int, metavar="N", help="drop names but the last N versions of each")
    gc.add_argument("--grace-days", type=float, default=1.0, help="keep everything younger than this (default 1)")
    action("du", "bytes by stage")
    export = _artifact(action("export", "write one artifact, or with --closure all it came from, into one file"))
    export.add_argument("file", help="the file to write, or hf://datasets/OWNER/REPO/NAME.tar on the Hub")
    export.add_argument("--closure", action="store_true", help="with everything that it was made from")
    action("import", "read an exported file").add_argument("file", help="the file to read, hf:// too")
    for name, text in (("pin", "keep an artifact whatever gc does"), ("unpin", "take the pin away")):
        _artifact(action(name, text))
    for name, text in (("push", "copy an artifact's closure to another store"), ("pull", "the same, from another")):
        _artifact(action(name, text)).add_argument("other", help="path or URL of the other store")


def _add_submit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    submit = _common(commands.add_parser("submit", help="a records folder of the challenge: write one, or check one"))
    submit.add_argument("what", nargs="*", metavar="SET|RUN", help="a set of seeds, or the ids of finished runs")
    submit.add_argument("--out", default="", metavar="DIR", help="write DIR/YYYY-MM-DD_Name")
    submit.add_argument("--name", default="", help="of the submission (default: recipe and protocol)")
    submit.add_argument("--author", default="", help="your name")
    submit.add_argument("--github-id", default="", help="your GitHub id")
    submit.add_argument(
        "--track", choices=("record", "non-record"), default="non-record", help="record refuses what breaks its rules"
    )
    submit.add_argument("--protocol", default="", help="the headline (default: the set's, or the recipe's last)")
    submit.add_argument("--archives", action="store_true", help="ship the archives too")
    submit.add_argument("--check", default="", metavar="DIR", help="check a records folder, anybody's; writes nothing")
    submit.add_argument(
        "--policy", choices=("strict", "board"), default="strict", help="what --check's exit code goes by"
    )
    submit.add_argument(
        "--against",
        default="",
        metavar="ROW",
        help="with --check: test against a row of the board, or a submission.json",
    )


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    score = _common(commands.add_parser("score", help="score an archive or a weights file that was made elsewhere"))
    score.add_argument("file", help="archive (.fwy) or weights (.safetensors), hf:// or another URL too")
    score.add_argument("--recipe", default="quickstart", help="whose documents, tokenizer and protocols (quickstart)")
    score.add_argument("--scale", default="full", help="smoke, one-gpu or full (default)")
    score.add_argument("--protocol", action="append", default=[], metavar="NAME", help="only this protocol; repeatable")
    score.add_argument("--val", default="", metavar="URL", help="documents or .bin shards in place of the recipe's")
    score.add_argument("--tokenizer", default="", metavar="MODEL", help="with --val: the SentencePiece .model")
    score.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field of the recipe"
    )
    score.add_argument("--cores", type=int, help="CPU cores to use at once (default: all that are allowed)")


def _artifact(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("artifact", help="recipe/scale/seed/stage[part]@version, stage/key, or a key's beginning")
    return command


def _command(arguments: argparse.Namespace) -> Command:
    """The function behind a command, imported now."""
    name = arguments.command
    if name == "run":
        from flows.commands.run import run as command
    elif name == "plan":
        from flows.commands.planning import plan as command
    elif name == "why":
        from flows.commands.planning import why as command
    elif name == "accept":
        from flows.commands.accept import accept as command
    elif name == "runs":
        from flows.commands.runs import runs as command
    elif name == "report":
        from flows.commands.runs import report as command
    elif name == "recipes":
        from flows.commands.recipes import recipes as command
    else:
        command = _more(name)
    return command


def _more(name: str) -> Command:
    """The same, of what comes after a run."""
    if name in ("seeds", "sweep", "compare", "board"):
        command = _of_many_runs(name)
    elif name == "audit":
        from flows.commands.audit import audit as command
    elif name == "artifacts":
        from flows.commands.artifacts import artifacts as command
    elif name == "score":
        from flows.commands.score import score_file as command
    elif name == "submit":
        from flows.commands.submit import submit as command
    elif name in SERVER_COMMANDS:
        from flows.commands.serve import serve as command
    elif name == "credentials":
        from flows.commands.credentials import credentials as command
    elif name == "schedule":
        from flows.commands.schedule import schedule as command
    else:
        from flows.commands.doctor import doctor as command
    return command


def _of_many_runs(name: str) -> Command:
    """The function behind a command on more than one run."""
    if name == "seeds":
        from flows.commands.seeds import seeds as command
    elif name == "sweep":
        from flows.commands.sweep import sweep as command
    elif name == "board":
        from flows.commands.board import board as command
    else:
        from flows.commands.compare import compare as command
    return command


if __name__ == "__main__":
    sys.exit(main())
