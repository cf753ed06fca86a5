"""Store credentials that lie in Prefect's blocks: written once, on Prefect's page or by `fairway credentials save`.

Runs, deployments and parameters carry a block's name. Whoever opens the store - a run, a stage's run on a worker, a
command in a terminal - asks the server for the values when it starts, keeps them in memory (`artifacts/keyring.py`),
and so sees a changed value with the next run. Prefect encrypts blocks in its database and hides their secret fields;
whoever may ask its API can read them, so a server that others reach has a password (docs/deploy.md).

Prefect's own credential blocks, which its server knows without their packages, are read by the names of their fields.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from pydantic import Field, SecretStr

from artifacts.errors import StoreUnavailable
from artifacts.keyring import Credentials, hang
from stages.contract import StageError

KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"  # the only variable that holds a path to the secret and not the secret
VARIABLE = "FAIRWAY_STORE_CREDENTIALS"  # the name of a block, for those who give none
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_NONE = SecretStr("")


class S3Credentials(Block):
    """Keys of an S3 object store, for Fairway's artifacts."""

    _block_type_name = "Fairway S3 credentials"
    _block_type_slug = "fairway-s3"

    access_key: SecretStr = Field(description="Access key id.")
    secret_key: SecretStr = Field(description="Secret access key.")
    session_token: SecretStr = Field(default=_NONE, description="Only with temporary keys.")
    endpoint: str = Field(default="", description="URL of the server, where it is not Amazon's.")
    region: str = Field(default="", description="Such as eu-central-1. Empty: the driver's.")


class GCSCredentials(Block):
    """A service account of Google Cloud Storage, for Fairway's artifacts."""

    _block_type_name = "Fairway Google Cloud Storage credentials"
    _block_type_slug = "fairway-gcs"

    service_account: SecretStr = Field(description="The whole JSON text of the service account's key file.")
    project: str = Field(default="", description="Project that is billed. Empty: the account's own.")
    endpoint: str = Field(default="", description="URL of the server, where it is not Google's.")


class AzureCredentials(Block):
    """An Azure storage account, for Fairway's artifacts: a connection string, or the account with one of the others."""

    _block_type_name = "Fairway Azure credentials"
    _block_type_slug = "fairway-azure"

    connection_string: SecretStr = Field(default=_NONE, description="Everything in one text.")
    account: str = Field(default="", description="Name of the storage account.")
    account_key: SecretStr = Field(default=_NONE, description="One of the account's keys.")
    sas_token: SecretStr = Field(default=_NONE, description="A shared access signature that may read, write and list.")
    tenant_id: str = Field(default="", description="With a service principal.")
    client_id: str = Field(default="", description="With a service principal.")
    client_secret: SecretStr = Field(default=_NONE, description="With a service principal.")


OWN = (S3Credentials, GCSCredentials, AzureCredentials)


@dataclass(frozen=True)
class _Type:
    """How one type of block becomes the options of a driver."""

    schemes: tuple[str, ...]
    options: Mapping[str, str]  # option of the driver -> field, both with dots into what is nested
    needs: tuple[tuple[str, ...], ...]  # sets of fields of which one must be there whole
    environment: Mapping[str, str]  # field -> the variable in which its driver would look


