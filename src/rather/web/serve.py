"""`rather serve`: the labelling page of a run, on this machine unless it is told otherwise."""

from pathlib import Path
from typing import Any

import uvicorn

from rather.errors import ConfigError
from rather.store import Store
from rather.store.people import everybody, invite
from rather.web.app import create
from rather.web.guard import secret

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def owner_link(store: Store, url: str, renew: bool = False) -> str | None:
    """A link for the owner if there is none yet, or a new one in place of it; None where the owner has theirs."""
    if not renew and any(p.role == "owner" for p in everybody(store)):
        return None
    return f"{url}/join/{invite(store, 'owner', 'owner', days=365)}"


def server(
    store: Store, folder: Path, run: str, instruction: str, host: str, port: int, certificate: str = "", key: str = "",
    insecure: bool = False,
) -> tuple[uvicorn.Server, str]:  # fmt: skip
    """The server, ready to run, and its URL.

    Raises:
        ConfigError: another address than loopback with neither TLS nor `insecure`.
    """
    if host not in LOOPBACK and not certificate and not insecure:
        raise ConfigError(
            f"{host} can be reached from other machines, and answers would travel in the clear; give --certificate and --key, "
            "put a TLS proxy before it and add --insecure, or leave --host out"
        )
    app = create(store, run, instruction, secret(folder), secure=bool(certificate))
    tls: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key or None} if certificate else {}
    # No access log: the path of an invite link is a secret.
    # Told to stop, it waits for answers that are being written, and not for a download.
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_level="warning", server_header=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=1, **tls,
    )  # fmt: skip
    return uvicorn.Server(config), f"{'https' if certificate else 'http'}://{host}:{port}"
