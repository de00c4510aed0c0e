"""Websites that may put calls on their pages: a public key each, with what it allows (pure)."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

DEMO_KEY = "demo"
Agent = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]


class Site(BaseModel):
    """What a public key may do. With `secret` each visitor needs a token that the site's own backend has signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origins: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    agents: Annotated[tuple[Agent, ...], Field(min_length=1, max_length=100)] = ("agent",)
    secret: SecretStr | None = None

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            bare = f"{parts.scheme}://{parts.netloc}"
            if parts.scheme not in ("http", "https") or not parts.netloc or origin != bare or "@" in parts.netloc:
                raise ValueError(f"{origin!r}: an origin is a scheme and a host, such as https://shop.example")
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("a secret has 32 characters or more")
        return value


class Sites:
    """All of them, by their keys."""

    def __init__(self, sites: dict[str, Site]) -> None:
        self._sites = sites
        self._origins = frozenset(origin for site in sites.values() for origin in site.origins)

    def get(self, key: str) -> Site | None:
        return self._sites.get(key)

    def knows(self, origin: str) -> bool:
        """Whether any site is of this origin."""
        return origin in self._origins


def demo_site(host: str, port: int) -> dict[str, Site]:
    """The web role's own page, where no sites are set."""
    hosts = dict.fromkeys((host if ":" not in host else f"[{host}]", "127.0.0.1", "localhost"))
    origins = tuple(f"http://{name}:{port}" if port != 80 else f"http://{name}" for name in hosts
                    if re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:]+\]", name))
    return {DEMO_KEY: Site(origins=origins, agents=("agent", "echo"))}
