"""URLs, reached by fsspec: which can be, and the file system behind one."""

from __future__ import annotations

from typing import Any

import fsspec

from dgg_ray.core.errors import Refused

READ_S = 60.0  # until a request that is not answered is tried again
AZURE = ("abfs", "abfss", "az")


def connected(url: str, seconds: float = READ_S) -> Any:
    """fsspec's file system for a URL; Refused where there is none. seconds: until a request that is not
    answered fails, where that can be said."""
    if why := fault(url):
        raise Refused(why)
    kind = url.partition("://")[0]
    options: dict[str, Any] = {}
    if kind in ("s3", "s3a"):  # tried again here, and nowhere below
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": min(5.0, seconds),
            "read_timeout": seconds,
        }
    try:
        fs = fsspec.filesystem(kind, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise Refused(f"{url} cannot be reached: {error}") from error
    if kind in ("s3", "s3a"):
        fs.retries = 1
    return fs


def fault(url: str) -> str:
    """Why nothing can be kept or read at that URL; empty where there can. Nothing is connected."""
    kind, _, rest = url.partition("://")
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        extra = {
            "s3": "s3",
            "s3a": "s3",
            "gs": "gcs",
            "gcs": "gcs",
            **dict.fromkeys(AZURE, "azure"),
        }
        how = f"pip install 'dgg_ray[{extra[kind]}]'" if kind in extra else str(error)
        return f"{kind}:// needs a package that is not installed: {how}"
    except ValueError:
        return f"fsspec knows no {kind}://"
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in user or kind not in AZURE):  # Azure's have CONTAINER@ACCOUNT
        return (
            f"a {kind}:// URL with a user or password would travel with the study; take it out, and give "
            f"credentials in the environment, as the provider's own tools take them"
        )
    return "" if rest.strip("/") else f"{url} names no bucket"
