"""A program as one Python file that unpacks itself: compressed, in base 85, which any text tool leaves alone."""

from __future__ import annotations

import base64
import lzma

# Raw LZMA, since a container's header and checksum would be 60 bytes; decoders of the standard library only. pb = 0:
# text has no alignment. How many bits of the last letter help (lc) depends on the program.
PRESET = 9 | lzma.PRESET_EXTREME
LITERAL_CONTEXTS = range(5)

# The unpacked source stands in `linecache`, so that errors show its lines.
HEAD = """\
import base64,linecache,lzma
s=lzma.decompress(base64.b85decode('DATA'),3,None,[dict(id=lzma.FILTER_LZMA1,preset=9,lc=LC,pb=0)]).decode()
linecache.cache['packed']=len(s),None,s.splitlines(True),'packed'
exec(compile(s,'packed','exec'))
"""


def pack(source: str) -> str:
    """The packed file's text. Equal source gives equal text."""
    data = source.encode()
    best = min(((compressed(data, lc), lc) for lc in LITERAL_CONTEXTS), key=lambda each: len(each[0]))
    return HEAD.replace("LC", str(best[1])).replace("DATA", base64.b85encode(best[0]).decode())


def compressed(data: bytes, lc: int) -> bytes:
    """One raw stream."""
    return lzma.compress(
        data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "preset": PRESET, "lc": lc, "pb": 0}]
    )
