"""Exported artifacts on the Hugging Face Hub: one file of a repository each, sent in one commit and fetched whole.

    hf://datasets/<owner>/<repo>/<path>.tar       hf://<owner>/<model>/<path>.tar       .../<repo>@<revision>/<path>.tar

The Hub is a place to give things to others and to take them from. It is no store: a commit there takes seconds, and
nothing makes a file only if there is none. Credentials are the library's own affair: `HF_TOKEN`, or a login of this
machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import BadName, StoreRefused, StoreUnavailable
from artifacts.meter import Meter, Moved
from artifacts.safety import redact_text, refuse_credentials

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(
    rf"hf://(?P<kind>datasets/|models/)?(?P<repo>(?!(?:datasets|models|spaces|buckets)/){_WORD}/{_WORD})(?:@(?P<revision>[A-Za-z0-9._~-]+))?/(?P<path>.+\.tar)"
)
_PART_BYTES = 1 << 20
NO_STORE = (
    "hf:// is a source and an export target, not a store: nothing there makes a file only if there is none; "
    "keep the store elsewhere, and say `fairway artifacts export REF hf://datasets/OWNER/REPO/NAME.tar`"
)


def is_hub(address: str) -> bool:
    """Whether an address leads to the Hub."""
    return address.startswith("hf://")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    address: str
    kind: str  # "dataset" or "model"
    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, address: str) -> HubFile:
        """BadName if it does not lead to a tar file of a repository, UnsafeURL if it carries a token."""
        found = _ADDRESS.fullmatch(refuse_credentials(address))
        if found is None or ".." in found["path"].split("/"):
            raise BadName(
                "an artifact on the Hub is hf://datasets/OWNER/REPO/NAME.tar, or hf://OWNER/MODEL/NAME.tar, with "
                f"@REVISION after the repository if need be; got {address!r}; mend the address"
            )
        kind = "dataset" if found["kind"] == "datasets/" else "model"
        return cls(address, kind, found["repo"], found["revision"] or "main", found["path"])

    def send(self, path: Path, message: str) -> str:
        """Commit a file of this host to the repository, which must exist; the commit's id."""
        with self._explained("write"):
            done = self._api().upload_file(
                path_or_fileobj=str(path),
                path_in_repo=self.path,
                repo_id=self.repo,
                repo_type=self.kind,
                revision=self.revision,
                commit_message=message,
            )
            return str(done.oid)

    def fetch(self, path: Path, tell: Callable[[Moved], None] | None = None) -> None:
        """Copy the file to a new one of this host's."""
        meter = Meter("fetching", tell)
        with self._explained("read"), self._filesystem().open(self._inside(), "rb", block_size=16 << 20) as source:
            meter.expect(source.size or 0)
            with path.open("wb") as target:
                while part := source.read(_PART_BYTES):
                    target.write(part)
                    meter.add(len(part))

    def _inside(self) -> str:
        return f"{'datasets/' if self.kind == 'dataset' else ''}{self.repo}@{self.revision}/{self.path}"

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    def _filesystem(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(skip_instance_cache=True)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise StoreUnavailable(
                f"hf:// needs its driver ({error}); install it: pip install 'fairway[hf]'"
            ) from error
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            status = getattr(getattr(error, "response", None), "status_code", 0)
            said = redact_text(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
            if status in (401, 403) or kinds & {"RepositoryNotFoundError", "GatedRepoError", "LocalTokenNotFoundError"}:
                raise StoreRefused(
                    f"the Hub must let us {doing} {self.address}; it does not: {said}; see whether the repository is "
                    "there (it is not made here) and HF_TOKEN may do that"
                ) from error
            raise StoreUnavailable(
                f"the Hub must let us {doing} {self.address}; got {said}; see whether the address is right and the Hub "
                "can be reached"
            ) from error
