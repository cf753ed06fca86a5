"""Which files a source names: order, endings, hidden files, and the errors for what is not there."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from stages.contract import StageError
from stages.corpus.sources import list_files


def lay(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(folder)


def test_a_folder_gives_its_known_files_in_the_order_of_their_paths(tmp_path: Path):
    lay(tmp_path, "b.jsonl", "a/z.jsonl.zst", "a/.hidden/x.jsonl", ".git.jsonl", "README.md", "c.ndjson.GZ")
    files = list_files(str(tmp_path), "auto")
    assert [(f.name, f.kind, f.compression) for f in files] == [
        ("z.jsonl.zst", "jsonl", "zstd"),
        ("b.jsonl", "jsonl", ""),
        ("c.ndjson.GZ", "jsonl", "gzip"),
    ]
    assert [f.bytes for f in files] == [13, 7, 11]


def test_a_format_chooses_among_the_files_of_a_folder(tmp_path: Path):
    url = lay(tmp_path, "a.jsonl", "b.parquet", "c.md")
    assert [f.name for f in list_files(url, "parquet")] == ["b.parquet"]
    assert [f.name for f in list_files(url, "text")] == ["a.jsonl", "b.parquet", "c.md"]
    with pytest.raises(StageError, match=r"one kind; .* has jsonl and parquet; set corpus.format"):
        list_files(url, "auto")


def test_a_glob_or_a_file_gives_exactly_what_it_names(tmp_path: Path):
    url = lay(tmp_path, "b.md", "a.md", "c.txt", "sub/d.md")
    assert [f.name for f in list_files(f"{url}/*.md", "text")] == ["a.md", "b.md"]
    assert [f.name for f in list_files(f"{url}/**/*.md", "text")] == ["a.md", "b.md", "d.md"]
    assert [f.name for f in list_files(f"file://{url}/c.txt", "auto")] == ["c.txt"]
    with pytest.raises(StageError, match=r"got a\.md at .*; set corpus\.format"):
        list_files(f"{url}/*", "auto")


@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing/*.jsonl", "empty"])
def test_nothing_there_is_said_with_the_url(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"there is none at .*; mend the URL"):
        list_files(f"{tmp_path}/{name}", "auto")


def test_parquet_and_shards_are_not_read_through_gzip(tmp_path: Path):
    with pytest.raises(StageError, match=r"set corpus\.format"):
        list_files(f"{lay(tmp_path, 'a.parquet.gz')}/a.parquet.gz", "auto")


def test_files_in_memory_are_listed():
    with fsspec.open("memory://corpus-sources/a.jsonl", "wb") as file:
        file.write(b"{}")
    assert [f.name for f in list_files("memory://corpus-sources", "auto")] == ["a.jsonl"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server over `tmp_path`, and the requests that it got."""
    seen: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            seen.append(f"{self.command} {self.path}")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_listing_a_file_on_the_web_does_not_download_it(web: tuple[str, list[str]], tmp_path: Path):
    url, seen = web
    lay(tmp_path, "a.jsonl")
    files = list_files(f"{url}/a.jsonl?download=true", "auto")
    assert [(f.kind, f.bytes) for f in files] == [("jsonl", 7)]
    assert {line.split()[0] for line in seen} == {"HEAD"}
    with pytest.raises(StageError, match="there is none at"):
        list_files(f"{url}/b.jsonl", "auto")
