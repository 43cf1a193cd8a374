"""`rather serve`: the labelling page of a run, on this machine unless --host says otherwise."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp

from rather.errors import ConfigError
from rather.store import Store
from rather.store.people import everybody, invite, session_key
from rather.web.app import create
from rather.web.frame import Frame
from rather.web.limits import EACH, Listener, Server
from rather.web.project import Project

URL = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?((?:/[\w~-][\w.~-]*)*)/?", re.ASCII | re.IGNORECASE)


def owner_link(store: Store, run: str, url: str, renew: bool = False) -> str | None:
    """A link for the owner if there is none yet, or a new one in place of it; None where the owner has theirs.

    What stands behind the # is no part of any request, so that no log of a server or a proxy holds the secret.
    """
    if not renew and any(p.role == "owner" for p in everybody(store, run)):
        return None
    return f"{url}/join#{invite(store, 'owner', 'owner', days=365, run=run)}"


def server(
    store: Store, project: Project, host: str, port: int, certificate: str = "", key: str = "",
    insecure: bool = False, url: str = "", behind_proxy: str = "",
) -> tuple[Server, str]:  # fmt: skip
    """The server, which listens already but answers when it is run, and the URL that people open.

    `url` is that URL where it is another one than that of this server; `behind_proxy`, the addresses of its TLS proxies.

    Raises:
        ConfigError: answers would travel in the clear, without `insecure`; or the options mean nothing.
    """
    if behind_proxy and not url:
        raise ConfigError("--behind-proxy needs --url, the address that people open at the proxy: --url https://example.org/labels")
    outer = _outer(url)
    proxies = [_network(x.strip()) for x in (behind_proxy or "127.0.0.1,::1").split(",")] if outer else []
    if not insecure:
        not_in_the_clear(host, bool(certificate), outer, bool(behind_proxy))
    listener, own = listen(host, port, bool(certificate), proxies)
    at = outer or own
    app = Frame(create(store, project, session_key(store), secure=at.startswith("https:")), outer)
    return on(listener, app, certificate, key), at


def listen(host: str, port: int, tls: bool, proxies: Sequence[IPv4Network | IPv6Network] = (), each: int = EACH) -> tuple[Listener, str]:
    """A socket that listens, and its URL.

    Raises:
        ConfigError: it cannot listen there.
    """
    try:
        listener = Listener(host, port, proxies, each)
    except OSError as e:
        raise ConfigError(f"cannot listen at {host}, port {port}: {e.strerror}; give another --host or --port") from None
    shown = f"[{host}]" if ":" in host else host
    return listener, f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"


def on(listener: Listener, app: ASGIApp, certificate: str, key: str) -> Server:
    """The server of `app` on a socket.

    Raises:
        ConfigError: the certificate cannot be used, or there is a key and none.
    """
    if key and not certificate:
        listener.close()
        raise ConfigError(f"--key {key} is of a certificate, and none is given; give --certificate, too")
    try:
        return Server(app, listener, certificate, key)
    except OSError as e:
        listener.close()
        raise ConfigError(f"the certificate {certificate} with the key {key or certificate} cannot be used: {e.strerror or e}") from None


def _outer(url: str) -> str:
    """The URL as browsers write it: in small letters, without a default port, without a slash at the end."""
    if not url:
        return ""
    parts = URL.fullmatch(url)
    if parts is None:
        raise ConfigError(f"--url {url!r} is no address of a page; give scheme, host and path: --url https://example.org/labels")
    scheme, host, port, path = parts[1].lower(), parts[2].lower(), parts[3] or "", parts[4]
    return f"{scheme}://{host}{'' if port == {'http': ':80', 'https': ':443'}[scheme] else port}{path}"


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ConfigError(f"--behind-proxy {text!r} is neither an address nor a network; give 10.0.0.5 or 10.0.0.0/24") from None


def not_in_the_clear(host: str, certificate: bool, outer: str, proxy_named: bool) -> None:
    """Refuse what would let answers and links travel in the clear: plain HTTP stays on this machine, or between it and a TLS proxy."""
    if outer.startswith("http:") and not _is(URL.fullmatch(outer)[2].strip("[]"), "is_loopback"):  # type: ignore[index]
        raise ConfigError(f"answers would travel in the clear to {outer}; give --url https://..., or add --insecure")
    if certificate or _is(host, "is_loopback"):
        return
    if outer and not proxy_named and _is(host, "is_private"):
        raise ConfigError(f"{host} can be reached from other machines; name the TLS proxy before it: --behind-proxy ADDRESS")
    if not (outer and _is(host, "is_private")):
        raise ConfigError(
            f"{host} can be reached from other machines, and answers would travel in the clear; give --certificate and --key, leave "
            "--host out, give --url and --behind-proxy and a private address for a TLS proxy to reach, or add --insecure"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    return _is(host, "is_loopback")


def _is(host: str, what: str) -> bool:
    """Whether the host is an address of that kind; a name is none, but localhost."""
    if host == "localhost":
        return what == "is_loopback"
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return bool(getattr(address, what)) and not address.is_unspecified
