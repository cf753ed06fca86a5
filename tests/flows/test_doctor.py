"""The doctor finds what is wrong and says what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store import Store
from flows import doctor
from flows.doctor import Finding


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing about Prefect."""
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_UI_API_URL", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name, raising=False)


def test_a_healthy_installation_has_nothing_that_fails(tmp_path: Path, clean: None):
    findings = doctor.examine(str(tmp_path / "store"), start_server=False)
    assert [finding for finding in findings if finding.state == "fail"] == []
    assert {"python", "venv", "torch", "cpu", "disk", "prefect", "store"} <= set(by_name(findings))


def test_every_complaint_says_what_to_do(tmp_path: Path, clean: None):
    for finding in doctor.examine(str(tmp_path / "store"), start_server=False):
        assert finding.state == "ok" or finding.advice


@pytest.mark.parametrize(("fastapi", "state"), [("0.151.0", "fail"), ("0.165.1", "fail"), ("0.150.9", "ok")])
def test_the_pair_of_versions_that_cannot_be_imported_is_known(monkeypatch, fastapi: str, state: str):
    monkeypatch.setattr(doctor, "_installed", {"prefect": "3.8.8", "fastapi": fastapi, "SQLAlchemy": "2.0.58"}.get)
    (finding,) = doctor.prefect_versions()
    assert finding.state == state
    assert ('"fastapi<0.151"' in finding.advice) == (state == "fail")


@pytest.mark.parametrize(("alchemy", "state"), [("2.1.0", "fail"), ("2.0.58", "ok")])
def test_the_pair_of_versions_under_which_no_schedule_runs_is_known(monkeypatch, alchemy: str, state: str):
    monkeypatch.setattr(doctor, "_installed", {"prefect": "3.8.8", "fastapi": "0.139.2", "SQLAlchemy": alchemy}.get)
    (finding,) = doctor.prefect_versions()
    assert finding.state == state
    assert ('"SQLAlchemy<2.1"' in finding.advice) == (state == "fail")


def test_a_version_that_is_not_the_locked_one_is_named(monkeypatch):
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: "0.0.1" if name == "numpy" else real(name))
    (finding,) = doctor.packages()
    assert finding.state == "warn"
    assert "numpy 0.0.1 (locked " in finding.text


def test_an_image_may_lack_what_only_development_needs_and_nothing_that_running_needs(monkeypatch):
    real = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: "" if name in ("moto", "ruff") else real(name))
    (finding,) = doctor.packages()
    assert (finding.state, ", 2 of the lock's are not" in finding.text) == ("ok", True), finding.text
    monkeypatch.setattr(doctor, "_installed", lambda name: "" if name in ("moto", "torch") else real(name))
    (finding,) = doctor.packages()
    assert (finding.state, "torch missing (locked " in finding.text, "moto" in finding.text) == ("warn", True, False)


def test_a_server_that_does_not_answer_is_found(monkeypatch, clean: None):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    findings = by_name(doctor.prefect_settings())
    assert findings["prefect server"].state == "fail"
    assert "unset PREFECT_API_URL" in findings["prefect server"].advice


def test_the_empty_page_of_a_server_on_another_port_is_explained(monkeypatch, clean: None):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    advice = by_name(doctor.prefect_settings())["prefect page"].advice
    assert "PREFECT_SERVER_UI_API_URL=http://127.0.0.1:9/api" in advice


def test_missing_ensurepip_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    finding = by_name(doctor.python())["venv"]
    assert finding.state == "warn"
    assert "apt-get install python3-venv" in finding.advice


def test_a_damaged_store_is_found_without_reading_every_byte(tmp_path: Path):
    store = Store.open(tmp_path / "store")
    output = tmp_path / "out"
    (output / "raw").mkdir(parents=True)
    (output / "raw" / "w.bin").write_bytes(b"weights")
    published = store.publish(stage="train", key="a" * 64, folder=output, components={}, report={}, inputs={})
    (file,) = published.record.files
    assert doctor.store_health(str(tmp_path / "store"))[0].state == "ok"
    path = tmp_path / "store" / "objects" / file.sha256[:2] / file.sha256
    path.unlink()
    (finding,) = doctor.store_health(str(tmp_path / "store"))
    assert finding.state == "warn"
    assert file.sha256 in finding.text


def test_a_full_disk_is_foreseen(monkeypatch, tmp_path: Path):
    usage = type("Usage", (), {"total": 10, "used": 9, "free": 1})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    finding = doctor.disk(tmp_path / "not" / "there")[0]
    assert finding.state == "warn"
    assert "gc" in finding.advice
