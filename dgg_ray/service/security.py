"""Access to the server: users, the hosts they come from, and limits on what they ask at once.

    token      `Authorization: Bearer TOKEN`, or the cookie that logging in sets (HttpOnly, SameSite=Strict)
    CSRF       a request that changes something and comes with the cookie must carry the page's CSRF token
    limits     bytes of a body, requests of a user per second, streams of a user and of all
    headers    a content security policy without inline scripts and styles, and what belongs to it

Without users the only way in is the token that the server printed when it started; `open` lets everybody in,
for a server that is bound to loopback alone.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgg_ray.service import accounts
from dgg_ray.service.journal import Journal
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.state import Role, User

COOKIE, CSRF_HEADER = "dgg_ray_token", "x-csrf-token"
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_BODY = 2_000_000  # bytes; a study's text has at most 2²⁰ characters
BODY_S = 20.0  # for a body to arrive
RATE, BURST = 50.0, 300.0  # requests of a user per second, and at once
LOGIN_RATE, LOGIN_BURST = 1.0, 10.0  # of wrong tokens from an address
STREAMS_OF_USER, STREAMS = 60, 500
CALLERS = 10_000  # that are remembered
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Buckets:
    """A token bucket for each caller: so many requests a second, and a burst."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.lock = rate, burst, threading.Lock()
        self.levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller → (left, at)

    def take(self, caller: str) -> bool:
        """Take one; False where none is left."""
        with self.lock:
            now = time.monotonic()
            left, at = self.levels.pop(caller, (self.burst, now))
            left = min(self.burst, left + (now - at) * self.rate)
            self.levels[caller] = (left - 1 if left >= 1 else left, now)
            if len(self.levels) > CALLERS:
                self.levels.popitem(last=False)
            return left >= 1


@dataclass
class Access:
    """Decides who a request is from.

    start_token: the token that the server printed; its holder is `local`, an admin. open_to_all: no token is
    asked for.
    """

    journal: Journal
    start_token: str = ""
    open_to_all: bool = False
    requests: Buckets = field(default_factory=lambda: Buckets(RATE, BURST))
    wrong: Buckets = field(default_factory=lambda: Buckets(LOGIN_RATE, LOGIN_BURST))
    streams: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def local_user(self) -> User:
        return User(accounts.LOCAL, "admin", "", "", {}, 0.0, "")

    def user_of_token(self, token: str) -> User | None:
        if self.start_token and hmac.compare_digest(token.encode(), self.start_token.encode()):
            return self.local_user()
        state = self.journal.catch_up(at_once=False)
        with self.journal.lock:
            return accounts.user_of(state, token)

    def user(self, request: Request, role: Role, csrf: str = "") -> User:
        """The user of a request, who may do what the role may do; RefusedError for others.

        csrf: the page's CSRF token from a form's field; without it, the header's counts.
        """
        if self.open_to_all:
            check_origin(request)
            return self.within_rate(self.local_user())
        token, by_cookie = token_of(request)
        user = self.user_of_token(token) if token else None
        if user is None:
            if token:
                self.count_wrong(address_of(request))
            raise RefusedError("needs a token: `Authorization: Bearer TOKEN`, or log in", 401)
        self.within_rate(user)
        if by_cookie and request.method not in SAFE:
            given = csrf or request.headers.get(CSRF_HEADER, "")
            if not hmac.compare_digest(given.encode(), csrf_of(token).encode()):
                raise RefusedError("needs the page's CSRF token; reload the page", 403)
        if not accounts.may(user, role):
            raise RefusedError(f"needs the role {role}; {user.name} has {user.role}", 403)
        return user

    def within_rate(self, user: User) -> User:
        """Return the user; RefusedError for too many requests. Behind a proxy all share one address."""
        if not self.requests.take(user.name):
            raise RefusedError("too many requests; slow down", 429)
        return user

    def log_in(self, request: Request, token: str) -> bool:
        """Return whether the token is a user's; RefusedError after too many that were not."""
        if self.user_of_token(token) is not None:
            return True
        self.count_wrong(address_of(request))
        return False

    def count_wrong(self, caller: str) -> None:
        if not self.wrong.take(caller):
            raise RefusedError("too many wrong tokens; wait", 429)

    def check_streams(self, user: User) -> None:
        """Raise RefusedError where the user, or all together, have too many open streams."""
        with self.lock:
            if self.streams.get(user.name, 0) >= STREAMS_OF_USER or sum(self.streams.values()) >= STREAMS:
                raise RefusedError("too many open streams; close other pages", 429)

    @contextmanager
    def stream(self, user: User) -> Iterator[None]:
        """Count a stream of the user in the block."""
        with self.lock:
            self.streams[user.name] = self.streams.get(user.name, 0) + 1
        try:
            yield
        finally:
            with self.lock:
                self.streams[user.name] -= 1


def token_of(request: Request) -> tuple[str, bool]:
    """Return (token, whether it came as a cookie)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip(), False
    return request.cookies.get(COOKIE, ""), True


def csrf_of(token: str) -> str:
    """The CSRF token of a session, which pages carry."""
    return hashlib.sha256(f"csrf {token}".encode()).hexdigest()


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def check_origin(request: Request) -> None:
    """Refuse what another site's page sends to an open server: a browser says where it comes from."""
    site = request.headers.get("sec-fetch-site", "none")
    if request.method not in SAFE and site not in ("none", "same-origin"):
        raise RefusedError("refused: another site's page sent this", 403)


class Guard:
    """ASGI middleware: headers on every answer, and limits on every request's body."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = ()) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._host_is_known(headers.get(b"host", b"")):
            await refuse(send, 421, "this server has another name")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await refuse(send, 413, f"a body may have {MAX_BODY:,} bytes")
            return
        await self.app(scope, limited(receive), with_headers(send))

    def _host_is_known(self, host: bytes) -> bool:
        """Return whether the request is for this server; another site may have its name point here."""
        if not self.hosts:
            return True
        name = host.decode("latin-1").rsplit(":", 1)[0] if host.count(b":") == 1 else host.decode("latin-1")
        return name.strip("[]").split("]")[0] in self.hosts


def limited(receive: Receive) -> Receive:
    """Pass a body on as long as it is short enough and arrives in time."""
    import asyncio

    size, deadline, ended = 0, time.monotonic() + BODY_S, deque[bool](maxlen=1)

    async def receive_limited() -> Message:
        nonlocal size
        if ended:
            return await receive()  # waits for the end of the connection
        try:
            message = await asyncio.wait_for(receive(), max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                ended.append(True)
            if size > MAX_BODY:
                raise HTTPException(413, f"a body may have {MAX_BODY:,} bytes")  # FastAPI passes this kind on
        return message

    return receive_limited


def with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            extra = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return send_with_headers


async def refuse(send: Send, status: int, text: str) -> None:
    import json

    body = json.dumps({"type": "about:blank", "title": text, "status": status, "detail": text}).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
