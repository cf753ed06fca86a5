"""Watches one stage's process from its first line: what it opens, whom it calls, which variables our code reads.

A process that finds this folder on its path, with HERMETIC set to a JSON object {"write": [...], "read": [...],
"code": folder, "log": file}, gets an audit hook that writes every violation to the log as one JSON line. Where the
kernel has Landlock it also refuses them, which includes what C++ libraries open without asking Python.
"""

import ctypes
import json
import os
import struct
import sys
import sysconfig

_rules = json.loads(os.environ.pop("HERMETIC"))
_log = open(_rules["log"], "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open for the process's life

# Ranks are torchrun's contract; everything else a stage is told by its job.
_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FAIRWAY_PARENT"}
_COMPILED = ("PYARROW_", "ARROW_")  # extension modules have no frame: what they read looks like their caller's
# What it looks up it hands down, by an allow-list of its own, to the process of the scorer that is audited.
_HANDS_DOWN = "/stages/audit/remote.py"
_STANDARD = os.path.dirname(os.__file__) + "/os.py"
_SYSTEM = ["/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/run/user", "/bin", "/sbin"]
_INSTALLED = [sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)]
_INSTALLED += [path for path in sysconfig.get_paths().values() if os.path.isdir(path)]
_WRITE = [os.path.realpath(path) for path in _rules["write"]]
_READ = [os.path.realpath(path) for path in [*_rules["read"], *_SYSTEM, *_INSTALLED, os.path.dirname(__file__)]]
_OPENS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}
_WRITES = _OPENS - {"open", "os.listdir", "os.scandir"}
_CALLS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}


def _tell(what, detail):
    _log.write(json.dumps({"what": what, "detail": str(detail)[:300]}) + "\n")


def _below(path, folders):
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _hook(event, arguments):
    if event in _OPENS:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        real = os.path.realpath(os.fsdecode(path))
        writes = event in _WRITES
        if event == "open":
            mode, flags = arguments[1], arguments[2] or 0
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or bool(mode and set(mode) & set("wax+"))
        if _below(real, _WRITE) or (not writes and _below(real, _READ)) or real.startswith("/dev/"):
            return
        # Asking whether an optional file is there is no dependency on it: it has to be there to be read.
        if writes or os.path.exists(real):
            _tell("write" if writes else "read", real)
    elif event in _CALLS:
        _tell("network", arguments[1:] or arguments)


class _Variables(type(os.environ)):
    """The environment, which notes what our own code looks up."""

    def __getitem__(self, name):
        frame = sys._getframe(1)
        while frame and frame.f_code.co_filename.startswith(("<frozen", _STANDARD)):
            frame = frame.f_back
        if frame is None or name in _VARIABLES or str(name).startswith(_COMPILED):
            return super().__getitem__(name)
        path = os.path.realpath(frame.f_code.co_filename)
        if _below(path, [_rules["code"]]) and not path.endswith(_HANDS_DOWN):
            _tell("variable", f"{name} in {frame.f_code.co_filename}:{frame.f_lineno}")
        return super().__getitem__(name)


def _landlock():
    """Have the kernel refuse everything else; False where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    every = (1 << 13) - 1
    if version >= 2:
        every |= 1 << 13
    if version >= 3:
        every |= 1 << 14
    network = 0b11 if version >= 4 else 0
    attributes = struct.pack("QQ", every, network)
    rules = libc.syscall(444, attributes, 16 if version >= 4 else 8, 0)
    if rules < 0:
        return False
    look = 0b1101  # execute, read a file, read a folder
    for paths, access in ((_READ, look), (_WRITE, every), (["/dev", "/proc/self"], look | 0b10)):
        for path in paths:
            if os.path.exists(path):
                descriptor = os.open(path, os.O_PATH)
                allowed = access if os.path.isdir(path) else access & (0b111 | 1 << 14)
                libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, descriptor), 0)
                os.close(descriptor)
    libc.prctl(38, 1, 0, 0, 0)
    return libc.syscall(446, rules, 0) == 0


os.environ.__class__ = _Variables
_tell("locked", _landlock())
sys.addaudithook(_hook)
