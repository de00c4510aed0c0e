"""Every role's settings: `TANDEM_…` variables or `tandem.toml`, one class for all of them."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from calls.rules import MOST_RULES, Rule
from calls.sites import Site, Sites, demo_site

PREFIX = "TANDEM_"
TEST_PREFIX = "TANDEM_TEST_"  # read by the tests alone
FILE = "tandem.toml"
RANDOM = "random"  # as a model: the tiny one with random weights, made at first start
ECHO = "echo"  # the agent and the model that give callers back what they say

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


class SettingsError(ValueError):
    """One line that names the setting and what is wrong with it."""


def split(value: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


class Settings(BaseSettings):
    """Settings of all roles, with their defaults; README's table is made from the descriptions."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, toml_file=FILE)

    # what is kept
    data_dir: Path = Field(Path("data"), description="folder for embedded servers, models made here, token logs")
    database_url: SecretStr | None = Field(None, description="PostgreSQL 15+; none starts an embedded one in data_dir")
    redis_url: SecretStr | None = Field(None, description="Redis 6.2+; none starts an embedded one in data_dir")
    secret: SecretStr | None = Field(
        None, description="shared by bridges and workers to sign leases, 32 characters or more; "
        "none: `serve` makes one in data_dir")

    # the agent
    model: str = Field("nano", min_length=1, description="model of the default agent: `nano` (small, of this "
                       "repository), `random` (tiny, talks nonsense), `moshiko`, `moshika`, another preset, a folder "
                       "or a Hugging Face repository (docs/models.md)")
    rules: tuple[Rule, ...] = Field((), max_length=MOST_RULES, description="what the agent does without an operator, "
                                    "as JSON here or as tables `[[rules]]` in tandem.toml (docs/operators.md)")
    stt: str = Field("auto", min_length=1, description="speech-to-text model for callers' words, beside the agent's: "
                     "`auto` (the agent's own, in its folder `stt`), `off`, a folder or a Hugging Face repository; it "
                     "must hear by the same Mimi")
    tts_model: str | None = Field(None, description="text-to-speech model in whose voice lines are said in calls "
                                  "(`say`, also of rules and notices): a folder or a Hugging Face repository in "
                                  "Kyutai's layout; none: the agent's own (docs/speech.md)")
    tts_voice: Path | None = Field(None, description="file of its voice, where it needs one, as in kyutai/tts-voices")
    voices: Path | None = Field(None, description="folder of voices for models that were taught such: `NAME.wav` (or "
                                ".flac, .mp3, .ogg), `NAME.pt` as NVIDIA publishes them (docs/personas.md)")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="weights in memory; `auto` keeps the "
                                                          "checkpoint's on a GPU and takes float32 on a CPU, "
                                                          "bfloat16 on one with AMX")
    weights: Literal["auto", "int8", "fp8"] = Field("auto", description="the language models' linear maps: `int8` "
                                                    "halves them, `fp8` too on a GPU that has it; `auto` keeps them "
                                                    "as the dtype says, or in 8 bits where the file holds them so")
    kv: Literal["auto", "int8", "fp8"] = Field("auto", description="what a call's attention remembers: `int8` or "
                                               "`fp8` for nearly twice the calls; `auto` keeps the dtype's")
    sinks: int = Field(0, ge=0, le=64, description="first frames of a call that attention never forgets, however long "
                       "the call; 0: it forgets all that is past the context")
    kv_pool_s: float = Field(0.0, ge=0, le=3600, description="seconds of a call's memory that a GPU has room for, on "
                             "average of its slots: calls take it as they grow older, and one that finds none left "
                             "remembers what it has; 0: the whole context for each")
    conditions: dict[str, str] = Field({}, description="values of a model's look-up conditions, as JSON: "
                                       "`{\"description\": \"very_good\"}` (Hibiki)")
    threads: int = Field(0, ge=0, le=256, description="torch's threads in a step; 0 measures at start")
    slots: int = Field(4, ge=1, le=512, description="calls of the agent's model that one worker carries")
    echo_slots: int = Field(4, ge=0, le=512, description="calls of the `echo` model that one worker carries")

    # the worker
    worker_host: str = Field("127.0.0.1", description="address that the worker listens on")
    worker_port: Port = Field(8998, description="port that the worker listens on; 0 picks a free one")
    worker_url: str | None = Field(None, description="how bridges reach this worker; none: from host and port")
    drain_s: Seconds = Field(30.0, description="how long a role that stops lets its calls go on")

    # operators who listen
    tap_host: str = Field("127.0.0.1", min_length=1, description="address on which bridges let operators listen to "
                          "their calls and take them over, as WebRTC processes reach it; each picks a free port")

    # leases
    heartbeat_s: Seconds = Field(1.0, description="between two signs of life of a worker or bridge")
    expiry_s: Seconds = Field(5.0, description="after which a silent worker or bridge counts as dead")
    move_within_s: Seconds = Field(15.0, description="for which a call whose worker is lost waits for another one")
    lease_s: Seconds = Field(6.0, description="length of a lease; renewed at a third of it")

    # SIP
    sip_host: str = Field("127.0.0.1", description="address of SIP and RTP: loopback, or one private address")
    sip_port: Port = Field(5060, description="SIP port, UDP and TCP")
    sip_processes: int = Field(1, ge=1, le=256, description="SIP processes of one `tandem sip`, each on a port of its "
                               "own from sip_port on; more than one take the edge before them")
    rtp_port: Port = Field(20000, description="first RTP port of the first SIP process")
    rtp_ports: int = Field(400, ge=8, le=40000, description="RTP ports of each SIP process")
    sip_tls_ca: str = Field("/etc/ssl/certs/ca-certificates.crt", description="file with the certificates by which "
                            "those of trunks that are reached by TLS must be signed")
    sip_t1_ms: int = Field(500, ge=10, le=5000, description="T1 of RFC 3261, in ms: the first pause before a request "
                           "is sent again; what isn't answered or acknowledged is given up after 64 of them")
    sip_recycle_calls: int = Field(2000, ge=1, description="calls after which a SIP process is replaced")
    retry_after_s: int = Field(10, ge=1, le=3600, description="Retry-After of a call that is turned away")

    # the edge: Kamailio and rtpengine before the SIP processes (docs/edge.md)
    edge_host: str | None = Field(None, description="address on which the edge takes calls, a public one as well; "
                                  "none: there is no edge")
    edge_public_host: str | None = Field(None, description="address that it tells others as its own; none: edge_host")
    edge_domain: str | None = Field(None, description="name of our users' addresses (`ann@sip.example.org`) and realm "
                                    "of their passwords; none: the edge's address")
    edge_port: Port = Field(5060, description="its SIP port, UDP and TCP")
    edge_tls_port: Port = Field(5061, description="its SIP port for TLS")
    edge_tls_cert: Path | None = Field(None, description="file of its certificate and those between it and the root; "
                                       "none: no TLS")
    edge_tls_key: Path | None = Field(None, description="file of the certificate's key")
    edge_inner: str = Field("127.0.0.1:5070", description="its inner side, where SIP processes send what goes out: "
                            "a loopback or private address, and a port")
    edge_control_port: Port = Field(2223, description="on the inner side's address, by which Kamailio tells rtpengine")
    edge_processes: str | None = Field(None, description="`host:port` of the SIP processes behind it, with commas; "
                                       "none: those of this machine's `tandem sip`")
    edge_calls: int = Field(4, ge=1, le=1000, description="calls that it gives a SIP process at a time")
    edge_rtp_ports: str = Field("40000-49999", description="first and last port of its RTP, on both sides")
    edge_srtp: Literal["off", "optional", "required"] = Field("optional", description="what our users may or must "
                                                              "bring: encrypted RTP (SRTP)")
    edge_codecs: str = Field("g722,opus,pcmu,pcma", description="what it takes from callers and offers to our users' "
                             "phones, best first; Opus is transcoded")
    edge_guests: bool = Field(False, description="whether callers who are neither a trunk nor one of our users are "
                              "let through")
    edge_requests_per_s: int = Field(30, ge=1, le=10000, description="that one address may send, on average of two "
                                     "seconds, before it is banned; trunks may send twenty times as many")
    edge_ban_s: int = Field(300, ge=1, le=86400, description="how long an address stays banned")

    # the web role
    web_host: str = Field("127.0.0.1", description="address of the web role")
    web_port: Port = Field(8080, description="port of the web role")
    web_proxies: str | None = Field(None, description="addresses of proxies before the web role, with commas, whose "
                                    "X-Forwarded-For is believed")
    web_requests_per_minute: int = Field(60, ge=1, le=100_000, description="of each kind, that one address may make "
                                         "to begin and to keep browser calls")
    web_sites: dict[str, Site] | None = Field(
        None, description="websites that may embed calls, as JSON: `{\"pk_shop\": {\"origins\": "
        "[\"https://shop.example\"], \"agents\": [\"agent\"], \"secret\": null}}`; none: the demo page alone")

    webhook_networks: str | None = Field(None, description="networks that aren't public and webhooks may reach all "
                                         "the same, with commas, such as `10.1.0.0/16`; none: public ones alone")

    # WebRTC
    webrtc_host: str = Field("127.0.0.1", description="addresses of calls from browsers (UDP), with commas: such as "
                             "browsers can reach")
    webrtc_ports: str | None = Field(None, description="first and last UDP port of browser calls, as `40000-40999`; "
                                     "none: any that is free")
    webrtc_processes: int = Field(1, ge=1, le=64, description="processes that one `tandem webrtc` runs")
    webrtc_calls: int = Field(10, ge=1, le=100, description="browser calls that one process carries")
    turn_urls: str | None = Field(None, description="TURN servers for browsers that can't reach us directly, with "
                                  "commas: `turn:turn.example:3478?transport=udp`")
    turn_secret: SecretStr | None = Field(None, description="shared with the TURN servers (coturn's "
                                          "`static-auth-secret`), for credentials that hold for some hours")
    webrtc_relay: bool = Field(False, description="whether our side takes the TURN server's relay too")

    # Moshi's own clients
    chat_key: SecretStr | None = Field(None, description="what Moshi's own clients show to talk with agents "
                                       "(docs/chat.md), 16 characters or more; none: there are no such chats")
    chat_host: str = Field("127.0.0.1", min_length=1, description="address that they connect to")
    chat_port: Port = Field(8999, description="port that they connect to; 0 picks a free one")
    chat_calls: int = Field(10, ge=1, le=100, description="chats that the process carries")

    metrics_token: SecretStr | None = Field(None, description="what Prometheus shows to read /metrics of the web role, "
                                            "16 characters or more; none: there is no such page")

    traces_url: str | None = Field(None, description="where traces of calls go, by OTLP over HTTP, as "
                                   "`http://127.0.0.1:4318/v1/traces`; none: none are made")

    alive_file: Path | None = Field(None, description="file whose time a role renews every 5 s as long as it isn't "
                                    "stuck, for probes; of several WebRTC processes each has its own: with .0, .1, …")

    # recordings
    recording: Literal["on", "off"] = Field("on", description="whether calls are recorded, two channels each")
    recording_codec: Literal["flac", "opus"] = Field("flac", description="what a recording becomes after its call: "
                                                     "`flac` keeps each sample, `opus` takes a tenth of the room")
    recordings_url: str | None = Field(None, description="where recordings are kept: a folder, or a URL that fsspec "
                                       "knows (`s3://bucket/prefix`, with s3fs installed); none: beside the token logs")

    recording_notice: str | None = Field(None, max_length=500, description="what the agent says first in a call that "
                                         "is recorded, which it is from there on; none: nothing")

    # events on their way to Postgres
    kept_events: int = Field(20000, ge=100, description="events a bridge keeps unsaved before it takes no new calls")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="`json`: one object a line, for machines to read")

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("must have 32 characters or more")
        return value

    @field_validator("webrtc_host")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for address in split(value):
            ip_address(address)
        if not split(value):
            raise ValueError("must be an address")
        return value

    @field_validator("webrtc_ports")
    @classmethod
    def _is_range(cls, value: str | None) -> str | None:
        if value is not None:
            first, _, last = value.partition("-")
            if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
                raise ValueError("must be two ports, 1024 or above, such as 40000-40999")
        return value

    @field_validator("webhook_networks")
    @classmethod
    def _are_networks(cls, value: str | None) -> str | None:
        for network in split(value):
            ip_network(network)
        return value

    @field_validator("turn_urls")
    @classmethod
    def _are_turn(cls, value: str | None) -> str | None:
        for url in split(value):
            if not re.fullmatch(r"turns?:[\w.\[\]:-]+(\?transport=(udp|tcp))?", url):
                raise ValueError(f"{url!r}: must be as turn:turn.example:3478?transport=udp")
        return value

    @field_validator("metrics_token", "chat_key")
    @classmethod
    def _not_guessed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must have 16 characters or more")
        return value

    @field_validator("traces_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("must be as http://127.0.0.1:4318/v1/traces")
        return value

    @field_validator("database_url", "redis_url")
    @classmethod
    def _has_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        schemes = ("postgresql", "postgres", "redis", "rediss", "unix")
        if value is not None and urlsplit(value.get_secret_value()).scheme.split("+")[0] not in schemes:
            raise ValueError(f"must be a URL that starts with one of {', '.join(schemes)}")
        return value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def recordings(self) -> str:
        return self.recordings_url or str(self.data_dir / "calls")

    @property
    def webrtc_hosts(self) -> tuple[str, ...]:
        return split(self.webrtc_host)

    @property
    def webrtc_port_range(self) -> tuple[int, int] | None:
        if self.webrtc_ports is None:
            return None
        first, _, last = self.webrtc_ports.partition("-")
        return int(first), int(last)

    @property
    def networks_of_webhooks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(ip_network(network) for network in split(self.webhook_networks))

    @property
    def turn_servers(self) -> tuple[str, ...]:
        return split(self.turn_urls)

    @property
    def sites(self) -> Sites:
        return Sites(demo_site(self.web_host, self.web_port) if self.web_sites is None else self.web_sites)

    @property
    def model_name(self) -> str:
        """The name under which workers offer the agent's model and bridges ask for it."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `tandem.toml`; raises SettingsError with one line for what is wrong."""
    known = set(Settings.model_fields)
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and not name.startswith(TEST_PREFIX) and name[len(PREFIX):].lower() not in known:
            raise SettingsError(f"{name}: there is no such setting")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper() if first["loc"] else FILE
        said = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise SettingsError(f"{name}: {said}") from None
    except ValueError as error:  # tomllib's own complaint about the file
        raise SettingsError(f"{FILE}: {error}") from None
