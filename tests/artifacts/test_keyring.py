"""Credentials are held in memory, handed over through a pipe, and shown by nobody."""

from __future__ import annotations

from typing import Any

import pytest

from artifacts.backend import open_backend
from artifacts.errors import StoreRefused, StoreUnavailable
from artifacts.keyring import Credentials, hang, held
from artifacts.remote import is_refusal

SECRET = "canary-of-the-keyring"


def test_credentials_are_found_under_their_address_and_no_other():
    hang("s3://bucket/keyring/", given := Credentials("fairway-s3/lab", {"key": "k"}))
    assert held("s3://bucket/keyring") is given
    assert held("s3://bucket/keyring/below") is None
    assert held("s3://bucket") is None


def test_a_representation_shows_the_name_only():
    given = Credentials("fairway-s3/lab", {"secret": SECRET})
    assert "fairway-s3/lab" in repr(given)
    assert SECRET not in repr(given)


def test_what_comes_out_of_the_pipe_is_what_went_in():
    given = Credentials("fairway-gcs/lab", {"token": {"private_key": SECRET}, "project": "p"})
    assert Credentials.loads(given.dumps()) == given


def test_an_empty_pipe_is_a_refusal_and_no_crash():
    with pytest.raises(StoreRefused, match="nothing came"):
        Credentials.loads(b"")


def test_secrets_are_hidden_wherever_they_are_nested_and_a_place_is_not():
    options = {
        "secret": SECRET,
        "token": {"private_key": f"-----BEGIN-----\n{SECRET}-line\n-----END-----"},
        "endpoint_url": "http://objects:9000",
        "key": "id",
    }
    given = Credentials("fairway-s3/lab", options)
    assert given.hide(f"signed {SECRET} at http://objects:9000 id") == "signed *** at http://objects:9000 id"
    assert SECRET not in given.hide(f"cannot read the line {SECRET}-line of the key")


class Response(Exception):
    """As botocore says what a server answered."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class NoCredentialsError(Exception):
    """botocore's name."""


class Status(Exception):
    """As Azure's and Google's drivers say what a server answered."""

    def __init__(self, **fields: Any) -> None:
        super().__init__("the server said no")
        self.__dict__.update(fields)


def _caused(cause: Exception) -> OSError:
    error = OSError("wrapped")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        NoCredentialsError("Unable to locate credentials"),
        PermissionError("The AWS Access Key Id you provided does not exist in our records."),
        _caused(Response("SignatureDoesNotMatch")),
        _caused(Response("ExpiredToken")),
        Status(code=401),
        Status(status_code=403),
        OSError("Forbidden: https://storage/b/bucket"),
    ],
)
def test_a_refusal_is_told_from_other_errors(error: Exception):
    assert is_refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        _caused(Response("SlowDown")),
        _caused(Response("NoSuchBucket")),
        Status(code=500),
        ConnectionError("refused"),
        PermissionError(13, "Permission denied", "/a/file/of/this/machine"),
    ],
)
def test_other_errors_are_no_refusals(error: Exception):
    assert not is_refusal(error)


def test_a_refused_store_names_whose_credentials_they_were_and_hides_them(monkeypatch: pytest.MonkeyPatch):
    backend: Any = open_backend("memory://keyring")
    backend._credentials = Credentials("fairway-s3/lab", {"secret": SECRET})

    def refuse(*asked: object, **options: object) -> bytes:
        raise PermissionError(f"no entry with {SECRET}")

    monkeypatch.setattr(backend._fs, "cat_file", refuse, raising=False)
    with pytest.raises(StoreRefused, match="from fairway-s3/lab") as caught:
        backend.read("a")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None  # or a traceback would show it

    def break_(*asked: object, **options: object) -> bytes:
        raise RuntimeError(f"a driver's own kind, with {SECRET}")

    monkeypatch.setattr(backend._fs, "cat_file", break_)
    with pytest.raises(StoreUnavailable, match="a driver's own kind") as caught:
        backend.read("a")
    assert SECRET not in str(caught.value)


def test_without_a_block_a_refusal_says_that_they_are_the_machines_own(monkeypatch: pytest.MonkeyPatch):
    backend: Any = open_backend("memory://keyring-own")

    def refuse(*asked: object, **options: object) -> bytes:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(backend._fs, "cat_file", refuse, raising=False)
    with pytest.raises(StoreRefused, match="this machine's own: NoCredentialsError"):
        backend.read("a")
