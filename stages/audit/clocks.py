"""T15: the clocks. Every stage that turns training data into weights counts, calibration too; each score has its own.

Limits hold on the challenge's hardware. A run that asked for other hardware is told its figures and not judged: a
laptop's hour says nothing about eight H100s, in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.audit.account import Account, StepFacts
from stages.audit.finding import Finding


def check_training_clock(account: Account, challenge: Mapping[str, Any]) -> Finding:
    """B2: all stages above the archive that read train shards, together."""
    counted = [step for step in account.made_by("compress") if step.reads_train_tokens]
    return _check("B2", "training", counted, challenge["train_seconds"], challenge["device"])


def check_evaluation_clock(step: StepFacts, challenge: Mapping[str, Any]) -> Finding:
    """B3: one protocol's scoring."""
    return _check("B3", "scoring", [step], challenge["evaluate_seconds"], challenge["device"])


def _check(rule: str, what: str, steps: Sequence[StepFacts], limit_s: float, hardware: Mapping[str, Any]) -> Finding:
    if not steps:
        return Finding(rule=rule, detector="T15", verdict="unknown", says=f"no record says how long {what} took")
    # A training that was resumed has a last process that is shorter than its own clock, which counts all attempts.
    process_s = sum(max(step.process_s, step.timer_s or 0.0) for step in steps)
    timer_s = sum(step.process_s if step.timer_s is None else step.timer_s for step in steps)
    took = {step.label: {"process_s": step.process_s, "timer_s": step.timer_s} for step in steps}
    evidence = {"process_s": process_s, "timer_s": timer_s, "limit_s": limit_s, "steps": took}
    figures = f"{what} took {process_s:.1f} s by its processes, {timer_s:.1f} s by its own timers"
    if not all(_is_on(step.device, hardware) for step in steps):
        asked = ", ".join(sorted({_device_text(step.device) for step in steps}))
        says = f"{figures}, on {asked}; the limit of {limit_s:g} s is for {_device_text(hardware)}"
        return Finding(rule=rule, detector="T15", verdict="not_applicable", says=says, evidence=evidence)
    verdict = "pass" if process_s <= limit_s else "fail"
    return Finding(rule=rule, detector="T15", verdict=verdict, says=f"{figures}, of {limit_s:g} s", evidence=evidence)


def _is_on(device: Mapping[str, Any] | None, hardware: Mapping[str, Any]) -> bool:
    """Whether a step asked for the stated hardware, all of it or a part. The stage itself refuses any other."""
    if device is None:
        return True  # work of the CPU beside the GPUs, on the same machine
    return (
        device["kind"] == hardware["kind"]
        and device["count"] <= hardware["count"]
        and hardware["model"].lower() in device["model"].lower()
    )


def _device_text(device: Mapping[str, Any] | None) -> str:
    if device is None:
        return "the host's CPU"
    return f"{device['count']} x {device['model'] or device['kind']}"
