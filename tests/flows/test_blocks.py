"""What a block's fields become, who is asked for which, and what is said when one is wrong. No server is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prefect.server
import pytest
from prefect.blocks.core import Block

from artifacts.errors import StoreUnavailable
from artifacts.keyring import OPEN, held
from flows import blocks, cli
from stages.contract import StageError

SECRET = "canary-of-the-blocks"
KEY_FILE = json.dumps({"type": "service_account", "private_key": SECRET})
COLLECTIONS = {"aws-credentials": "prefect-aws", "minio-credentials": "prefect-aws", "gcp-credentials": "prefect-gcp",
               "azure-blob-storage-credentials": "prefect-azure"}  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What stands on a server: blocks as its API gives them."""
    there: list[dict[str, Any]] = []

    def post(client: object, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        names = body["block_documents"].get("name", {}).get("any_")
        slugs = (body["block_types"] or {}).get("slug", {}).get("any_")
        found = [
            each
            for each in there
            if (names is None or each["name"] in names) and (slugs is None or each["block_type"]["slug"] in slugs)
        ]
        return found if body["include_secrets"] else [{**each, "data": {}} for each in found]

    monkeypatch.setattr(blocks, "_post", post)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return there


def block(slug: str, name: str, **data: Any) -> dict[str, Any]:
    return {"name": name, "block_type": {"slug": slug}, "data": data}


@pytest.mark.parametrize("kind", blocks.OWN)
def test_every_field_that_is_no_place_is_a_secret_to_prefect(kind: type[Block]):
    known = blocks.TYPES[kind.get_block_type_slug()]
    secret = set(kind.model_json_schema()["secret_fields"])
    open_options = {*OPEN, "tenant_id", "client_id"}
    for option, field in known.options.items():
        assert (field in secret) == (option.partition(".")[0] not in open_options), field
    assert {*known.options.values(), *known.environment} <= set(kind.model_fields)


@pytest.mark.parametrize(("slug", "collection"), COLLECTIONS.items())
def test_prefects_own_types_still_have_the_fields_that_are_read(slug: str, collection: str):
    assert prefect.server.__file__ is not None
    text = Path(prefect.server.__file__).with_name("collection_blocks_data.json").read_text(encoding="utf-8")
    fields = json.loads(text)["collections"][collection]["block_types"][slug]["block_schema"]["fields"]
    for path in blocks.TYPES[slug].options.values():
        outer, _, inner = path.partition(".")
        assert outer in fields["properties"]
        if inner:
            assert inner in fields["definitions"]["AwsClientParameters"]["properties"]


@pytest.mark.parametrize(
    ("slug", "data", "options"),
    [
        (
            "fairway-s3",
            {"access_key": "k", "secret_key": "s", "session_token": "", "endpoint": "http://o:9", "region": "eu"},
            {"key": "k", "secret": "s", "endpoint_url": "http://o:9", "client_kwargs": {"region_name": "eu"}},
        ),
        (
            "aws-credentials",
            {
                "aws_access_key_id": "k",
                "aws_secret_access_key": "s",
                "aws_session_token": "t",
                "region_name": None,
                "aws_client_parameters": {"endpoint_url": "http://o:9", "verify": True},
            },
            {"key": "k", "secret": "s", "token": "t", "endpoint_url": "http://o:9"},
        ),
        ("minio-credentials", {"minio_root_user": "k", "minio_root_password": "s"}, {"key": "k", "secret": "s"}),
        ("fairway-gcs", {"service_account": KEY_FILE, "project": ""}, {"token": json.loads(KEY_FILE)}),
        (
            "gcp-credentials",
            {"service_account_info": json.loads(KEY_FILE), "project": "p"},
            {"token": json.loads(KEY_FILE), "project": "p"},
        ),
        ("fairway-azure", {"account": "a", "sas_token": "s"}, {"account_name": "a", "sas_token": "s"}),
        (
            "azure-blob-storage-credentials",
            {"connection_string": "c", "account_url": None},
            {"connection_string": "c"},
        ),
    ],
)
def test_fields_become_options_of_the_driver(slug: str, data: dict[str, Any], options: dict[str, Any]):
    assert blocks.driver_options(slug, "lab", data) == options


def test_a_line_end_that_was_pasted_along_is_not_part_of_a_key():
    pasted = {"access_key": " k\n", "secret_key": "s\r\n", "region": " \n"}
    assert blocks.driver_options("fairway-s3", "lab", pasted) == {"key": "k", "secret": "s"}


@pytest.mark.parametrize(
    ("slug", "data", "match"),
    [
        ("fairway-s3", {"access_key": SECRET}, "access_key with secret_key; lab has access_key"),
        ("fairway-azure", {"account_key": SECRET}, "account with account_key or account with sas_token"),
        ("gcp-credentials", {"service_account_file": f"/{SECRET}"}, "has nothing"),
        ("fairway-gcs", {"service_account": SECRET}, "object with a private_key"),
        ("fairway-gcs", {"service_account": json.dumps({"key": SECRET})}, "object with a private_key"),
    ],
)
def test_what_is_missing_is_named_and_what_is_there_is_not_shown(slug: str, data: dict[str, Any], match: str):
    with pytest.raises(StageError, match=match) as caught:
        blocks.driver_options(slug, "lab", data)
    seen: BaseException | None = caught.value
    while seen is not None:
        assert SECRET not in str(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def test_a_block_is_found_by_its_name_among_those_of_the_stores_kind(server: list[dict[str, Any]]):
    server += [
        block("fairway-s3", "lab", access_key="k", secret_key="s"),
        block("gcp-credentials", "lab", service_account_info=json.loads(KEY_FILE)),
        block("slack-webhook", "lab", url=SECRET),
    ]
    assert blocks.use("s3://bucket/found", "lab") == "fairway-s3/lab"
    found = held("s3://bucket/found")
    assert found is not None
    assert found.options == {"key": "k", "secret": "s"}
    assert blocks.read("lab", "gs://bucket/found").name == "gcp-credentials/lab"
    server.append(block("aws-credentials", "lab", aws_access_key_id="other", aws_secret_access_key="s"))
    with pytest.raises(StageError, match="aws-credentials/lab, fairway-s3/lab; name one"):
        blocks.read("lab", "s3://bucket/found")
    assert blocks.read("aws-credentials/lab", "s3://bucket/found").options["key"] == "other"


def test_a_block_that_is_not_there_or_of_another_type_is_named(server: list[dict[str, Any]]):
    server += [block("slack-webhook", "lab", url=SECRET), block("fairway-gcs", "google", service_account=KEY_FILE)]
    with pytest.raises(StageError, match=r"no nobody; make it on .* save nobody --store s3://bucket"):
        blocks.read("nobody", "s3://bucket")
    with pytest.raises(StageError, match="slack-webhook/lab is of another type") as caught:
        blocks.read("lab", "s3://bucket")
    assert SECRET not in str(caught.value)
    with pytest.raises(StageError, match="fairway-gcs/google is of another type"):
        blocks.read("fairway-gcs/google", "s3://bucket")
    for place in (".fairway", "memory://x", "ftp://x"):
        with pytest.raises(StageError, match="are for a store at"):
            blocks.read("lab", place)


def test_a_name_in_the_environment_is_for_those_who_give_none(
    server: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    server += [block("fairway-s3", name, access_key=name, secret_key="s") for name in ("mine", "theirs")]
    assert blocks.use("s3://bucket/named", "") == ""
    assert held("s3://bucket/named") is None
    monkeypatch.setenv(blocks.VARIABLE, "mine")
    assert blocks.use("s3://bucket/named", "") == "fairway-s3/mine"
    assert blocks.use("s3://bucket/named", "theirs") == "fairway-s3/theirs"
    assert blocks.use(".fairway", "") == ""  # a folder needs none


def test_a_server_that_does_not_answer_is_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    def refuse(*asked: object) -> None:
        raise blocks.httpx.ConnectError("nobody listens")

    monkeypatch.setattr(blocks, "_post", refuse)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(StoreUnavailable, match="does not give them: ConnectError"):
        blocks.read("lab", "s3://bucket")


def test_a_block_is_made_of_variables_or_of_what_is_piped_in_and_of_no_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    saved: list[tuple[str, str, dict[str, str]]] = []

    def save(name: str, url: str, fields: Mapping[str, str]) -> str:
        saved.append((name, url, dict(fields)))
        return f"fairway-s3/{name}"

    monkeypatch.setattr(blocks, "save", save)
    monkeypatch.setattr("flows.commands.credentials.use_server", lambda folder: "")
    for name in blocks.TYPES["fairway-s3"].environment.values():
        monkeypatch.delenv(name, raising=False)
    command = ["credentials", "save", "lab", "--store", "s3://bucket/x"]
    assert cli.main(command) == cli.USER_ERROR
    assert "none of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert cli.main(command) == cli.DONE
    assert saved.pop() == ("lab", "s3://bucket/x", {"access_key": "k", "secret_key": SECRET})
    shown = capsys.readouterr()
    assert "fairway-s3/lab has access_key, secret_key" in shown.out
    assert SECRET not in shown.out + shown.err

    piped = tmp_path / "piped.json"
    for text, code in ((json.dumps({"access_key": "k", "secret_key": SECRET}), cli.DONE), (SECRET, cli.USER_ERROR)):
        piped.write_text(text, encoding="utf-8")
        with piped.open(encoding="utf-8") as lines:
            monkeypatch.setattr("sys.stdin", lines)
            assert cli.main([*command, "--stdin"]) == code
        shown = capsys.readouterr()
        assert SECRET not in shown.out + shown.err
    assert saved[0][2] == {"access_key": "k", "secret_key": SECRET}


def test_googles_key_file_is_read_where_its_variable_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "key.json").write_text(KEY_FILE, encoding="utf-8")
    monkeypatch.setenv(blocks.KEY_FILE, str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    assert blocks.from_environment("gs://bucket") == {"service_account": KEY_FILE, "project": "p"}


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("Lab 1", {"access_key": "k", "secret_key": SECRET}, "small letters"),
        ("lab", {"access_key": "k", "secret": SECRET}, "got secret"),
        ("lab", {"access_key": "k"}, "lab has access_key"),
    ],
)
def test_a_block_that_could_not_open_anything_is_not_made(name: str, fields: dict[str, str], match: str):
    with pytest.raises(StageError, match=match) as caught:
        blocks.save(name, "s3://bucket", fields)
    assert SECRET not in str(caught.value)
