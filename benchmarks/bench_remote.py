"""What does an S3 store cost when every call takes 20 ms? Listing, planning and gc at 1,000 records; transfers.

    python benchmarks/bench_remote.py [--records 1000] [--delay-ms 20] [--megabytes 256] [--link-mb-per-s 100] [--json]

The server is moto's, on this machine, in a process of its own; the delay is injected into every call of the driver.
Needs the extras `s3` and `dev`. Goals: listing, planning and gc under 3 s each; transfers at 80 % of the link's rate,
which is measured by the driver's own calls, eight files side by side: over loopback, and over a link of a given rate.
"Cold" is a host that has read nothing of a store without an index, "indexed" one of a store whose index another host
left, "warm" the same host again.
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
from fsspec.core import url_to_fs

from artifacts.documents import dump_document
from artifacts.objects import object_path
from artifacts.record import File, Record, record_to_json
from artifacts.records import record_path
from artifacts.remembered import INDEX
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


def delay_every_call(seconds: float) -> None:
    """Make the driver wait before each request, as a link with this round trip would."""
    call = s3fs.S3FileSystem._call_s3

    async def delayed(self: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(seconds)
        return await call(self, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = delayed  # type: ignore[method-assign]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fill(store: Store, count: int) -> None:
    """`count` named records of a realistic size, each with one object, and a run for every ten of them."""
    backend = store._backend
    components = {"code": {f"stages.train.module{n}": digest_of(str(n)) for n in range(20)}, "config": {"lr": 0.02}}

    def make(index: int) -> None:
        stage, content = STAGES[index % 3], b"%d" % index
        file = File("raw/weights.bin", hashlib.sha256(content).hexdigest(), len(content))
        record = Record(stage, "", digest_of(f"key {index}"), (file,), components, {}, {}, {"published": str(index)})
        raw, record_id = dump_document(record_to_json(record))
        name = {"stage": stage, "part": "", "key": record.key, "record": record_id}
        backend.write(object_path(file.sha256), content)
        backend.write(record_path(stage, record.key), raw)
        backend.write(f"names/recipe/full/{index}/{stage}/1.json", dump_document(name)[0])
        if index % 10 == 0:
            store.write_run({"id": f"run-{index:06}", "stages": [{"key": record.key}]})

    store.write_run({"id": "first"})
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(make, range(count)))


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
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--link-mb-per-s", type=float, default=100.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, server():
        folder = Path(name)
        filesystem, _ = url_to_fs("s3://bench")
        filesystem.mkdir("bench")
        url = "s3://bench/store"
        store = Store.open(url, cache=folder / "a")
        fill(store, arguments.records)
        delay_every_call(arguments.delay_ms / 1e3)
        seconds: dict[str, float] = {}
        # A host that has read nothing before, and no index in the store; then one with an index; then the same again.
        for state in ("cold", "indexed", "warm"):
            if state == "cold":
                seconds["list records"] = timed(lambda: list(store.records()))
            for what, work in (("artifacts ls", listing), ("list runs", list_runs), ("gc, dry", gc)):
                home = folder / f"{'indexed' if state == 'warm' else state} {what}"
                os.environ["XDG_CACHE_HOME"] = str(home)
                if state == "cold":
                    store._backend.delete(INDEX)
                seconds[f"{what}, {state}"] = timed(lambda work=work: work(url))  # type: ignore[misc]
        seconds["plan"] = timed(planner(url, folder))
        rates = {"loopback": transfers(f"{url}-loopback", folder / "loopback", arguments.megabytes)}
        with link(arguments.link_mb_per_s):
            limited = transfers(f"{url}-limited", folder / "limited", arguments.megabytes)
        rates[f"{arguments.link_mb_per_s:.0f} MB/s"] = limited
    if arguments.json:
        print(json.dumps({"seconds": seconds, "megabytes_per_s": rates}))
        return 0
    for what, figure in seconds.items():
        print(f"{what:24s} {figure:6.2f} s")
    for where, figures in rates.items():
        for what, figure in figures.items():
            print(f"{where}, {what:12s} {figure:6.1f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