_S3, _GS, _AZ = ("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss")
_AWS_CLIENT = {"endpoint_url": "aws_client_parameters.endpoint_url", "client_kwargs.region_name": "region_name"}
TYPES: dict[str, _Type] = {
    "fairway-s3": _Type(
        _S3,
        {
            "key": "access_key", "secret": "secret_key", "token": "session_token",
            "endpoint_url": "endpoint", "client_kwargs.region_name": "region",
        },
        (("access_key", "secret_key"),),
        {
            "access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY",
            "session_token": "AWS_SESSION_TOKEN", "endpoint": "AWS_ENDPOINT_URL", "region": "AWS_DEFAULT_REGION",
        },
    ),
    "fairway-gcs": _Type(
        _GS,
        {"token": "service_account", "project": "project", "endpoint_url": "endpoint"},
        (("service_account",),),
        {"service_account": KEY_FILE, "project": "GOOGLE_CLOUD_PROJECT"},
    ),
    "fairway-azure": _Type(
        _AZ,
        {
            "connection_string": "connection_string", "account_name": "account", "account_key": "account_key",
            "sas_token": "sas_token", "tenant_id": "tenant_id", "client_id": "client_id",
            "client_secret": "client_secret",
        },
        (
            ("connection_string",), ("account", "account_key"), ("account", "sas_token"),
            ("account", "tenant_id", "client_id", "client_secret"),
        ),
        {
            "connection_string": "AZURE_STORAGE_CONNECTION_STRING", "account": "AZURE_STORAGE_ACCOUNT_NAME",
            "account_key": "AZURE_STORAGE_ACCOUNT_KEY", "sas_token": "AZURE_STORAGE_SAS_TOKEN",
            "tenant_id": "AZURE_STORAGE_TENANT_ID", "client_id": "AZURE_STORAGE_CLIENT_ID",
            "client_secret": "AZURE_STORAGE_CLIENT_SECRET",
        },
    ),
    "aws-credentials": _Type(
        _S3,
        {
            "key": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token",
            **_AWS_CLIENT,
        },
        (("aws_access_key_id", "aws_secret_access_key"),),
        {},
    ),
    "minio-credentials": _Type(
        _S3,
        {"key": "minio_root_user", "secret": "minio_root_password", **_AWS_CLIENT},
        (("minio_root_user", "minio_root_password"),),
        {},
    ),
    "gcp-credentials": _Type(
        _GS, {"token": "service_account_info", "project": "project"}, (("service_account_info",),), {}
    ),
    "azure-blob-storage-credentials": _Type(
        _AZ, {"connection_string": "connection_string"}, (("connection_string",),), {}
    ),
}  # fmt: skip


def use(url: str, name: str) -> str:
    """Read the block's values and keep them for the store at `url`, in memory; the block as `type/name`.

    Without a name, the one in FAIRWAY_STORE_CREDENTIALS; without that, nothing, and the driver looks for its own.

    Raises:
        StageError: there is no such block, or it is not for this kind of store.
        StoreUnavailable: Prefect's server does not answer.
    """
    name = name or (os.environ.get(VARIABLE, "") if "://" in url else "")
    if not name:
        return ""
    credentials = read(name, url)
    hang(url, credentials)
    return credentials.name


def read(name: str, url: str) -> Credentials:
    """The block's values as options of the driver of `url`. Errors as in `use`."""
    slug, data = _find(name, url)
    return Credentials(f"{slug}/{name.rpartition('/')[2]}", driver_options(slug, name, data))


