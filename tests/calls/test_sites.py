from __future__ import annotations

import pytest
from pydantic import ValidationError

from calls.settings import SettingsError, load_settings
from calls.sites import Site, Sites, demo_site


def test_a_site_is_found_by_its_key_and_its_origins_are_known() -> None:
    site = Site(origins=("https://shop.example",))
    sites = Sites({"pk_shop": site})
    assert sites.get("pk_shop") is site
    assert sites.get("pk_other") is None
    assert sites.knows("https://shop.example")
    assert not sites.knows("https://evil.example")
    assert not sites.knows("")


@pytest.mark.parametrize("origin", [
    "shop.example", "https://shop.example/", "https://shop.example/page", "ftp://shop.example", "*", "null",
    "https://user@shop.example", "https://shop.example?x"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError):
        Site(origins=(origin,))


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError) as refused:
        Site(origins=("https://shop.example",), secret="hunter2")
    assert "32 characters" in str(refused.value)
    assert "hunter2" not in repr(Site(origins=("https://a.example",), secret="hunter2" * 8))


def test_without_sites_the_demo_page_is_one() -> None:
    sites = Sites(demo_site("127.0.0.1", 8080))
    demo = sites.get("demo")
    assert demo is not None
    assert demo.origins == ("http://127.0.0.1:8080", "http://localhost:8080")
    assert demo.agents == ("agent", "echo")
    assert demo_site("192.0.2.1", 80)["demo"].origins[0] == "http://192.0.2.1"


def test_sites_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_WEB_SITES", '{"pk_shop": {"origins": ["https://shop.example"], "agents": ["agent"]}}')
    settings = load_settings()
    assert settings.sites.knows("https://shop.example")
    assert settings.sites.get("demo") is None


@pytest.mark.parametrize(("name", "value"), [
    ("WEB_SITES", "nonsense"), ("WEB_SITES", '{"pk": {"origins": []}}'), ("WEBRTC_HOST", "localhost"),
    ("WEBRTC_HOST", ","), ("WEBRTC_PORTS", "5000"), ("WEBRTC_PORTS", "5000-4000"), ("WEBRTC_PORTS", "80-90"),
    ("TURN_URLS", "https://turn.example"), ("WEBRTC_CALLS", "0")])
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"TANDEM_{name}", value)
    with pytest.raises(SettingsError, match=f"^TANDEM_{name}: ") as refused:
        load_settings()
    assert "\n" not in str(refused.value)


def test_addresses_and_ports_are_read_as_lists_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(webrtc_host="127.0.0.1, ::1", webrtc_ports="40000-40099",
                             turn_urls="turn:a.example, turns:b.example:443?transport=tcp")
    assert settings.webrtc_hosts == ("127.0.0.1", "::1")
    assert settings.webrtc_port_range == (40000, 40099)
    assert settings.turn_servers == ("turn:a.example", "turns:b.example:443?transport=tcp")
