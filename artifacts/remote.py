"""A store behind fsspec: object stores and memory. Only those whose create-if-absent is one atomic request.

| scheme | create-if-absent | proven by |
|---|---|---|
| s3, s3a | PutObject with `If-None-Match: *` | tests against a local S3 server |
| memory | a lock of this process | tests |
| gs, gcs | `ifGenerationMatch=0` | tests against an emulator to which the condition was added |
| az, abfs, abfss | `If-None-Match: *` | tests against Azurite |

fsspec's own default for `mode="create"` looks first and writes then, which decides nothing between two writers.

Every call waits for a round trip, so each operation here is one request where the driver has a way, and many small
files are read side by side. A store that has answered once and then does not is waited for (`PATIENCE_S`): a job of
hours must outlive a restart of its server. One that never answered has a wrong address, and says so at once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from artifacts.backend import Entry, explained, host_name, room_for
from artifacts.dialects import modified_s, tag_of
from artifacts.errors import StoreError, StoreRefused, StoreUnavailable, StoreUnsupported
from artifacts.hub import NO_STORE
from artifacts.keyring import held
from artifacts.meter import SILENT, Meter
from artifacts.ranges import PART_BYTES, read_in_parts
from artifacts.remembered import Remembered
from artifacts.safety import redact_text

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_SCHEMES = ("memory", *_EXTRAS)
_MEMORY = threading.Lock()
_BUSY_TRIES = 20
_S3 = ("s3", "s3a")
_STREAMS = 64  # small files that are asked for at once
PATIENCE_S = 180.0  # for how long a store that has answered before is waited for
# What a driver raises, by name, when the other side is away or overloaded; asking again later is the answer to each.
_PASSING = frozenset(
    """ConnectionError ConnectionClosedError EndpointConnectionError ConnectTimeoutError ReadTimeoutError
    HTTPClientError ClientError ClientConnectionError ServerDisconnectedError ClientPayloadError TimeoutError
    IncompleteReadError ResponseStreamingError ServiceRequestError ServiceResponseError""".split()  # noqa: SIM905
)
_PASSING_CODES = frozenset(
    "500 502 503 504 429 SlowDown InternalError ServiceUnavailable RequestTimeout".split()  # noqa: SIM905
)
# What a driver raises, by name, and an S3 server says, when our credentials are missing, wrong or of too few rights.
_REFUSING = frozenset(
    """NoCredentialsError PartialCredentialsError CredentialRetrievalError ClientAuthenticationError
    DefaultCredentialsError RefreshError PermissionError""".split()  # noqa: SIM905
)
_TOO_SKEWED = "RequestTimeTooSkewed"  # S3 refuses who is 15 minutes off
_REFUSING_CODES = frozenset(
    """AccessDenied AllAccessDisabled ExpiredToken Forbidden InvalidAccessKeyId InvalidToken SignatureDoesNotMatch
    TokenRefreshRequired 401 403""".split()  # noqa: SIM905
) | {_TOO_SKEWED}
_ANSWERED: set[str] = set()  # addresses of stores that have answered this process
_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class FsspecBackend:
    """Files below one URL."""

    def __init__(self, url: str, proven: bool = False) -> None:
        self.url = url.rstrip("/")
        scheme = url.split("://", 1)[0].lower()
        if scheme == "hf":
            raise StoreUnsupported(f"{NO_STORE}; got {self.url}")
        if scheme not in _SCHEMES:
            raise StoreUnsupported(
                f"a store needs a file system that makes a file only if there is none, in one step: a local path, "
                f"{', '.join(_SCHEMES)}; got {scheme}://; keep the store on one of these"
            )
        self._credentials = held(self.url)
        options = dict(self._credentials.options) if self._credentials is not None else {}
        self._s3 = scheme in _S3
        if self._s3:  # the driver's own limit is 10
            options["config_kwargs"] = {"max_pool_connections": _STREAMS, **options.get("config_kwargs", {})}
        # gcsfs would ask a second service, with credentials of its own, about the kind of each bucket it meets.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            # Cached listings would hide what other machines write.
            self._fs, root = url_to_fs(self.url, use_listings_cache=False, **options)
        except ImportError as error:
            raise StoreUnavailable(
                f"{scheme}:// needs its driver ({error}); install it: pip install 'fairway[{_EXTRAS[scheme]}]'"
            ) from error
        self._root = str(root).rstrip("/")
        self._in_memory = scheme == "memory"
        # Otherwise the driver asks for the size before the bytes.
        self._whole = {"max_concurrency": 1} if self._s3 else {}
        self._answered = proven or self.url in _ANSWERED
        self._remembered: Remembered | None = None

    def read(self, path: str) -> bytes:
        """The whole file."""
        return self._patiently("read", path, lambda: self._fs.cat_file(self._at(path), **self._whole))

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Whole small files, in order; None for those that are not there."""
        if not paths:
            return []
        at = [self._at(path) for path in paths]

        def read() -> list[bytes | None]:
            options = {} if self._in_memory else {"batch_size": _STREAMS, **self._whole}
            found = self._fs.cat(at, on_error="return", **options)
            wrong = [each for each in found.values() if isinstance(each, Exception)]
            if (other := next((each for each in wrong if not isinstance(each, FileNotFoundError)), None)) is not None:
                raise other
            return [None if isinstance(each := found[self._named(path)], Exception) else each for path in at]

        return self._patiently("read", f"{paths[0]} and {len(paths) - 1} more", read)

    def read_listed(self, entries: Sequence[Entry]) -> list[bytes | None]:
        """The same for documents of a listing just made, of which only those that changed are asked for."""
        if self._remembered is None:
            return self.read_many([entry.path for entry in entries])
        return self._remembered.read(entries)

    def remember(self, folder: Path) -> None:
        """Keep documents in this folder of the host."""
        self._remembered = None if self._in_memory else Remembered(self, folder)

    def note(self, path: str, text: bytes) -> None:
        """Let the index that is left have a document; what is written here is noted anyway."""
        if self._remembered is not None:
            self._remembered.note(path, text)

    def leave_index(self) -> None:
        """Put the documents that were noted into one file, for hosts that have read none of them: one call."""
        if self._remembered is not None:
            self._remembered.leave_index()

    def write(self, path: str, data: bytes) -> None:
        """Make or replace the whole file at once."""
        with self._writing("write", path):
            self._patiently("write", path, lambda: self._fs.pipe_file(self._at(path), data))
        self.note(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Make the whole file if there is none, at once; False if there is one."""
        with self._writing("create", path):
            for attempt in range(_BUSY_TRIES):
                created = self._patiently("create", path, lambda: self._create(path, data))
                if created is not None:
                    if created:
                        self.note(path, data)
                    return created
                time.sleep(0.05 * (attempt + 1))  # another writer is in the middle of the same creation
            raise StoreUnavailable(f"two writers of {path} at {self.url} kept each other out; try again")

    def _create(self, path: str, data: bytes) -> bool | None:
        """Whether it was made; None if that is not decided yet."""
        try:
            if self._in_memory:
                with _MEMORY:
                    self._fs.pipe_file(self._at(path), data, mode="create")
            else:
                self._fs.pipe_file(self._at(path), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            code = _s3_code(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code in ("ConditionalRequestConflict", "409"):
                return None
            raise
        return True

    def walk(self, folder: str, prefix: str = "") -> Iterator[Entry]:
        """Every file below `folder` in order of path; `prefix` is how the name of the folder's entries begins."""
        at, options = self._at(folder), {} if self._in_memory else {"prefix": prefix}
        if self._s3 and folder:  # asked for as a prefix, an empty folder is not looked for in two further ways
            at, options = self._root, {"prefix": f"{folder}/{prefix}"}
        found: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            found = self._patiently("list", folder, lambda: self._fs.find(at, detail=True, **options))
        skip = len(self._root) + 1
        for full, info in sorted(found.items()):
            path = full[skip:]
            if path.startswith(f"{folder}/{prefix}" if folder else prefix):
                yield Entry(path, info["size"], modified_s(info), tag_of(info))

    def delete(self, path: str) -> bool:
        """Remove the file; False if there is none."""
        if self.entry(path) is None:
            return False
        try:
            self._patiently("delete", path, lambda: self._fs.rm_file(self._at(path)))
        except FileNotFoundError:  # somebody else was faster, or an answer was lost
            return False
        return True

    def entry(self, path: str) -> Entry | None:
        """The file's size and age, or None if there is none."""
        if self._s3:  # one listing; the driver asks twice for what is not there
            folder, _, name = path.rpartition("/")
            return next((entry for entry in self.walk(folder, name) if entry.path == path), None)
        try:
            info = self._patiently("look at", path, lambda: self._fs.info(self._at(path)))
        except FileNotFoundError:
            return None
        return Entry(path, info["size"], modified_s(info)) if info["type"] == "file" else None

    def move(self, source: str, target: str) -> None:
        """Copy the file to another name, then remove the old one."""
        self._patiently("move", source, lambda: self._fs.cp_file(self._at(source), self._at(target)))
        self._patiently("move", source, lambda: self._fs.rm_file(self._at(source)))

    def upload(self, local: Path, path: str, meter: Meter = SILENT) -> None:
        """Make or replace the file from one of this host's, at once."""
        if self._in_memory:  # its files would be seen while they grow
            self.write(path, local.read_bytes())
            meter.add(local.stat().st_size)
            return
        counted = _Counted(meter)
        with self._writing("write", path):
            self._patiently("write", path, lambda: self._fs.put_file(str(local), self._at(path), callback=counted))
        counted.finish(local.stat().st_size)

    def download(self, path: str, local: Path) -> None:
        """Copy the file to a new one of this host's, which may be left half written by a crash."""

        def fetch() -> None:
            with room_for(local):
                self._fs.get_file(self._at(path), str(local))

        self._patiently("read", path, fetch)

    def download_hashed(self, path: str, local: Path, size_bytes: int, streams: int, meter: Meter) -> tuple[str, int]:
        """The same for a file of known size, `streams` parts at once; (sha256, bytes) of what came."""
        at, whole = self._at(path), size_bytes <= PART_BYTES

        def read(start: int, end: int) -> bytes:
            options = self._whole if whole else {"start": start, "end": end}
            data = self._patiently("read", path, lambda: self._fs.cat_file(at, **options))
            meter.add(len(data))
            return data

        with room_for(local):
            if whole:
                local.write_bytes(data := read(0, size_bytes))
                return hashlib.sha256(data).hexdigest(), len(data)
            return read_in_parts(read, local, size_bytes, streams)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _named(self, at: str) -> str:
        """A full path as the driver gives it back."""
        return str(self._fs._strip_protocol(at))

    def _patiently(self, doing: str, path: str, work: Callable[[], _Result]) -> _Result:
        """Do it, and again, at growing distances, while a store that has answered before does not."""
        deadline_s, wait_s = time.monotonic() + PATIENCE_S, 0.25
        while True:
            with self._explained(doing, path):
                try:
                    result = work()
                except FileNotFoundError:
                    self._has_answered()
                    raise
                except Exception as error:
                    if type(error).__name__ == "ResourceNotFoundError":  # adlfs, when the container is not there
                        raise FileNotFoundError(str(error)) from error
                    if not (self._answered and _is_passing(error)) or time.monotonic() + wait_s > deadline_s:
                        raise
                    _LOG.warning("the store %s does not answer (%s); asking again", self.url, type(error).__name__)
                else:
                    self._has_answered()
                    return result
            time.sleep(wait_s * random.uniform(0.5, 1.0))  # many workers should not come back at one moment
            wait_s = min(2 * wait_s, 8.0)

    def _has_answered(self) -> None:
        self._answered = True
        _ANSWERED.add(self.url)

    @contextmanager
    def _writing(self, doing: str, path: str) -> Iterator[None]:
        """Nothing has to be there before a write but the bucket itself."""
        try:
            with self._explained(doing, path):
                yield
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"a store's bucket or container must exist; {self.url} cannot {doing} {path} ({error}); create it first"
            ) from error

    @contextmanager
    def _explained(self, doing: str, path: str) -> Iterator[None]:
        try:
            with explained(self.url, doing, path, self._hide), self._let_in(doing, path):
                yield
        except (StoreError, FileNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise their own kinds: no route, no such endpoint
            raise StoreUnavailable(
                f"the store {self.url} must let us {doing} {path}; got "
                f"{self._hide(f'{type(error).__name__}: {error}')}; "
                "see whether the address, the credentials and the network are right"
            ) from self._shown(error)

    @contextmanager
    def _let_in(self, doing: str, path: str) -> Iterator[None]:
        """Tell a refusal from other errors, and whose credentials were refused."""
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError | StoreError) or not is_refusal(error):
                raise
            whose = f"from {self._credentials.name}" if self._credentials is not None else "this machine's own"
            code = _refused_with(error)
            said = self._hide(f"{code and code + ', '}{type(error).__name__}: {error}")
            advice = f"see whether they are there, right, and may do that, on {host_name()}"
            if code == _TOO_SKEWED:
                advice = f"the clock of {host_name()} differs too much from the store's: set it"
            rule = f"the store {self.url} must let us {doing} {path}; it refuses the credentials"
            raise StoreRefused(f"{rule}, {whose}: {said}; {advice}") from self._shown(error)

    def _hide(self, text: str) -> str:
        """A driver's words without addresses' or our own secrets."""
        return redact_text(text if self._credentials is None else self._credentials.hide(text))

    def _shown(self, error: Exception) -> Exception | None:
        """The cause, as a traceback would show it; none if its words have a secret."""
        return error if self._hide(str(error)) == str(error) else None


