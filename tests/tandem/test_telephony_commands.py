"""`tandem telephony …` and `tandem call place`, against a real Postgres and Redis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from redis import Redis

from calls.dialling import Dial
from calls.settings import Settings
from tandem.errors import UserError
from tandem.telephony_commands import check, list_trunks, place, save, show

TOML = """
[[trunks]]
name = "carrier"
host = "sip.carrier.example"
user = "me"
password = "open sesame"
register = true

[inbound]
trunks_only = true
"""


@pytest.fixture
def settings(redis_url: str, database_url: str, tmp_path: Path) -> Settings:
    Redis.from_url(redis_url).flushdb()
    return Settings(redis_url=redis_url, database_url=database_url, secret="s" * 32, data_dir=tmp_path)


@pytest.mark.usefixtures("store")
def test_a_document_is_checked_kept_and_shown_without_passwords(
    settings: Settings, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    document = tmp_path / "telephony.toml"
    document.write_text(TOML)
    check(document)
    assert "good: 1 trunks" in capsys.readouterr().out
    save(settings, document, None)
    assert capsys.readouterr().out.strip() == "version 1: inbound, trunk carrier added"
    show(settings)
    shown = json.loads(capsys.readouterr().out)
    assert shown["trunks"][0]["password"] == "(hidden)"
    again = tmp_path / "again.json"
    again.write_text(json.dumps(shown | {"codecs": ["pcmu"]}))
    with pytest.raises(UserError, match="version 0 isn't the newest"):
        save(settings, again, 0)
    save(settings, again, 1)
    assert capsys.readouterr().out.strip() == "version 2: codecs"
    published = Redis.from_url(redis_url).get("tandem:{telephony}:document")
    assert json.loads(published)["version"] == 2
    assert b"sesame" not in published
    list_trunks(settings)
    assert capsys.readouterr().out == "", "no SIP process runs"


@pytest.mark.parametrize(("text", "said"), [
    ("{", "Expecting property name"), ('{"trunk": 1}', "trunk: Unexpected keyword"), ('{"codecs": []}', "codecs"),
])
def test_a_bad_document_gets_one_line(tmp_path: Path, text: str, said: str) -> None:
    document = tmp_path / "bad.json"
    document.write_text(text)
    with pytest.raises(UserError, match=said) as refused:
        check(document)
    assert "\n" not in str(refused.value)


def test_without_a_sip_process_no_call_is_placed(settings: Settings) -> None:
    with pytest.raises(UserError, match="no SIP process has room for a call"):
        place(settings, Dial("sip:a@b"), wait=False)
