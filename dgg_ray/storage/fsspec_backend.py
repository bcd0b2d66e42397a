"""A storage backend at a URL: S3, Google's or Azure's object store, or whatever else fsspec can reach.

Credentials and endpoints come from the environment, as for the provider's own tools (for S3: AWS_PROFILE,
AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, or the machine's role). Neither a study nor a store that is sent to
another process holds any.

Creation is conditional on S3 (If-None-Match) and in memory, where it was tried (with S3's API, not with
Amazon's own servers). On Google (ifGenerationMatch) and Azure this is known from their packages' source
alone. On file systems without conditional creation, `create` looks first and then writes: two processes that
create the same object at the same moment may both succeed. `StageStore.check` detects a storage that
overwrites, but not that moment.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from dgg_ray.core.errors import PermanentStoreError, StoreError
from dgg_ray.storage import retry
from dgg_ray.storage.backend import DamagedError, StorageBackend, verify_files
from dgg_ray.storage.manifest import stage_key_of
from dgg_ray.storage.node_cache import NodeCache

READ_S = 60.0  # until a request without an answer is tried again
PARALLEL_READS, PARALLEL_COPIES = 32, 8
AZURE = ("abfs", "abfss", "az")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", **dict.fromkeys(AZURE, "azure")}  # pip's
TAGS = ("ETag", "md5Hash", "etag", "content_md5")  # these change with the content
TIMES = ("LastModified", "last_modified", "mtime", "created", "ino")  # all of them: a copy may keep some
REMEMBERED_STAGES = 50_000  # stages whose manifests are remembered, a few kilobytes each

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class FsspecBackend(StorageBackend):
    """Storage at a URL, by fsspec. It connects at the first request.

    cache: this node's copies of what was fetched.
    timeout_s: limit for a request with all its retries; None is retry.RETRY_S.
    remembered: manifests that this process has read, by stage and name.
    """

    url: str
    cache: NodeCache = field(default_factory=NodeCache)
    timeout_s: float | None = None
    remembered: OrderedDict[str, dict[str, bytes]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    is_local = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the address alone to another process, without connections and manifests."""
        return type(self), (self.url, self.cache, self.timeout_s)

    @cached_property
    def fs(self) -> Any:
        return connect(self.url, READ_S if self.timeout_s is None else min(READ_S, self.timeout_s / 2))

    @cached_property
    def root(self) -> str:
        return self.fs._strip_protocol(self.url)

    def path_of(self, name: str) -> str:
        return f"{self.root}/{name}"

    def with_timeout(self, seconds: float) -> FsspecBackend:
        return replace(self, timeout_s=seconds)

    # -- small objects -----------------------------------------------------------------------------

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        manifests = self.remembered.get(stage_key_of(name), {})
        if not fresh and name in manifests:
            return manifests[name]
        try:
            data = self.request(lambda: self.fs.cat_file(self.path_of(name)))
        except FileNotFoundError:
            return None
        if name.startswith("stages/"):
            self.remember(name, data)
        return data

    def remember(self, name: str, data: bytes) -> None:
        self.remembered.setdefault(stage_key_of(name), {})[name] = data
        if len(self.remembered) > REMEMBERED_STAGES:
            self.remembered.popitem(last=False)

    def remembered_manifests(self, key: str) -> Mapping[str, bytes]:
        return dict(self.remembered.get(key, {}))  # a copy: other threads add manifests

    def write(self, name: str, data: bytes) -> None:
        self.request(lambda: self.fs.pipe_file(self.path_of(name), data))

    def create(self, name: str, data: bytes, durable: bool = True) -> bool:
        try:
            self.request(lambda: self._create(self.path_of(name), data))
        except FileExistsError:
            # Perhaps our own earlier try created it, and its answer was lost.
            return self.read(name, fresh=True) == data
        return True

    def _create(self, path: str, data: bytes) -> None:
        parameters = signature(getattr(self.fs, "_pipe_file", self.fs.pipe_file)).parameters
        if "mode" in parameters:
            self.fs.pipe_file(path, data, mode="create")
        elif "overwrite" in parameters:
            self.fs.pipe_file(path, data, overwrite=False)
        elif self.fs.exists(path):
            raise FileExistsError(path)
        else:
            self.fs.pipe_file(path, data)

    def list_names(self, prefix: str) -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        folder, _, start = prefix.rpartition("/")
        options: dict[str, Any] = {"detail": True}
        if "prefix" in signature(getattr(self.fs, "_find", self.fs.find)).parameters:
            options["prefix"] = start
        try:
            entries = self.request(lambda: self.fs.find(self.path_of(folder).rstrip("/"), **options))
        except FileNotFoundError:
            return {}
        sizes = {path[len(self.root) + 1 :]: info["size"] or 0 for path, info in entries.items()}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        names = list(names)
        with ThreadPoolExecutor(min(PARALLEL_READS, len(names) or 1)) as pool:
            for name, data in zip(names, pool.map(self.read, names), strict=True):
                if data is not None:
                    yield name, data

    def remove(self, name: str) -> None:
        self.remembered.get(stage_key_of(name), {}).pop(name, None)
        with suppress(FileNotFoundError):
            self.request(lambda: self.fs.rm_file(self.path_of(name)))

    def modified_at(self, name: str) -> float | None:
        try:
            return self.request(lambda: self.fs.modified(self.path_of(name))).timestamp()
        except (FileNotFoundError, NotImplementedError, KeyError):
            return None

    # -- folders of files, and large files ---------------------------------------------------------

    def make_draft(self) -> Path:
        return self.cache.make_draft()

    def list_drafts(self) -> Iterator[Path]:
        yield from self.cache.folder.glob("drafts/*")

    def put_folder(self, draft: Path, folder: str) -> None:
        def upload_file(file: Path) -> None:
            self.fs.put_file(str(file), self.path_of(f"{folder}/{file.relative_to(draft).as_posix()}"))

        self.request_all(upload_file, [file for file in draft.rglob("*") if file.is_file()])
        with suppress(OSError):  # the next stage is probably trained on this node, but need not be
            self.cache.add(draft, f"{self.url}/{folder}")
            self.cache.trim()

    def open_folder(self, folder: str, checksums: Mapping[str, str]) -> Path:
        def fill(draft: Path) -> None:
            for file in checksums:
                (draft / file).parent.mkdir(parents=True, exist_ok=True)
            self.request_all(
                lambda file: self.fs.get_file(self.path_of(f"{folder}/{file}"), str(draft / file)),
                list(checksums),
            )

        last_error: Exception | None = None
        for _ in range(2):
            try:
                return self.cache.get(
                    f"{self.url}/{folder}", fill, lambda copy: verify_files(copy, checksums)
                )
            except (FileNotFoundError, DamagedError) as error:
                self.verify_stored(folder, checksums)
                last_error = error
        raise StoreError(
            f"the files of {folder} in {self.url} are intact, but their copies in "
            f"{self.cache.folder} are not ({last_error}). Check that disk and that nothing "
            f"cleans the folder, or name another folder as DGG_RAY_CACHE"
        ) from last_error

    def verify_stored(self, folder: str, checksums: Mapping[str, str]) -> None:
        """Raise DamagedError if the store itself lacks a file or returns it wrong twice.

        This node's disk has no part in it: a copy that is damaged here may be intact everywhere else.
        """

        def sha256_of(file: str) -> str:
            with self.fs.open(self.path_of(f"{folder}/{file}"), "rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()

        for file, expected in checksums.items():
            try:
                intact = any(self.request(partial(sha256_of, file)) == expected for _ in range(2))
            except FileNotFoundError:
                raise DamagedError(f"{file} is missing") from None
            if not intact:
                raise DamagedError(f"{file} differs from what was written")

    def remove_folder(self, folder: str) -> int:
        sizes = self.sizes(f"{folder}/")
        self.cache.remove(f"{self.url}/{folder}")
        self.request_all(self.remove, list(sizes))
        return sum(sizes.values())

    def upload(self, file: Path, name: str) -> None:
        self.request(lambda: self.fs.put_file(str(file), self.path_of(name)))

    def download(self, name: str) -> Path | None:
        file = self.make_draft() / "file"
        try:
            self.request(lambda: self.fs.get_file(self.path_of(name), str(file)))
        except FileNotFoundError:
            self.release(file)
            return None
        return file

    def release(self, file: Path) -> None:
        shutil.rmtree(file.parent, ignore_errors=True)

    # -- files that others stored there (data and models) ------------------------------------------

    def list_versions(self) -> dict[str, tuple[int, str]]:
        """Map every file's name to (bytes, version); the name is "" if the URL is a file itself.

        The version changes with the content. It is taken from the provider's listing.
        """
        try:
            entries = self.request(lambda: self.fs.find(self.root, detail=True))
            entries = entries or {self.root: self.request(lambda: self.fs.info(self.root))}
        except FileNotFoundError:
            return {}
        return {
            path[len(self.root) + 1 :]: (info["size"], version_of(info))
            for path, info in sorted(entries.items())
            if info["type"] == "file" and not path.endswith("/")
        }

    def download_files(self, files: Mapping[str, Path]) -> None:
        """Download each named file to its local path."""
        for folder in {file.parent for file in files.values()}:
            folder.mkdir(parents=True, exist_ok=True)

        def download_file(name: str) -> None:
            self.fs.get_file(self.path_of(name) if name else self.root, str(files[name]))

        self.request_all(download_file, list(files), PARALLEL_READS)

    # -- requests ----------------------------------------------------------------------------------

    def request(self, call: Callable[[], T]) -> T:
        """Return the call's result, retrying transient errors, also of the connection that it opens."""
        if (limit := self.timeout_s) is None:
            return retry.with_retries(call, self.url)
        return retry.with_retries(partial(retry.with_timeout, call, limit / 2), self.url, limit)

    def request_all(
        self, call: Callable[[Item], T], items: Sequence[Item], threads: int = PARALLEL_COPIES
    ) -> list[T]:
        """Make the call for every item, in parallel."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda item: self.request(partial(call, item)), items))


def version_of(info: Mapping[str, Any]) -> str:
    """Return the values in a provider's listing that change with the file."""
    tag = next((str(info[key]) for key in TAGS if info.get(key)), "")
    return tag or " ".join(str(info[key]) for key in TIMES if info.get(key))


def connect(url: str, seconds: float = READ_S) -> Any:
    """Return fsspec's file system for a URL; raise a StoreError if there is none.

    seconds: until a request without an answer fails, where the file system takes such a limit.
    """
    if fault := url_fault(url):
        raise PermanentStoreError(fault)
    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):  # retries happen here, and nowhere below
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": min(5.0, seconds),
            "read_timeout": seconds,
        }
    try:
        fs = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise PermanentStoreError(f"{url} cannot be opened: {error}") from error
    if scheme in ("s3", "s3a"):
        fs.retries = 1
    return fs


def url_fault(url: str) -> str:
    """Say, without connecting, why a URL cannot be used; empty if nothing speaks against it."""
    scheme, _, rest = url.partition("://")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        remedy = f"pip install 'dgg_ray[{EXTRAS[scheme]}]'" if scheme in EXTRAS else str(error)
        return f"{scheme}:// needs a package that is not installed: {remedy}"
    except ValueError:
        return f"fsspec does not support {scheme}://"
    user, at_sign, _ = rest.partition("/")[0].rpartition("@")
    if at_sign and (":" in user or scheme not in AZURE):  # Azure's URLs have CONTAINER@ACCOUNT
        return (
            f"a {scheme}:// URL with a user or password would travel with the study; remove it, and give "
            f"credentials in the environment, as the provider's own tools take them"
        )
    return "" if rest.strip("/") else f"{url} names no bucket"