class _Counted(Callback):
    """What a driver says of an upload, for a meter. A try that is made again does not count twice."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter, self._counted = meter, 0

    def relative_update(self, inc: int = 1) -> None:
        """So many bytes more."""
        super().relative_update(inc)
        self._count(min(self.value, self.size or 0))

    def absolute_update(self, value: int) -> None:
        """So many bytes in all."""
        super().absolute_update(value)
        self._count(value)

    def finish(self, size_bytes: int) -> None:
        """All of it, whatever the driver said."""
        self._count(size_bytes)

    def _count(self, value: int) -> None:
        self._meter.add(max(0, value - self._counted))
        self._counted = max(value, self._counted)


def _refused_with(error: BaseException) -> str:
    """S3's own word for why, which the driver's message may lack; "" from others."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        seen = seen.__cause__ or seen.__context__
    return ""


def is_refusal(error: BaseException) -> bool:
    """Whether the other side does not let us in: no credentials, wrong ones, or ones that do not reach so far."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", "")) in _REFUSING_CODES
        here = isinstance(seen, OSError) and seen.filename is not None  # a file of this machine that we may not read
        if {kind.__name__ for kind in type(seen).__mro__} & _REFUSING and not here:
            return True
        if str(_status(seen)) in ("401", "403") or str(seen).startswith("Forbidden: "):  # the latter is gcsfs
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later. A driver wraps what happened, so the causes are looked at too."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:  # the server did answer: only its code counts
            return str(response["Error"].get("Code", "")) in _PASSING_CODES
        if {kind.__name__ for kind in type(seen).__mro__} & _PASSING or str(_status(seen)) in _PASSING_CODES:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _status(error: BaseException) -> Any:
    """The HTTP status that gcsfs or Azure's library gives its errors, or ""."""
    return getattr(error, "code", getattr(error, "status_code", ""))


def _s3_code(error: OSError) -> str:
    """The server's own error code: not every S3 server says which condition failed, as s3fs expects."""
    response: Any = getattr(error.__cause__, "response", None)
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""
