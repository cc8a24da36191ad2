"""The proxies of the environment: which of them httpx takes for a URL, and what it is called."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import getproxies

import httpx


def mounts_from_environment() -> dict[str, str | None]:
    """Patterns of URLs and the proxy of each, None where there is to be none, as in httpx.

    Read from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case, else from
    the settings of macOS or Windows.
    """
    return mounts_from(getproxies())


def mounts_from(proxies: Mapping[str, str]) -> dict[str, str | None]:
    """The same from what `urllib.request.getproxies()` returns."""
    excluded = [host.strip() for host in proxies.get("no", "").split(",")]
    if "*" in excluded:
        return {}
    return {
        **{
            f"{scheme}://": url if "://" in url else f"http://{url}"
            for scheme in ("http", "https", "all")
            if (url := proxies.get(scheme))
        },
        # Last: an entry such as `https://` takes the place of the proxy of that scheme.
        **{_pattern_of(host): None for host in excluded if host},
    }


def _pattern_of(host: str) -> str:
    if "://" in host:
        return host
    version = _ip_version(host)
    if version == 6:
        return f"all://[{host}]"
    is_exact = version == 4 or host.lower() == "localhost"
    return f"all://{host}" if is_exact else f"all://*{host}"


def _ip_version(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host.split("/")[0]).version
    except ValueError:
        return None


def proxy_for(url: httpx.URL, mounts: Mapping[str, str | None]) -> tuple[httpx.URL, str] | None:
    """The proxy that httpx takes for this URL, and the variable that names it."""
    patterns = sorted((_Pattern.of(text) for text in mounts), key=lambda found: found.priority)
    text = next((found.text for found in patterns if found.matches(url)), None)
    proxy = None if text is None else mounts[text]
    if text is None or proxy is None:
        return None
    return httpx.URL(proxy), variable_of(text.partition("://")[0], os.environ)


def variable_of(scheme: str, environment: Mapping[str, str]) -> str:
    """What the proxy of a scheme is called in the environment; lower case wins, as in Python."""
    lower, upper = f"{scheme}_proxy", f"{scheme}_proxy".upper()
    names = [name for name in environment if name.lower() == lower and environment[name]]
    return min(names, key=lambda name: (name != lower, name != upper), default="system settings")


@dataclass(frozen=True)
class _Pattern:
    """What httpx calls a URL pattern: a scheme or `all`, a host or `*` and its end, a port."""

    text: str
    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, text: str) -> _Pattern:
        url = httpx.URL(text)
        scheme = "" if url.scheme == "all" else url.scheme
        return cls(text, scheme, "" if url.host == "*" else url.host, url.port)

    @property
    def priority(self) -> tuple[bool, int, int]:
        """The most specific first: with a port, then the longer host, then the longer scheme."""
        return self.port is None, -len(self.host), -len(self.scheme)

    def matches(self, url: httpx.URL) -> bool:
        return (
            self.scheme in {"", url.scheme}
            and self.port in {None, url.port}
            and (not self.host or self._expression.match(url.host) is not None)
        )

    @property
    def _expression(self) -> re.Pattern[str]:
        if self.host.startswith("*."):
            return re.compile(rf"^.+\.{re.escape(self.host[2:])}$")
        if self.host.startswith("*"):
            return re.compile(rf"^(.+\.)?{re.escape(self.host[1:])}$")
        return re.compile(rf"^{re.escape(self.host)}$")
