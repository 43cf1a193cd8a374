"""The page behind nginx and Caddy, as docs/proxy has them, under a prefix; and what the options of `rather serve` let through."""

import os
import random
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import press, shown
from playwright.sync_api import Browser, Response, expect
from process import Server, answer, listens, person, until
from starlette.responses import JSONResponse
from strangers import KINDS, connected, seconds_till_closed, strangers

from conftest import app_served
from rather.errors import ConfigError
from rather.store import Store
from rather.web.project import Project
from rather.web.serve import server

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "proxy"


def free_port() -> int:
    while True:  # below those that the system gives to outgoing connections, which may take one before the proxy does
        with suppress(OSError), socket.socket() as free:
            free.bind(("", random.randrange(20_000, 32_000)))
            return free.getsockname()[1]


def replaced(text: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        assert old in text, f"the page of docs has no {old!r}"
        text = text.replace(old, new)
    return text


def nginx(folder: Path, page: int, plain: int, tls: int, files: tuple[str, str]) -> list[str]:
    text = replaced(
        (DOCS / "nginx.conf").read_text(),
        {
            "/run/nginx.pid": str(folder / "nginx.pid"), "/var/log/nginx/error.log": str(folder / "error.log"),
            "/etc/ssl/example.org.pem": files[0], "/etc/ssl/example.org.key": files[1], "listen 80;": f"listen 127.0.0.1:{plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{tls} ssl;", "https://example.org": f"https://localhost:{tls}",
            "server_name example.org;": "server_name localhost;", "127.0.0.1:8008": f"127.0.0.1:{page}",
        },
    )  # fmt: skip
    (folder / "nginx.conf").write_text(text)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]


def caddy(folder: Path, page: int, plain: int, tls: int, files: tuple[str, str]) -> list[str]:
    text = replaced(
        (DOCS / "Caddyfile").read_text(),
        {
            "\n{\n": f"\n{{\n\tadmin off\n\thttp_port {plain}\n\thttps_port {tls}\n",
            "\nexample.org {\n": f"\nhttps://localhost:{tls} {{\n\ttls {files[0]} {files[1]}\n",
            "127.0.0.1:8008": f"127.0.0.1:{page}",
        },
    )
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def proxied(kind: Callable[..., list[str]], folder: Path, files: tuple[str, str]) -> Iterator[tuple[Server, int, int]]:
    """The run in `folder` behind that proxy: the page's own process, and the proxy's ports without and with TLS."""
    if shutil.which(kind.__name__) is None:
        pytest.skip(f"needs Debian's {kind.__name__}")
    plain, tls = free_port(), free_port()
    with Server(folder, "--url", f"https://localhost:{tls}/labels") as page, (folder / "proxy.log").open("w") as log:
        command = kind(folder, page.port, plain, tls, files)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)})
        try:
            until(lambda: listens(tls) or process.poll() is not None, 20)
            assert process.poll() is None, (folder / "proxy.log").read_text()
            yield page, plain, tls
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize("kind", [nginx, caddy])
def test_people_answer_behind_a_proxy_under_a_prefix(
    chromium: Browser,
    run: Store,
    tmp_path: Path,
    certificate: tuple[str, str],
    kind: Callable[..., list[str]],
) -> None:
    with proxied(kind, tmp_path, certificate) as (page, _, tls):
        outer = f"https://localhost:{tls}/labels"
        assert page.link.startswith(f"{outer}/join#"), "the link is one that people can open"
        context = chromium.new_context(ignore_https_errors=True)
        failed: list[str] = []

        def note(found: Response) -> None:
            if found.status >= 400:
                failed.append(f"{found.status} {found.url}")

        context.on("response", note)
        owner = context.new_page()
        owner.goto(page.link)
        expect(owner).to_have_url(re.compile(f"{outer}/owner/[0-9]+"))
        owner.get_by_label("Invite somebody").fill("Ann")
        expect(owner.get_by_role("button", name="Make a link")).to_be_enabled()
        owner.keyboard.press("Enter")
        expect(owner.locator("#link")).to_have_value(re.compile(f"{outer}/join#"))
        link = owner.locator("#link").input_value()
        ann = chromium.new_context(ignore_https_errors=True)
        ann.on("response", note)
        view = ann.new_page()
        view.goto(link)
        expect(view).to_have_url(re.compile(f"{outer}/label/[0-9]+"))
        (cookie,) = ann.cookies()
        assert cookie.get("secure")
        assert cookie.get("httpOnly")
        first = shown(view)
        press(view, "1")
        until(lambda: len(run.labels("r")) == 1)
        press(view, "u")
        assert shown(view) == first
        until(lambda: run.labels("r") == [])
        for _ in range(3):
            press(view, "=")
        until(lambda: [x.judge for x in run.labels("r")] == ["Ann"] * 3)
        owner.get_by_role("button", name="Revoke Ann").click()
        expect(owner.get_by_role("button", name="Revoke Ann")).to_have_count(0)
        assert failed == []
        redirected = httpx.get(f"{outer}", verify=False)
        assert (redirected.status_code // 100, redirected.headers["location"].removeprefix(f"https://localhost:{tls}")) == (
            3,
            "/labels/",
        )
        assert link.partition("#")[2] not in "".join(f.read_text() for f in tmp_path.glob("*.log")), "no log knows the secret"
        ann.close()
        context.close()


