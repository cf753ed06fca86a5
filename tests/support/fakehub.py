"""A Hub on this machine: what `huggingface_hub` asks for when it reads and commits files of repositories that exist.

Only its JSON and Git LFS sides; the real Hub moves large files by a protocol of its own (Xet) where both sides have it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 20_000  # bytes from which a file goes by LFS


class Hub:
    """Repositories by "datasets/me/repo" or "models/me/repo": {path: bytes}. Private ones need the token."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.refused: list[str] = []
        self.sent: dict[str, bytes] = {}  # LFS objects
        self.address = ""

    def oid(self, repository: str) -> str:
        """The id of its newest commit."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[repository].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def entry(self, repository: str, path: str) -> dict[str, object]:
        """A file or folder of a listing."""
        data = self.repositories[repository].get(path)
        if data is None:
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port; `hub.address` is what HF_ENDPOINT must be."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *said: object) -> None:
        pass

    def _answer(self, status: int, body: object = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _repository(self, kind: str, name: str, write: bool = False) -> str | None:
        """Its name here; answers itself if we may not, or there is none."""
        repository, known = f"{kind}/{name}", self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if not known and (write or repository in self.hub.private):
            self.hub.refused.append(f"{self.command} {repository}")
            self._answer(401, {"error": "Invalid credentials"}, X_Error_Code="RepoNotFound" if not write else "")
            return None
        if repository not in self.hub.repositories:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        if parts[0] != "api":  # [datasets/]me/repo/resolve/rev/path
            kind = "datasets" if parts[0] == "datasets" else "models"
            rest = parts[1:] if kind == "datasets" else parts
            if (repository := self._repository(kind, "/".join(rest[:2]))) is not None:
                self._file(repository, "/".join(rest[4:]))
            return
        if (repository := self._repository(parts[1], "/".join(parts[2:4]))) is None:
            return
        what = parts[4] if len(parts) > 4 else ""
        if what == "tree":
            self._tree(repository, "/".join(parts[6:]), "recursive" in parse_qs(address.query))
        else:
            self._answer(200, {"id": "/".join(parts[2:4]), "sha": self.hub.oid(repository), "siblings": [], "tags": []})

    def _tree(self, repository: str, folder: str, recursive: bool) -> None:
        below = [p for p in self.hub.repositories[repository] if not folder or p.startswith(f"{folder}/")]
        if not below and folder:
            self._answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return
        skip = len(folder) + 1 if folder else 0
        folders = {p[:skip] + p[skip:].split("/")[0] for p in below if "/" in p[skip:]}
        files = below if recursive else [p for p in below if "/" not in p[skip:]]
        self._answer(200, [self.hub.entry(repository, path) for path in sorted({*files, *folders})])

    def _file(self, repository: str, path: str) -> None:
        data = self.hub.repositories[repository].get(path)
        if data is None:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        known = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": self.hub.oid(repository)}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end or len(data)) + 1]
            self._answer(206, part, Content_Range=f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}", **known)
        else:
            self._answer(200, data, **known)

    def do_PUT(self) -> None:
        self.hub.sent[self.path.rsplit("/", 1)[-1]] = self._body()
        self._answer(200)

    def do_POST(self) -> None:
        body = self._body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] != "api":  # [datasets/]me/repo.git/info/lfs/objects/batch
            wanted = json.loads(body)["objects"]
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}", "header": {}}}}
                for each in wanted
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
            return
        kind, name, what = parts[1], "/".join(parts[2:4]), parts[4]
        if (repository := self._repository(kind, name, write=what in ("commit", "preupload"))) is None:
            return
        if what == "paths-info":
            self._paths_info(repository, body)
        elif what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif what == "commit":
            self._commit(repository, name, body)

    def _paths_info(self, repository: str, body: bytes) -> None:
        raw = body.decode()
        paths = json.loads(raw)["paths"] if raw.startswith("{") else parse_qs(raw)["paths"]
        content = self.hub.repositories[repository]
        there = [p for p in paths if p in content or any(each.startswith(f"{p}/") for each in content)]
        self._answer(200, [self.hub.entry(repository, path) for path in there])

    def _commit(self, repository: str, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repositories[repository][value["path"]] = self.hub.sent[value["oid"]]
        oid = self.hub.oid(repository)
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})
