"""A link to a server that can be cut: connections are refused until it is mended. It may have a rate."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Link:
    """Forwards a port of this machine to another; use as a context manager."""

    def __init__(self, host: str, port: int, bytes_per_s: float = 0.0) -> None:
        self._target = (host, port)
        self._ways = (_Way(bytes_per_s), _Way(bytes_per_s))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0

    def __enter__(self) -> Link:
        self.mend()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    def mend(self) -> None:
        """Listen, on the same port as ever."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Close what is open and refuse what comes."""
        listener, self._listener = self._listener, None
        with self._lock:
            ends = [*self._open, *([listener] if listener else [])]
            self._open.clear()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                return
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, target, way in ((near, far, self._ways[0]), (far, near, self._ways[1])):
                threading.Thread(target=self._copy, args=(source, target, way), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, way: _Way) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                way.wait(len(data))
                target.sendall(data)
        with self._lock:
            self._open -= {source, target}
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class _Way:
    """One direction, which all connections share."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_s = 0.0

    def wait(self, size_bytes: int) -> None:
        """Until so many bytes more would have gone through."""
        if not self._bytes_per_s:
            return
        with self._lock:
            now_s = time.monotonic()
            # What a late timer lost is caught up with, up to a few milliseconds.
            self._free_s = max(self._free_s, now_s - 0.01) + size_bytes / self._bytes_per_s
            left_s = self._free_s - now_s
        if left_s > 0:
            time.sleep(left_s)
