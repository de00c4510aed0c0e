from __future__ import annotations

from pathlib import Path

import pytest

from calls.settings import FILE, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_anything_set_the_defaults_hold() -> None:
    settings = load_settings()
    assert (settings.sip_host, settings.sip_port, settings.web_port, settings.worker_port) == (
        "127.0.0.1", 5060, 8080, 8998)
    assert settings.redis_url is None
    assert settings.database_url is None


def test_a_variable_wins_over_the_file_and_the_file_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(FILE).write_text("sip_port = 5070\nslots = 9\n")
    monkeypatch.setenv("TANDEM_SIP_PORT", "5080")
    settings = load_settings()
    assert (settings.sip_port, settings.slots, settings.echo_slots) == (5080, 9, 4)


@pytest.mark.parametrize(("name", "value"), [
    ("TANDEM_SIP_PORT", "65536"),
    ("TANDEM_SIP_PORT", "sip"),
    ("TANDEM_SLOTS", "0"),
    ("TANDEM_DTYPE", "int4"),
    ("TANDEM_SECRET", "short"),
    ("TANDEM_REDIS_URL", "http://example.org"),
    ("TANDEM_LEASE_S", "0"),
    ("TANDEM_SIPPORT", "5060"),
])
def test_a_bad_or_unknown_variable_gets_one_line_with_its_name(
        name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(name + ":")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("text", "said"), [
    ("sipport = 5060", "TANDEM_SIPPORT: there is no such setting"),
    ("sip_port = 99999", "TANDEM_SIP_PORT:"),
    ("sip_port = ", "tandem.toml:"),
])
def test_a_bad_file_gets_one_line(text: str, said: str) -> None:
    Path(FILE).write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_secrets_dont_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_SECRET", "a-secret-of-thirty-two-characters!")
    monkeypatch.setenv("TANDEM_DATABASE_URL", "postgresql://tandem:hunter2@db/tandem")
    assert "thirty-two" not in repr(load_settings())
    assert "hunter2" not in repr(load_settings())


@pytest.mark.parametrize(("model", "name"), [
    ("moshiko", "moshiko"), ("kyutai/moshika-pytorch-bf16", "moshika-pytorch-bf16"), ("/models/nano/", "nano")])
def test_workers_offer_a_model_under_the_last_part_of_its_source(model: str, name: str) -> None:
    assert load_settings(model=model).model_name == name
