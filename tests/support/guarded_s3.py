"""An S3 server that checks signatures: whoever has no key, or a wrong one, is refused as by Amazon's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from lab import free_port

BUCKET = "fairway-guarded"
_MAY_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@dataclass
class GuardedS3:
    """The server, and a key that it knows: made by it and by nobody else, so whoever shows it has leaked it."""

    endpoint: str
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """Where the server is; not who we are."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}

    @property
    def credentials(self) -> dict[str, str]:
        """Who we are, as variables."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    @property
    def options(self) -> dict[str, Any]:
        """Both, as options of the driver."""
        region = {"region_name": "us-east-1"}
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint, "client_kwargs": region}

    def rotate(self) -> None:
        """Another key; the one so far opens nothing any more."""
        with closing(self._client("iam", self.key, self.secret)) as iam:
            new = iam.create_access_key(UserName="lab")["AccessKey"]
        with closing(self._client("iam", new["AccessKeyId"], new["SecretAccessKey"])) as iam:
            iam.delete_access_key(UserName="lab", AccessKeyId=self.key)
        self.key, self.secret = new["AccessKeyId"], new["SecretAccessKey"]

    def _client(self, service: str, key: str, secret: str) -> Any:
        import boto3

        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def close_the_door(self) -> None:
        """Make bucket and user, and check every request from now on."""
        with closing(self._client("s3", "setup", "setup")) as s3:
            s3.create_bucket(Bucket=BUCKET)
        with closing(self._client("iam", "setup", "setup")) as iam:
            iam.create_user(UserName="lab")
            iam.put_user_policy(UserName="lab", PolicyName="all", PolicyDocument=json.dumps(_MAY_ALL))
            made = iam.create_access_key(UserName="lab")["AccessKey"]
        self.key, self.secret = made["AccessKeyId"], made["SecretAccessKey"]
        plain = {"Content-Type": "text/plain"}
        url = f"{self.endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, data=b"0", method="POST", headers=plain), timeout=30).close()


@contextmanager
def guarded_s3() -> Iterator[GuardedS3]:
    """The server, in a process of its own: moto's switch for checking is one for the whole process."""
    port = free_port()
    server = GuardedS3(f"http://127.0.0.1:{port}", "", "")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline_s, "the S3 server does not answer"
                time.sleep(0.1)
        server.close_the_door()
        yield server
    finally:
        process.kill()
        process.wait()
