"""A door before an S3 server that checks who comes, as real S3 does: access key, signature, clock. moto checks none."""

from __future__ import annotations

import http.client
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

CLOCK_LIMIT_S = 900.0  # S3's own


class Guard:
    """Forwards what is signed with the right key to another server; `url` is its address. A context manager."""

    def __init__(self, target: str, key: str, secret: str) -> None:
        self.refused: list[str] = []
        guard = self

        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                code = refusal(self.command, self.path, dict(self.headers), key, secret)
                if code:
                    guard.refused.append(code)
                    self.answer(403, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), [])
                    return
                there = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
                there.request(self.command, self.path, body, dict(self.headers))
                said = there.getresponse()
                self.answer(said.status, said.read(), said.getheaders())
                there.close()

            def answer(self, status: int, content: bytes, headers: list[tuple[str, str]]) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = next((v for n, v in headers if n.lower() == "content-length"), str(len(content)))
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *given: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Guard:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def refusal(method: str, path: str, headers: dict[str, str], key: str, secret: str) -> str:
    """S3's code for a request that it does not let in; "" for one that it does."""
    given = {name.lower(): value for name, value in headers.items()}
    scheme, _, rest = given.get("authorization", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        return "AccessDenied"
    said = dict(part.strip().split("=", 1) for part in rest.split(","))
    claimed, _, region = said["Credential"].split("/")[:3]
    if claimed != key:
        return "InvalidAccessKeyId"
    at = datetime.strptime(given["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs((datetime.now(UTC) - at).total_seconds()) > CLOCK_LIMIT_S:
        return "RequestTimeTooSkewed"
    signed = {name: given[name] for name in said["SignedHeaders"].split(";")}
    request = AWSRequest(method=method, url=f"http://{given['host']}{path}", headers=signed)
    request.context["timestamp"] = given["x-amz-date"]
    signer = S3SigV4Auth(Credentials(key, secret), "s3", region)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return "" if expected == said["Signature"] else "SignatureDoesNotMatch"
