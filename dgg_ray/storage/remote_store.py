"""A store on S3, Google's or Azure's object store, or anything else that fsspec can reach by a URL.

Credentials and endpoints are taken from the environment, as the provider's own tools do (for S3 AWS_PROFILE,
AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, or the machine's role); none are in a study or in a store that travels.

Creation is conditional on S3 (If-None-Match) and in memory, where it was tried (S3's API, not Amazon's own
servers), and by reading their packages' source alone on Google (ifGenerationMatch) and Azure. Where a file
system offers none, `create` looks first and then writes: two that do so within the same moment may both be
told that they were first. `check` finds a place that overwrites, not that moment.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from dgg_ray.core.errors import StoreError
from dgg_ray.core.stage import Evaluation, WorkItem
from dgg_ray.storage import manifest, retry
from dgg_ray.storage.backend import Damaged, Objects, verify
from dgg_ray.storage.manifest import key_of, name_of
from dgg_ray.storage.node_cache import CACHE_GB, Cache
from dgg_ray.storage.reach import READ_S, connected
from dgg_ray.storage.stage_store import StageStore

CHECK_S = 8.0  # patience of a check, which is to tell within seconds
AT_ONCE = 32  # requests
TAGS = ("ETag", "md5Hash", "etag", "content_md5")  # change with the content
TIMES = ("LastModified", "last_modified", "mtime", "created", "ino")  # all of them: a copy may keep some
REMEMBERED = 50_000  # stages whose manifests are remembered, some kilobytes each

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteStore(StageStore):
    """Finished stages at a URL. What a process has read it takes as there; for what it has not, it asks.

    cache_gb: of this node's disk, for files that were fetched.
    """

    folder: Path = field(init=False, repr=False, default=Path())
    address: str = ""
    cache_gb: float = CACHE_GB

    @cached_property
    def objects(self) -> Url:  # type: ignore[override]
        return Url(self.address.rstrip("/"), Cache(gigabytes=self.cache_gb))

    def missing(self, item: WorkItem) -> tuple[Evaluation, ...] | None:
        read = dict(self.objects.remembered.get(item.stage.key, {}))  # other threads add to it
        if (stage := name_of(item.stage.key)) in read:
            sat = [manifest.unseal(data)["record"] for name, data in read.items() if name != stage]
            known = {cell["evaluation"] for sitting in sat for cell in sitting["cells"]}
            if all(evaluation.key in known for evaluation in item.evaluations):
                return ()
        return super().missing(item)

    def check(self) -> None:
        hasty = copy(self)
        vars(hasty)["objects"] = replace(self.objects, patience=CHECK_S)
        super(RemoteStore, hasty).check()


@dataclass
class Url(Objects):
    """At a URL, by fsspec. Connects when it is first asked for something."""

    url: str
    cache: Cache = field(default_factory=Cache)
    patience: float | None = None  # seconds; None is patience.PATIENCE_S
    remembered: OrderedDict[str, dict[str, bytes]] = field(default_factory=OrderedDict, repr=False)

    near = False

    @cached_property
    def fs(self) -> Any:
        return connected(self.url, READ_S if self.patience is None else min(READ_S, self.patience / 2))

    @cached_property
    def root(self) -> str:
        return self.fs._strip_protocol(self.url)

    def at(self, name: str) -> str:
        return f"{self.root}/{name}"

    # -- small objects -----------------------------------------------------------------------------

    def read(self, name: str, fresh: bool = False) -> bytes | None:
        kept = self.remembered.get(key_of(name), {})
        if not fresh and name in kept:
            return kept[name]
        try:
            data = self.ask(lambda: self.fs.cat_file(self.at(name)))
        except FileNotFoundError:
            return None
        if name.startswith("stages/"):
            self.remember(name, data)
        return data

    def remember(self, name: str, data: bytes) -> None:
        self.remembered.setdefault(key_of(name), {})[name] = data
        if len(self.remembered) > REMEMBERED:
            self.remembered.popitem(last=False)

    def write(self, name: str, data: bytes) -> None:
        self.ask(lambda: self.fs.pipe_file(self.at(name), data))

    def create(self, name: str, data: bytes, lasting: bool = True) -> bool:
        try:
            self.ask(lambda: self._create(self.at(name), data))
        except FileExistsError:
            # Of our own try before the last one, perhaps, whose answer was lost.
            return self.read(name, fresh=True) == data
        return True

    def _create(self, path: str, data: bytes) -> None:
        names = signature(getattr(self.fs, "_pipe_file", self.fs.pipe_file)).parameters
        if "mode" in names:
            self.fs.pipe_file(path, data, mode="create")
        elif "overwrite" in names:
            self.fs.pipe_file(path, data, overwrite=False)
        elif self.fs.exists(path):
            raise FileExistsError(path)
        else:
            self.fs.pipe_file(path, data)

    def names(self, prefix: str) -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        top, _, start = prefix.rpartition("/")
        how = (
            {"prefix": start}
            if "prefix" in signature(getattr(self.fs, "_find", self.fs.find)).parameters
            else {}
        )
        try:
            found = self.ask(lambda: self.fs.find(self.at(top).rstrip("/"), detail=True, **how))
        except FileNotFoundError:
            return {}
        sizes = {name[len(self.root) + 1 :]: about["size"] or 0 for name, about in found.items()}
        return {name: sizes[name] for name in sorted(sizes) if name.startswith(prefix)}

    def reads(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        names = list(names)
        with ThreadPoolExecutor(min(AT_ONCE, len(names) or 1)) as pool:
            for name, data in zip(names, pool.map(self.read, names), strict=True):
                if data is not None:
                    yield name, data

    def remove(self, name: str) -> None:
        self.remembered.get(key_of(name), {}).pop(name, None)
        try:
            self.ask(lambda: self.fs.rm_file(self.at(name)))
        except FileNotFoundError:
            return

    def modified(self, name: str) -> float | None:
        try:
            return self.ask(lambda: self.fs.modified(self.at(name))).timestamp()
        except (FileNotFoundError, NotImplementedError, KeyError):
            return None

    # -- folders of files, and large files ---------------------------------------------------------

    def draft(self) -> Path:
        return self.cache.draft()

    def drafts(self) -> Iterator[Path]:
        yield from self.cache.folder.glob("drafts/*")

    def put(self, draft: Path, place: str) -> None:
        files = [file for file in draft.rglob("*") if file.is_file()]
        self.together(
            lambda file: self.fs.put_file(
                str(file), self.at(f"{place}/{file.relative_to(draft).as_posix()}")
            ),
            files,
        )
        with suppress(OSError):  # the next stage is learned here, as like as not; no more than that
            self.cache.keep(draft, f"{self.url}/{place}")
            self.cache.trim()

    def opened(self, place: str, files: Mapping[str, str]) -> Path:
        def fill(draft: Path) -> None:
            for file in files:
                (draft / file).parent.mkdir(parents=True, exist_ok=True)
            self.together(lambda f: self.fs.get_file(self.at(f"{place}/{f}"), str(draft / f)), list(files))

        wrong: Exception | None = None
        for _ in range(2):
            try:
                return self.cache.get(f"{self.url}/{place}", fill, lambda folder: verify(folder, files))
            except (FileNotFoundError, Damaged) as error:
                self.prove(place, files)
                wrong = error
        raise StoreError(
            f"the files of {place} in {self.url} are right, but not their copies in {self.cache.folder} "
            f"({wrong}). See whether that disk is sound and nothing cleans it, or name another folder as "
            f"DGG_RAY_CACHE"
        ) from wrong

    def prove(self, place: str, files: Mapping[str, str]) -> None:
        """Raises Damaged where the store itself lacks a file, or gives it wrong twice; this node's disk has
        no part in it, as what is damaged here may be right for everyone else."""

        def sum_of(file: str) -> str:
            with self.fs.open(self.at(f"{place}/{file}"), "rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()

        for file, wanted in files.items():
            try:
                found = [self.ask(lambda file=file: sum_of(file))]
                if found != [wanted]:
                    found.append(self.ask(lambda file=file: sum_of(file)))
            except FileNotFoundError:
                raise Damaged(f"{file} is missing") from None
            if wanted not in found:
                raise Damaged(f"{file} is not what was written")

    def clear(self, place: str) -> int:
        sizes = self.sizes(f"{place}/")
        self.cache.forget(f"{self.url}/{place}")
        self.together(self.remove, list(sizes))
        return sum(sizes.values())

    def upload(self, file: Path, name: str) -> None:
        self.ask(lambda: self.fs.put_file(str(file), self.at(name)))

    def download(self, name: str) -> Path | None:
        file = self.draft() / "file"
        try:
            self.ask(lambda: self.fs.get_file(self.at(name), str(file)))
        except FileNotFoundError:
            self.release(file)
            return None
        return file

    def release(self, file: Path) -> None:
        shutil.rmtree(file.parent, ignore_errors=True)

    # -- what others laid there ----------------------------------------------------------------------

    def versions(self) -> dict[str, tuple[int, str]]:
        """(bytes, version) of every file below by its name; a file that lies here itself has the name ``.

        The version changes with the content; it is what the provider tells of it in a listing.
        """
        try:
            found = self.ask(lambda: self.fs.find(self.root, detail=True))
            found = found or {self.root: self.ask(lambda: self.fs.info(self.root))}
        except FileNotFoundError:
            return {}
        return {
            name[len(self.root) + 1 :]: (info["size"], version_of(info))
            for name, info in sorted(found.items())
            if info["type"] == "file" and not name.endswith("/")
        }

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Name → the new local file."""
        for folder in {file.parent for file in files.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        self.together(
            lambda name: self.fs.get_file(self.at(name) if name else self.root, str(files[name])),
            list(files),
            AT_ONCE,
        )

    # -- requests ----------------------------------------------------------------------------------

    def ask(self, request: Callable[[], T]) -> T:
        if (most := self.patience) is None:
            return retry.ask(request, self.url)
        return retry.ask(lambda: retry.within(request, most / 2), self.url, most)

    def together(self, do: Callable[[Any], T], things: list[Any], at_once: int = 8) -> list[T]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda thing: self.ask(lambda: do(thing)), things))


def version_of(info: Mapping[str, Any]) -> str:
    """Values by which a provider's file is known to have changed."""
    tag = next((str(info[key]) for key in TAGS if info.get(key)), "")
    return tag or " ".join(str(info[key]) for key in TIMES if info.get(key))
