"""What costs as much as scoring again: T5 closed world, T6 prefixes, T7 ranks, T9 documents, T17 repeatability."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.protocol import Protocol, chunk_targets, from_dict, phases_of
from model.windows import Windows
from stages.audit import rescore
from stages.audit.closed_world import CannotTrace, Seen, traced
from stages.audit.finding import Finding, Verdict
from stages.audit.records import LedgerFile
from stages.audit.remote import environment, ship
from stages.audit.settings import Settings
from stages.contract import PARENT, Device, Runtime

_CODE = Path(__file__).resolve().parents[2]
_SHOWN = 8
_RANKS = 2


@dataclass(frozen=True)
class ClosedFolder:
    """A folder with archive, tokenizer and val, and nothing else, in which protocols are scored again."""

    path: Path
    scratch: Path
    device: Device

    @classmethod
    def make(cls, inputs: Mapping[str, Path], runtime: Runtime) -> ClosedFolder:
        """Copies, so that no link leads out."""
        folder = ship(inputs, runtime.scratch / "closed")
        shutil.copytree(inputs["val"], folder / "val")
        return cls(folder, runtime.scratch, runtime.device)

    def rescore(
        self, name: str, protocol: Mapping[str, Any], targets: int = 0, ranks: int = 1, device: Device | None = None
    ) -> LedgerFile:
        """Score again, in as many processes as there are ranks. Raises CalledProcessError."""
        command, out = self._command(name, protocol, targets, device or self.device)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        running = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            log = (self.scratch / f"{name}-{rank}.log").open("wb")
            running.append(
                subprocess.Popen(
                    command, cwd=self.path, env={**environment(self.scratch), **own}, stdout=log, stderr=log
                )
            )
            log.close()
        try:
            codes = exit_codes(running)
        finally:
            for process in running:
                process.kill()
                process.wait()
        for rank, code in enumerate(codes):
            if code:
                text = (self.scratch / f"{name}-{rank}.log").read_text(encoding="utf-8", errors="replace")
                raise subprocess.CalledProcessError(code, command, stderr=text[-500:].encode())
        return LedgerFile.read(out)

    def rescore_traced(self, name: str, protocol: Mapping[str, Any]) -> tuple[LedgerFile, Seen]:
        """Score again, watched by the system. Raises CannotTrace or CalledProcessError."""
        command, out = self._command(name, protocol, 0, self.device)
        # Its parent is the tracer, and ends with this process's group.
        known = {key: value for key, value in environment(self.scratch).items() if key != PARENT}
        # What a compiler finds, it has made itself in this very run.
        fresh = self.scratch / f"{name}.compiled"
        known |= dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "TMPDIR"), str(fresh))
        fresh.mkdir()
        seen = traced(command, self.path, known, self.scratch / f"{name}.strace", _CODE)
        # Its own job, and what it writes, are the audit's: they lie beside the closed folder.
        own = {command[3], *(str(path.resolve()) for path in out.iterdir())}
        seen.outside = {path for path in seen.outside - own if not path.startswith(f"{fresh.resolve()}/")}
        return LedgerFile.read(out), seen

    def _command(self, name: str, protocol: Mapping[str, Any], targets: int, device: Device) -> tuple[list[str], Path]:
        job, out = self.scratch / f"{name}.job.json", self.scratch / f"{name}.ledger"
        job.write_text(
            json.dumps({"protocol": dict(protocol), "targets": targets, "device": asdict(device)}),
            encoding="utf-8",
        )
        return [sys.executable, "-m", rescore.__name__, str(job), str(out)], out


def exit_codes(running: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """The processes' exit codes once all have ended, or one has failed: its peers would wait for it for minutes."""
    while True:
        codes = [process.poll() for process in running]
        if None not in codes or any(codes):
            return codes
        time.sleep(0.05)


def audit_deeply(
    folder: ClosedFolder,
    name: str,
    protocol: Mapping[str, Any],
    windows: Windows,
    settings: Settings,
    ledger: LedgerFile,
) -> list[Finding]:
    """Score one protocol again: alone and watched, shorter, and on two ranks."""
    found = [*_closed(folder, name, protocol, settings, ledger)]
    found.append(_prefixes(folder, name, protocol, windows, settings, ledger))
    found.append(_ranks(folder, name, protocol, windows, settings))
    says = "No protocol here claims to score documents alone; windows reach across their borders."
    return [*found, Finding(rule="C1", detector="T9", verdict="not_applicable", says=says)]


def _closed(
    folder: ClosedFolder, name: str, protocol: Mapping[str, Any], settings: Settings, ledger: LedgerFile
) -> list[Finding]:
    try:
        again, seen = folder.rescore_traced(f"{name}-closed", protocol)
        world = _world(seen)
    except CannotTrace as error:
        says = f"What a process opens cannot be seen on this system: {error}."
        world = Finding(rule="E4", detector="T5", verdict="unknown", says=says)
        try:
            again = folder.rescore(f"{name}-again", protocol)
        except subprocess.CalledProcessError as failed:
            return [world, _failed("E4", "T17", failed)]
    except subprocess.CalledProcessError as failed:
        return [_failed("E4", "T5", failed)]
    return [world, _repeats(again, ledger, settings)]


