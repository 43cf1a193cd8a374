"""Strangers who want to stop the page: many connections at once, each renewed as soon as it is closed.

python strangers.py KIND PORT COUNT ADDRESS    until it is killed; it connects from ADDRESS (127.0.0.2, say) to 127.0.0.1
"""

import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HEAD = b"POST /api/answers HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
KINDS = {
    "silent": b"",  # before a TLS handshake, or before a request
    "head": HEAD,
    "body": HEAD + b'Content-Length: 60000\r\n\r\n{"question":',
    "drip": HEAD + b"X: ",  # goes on, a byte a second
    "pipeline": b"GET /static/label.js HTTP/1.1\r\nHost: x\r\n\r\n" * 500,  # and reads no answer
    "flood": b"GET /api/next HTTP/1.1\r\nHost: x\r\n\r\n",  # again and again, as soon as there is an answer
}


class Strangers:
    """`count` connections of one kind, from one address."""

    def __init__(self, kind: str, port: int, count: int, address: str = "127.0.0.2") -> None:
        self.kind, self.port, self.count, self.address = kind, port, count, address
        self.selector = selectors.DefaultSelector()
        self.closed = 0  # by the server
        self.refused = 0
        self.stopped = False

    def run(self) -> None:
        """Attack until `stopped`."""
        dripped = time.monotonic()
        while not self.stopped:
            while len(self.selector.get_map()) < self.count and self._one_more():
                pass
            for key, _ in self.selector.select(0.05):
                self._hear(key.fileobj)  # type: ignore[arg-type]
            if self.kind == "drip" and time.monotonic() > dripped + 1:
                dripped = time.monotonic()
                for key in list(self.selector.get_map().values()):
                    self._send(key.fileobj, b"x")  # type: ignore[arg-type]
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()

    def _one_more(self) -> bool:
        made = socket.socket()
        made.settimeout(5)
        made.bind((self.address, 0))
        try:
            made.connect(("127.0.0.1", self.port))
        except OSError:
            made.close()
            self.refused += 1
            return False
        made.setblocking(False)
        self.selector.register(made, selectors.EVENT_READ if self.kind != "pipeline" else selectors.EVENT_WRITE)
        self._send(made, KINDS[self.kind])
        return True

    def _send(self, connection: socket.socket, data: bytes) -> None:
        with suppress(OSError):  # full, or closed: that is seen when it is read from
            connection.send(data)

    def _hear(self, connection: socket.socket) -> None:
        try:
            if self.kind == "pipeline":
                connection.send(KINDS["pipeline"])
                return
            heard = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if heard and self.kind == "flood":
            self._send(connection, KINDS["flood"])
        elif not heard:
            self.selector.unregister(connection)
            connection.close()
            self.closed += 1


@contextmanager
def strangers(kind: str, port: int, count: int = 300, address: str = "127.0.0.2") -> Iterator[Strangers]:
    """Strangers at work, in a thread, as long as the block lasts."""
    made = Strangers(kind, port, count, address)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.stopped = True
        thread.join()


def connected(port: int, sent: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(address, 0))
    made.sendall(sent)
    return made


def seconds_till_closed(connection: socket.socket, drip: bytes = b"") -> float:
    """How long the other side bears it, if there is one more byte every half second."""
    begun = time.monotonic()
    connection.settimeout(0.5)
    while time.monotonic() - begun < 30:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.close()
    return time.monotonic() - begun


if __name__ == "__main__":
    Strangers(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]).run()
