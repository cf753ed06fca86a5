"""A program as one Python file that unpacks itself: compressed, and written in 92 characters of ASCII."""

from __future__ import annotations

import lzma

# Raw LZMA, since a container's header and checksum would be 60 bytes; decoders of the standard library only. pb = 0:
# text has no alignment. How many bits of the last letter help (lc) depends on the program.
PRESET = 9 | lzma.PRESET_EXTREME
LITERAL_CONTEXTS = range(5)

# The digits of one long number are the characters # to ~, 2 % denser than base 85: all that is printable and neither
# blank nor ends a raw bytes literal. The unpacked source stands in `linecache`, so that errors show its lines.
FIRST, DIGITS = ord("#"), 92
HEAD = """\
import linecache,lzma
n=0
for c in br"DATA":n=n*92+c-35
s=lzma.decompress(n.to_bytes(BYTES,'big'),3,None,[dict(id=lzma.FILTER_LZMA1,preset=9,lc=LC,pb=0)]).decode()
linecache.cache['packed']=len(s),None,s.splitlines(True),'packed'
exec(compile(s,'packed','exec'))
"""


def pack(source: str) -> str:
    """The packed file's text. Equal source gives equal text."""
    found: list[str] = []
    for lc in LITERAL_CONTEXTS:
        filters = [{"id": lzma.FILTER_LZMA1, "preset": PRESET, "lc": lc, "pb": 0}]
        data = lzma.compress(source.encode(), lzma.FORMAT_RAW, filters=filters)
        literal = digits(data)
        if not literal.endswith("\\"):  # no raw literal does
            found.append(HEAD.replace("LC", str(lc)).replace("BYTES", str(len(data))).replace("DATA", literal))
    return min(found, key=len)


def digits(data: bytes) -> str:
    """The bytes as one number, most significant digit first."""
    number, found = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, DIGITS)
        found += chr(FIRST + digit)
    return found[::-1]
