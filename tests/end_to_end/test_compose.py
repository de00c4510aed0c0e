"""docker-compose.yml, without an engine: each service's command in its environment, as a process, on real servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from call_peers import free_ports
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sip.phone import phone

ROOT = Path(__file__).parents[2]
SECRETS = {"REDIS_PASSWORD": "r" * 32, "POSTGRES_PASSWORD": "p" * 32, "TANDEM_SECRET": "s" * 32}
READY_S, END_S = 150.0, 60.0


def _compose() -> dict[str, Any]:
    """The file as an engine reads it, with `.env` filled in."""
    def filled(match: re.Match[str]) -> str:
        name, rest = match[1], match[2] or ""
        return SECRETS.get(name) or rest.removeprefix(":-")

    text = re.sub(r"\$\{(\w+)(:[?-][^}]*)?\}", filled, (ROOT / "docker-compose.yml").read_text())
    return dict(yaml.safe_load(text))


def _ours(*profiles: str) -> dict[str, dict[str, Any]]:
    """Services of our images; some are asked for by their profile."""
    return {name: service for name, service in _compose()["services"].items()
            if service.get("image", "").startswith("tandem") and set(service.get("profiles", ())) <= set(profiles)}


def test_the_example_names_all_secrets_that_the_file_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?\}", (ROOT / "docker-compose.yml").read_text()))
    named = set(re.findall(r"^(\w+)=$", (ROOT / "deploy" / "compose.env").read_text(), re.M))
    assert asked == named == set(SECRETS)


def test_nothing_listens_wider_than_loopback_and_no_secret_is_written_down() -> None:
    compose = _compose()
    for name, service in compose["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    assert not re.search(r"(PASSWORD|SECRET)\S*[:=] *[\"']?\w{8,}", (ROOT / "docker-compose.yml").read_text())


def test_the_image_has_what_its_roles_need() -> None:
    docker = (ROOT / "deploy" / "Dockerfile").read_text()
    targets = re.findall(r"^FROM \S+ AS (\w+)$", docker, re.M)
    assert {service["build"]["target"] for service in _ours("edge", "chat").values()} == {
        "roles", "worker", "edge"} <= set(targets)
    left_out = set((ROOT / ".dockerignore").read_text().split())
    for folder in ("agent", "calls", "media", "sip", "admin", "tandem", "migrations", "models"):
        assert folder not in left_out
    for image in docker.split("\nFROM base AS ")[1:]:
        assert image.index("USER tandem") < image.index("ENTRYPOINT"), "nothing runs as root"


def test_the_small_image_has_what_its_roles_import(tmp_path: Path) -> None:
    """Nothing that it carries imports what was left out of it."""
    [left_out] = re.findall(r"'\^\((\S+)\)=='", (ROOT / "deploy" / "Dockerfile").read_text())
    distributions = {name.lower().replace("_", "-") for name in left_out.split("|")}
    absent = {module for module, owners in packages_distributions().items()
              if {owner.lower().replace("_", "-") for owner in owners} <= distributions}
    assert "torch" in absent
    modules = ["admin.app", "calls.persist", "media.webrtc.bridge", "sip.bridge", "tandem.cli", "tandem.roles",
               "tandem.doctor", "tandem.serve"]
    program = f"import importlib, sys\nfor name in {sorted(absent)}: sys.modules[name] = None\n" \
              f"for name in {modules}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("redis", "store")
async def test_its_services_together_take_a_call(redis_url: str, database_url: str, tmp_path: Path) -> None:
    sip_port, web_port, chat_port = free_ports(3)
    ports = {"TANDEM_SIP_PORT": sip_port, "TANDEM_WEB_PORT": web_port, "TANDEM_RTP_PORT": 27000,
             "TANDEM_CHAT_PORT": chat_port}
    here = {"TANDEM_REDIS_URL": redis_url, "TANDEM_DATABASE_URL": database_url, "TANDEM_DATA_DIR": str(tmp_path),
            "TANDEM_WORKER_PORT": "0", "TANDEM_THREADS": "1", "TANDEM_CHAT_KEY": "k" * 32,
            **{name: str(port) for name, port in ports.items()}}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    running: dict[str, subprocess.Popen[bytes]] = {}
    assert set(_ours()) == {"migrate", "worker", "sip", "webrtc", "web", "persist"}
    services = _ours("chat")
    assert set(services) - set(_ours()) == {"chat"}
    log = (tmp_path / "log").open("wb")
    try:
        for name, service in services.items():
            environment = {**clean, **{name: str(value) for name, value in service["environment"].items()}, **here}
            process = _started(service["command"], environment, tmp_path, log)
            if service.get("restart") == "no":
                assert process.wait(READY_S) == 0
            else:
                running[name] = process
        _until_healthy(ports["TANDEM_WEB_PORT"], running)
        report = await phone(f"sip:agent@127.0.0.1:{ports['TANDEM_SIP_PORT']}", seconds=3, codec="pcmu")
        assert report.status == 200
        assert report.packets_received > 100
        chats = f"ws://127.0.0.1:{ports['TANDEM_CHAT_PORT']}/api/chat"
        with pytest.raises(InvalidStatus, match="401"):
            await connect(chats)
        async with connect(f"{chats}?key={'k' * 32}") as chat:
            assert (await chat.recv())[0] == 0, "a handshake"
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        assert {name: process.wait(END_S) for name, process in running.items()} == dict.fromkeys(running, 0)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        log.close()


def _started(command: list[str], environment: dict[str, str], folder: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tandem", *command], cwd=folder, env=environment, stdout=log,
                            stderr=subprocess.STDOUT)


def _until_healthy(port: int, running: dict[str, subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with (contextlib.suppress(urllib.error.URLError, OSError),
              urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer):
            if json.load(answer)["bridges"] == 3:
                return
        assert {name: process.poll() for name, process in running.items()} == dict.fromkeys(running)
        assert time.monotonic() < deadline
        time.sleep(0.2)
