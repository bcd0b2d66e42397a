"""The retry policy for requests over a network: retry transient errors, report permanent ones at once.

Transient: timeouts, refused connections, HTTP 5xx, 429, and 409 (S3: two writers at once). Permanent: missing
credentials, a missing bucket, no permission; and faults of this machine, such as a full disk.
Every provider has its own error classes. They are recognised by code and name, so none is imported.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from dgg_ray.core.errors import PermanentStoreError, StoreError

RETRY_S = 120.0  # until a request that keeps failing is reported
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 15.0  # bounds of the random pause before the second and a late try
CREDENTIAL_ERRORS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "ParamValidationError",
}
EXISTS_CODES = ("PreconditionFailed", "412")  # S3: the object exists already
LOCAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
TRANSIENT_STATUS = (408, 409, 425, 429)
NETWORK_ERRORS = {"OSError", "TimeoutError", "HTTPClientError", "ClientError", "BotoCoreError"}

T = TypeVar("T")


def with_retries(request: Callable[[], T], url: str, seconds: float | None = None) -> T:
    """Return the request's result, retrying transient errors for up to `seconds`.

    FileNotFoundError and FileExistsError are raised as they are. Other permanent errors that a user can mend
    become a StoreError that says how.
    """
    limit = RETRY_S if seconds is None else seconds
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_before_delay(limit),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
    )
    try:
        return retrying(classify_errors, request, url)
    except RetryError as failed:
        last = failed.last_attempt.exception()
        raise StoreError(
            f"{url} failed for {limit:.0f} s: {describe_error(last)}. Check that this machine can reach it, "
            f"then run the study again: it resumes"
        ) from last


def classify_errors(request: Callable[[], T], url: str) -> T:
    """Make the request; turn a permanent error into FileExistsError or a StoreError with the remedy."""
    try:
        return request()
    except StoreError:
        raise
    except Exception as error:
        if exists_already(error):
            raise FileExistsError(str(error)) from error
        if reason := permanent_reason(error, url):
            raise PermanentStoreError(reason) from error
        raise


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and the chain of errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def provider_code(error: BaseException) -> str:
    """Return the provider's code for an error, such as NoSuchBucket; empty if it gives none."""
    for cause in causes(error):
        if isinstance(response := getattr(cause, "response", None), dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def http_status(error: BaseException) -> int:
    """Return the HTTP status of an error; 0 if it has none."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for attribute in ("status_code", "status", "code"):
            if isinstance(status := getattr(cause, attribute, None), int):
                return status
    return 0


def class_names(error: BaseException) -> set[str]:
    """Return the names of all classes of the error and its causes."""
    return {kind.__name__ for cause in causes(error) for kind in type(cause).__mro__}


def exists_already(error: BaseException) -> bool:
    """Tell whether the error means that the object to create exists already."""
    return (
        isinstance(error, FileExistsError)
        or provider_code(error) in EXISTS_CODES
        or http_status(error) == 412
    )


def permanent_reason(error: BaseException, url: str) -> str:
    """Say how to mend an error that no retry can cure; empty if a retry may cure it."""
    if provider_code(error) == "NoSuchBucket" or "bucket does not exist" in str(error):
        return f"{url}: the bucket does not exist; create it, or name another one"
    if provider_code(error) == "RequestTimeTooSkewed":
        return f"{url}: the clocks of this machine and of the store differ; set this machine's clock (NTP)"
    if is_local_fault(error):
        return (
            f"this machine failed, not {url}: {describe_error(error)}. Free some space there, name another "
            f"folder as DGG_RAY_CACHE, or check its disk and its limit of open files"
        )
    if (
        isinstance(error, PermissionError)
        or http_status(error) in (401, 403)
        or class_names(error) & CREDENTIAL_ERRORS
    ):
        return (
            f"{url}: access denied ({describe_error(error)}); give this machine credentials that may "
            f"list and read there (and for a store write and remove), in the environment, as the "
            f"provider's own tools take them"
        )
    return ""


def is_local_fault(error: BaseException) -> bool:
    """Tell whether this machine's disk or limits are at fault: no answer of a server caused the error."""
    return isinstance(error, OSError) and error.errno in LOCAL_ERRNOS and error.__cause__ is None


def is_transient(error: BaseException) -> bool:
    """Tell whether another try may succeed."""
    if isinstance(error, StoreError | FileNotFoundError | FileExistsError):
        return False
    if status := http_status(error):
        return status >= 500 or status in TRANSIENT_STATUS
    of_local_file = isinstance(error, OSError) and error.filename is not None
    return not of_local_file and bool(class_names(error) & NETWORK_ERRORS)


def describe_error(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"


def with_timeout(request: Callable[[], T], seconds: float) -> T:
    """Return the request's result; raise TimeoutError after so many seconds.

    A client's own timeouts do not cover all of a request: aiohttp's do not cover the wait for permission to
    send. The request goes on in a daemon thread, as nothing can stop it.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return answer.result(seconds)