def driver_options(slug: str, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The driver's options from a block's fields. StageError names fields that are missing, and no value."""
    known = TYPES[slug]
    fields = {path: value for path in known.options.values() if (value := _clean(_dig(data, path)))}
    if not any(set(needed) <= set(fields) for needed in known.needs):
        ways = " or ".join(" with ".join(needed) for needed in known.needs)
        there = ", ".join(sorted(fields)) or "nothing"
        raise StageError(f"a block of type {slug} has {ways}; {name} has {there}; fill it in on Prefect's page")
    options: dict[str, Any] = {}
    for option, path in known.options.items():
        if path in fields:
            outer, _, inner = option.rpartition(".")
            (options.setdefault(outer, {}) if outer else options)[inner] = fields[path]
    if "gs" in known.schemes:
        options["token"] = _service_account(name, options["token"])
    return options


def save(name: str, url: str, fields: Mapping[str, str]) -> str:
    """Make or replace a block of our own type for the store at `url`; it as `type/name`.

    Raises:
        StageError: no block is for such a store, a field is unknown or one is missing.
        StoreUnavailable: Prefect's server does not answer.
    """
    kind = own_type(url)
    slug = kind.get_block_type_slug()
    if unknown := sorted(fields.keys() - kind.model_fields.keys()):
        raise StageError(
            f"a block of type {slug} has the fields {', '.join(own_fields(kind))}; got {', '.join(unknown)}"
        )
    if not _NAME.fullmatch(name):
        raise StageError(f"a block's name is of small letters, digits and dashes; got {name!r}")
    driver_options(slug, name, fields)
    with _server():
        kind(**fields).save(name, overwrite=True)
    return f"{slug}/{name}"


def own_type(url: str) -> type[Block]:
    """Our type of block for the store at `url`. StageError if it needs no credentials."""
    scheme = url.partition("://")[0].lower()
    for kind in OWN:
        if "://" in url and scheme in TYPES[kind.get_block_type_slug()].schemes:
            return kind
    raise StageError(
        f"credentials are for a store at s3://, gs:// or az://; got {url}; give the store's address with --store"
    )


def own_fields(kind: type[Block]) -> list[str]:
    """The names that a person fills in."""
    return [name for name in TYPES[kind.get_block_type_slug()].options.values() if name in kind.model_fields]


def from_environment(url: str) -> dict[str, str]:
    """The fields of a block for `url` that stand in this environment, where the store's driver would look."""
    slug = own_type(url).get_block_type_slug()
    found = {field: os.environ[name] for field, name in TYPES[slug].environment.items() if os.environ.get(name)}
    if KEY_FILE in os.environ and "service_account" in found:
        found["service_account"] = Path(found["service_account"]).read_text(encoding="utf-8")
    return found


def register() -> None:
    """Make our types known to the server, so that its page has their forms."""
    for kind in OWN:
        kind.register_type_and_schema()


def listed() -> list[dict[str, str]]:
    """Every block that can open a store: name, type and the addresses that it is for. No values are asked for."""
    found = [(slug, block["name"]) for slug, block in _blocks({"slug": {"any_": sorted(TYPES)}}, None, False)]
    return [
        {"block": f"{slug}/{name}", "for": ", ".join(f"{scheme}://" for scheme in TYPES[slug].schemes)}
        for slug, name in found
    ]


def _find(name: str, url: str) -> tuple[str, dict[str, Any]]:
    """The type and the fields of the block that is meant."""
    asked, _, bare = name.rpartition("/")
    fitting = [slug for slug, known in TYPES.items() if url.partition("://")[0].lower() in known.schemes]
    if "://" not in url or not fitting:
        own_type(url)  # says which stores have credentials
    if not asked or asked in fitting:
        found = _blocks({"slug": {"any_": [asked] if asked else fitting}}, bare, True)
        if len(found) == 1:
            return found[0][0], found[0][1]["data"]
        if found:
            several = ", ".join(f"{slug}/{bare}" for slug, _ in found)
            raise StageError(f"a block is named by its type where several have one name; {several}; name one of them")
    others = ", ".join(f"{slug}/{bare}" for slug, _ in _blocks(None, bare, False))
    raise StageError(
        f"credentials for {url} are in a Prefect block of type {', '.join(fitting)}; there is no {name}"
        + (f", and {others} is of another type" if others else "")
        + f"; make it on Prefect's page, or with `fairway credentials save {bare} --store {url}`"
    )


def _blocks(types: Mapping[str, Any] | None, name: str | None, values: bool) -> list[tuple[str, dict[str, Any]]]:
    """(type, block) of those with this name; `values` with what is secret in them."""
    chosen = {"is_anonymous": {"eq_": False}, **({"name": {"any_": [name]}} if name is not None else {})}
    body = {"block_documents": chosen, "block_types": types, "include_secrets": values, "limit": 200}
    with _server(), get_client(sync_client=True) as client:
        found: list[dict[str, Any]] = _post(client, body)
    return sorted(((each["block_type"]["slug"], each) for each in found), key=lambda each: (each[0], each[1]["name"]))


def _post(client: SyncPrefectClient, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    answer = client.request("POST", "/block_documents/filter", json=body)
    answer.raise_for_status()
    return answer.json()


@contextmanager
def _server() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        raise StoreUnavailable(
            f"a store's credentials are asked of the Prefect server that has them; it does not give them: "
            f"{type(error).__name__}; see whether it runs, and PREFECT_API_URL and PREFECT_API_AUTH_STRING"
        ) from error


def _dig(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    value: Any = data
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _clean(value: Any) -> Any:
    """Without what is pasted along: a form's fields have room for a line's end."""
    return value.strip() if isinstance(value, str) else value


def _service_account(name: str, given: Any) -> dict[str, Any]:
    """Google's key as its driver takes it."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    if not isinstance(found, Mapping) or "private_key" not in found:
        raise StageError(
            f"a service account is the JSON text of its key file, an object with a private_key; that of {name} is not; "
            "copy the whole file into the block"
        ) from None
    return dict(found)