def _world(seen: Seen) -> Finding:
    evidence = {
        "shipped": sorted(seen.shipped),
        "outside": sorted(seen.outside)[:_SHOWN],
        "network": seen.called[:_SHOWN],
        "not_followed": sorted(set(seen.evaded)),
        "large_files_of_programs": sorted(seen.data_of_programs)[:_SHOWN],
    }
    if seen.outside or seen.called:
        says = "It opened more than archive, tokenizer, val and programs."
        return Finding(rule="E4", detector="T5", verdict="fail", says=says, evidence=evidence)
    if seen.evaded or seen.data_of_programs:
        says = "It opened files in a way that this system does not show, or large ones that belong to packages."
        return Finding(rule="E4", detector="T5", verdict="unknown", says=says, evidence=evidence)
    says = "Of data, archive, tokenizer and val were opened and nothing else; nobody was called."
    return Finding(rule="E4", detector="T5", verdict="pass", says=says, evidence=evidence)


def _failed(rule: str, detector: str, failed: subprocess.CalledProcessError) -> Finding:
    text = (failed.stderr or b"").decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    says = f"Scoring again ended with code {failed.returncode}: {text[0]}"
    return Finding(rule=rule, detector=detector, verdict="unknown", says=says)


def _repeats(again: LedgerFile, ledger: LedgerFile, settings: Settings) -> Finding:
    same, off = again.sha256 == ledger.sha256, _off(again, ledger)
    good = same or (not settings.exact_replay and off <= settings.tolerance_replay_nats)
    return Finding(
        rule="E4",
        detector="T17",
        verdict="pass" if good else "fail",
        says="Scored again, the same bits came out." if same else f"Scored again, a price moved by {off:.3g} nats.",
        evidence={"ledger_sha256": again.sha256, "equal_bits": same, "largest_difference_nats": off},
    )


def _off(a: LedgerFile, b: LedgerFile) -> float:
    """The largest difference of two prices of the same target, among those that are kept."""
    targets = min(len(a.head_N2), len(b.head_N2))
    return float(np.abs(a.head_N2[:targets, 0].astype(np.float64) - b.head_N2[:targets, 0]).max(initial=0.0))


def _prefixes(
    folder: ClosedFolder,
    name: str,
    protocol: Mapping[str, Any],
    windows: Windows,
    settings: Settings,
    ledger: LedgerFile,
) -> Finding:
    """T6: the beginning of the stream costs the same when the stream ends early."""
    kept = min(windows.targets, len(ledger.head_N2))  # only there prices can be compared
    shortest = min(_steps(from_dict(protocol)), windows.targets)
    lengths = sorted({max(kept * part // 3 | 1, shortest) for part in (1, 2)})
    plain = {**protocol, "tail_rescore": False, "drop_partial_row": False}
    try:
        shorter = [folder.rescore(f"{name}-{length}", plain, targets=length) for length in lengths]
    except subprocess.CalledProcessError as failed:
        return _failed("C1", "T6", failed)
    return _compared("T6", "where the stream ends", [_off(each, ledger) for each in shorter], settings, lengths=lengths)


def _ranks(
    folder: ClosedFolder, name: str, protocol: Mapping[str, Any], windows: Windows, settings: Settings
) -> Finding:
    """T7: two ranks find the prices of one. On CPUs, whatever scored: ranks share alike on any device."""
    read = from_dict(protocol)
    targets = min(windows.targets, max(2 * chunk_targets(read), _steps(read)))
    plain = {**protocol, "tail_rescore": False, "drop_partial_row": False}
    cpu = replace(folder.device, kind="cpu", model="")
    if folder.device.kind != "cpu":
        plain["compile"] = "off"
    try:
        one, two = (folder.rescore(f"{name}-of-{n}", plain, targets, n, cpu) for n in (1, _RANKS))
    except subprocess.CalledProcessError as failed:
        return _failed("C1", "T7", failed)
    return _compared("T7", "how many ranks score", [_off(one, two)], settings, ranks=_RANKS, targets=targets)


def _steps(protocol: Protocol) -> int:
    """Targets of a stream that has a few windows, and a step for every phase of an adaptation before scoring."""
    return max((4, *(phase.batch_sequences for phase in phases_of(protocol).values()))) * protocol.context_tokens


def _compared(detector: str, what: str, off: list[float], settings: Settings, **also: Any) -> Finding:
    verdict: Verdict = "pass" if max(off) <= settings.tolerance_replay_nats else "fail"
    says = f"Prices do not depend on {what}." if verdict == "pass" else f"Prices depend on {what}."
    allowed = settings.tolerance_replay_nats
    evidence = {"largest_difference_nats": max(off), "allowed_nats": allowed, **also}
    return Finding(rule="C1", detector=detector, verdict=verdict, says=says, evidence=evidence)
