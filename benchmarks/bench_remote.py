"""What does an S3 store cost when every call takes 20 ms? Listing, planning and gc at 1,000 records; transfers.

    python benchmarks/bench_remote.py [--records 1000] [--records-per-run 15] [--delay-ms 20] [--megabytes 256]
                                      [--link-mb-per-s 100] [--json]

The server is moto's, on this machine, in a process of its own; the delay is injected into every request of the driver.
Needs the extras `s3` and `dev`. Goals: listing, planning and gc under 3 s each; transfers at 80 % of the link's rate,
which is measured by the driver's own calls, eight files side by side: over loopback, and over a link of a given rate.

The records are published as runs do it, each run by a store of its own that leaves the index at its end. All figures
but the last are of a host that has read nothing: of that store, which nobody has listed yet ("as runs left it"); of the
same without any index, as if every run had been killed at its end ("no index"); of a store whose index another host
left, by listing it in that state ("a reader's index"). The last is that host once more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import s3fs
from aiobotocore.httpsession import AIOHTTPSession
from fsspec.core import url_to_fs

from artifacts.store import Store
from configs.load import load_recipe
from flows.cli import parser as cli_parser
from flows.commands.artifacts import artifacts as artifacts_command
from flows.identity import Identity
from flows.plan import plan
from flows.prepare import look_outside

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
from link import Link  # noqa: E402 - a support of the tests, which are no package

STAGES = ("tokenize", "train", "evaluate")
STREAMS = 8
READER, SAME = "a reader's index", "same host"


@contextmanager
def server() -> Iterator[None]:
    """An S3 server of our own, found by the driver through the environment."""
    code = (
        "import time; from moto.server import ThreadedMotoServer as Server\n"
        "server = Server('127.0.0.1', 0, verbose=False); server.start()\n"
        "print(server.get_host_and_port()[1], flush=True); time.sleep(1e6)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        os.environ |= {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def link(megabytes_per_s: float) -> Iterator[None]:
    """The same server, behind a link of this rate in each direction."""
    address = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert address.hostname
    assert address.port
    with Link(address.hostname, address.port, megabytes_per_s * 1e6) as between:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{between.port}"
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    os.environ["AWS_ENDPOINT_URL"] = address.geturl()
    s3fs.S3FileSystem.clear_instance_cache()


class Wire:
    """Every request of the driver waits, as on a link with this round trip, and is counted."""

    def __init__(self) -> None:
        self.delay_s, self.requests = 0.0, 0
        send = AIOHTTPSession.send

        async def delayed(session: Any, request: Any) -> Any:
            self.requests += 1
            await asyncio.sleep(self.delay_s)
            return await send(session, request)

        AIOHTTPSession.send = delayed  # type: ignore[method-assign]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fill(url: str, folder: Path, count: int, each: int) -> None:
    """`count` named records of a realistic size, each with one object, made by runs of `each` records that end."""
    resolved = load_recipe("quickstart").recipe.model_dump(mode="json")
    components = {"code": {f"stages.train.module{n}": digest_of(str(n)) for n in range(20)}, "config": {"lr": 0.02}}

    def run(number: int) -> None:
        store = Store.open(url, cache=folder / str(number))
        document = {"id": f"run-{number:06}", "recipe": "recipe", "resolved": resolved}
        steps: list[dict[str, str]] = []
        store.write_run({**document, "state": "running", "steps": steps})
        for index in range(number * each, min(count, (number + 1) * each)):
            stage, key = STAGES[index % 3], digest_of(f"key {index}")
            out = folder / "out" / str(index)
            (out / "raw").mkdir(parents=True)
            (out / "raw" / "weights.bin").write_bytes(b"%d" % index)
            store.publish(stage=stage, key=key, folder=out, components=components, report={"bpb": 1.2}, inputs={})
            name = store.assign_name("recipe", "full", index, stage, "", key)
            steps.append({"stage": stage, "key": key, "artifact": name})
            store.write_run({**document, "state": "running", "steps": steps})
        store.write_run({**document, "state": "completed", "steps": steps})
        store.leave_index()

    Store.open(url, cache=folder / "first").write_run({"id": "first", "recipe": "recipe"})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(-(-count // each))))


def drop_index(url: str) -> None:
    filesystem, root = url_to_fs(url)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(f"{root}/index", recursive=True)


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def planner(url: str, folder: Path) -> Callable[[], None]:
    """Plans the quickstart. What does not ask the store, such as reading the source tree, is done beforehand."""
    loaded, identity = load_recipe("quickstart"), Identity(ROOT, folder / "closures.json")
    outside, _ = look_outside(loaded.recipe, identity, folder)

    def work() -> None:
        plan(loaded, 1337, outside, Store.open(url, cache=folder / "plan"), identity)

    plan(loaded, 1337, outside, Store.open(folder / "nothing"), identity)
    return work


def listing(url: str) -> None:
    arguments = cli_parser().parse_args(["artifacts", "ls", "--store", url, "--json"])
    with contextlib.redirect_stdout(io.StringIO()):
        assert artifacts_command(arguments) == 0


def list_runs(url: str) -> None:
    assert Store.open(url).list_runs()


def gc(url: str) -> None:
    assert Store.open(url).gc(grace_s=-1).dry_run


def transfers(url: str, folder: Path, megabytes: int) -> dict[str, float]:
    """MB/s of publish and first fetch against the driver's own parallel put and get of the same bytes."""
    out = folder / "out" / "shards"
    out.mkdir(parents=True)
    each = megabytes * 1_000_000 // STREAMS
    for index in range(STREAMS):
        (out / f"{index}.bin").write_bytes(os.urandom(each))
    paths = sorted(out.iterdir())
    filesystem, root = url_to_fs(f"{url}-link")
    with ThreadPoolExecutor(STREAMS) as pool:
        put_s = timed(lambda: list(pool.map(lambda p: filesystem.put_file(str(p), f"{root}/{p.name}"), paths)))
        get_s = timed(lambda: list(pool.map(lambda p: filesystem.get_file(f"{root}/{p.name}", f"{p}.got"), paths)))
    for path in paths:
        Path(f"{path}.got").unlink()
    store = Store.open(url, cache=folder / "one")
    blank: dict[str, Any] = {"components": {}, "report": {}, "inputs": {}}
    made: list[Any] = []
    publish = lambda: made.append(store.publish(stage="tokenize", key=digest_of("x"), folder=out.parent, **blank))  # noqa: E731
    publish_s = timed(publish)
    other = Store.open(url, cache=folder / "two")
    fetch_s = timed(lambda: other.fetch(made[0].record.files, folder / "in"))
    seconds = {"link up": put_s, "publish": publish_s, "link down": get_s, "fetch": fetch_s}
    return {name: round(megabytes / max(s, 1e-3), 1) for name, s in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--records-per-run", type=int, default=15)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--megabytes", type=int, default=256, help="0: no transfers")
    parser.add_argument("--link-mb-per-s", type=float, default=100.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wire = Wire()
    with tempfile.TemporaryDirectory() as name, server():
        folder = Path(name)
        filesystem, _ = url_to_fs("s3://bench")
        filesystem.mkdir("bench")
        url = "s3://bench/store"
        fill(url, folder / "runs", arguments.records, arguments.records_per_run)
        wire.delay_s = arguments.delay_ms / 1e3
        seconds: dict[str, float] = {}
        requests: dict[str, int] = {}

        def look(what: str, work: Callable[[], Any]) -> None:
            before = wire.requests
            seconds[what] = timed(work)
            requests[what] = wire.requests - before

        look("keys of all records", lambda: list(Store.open(url, cache=folder / "keys").records()))
        for state in ("as runs left it", "no index", READER, SAME):
            for what, work in (("artifacts ls", listing), ("list runs", list_runs), ("gc, dry", gc)):
                home = folder / f"{READER if state == SAME else state} {what}"
                if state == "no index":
                    drop_index(url)
                os.environ["XDG_CACHE_HOME"] = str(home)
                look(f"{what}, {state}", lambda work=work: work(url))  # type: ignore[misc]
        look("plan", planner(url, folder))
        rates: dict[str, dict[str, float]] = {}
        if arguments.megabytes:
            rates["loopback"] = transfers(f"{url}-loopback", folder / "loopback", arguments.megabytes)
            with link(arguments.link_mb_per_s):
                limited = transfers(f"{url}-limited", folder / "limited", arguments.megabytes)
            rates[f"{arguments.link_mb_per_s:.0f} MB/s"] = limited
    if arguments.json:
        print(json.dumps({"seconds": seconds, "requests": requests, "megabytes_per_s": rates}))
        return 0
    for what, figure in seconds.items():
        print(f"{what:32s} {figure:6.2f} s {requests[what]:6d} requests")
    for where, figures in rates.items():
        for what, figure in figures.items():
            print(f"{where}, {what:12s} {figure:6.1f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
