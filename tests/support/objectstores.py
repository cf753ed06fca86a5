"""Object stores on this machine: Google's and Azure's, as their emulators do them.

`gcp-storage-emulator` is for development and ignores conditions, on which a store rests; `ifGenerationMatch=0` is added
to it here, since that server takes one request at a time. Google's own testbench honours conditions, but is in no
package index, and refuses the line ends of gcsfs's uploads.
Azurite comes from npm: `npm install azurite@3.35.0` beside this checkout's README, or anywhere on the path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import HTTPServer
from pathlib import Path
from typing import Any

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects as handlers

# The account that every Azurite has; its key is printed in Azurite's manual.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_HERE = Path(__file__).parents[2]


_conditional: list[Any] = []  # storages of servers that honour conditions


def _insert(request: Any, response: Any, storage: Any) -> None:
    """An upload, only if there is no such object where that is asked for. The server takes one request at a time."""
    if request.query.get("ifGenerationMatch") == ["0"] and any(storage is each for each in _conditional):
        name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
        try:
            storage.get_file_obj(request.params["bucket_name"], name)
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            response.json({"error": {"code": 412, "message": "At least one of the pre-conditions did not hold."}})
            return
    handlers.insert(request, response, storage)


emulator.HANDLERS = tuple(
    (path, {how: _insert if work is handlers.insert else work for how, work in methods.items()})
    for path, methods in emulator.HANDLERS
)


@contextmanager
def google(bucket: str, conditions: bool = True) -> Iterator[dict[str, str]]:
    """The environment in which gcsfs finds a server with one bucket; without `conditions` the emulator as it is."""
    waiting, HTTPServer.request_queue_size = HTTPServer.request_queue_size, 128  # beyond it a connection waits 1 s
    served = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    if conditions:
        _conditional.append(served._storage)
    served.start()
    try:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{served._api._httpd.server_address[1]}"}
    finally:
        served.stop()
        HTTPServer.request_queue_size = waiting


def azurite() -> str | None:
    """The program, if this machine has it."""
    return shutil.which("azurite-blob", path=f"{_HERE / 'node_modules' / '.bin'}") or shutil.which("azurite-blob")


@contextmanager
def azure(program: str) -> Iterator[dict[str, str]]:
    """The environment in which adlfs finds an empty server."""
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with tempfile.NamedTemporaryFile("w+") as said:  # a line for every request, which nobody reads
        process = subprocess.Popen([program, *options, "--disableTelemetry"], stdout=said, stderr=subprocess.STDOUT)
        try:
            for _ in range(600):
                said.seek(0)
                found = re.search(r"listens on (http://127\.0\.0\.1:\d+)", said.read())
                if found or process.poll() is not None:
                    break
                time.sleep(0.1)
            assert found, "Azurite did not start"
            yield {
                "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};"
                f"AccountKey={_KEY};BlobEndpoint={found[1]}/{_ACCOUNT};"
            }
        finally:
            process.kill()
            process.wait()
