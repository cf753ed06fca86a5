"""Modules and a recipe as one Python file that unpacks itself into memory.

The file holds one compressed text, recipe and modules separated by NUL, in base 85, which any text tool leaves alone.
Its head puts a finder before all others, so that `import model.gpt` finds the packed module and nothing on disk.
"""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import zlib
from collections.abc import Mapping
from typing import Any

LZMA_FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 0, "pb": 0}]

# Decoders of the standard library only: what is submitted must open where it is run.
CODECS = {
    "bz2": (lambda data: bz2.compress(data, 9), "bz2.decompress({})"),
    "zlib": (lambda data: zlib.compress(data, 9), "zlib.decompress({})"),
    "lzma": (
        lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS),
        "lzma.decompress({},3,None,[dict(id=lzma.FILTER_LZMA1,preset=9,pb=0)])",
    ),
}

HEAD = """\
import sys,json,base64,CODEC
from importlib.util import spec_from_loader
RECIPE,*M=DECODE.decode().split('\\0')
RECIPE=json.loads(RECIPE)
MODULES=dict(zip(M[::2],M[1::2]))
class Packed:
 def find_spec(s,n,p=None,t=None):
  k=any(m.startswith(n+'.')for m in MODULES)
  if k or n in MODULES:return spec_from_loader(n,s,is_package=k)
 def create_module(s,spec):0
 def get_source(s,n):return MODULES.get(n,'')
 def exec_module(s,m):n=m.__name__;exec(compile(s.get_source(n),n.replace('.','/')+'.py','exec'),m.__dict__)
sys.meta_path.insert(0,Packed())
if __name__=='__main__':
 a=sys.argv[1:]
 if a==['--modules']:print(*MODULES,sep='\\n')
 elif a==['--recipe']:print(json.dumps(RECIPE,indent=1))
 else:sys.exit('usage: train_gpt.py --modules | --recipe')
"""


def pack(modules: Mapping[str, str], recipe: Mapping[str, Any]) -> str:
    """The packed file's text, with whichever codec makes it shortest. Equal input gives equal text."""
    fields = [json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)]
    for name, source in sorted(modules.items()):
        fields += [name, source]
    if any("\0" in field for field in fields):
        raise ValueError("NUL separates what is packed and stands in no source; write it as an escape")
    text = "\0".join(fields).encode()
    packed: list[str] = []
    for name, (compress, decode) in CODECS.items():
        literal = repr(base64.b85encode(compress(text)).decode())
        packed.append(HEAD.replace("CODEC", name).replace("DECODE", decode.format(f"base64.b85decode({literal})")))
    return min(packed, key=len)
