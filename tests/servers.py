"""What the tests of stores on other machines need: an S3 server on this one, and a wire that can be cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[int]:
    """Its port. It allows everything to everybody, and forgets everything at its end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENVIRONMENT,
    )
    try:
        for _ in range(600):
            with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


class Wire:
    """Passes connections on to a port: as it is told, late, with a 503 in its place, or not at all."""

    def __init__(self, to: int) -> None:
        self.to, self.port, self.delay, self.busy = to, free_port(), 0.0, 0
        self.asked = 0  # connections that came
        self.listening: socket.socket | None = None
        self.open()

    def open(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.listen, args=(self.listening,), daemon=True).start()

    def cut(self) -> None:
        """Refuse what comes from now on."""
        if self.listening is not None:
            with suppress(OSError):
                self.listening.shutdown(socket.SHUT_RDWR)
            self.listening.close()
            self.listening = None

    def listen(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                came, _ = listening.accept()
                threading.Thread(target=self.serve, args=(came,), daemon=True).start()

    def serve(self, came: socket.socket) -> None:
        self.asked += 1
        time.sleep(self.delay)
        with closing(came), suppress(OSError):
            if self.busy > 0:
                self.busy -= 1
                came.recv(65536)
                came.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with closing(socket.create_connection(("127.0.0.1", self.to))) as there:
                back = threading.Thread(target=self.copy, args=(there, came), daemon=True)
                back.start()
                self.copy(came, there)
                back.join()

    @staticmethod
    def copy(of: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := of.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
