"""Google Cloud Storage with its door: a server of tokens for service accounts, and storage that asks for one.

Both are one small HTTP server in front of the emulator of `objectstores.py`, which lets everybody in.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from objectstores import google

AUDIENCE = "https://oauth2.googleapis.com/token"  # whatever the token server's address
ACCOUNT = "lab@fairway-tests.iam.gserviceaccount.com"


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class GuardedGoogle:
    """The server, the one key whose tokens may do everything, and one whose tokens may do nothing."""

    behind: str  # address of the emulator
    key: rsa.RSAPrivateKey = field(default_factory=new_key)
    powerless: rsa.RSAPrivateKey = field(default_factory=new_key)
    tokens: dict[str, bool] = field(default_factory=dict)  # token -> whether it may do anything
    endpoint: str = ""

    def key_file(self, key: rsa.RSAPrivateKey | None = None) -> str:
        """A service account's key file as Google hands it out."""
        pem = (key or self.key).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "fairway-tests",
                "private_key_id": uuid4().hex,
                "private_key": pem.decode(),
                "client_email": ACCOUNT,
                "client_id": "1",
                "token_uri": f"{self.endpoint}/token",
            }
        )

    def token(self, assertion: str) -> dict[str, Any] | None:
        """A token for whoever signed with one of the keys."""
        for key in (self.key, self.powerless):
            try:
                jwt.decode(assertion, key.public_key(), algorithms=["RS256"], audience=AUDIENCE)
            except jwt.InvalidSignatureError:
                continue
            self.tokens[token := uuid4().hex] = key is self.key
            return {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
        return None


@contextmanager
def guarded_google(bucket: str) -> Iterator[GuardedGoogle]:
    """The server, with one bucket."""
    with google(bucket) as environment:
        guard = GuardedGoogle(environment["STORAGE_EMULATOR_HOST"])
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(guard))
        guard.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield guard
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(guard: GuardedGoogle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/token":
                made = guard.token(parse_qs(body.decode())["assertion"][0])
                refused = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
                self.say(
                    200 if made else 400, json.dumps(made or refused).encode(), {"Content-Type": "application/json"}
                )
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if not guard.tokens.get(token):
                code, text = (
                    (403, "no storage.objects.get access") if token in guard.tokens else (401, "no credentials")
                )
                self.say(code, json.dumps({"error": {"code": code, "message": text}}).encode(), {})
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host",)}
            asked = urllib.request.Request(guard.behind + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(asked, timeout=30) as found:
                    self.say(found.status, found.read(), dict(found.headers))
            except urllib.error.HTTPError as error:
                with error:
                    self.say(error.code, error.read(), dict(error.headers))

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer

        def say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *given: object) -> None:
            return

    return Handler
