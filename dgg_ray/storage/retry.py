"""Requests over a network: what passes is tried again, what does not is told at once.

What passes: timeouts, refused connections, 5xx, 429, 409 (S3: two wrote at once). What does not: credentials,
no such bucket, not allowed; and faults of this machine, such as a full disk.
Providers have errors of their own; they are told apart by their codes and names, so that none is imported.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from dgg_ray.core.errors import Refused, StoreError

PATIENCE_S = 120.0
PAUSE_S, LONGEST_S = 0.2, 15.0  # the first pause, and the longest
FINAL = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError")
FINAL = (*FINAL, "DefaultCredentialsError", "ClientAuthenticationError", "ParamValidationError")
CONDITION = ("PreconditionFailed", "412")  # S3: it is there already
LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
PASSING = (408, 409, 425, 429)
NETWORK = {"OSError", "TimeoutError", "HTTPClientError", "ClientError", "BotoCoreError"}

T = TypeVar("T")


def ask(request: Callable[[], T], url: str, seconds: float | None = None) -> T:
    """What it gives, tried again while that can help; FileNotFoundError and FileExistsError pass."""
    seconds = PATIENCE_S if seconds is None else seconds
    until, pause = time.monotonic() + seconds, PAUSE_S
    while True:
        try:
            return request()
        except StoreError:
            raise
        except Exception as error:
            if taken(error):
                raise FileExistsError(str(error)) from error
            if why := final(error, url):
                raise Refused(why) from error
            if isinstance(error, FileNotFoundError) or not passes(error):
                raise
            if time.monotonic() + pause > until:
                raise StoreError(
                    f"{url} did not answer as it should for {seconds:.0f} s: {said(error)}. See whether it "
                    f"can be reached from this machine, then run the study again: it goes on"
                ) from error
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_S)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__


def code(error: BaseException) -> str:
    """The provider's code of an error, such as NoSuchBucket; empty where it gives none."""
    for one in causes(error):
        if isinstance(response := getattr(one, "response", None), dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def status(error: BaseException) -> int:
    """The HTTP status of an error; 0 where it has none."""
    for one in causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for name in ("status_code", "status", "code"):
            if isinstance(found := getattr(one, name, None), int):
                return found
    return 0


def taken(error: BaseException) -> bool:
    """Whether it says that something is there already."""
    return isinstance(error, FileExistsError) or code(error) in CONDITION or status(error) == 412


def final(error: BaseException, url: str) -> str:
    """What to do about an error that another try cannot cure; empty where one may."""
    if code(error) == "NoSuchBucket" or "bucket does not exist" in str(error):
        return f"{url}: there is no such bucket; make it, or name another one"
    if code(error) == "RequestTimeTooSkewed":
        return f"{url}: the clocks of this machine and of the store are apart; set this machine's clock (NTP)"
    if local(error):
        return (
            f"this machine failed, not {url}: {said(error)}. Free some space there or name another folder as "
            f"DGG_RAY_CACHE, or see to its disk or its limit of open files"
        )
    named = {kind.__name__ for one in causes(error) for kind in type(one).__mro__}
    if isinstance(error, PermissionError) or status(error) in (401, 403) or named & set(FINAL):
        return (
            f"{url}: not allowed ({said(error)}); give this machine credentials that may list and read there "
            f"(and for a store write and remove), in the environment as the provider's own tools take them"
        )
    return ""


def local(error: BaseException) -> bool:
    """Whether this machine's disk or limits are at fault: of a request that was answered neither is."""
    return isinstance(error, OSError) and error.errno in LOCAL and error.__cause__ is None


def passes(error: BaseException) -> bool:
    """Whether the error may be gone at another try."""
    if found := status(error):
        return found >= 500 or found in PASSING
    ours = isinstance(error, OSError) and error.filename is not None  # a local file's
    named = {kind.__name__ for one in causes(error) for kind in type(one).__mro__}
    return not ours and bool(named & NETWORK)


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def within(request: Callable[[], T], seconds: float) -> T:
    """What it gives; TimeoutError where that takes longer. A client's own timeouts do not cover all of a
    request: aiohttp's do not cover the wait for leave to send."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(seconds)
