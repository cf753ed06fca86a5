"""Many who create one file in the same moment."""

from __future__ import annotations

import threading

from artifacts.backend import Backend


def creators_at_once(backend: Backend, path: str, count: int = 8) -> list[bytes]:
    """What those wrote who were told that they had created it."""
    barrier = threading.Barrier(count)
    won: list[bytes] = []

    def create(content: bytes) -> None:
        barrier.wait()
        if backend.create(path, content):
            won.append(content)

    threads = [threading.Thread(target=create, args=(b"%d" % index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won