@pytest.mark.parametrize("kind", [nginx, caddy])
def test_strangers_at_the_proxy_change_nothing(
    run: Store,
    tmp_path: Path,
    certificate: tuple[str, str],
    kind: Callable[..., list[str]],
) -> None:
    with proxied(kind, tmp_path, certificate) as (page, plain, tls):
        trusting = ssl.create_default_context(cafile=certificate[0])
        with (
            strangers("silent", tls, 150),
            strangers("head", plain, 150),
            strangers("body", plain, 150),
            person(page, verify=trusting) as client,
        ):
            base = str(client.base_url)
            assert base.startswith(f"https://localhost:{tls}/labels")
            for _ in range(10):
                answer(client)
            with trusting.wrap_socket(connected(tls), server_hostname="localhost") as inside:
                inside.sendall(KINDS["head"])
                assert 8 < seconds_till_closed(inside) < 14
            answer(client)
            too_long = client.post("api/undo", content=b" " * 140_000).status_code
            # Caddy passes a body on while it comes: it may meet its own limit when the page has refused and closed already.
            assert too_long == 413 or (kind is caddy and too_long == 502)
    assert len(run.labels("r")) == 11


async def told(scope: Any, receive: Any, send: Any) -> None:
    """An app that says what it is told of a request."""
    if scope["type"] == "http":
        found = {k: scope[k] for k in ("scheme", "path", "root_path")} | {"client": scope["client"][0]}
        host = [v.decode() for k, v in scope["headers"] if k == b"host"]
        await JSONResponse(found | {"host": host})(scope, receive, send)


FORGED = {
    "X-Forwarded-For": "6.6.6.6, 9.9.9.9",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Prefix": "/evil",
}


@pytest.mark.parametrize("path", ["/labels/api/next", "/api/next"])
def test_only_a_proxy_says_who_asks_and_nobody_says_where(path: str) -> None:
    ours = {"scheme": "https", "host": ["example.org"], "root_path": "/labels", "path": "/labels/api/next"}
    with app_served(told, "https://example.org/labels", ("127.0.0.3", "127.0.0.4/31")) as port:
        for address, client in (("127.0.0.2", "127.0.0.2"), ("127.0.0.3", "9.9.9.9"), ("127.0.0.5", "9.9.9.9"), ("127.0.0.6", "127.0.0.6")):
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as asking:
                found = asking.get(f"http://127.0.0.1:{port}{path}", headers=FORGED | {"Host": "evil.example"}).json()
                assert found == ours | {"client": client}
    with app_served(told) as port:
        found = httpx.get(f"http://127.0.0.1:{port}{path}", headers=FORGED).json()
        assert found == {"scheme": "http", "path": path, "root_path": "", "client": "127.0.0.1", "host": [f"127.0.0.1:{port}"]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host": "0.0.0.0"}, "--certificate"),
        ({"host": "0.0.0.0", "url": "https://example.org", "behind_proxy": "10.0.0.5"}, "add --insecure"),
        ({"host": "8.8.8.8", "url": "https://example.org", "behind_proxy": "10.0.0.5"}, "add --insecure"),
        ({"host": "somewhere", "url": "https://example.org", "behind_proxy": "10.0.0.5"}, "add --insecure"),
        ({"host": "10.0.0.2", "url": "https://example.org"}, "--behind-proxy ADDRESS"),
        ({"url": "http://example.org"}, "in the clear to http://example.org"),
        ({"behind_proxy": "10.0.0.5"}, "needs --url"),
        ({"url": "https://example.org", "behind_proxy": "10.0.0.256"}, "neither an address nor a network"),
        ({"url": "example.org/labels"}, "no address of a page"),
        ({"url": "https://example.org/labels?x"}, "no address of a page"),
        ({"url": "https://example.org/../labels"}, "no address of a page"),
        ({"url": "https://user@example.org"}, "no address of a page"),
        ({"url": "https://bücher.example"}, "no address of a page"),
        ({"certificate": "missing.pem"}, "the certificate missing.pem"),
        ({"host": "10.255.255.254", "insecure": True}, "cannot listen at 10.255.255.254"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_a_sentence(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    store = Store(str(tmp_path / "store.db"))
    with pytest.raises(ConfigError, match=reason) as error:
        server(store, Project("r", "?"), **({"host": "127.0.0.1", "port": 0} | options))
    assert "\n" not in str(error.value)
    store.close()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"host": "0.0.0.0", "insecure": True}, "http://0.0.0.0:"),
        ({"host": "::1"}, "http://[::1]:"),
        ({"url": "https://Example.org:443/labels/"}, "https://example.org/labels"),
        ({"url": "https://example.org:8443"}, "https://example.org:8443"),
        ({"url": "http://localhost:80"}, "http://localhost"),
        ({"url": "http://example.org", "insecure": True}, "http://example.org"),
    ],
)
def test_the_address_that_people_open(tmp_path: Path, options: dict[str, Any], shown: str) -> None:
    store = Store(str(tmp_path / "store.db"))
    serving, url = server(store, Project("r", "?"), **({"host": "127.0.0.1", "port": 0} | options))
    serving.listener.close()
    store.close()
    assert url.startswith(shown)
    assert url == shown or shown.endswith(":")


def test_a_private_address_needs_no_flag_behind_a_named_proxy(tmp_path: Path) -> None:
    own = socket.gethostbyname(socket.gethostname())
    store = Store(str(tmp_path / "store.db"))
    try:
        serving, url = server(store, Project("r", "?"), own, 0, url="https://example.org", behind_proxy="10.0.0.0/8,127.0.0.1")
        serving.listener.close()
        assert url == "https://example.org"
    except ConfigError as e:
        assert "add --insecure" in str(e), "this machine has no private address"  # noqa: PT017
    store.close()


def test_a_taken_port_burns_no_link(run: Store, tmp_path: Path, rather: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rather("serve", "run.toml", "--port", str(port), code=2)
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in done.stderr
        assert "/join#" not in done.stdout
    with Server(tmp_path) as server:
        assert "/join#" in server.log.read_text(), "the link is made where it can be used"
