"""A study is sent to a cluster and looked after from afar.

    submit   checked here, sent with its files and this very code, run on the head by Ray Jobs
    listed   what runs and ran, as the head and the store know it
    copied   the small files of its results, so that reports are written here

A study's name is what it is asked for by. Its runs are jobs NAME-1, NAME-2, …; each goes on from what the
store has, and there is never more than one at a time: Ray takes a job's id once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.config import loader, registry, yaml_reader
from dgg_ray.config.study import Study, store_at
from dgg_ray.core import plugins, sources
from dgg_ray.core.errors import ClusterError, DggError, Fault, StoreError, StudyError, nearest
from dgg_ray.core.hashing import digest
from dgg_ray.remote.ray_jobs import Head, Job
from dgg_ray.storage import fetching
from dgg_ray.storage.backend import weight
from dgg_ray.storage.stage_store import StageStore

LARGEST = 100_000_000  # bytes that are sent with a study; every machine takes a copy
HOME = "dgg_ray"  # in the home of whom the head runs as: results by study


class Errand(NamedTuple):
    """A study that may be sent.

    files: relative paths that it names, below `root`; notes: what is not checked here."""

    study: Study
    file: Path
    root: Path
    files: tuple[Path, ...]
    store: str
    notes: tuple[str, ...] = ()


def submit(
    file: Path, address: str, data: str | None, store: str | None, out: str | None, pip: Path | None = None
) -> tuple[Job, bool, tuple[str, ...]]:
    """(its job, whether it was started by this call, notes); StudyError holds every fault that shows here.

    data: URL, or folder on the cluster, that the tasks' files start from; None is a URL in $DGG_RAY_DATA, or
        else sends those of this machine along.
    pip: file of pinned versions, to install what this package needs on machines that lack it.
    """
    data = data or fetching.address(os.environ.get("DGG_RAY_DATA", "")) or None
    errand = checked(file, data, store, pip)
    name, mine = errand.study.name, registry.parts(errand.study.raw)
    head = Head(address)
    last = head.last(name)
    if last is not None:
        registry.refuse_other(name, mine, last.about["parts"], head.address)
        if not last.over:
            return last, False, errand.notes
    with contextlib.suppress(DggError, OSError, ImportError):  # out of reach from here: the head looks again
        kept = reached(errand.store).noted(registry.note(name, registry.STUDY))
        if kept:
            registry.refuse_other(name, mine, registry.parts(kept["content"]["raw"]), errand.store)
    out = out or f"{HOME}/{name}"
    about = {
        "study": name,
        "parts": mine,
        "store": errand.store,
        "out": out,
        "question": errand.study.question,
    }
    with packed(errand, pip) as environment:
        new = head.submit(
            f"{slug(name)}-{last.number + 1 if last else 1}",
            entrypoint(errand, data, out),
            about,
            **environment,
        )
    now = head.last(name)
    if now is None:
        raise ClusterError(f"{head.address} took {name} and does not list it; look at its dashboard")
    registry.refuse_other(name, mine, now.about["parts"], head.address)
    return now, new, errand.notes


def slug(name: str) -> str:
    """A name as part of a job's id, which stands in addresses and file names."""
    plain = re.sub(r"[^\w-]+", "-", name)
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def entrypoint(errand: Errand, data: str | None, out: str) -> str:
    """The shell command of the job. `exec`: the signal to stop is for Python."""
    place = shlex.quote(out) if out.startswith("/") else f'"$HOME"/{shlex.quote(out)}'
    words = ["python", "-m", "dgg_ray", "run", errand.file.name, "--address", "auto", "--store", errand.store]
    words += ["--data", data] if data else []
    return f"exec {shlex.join(words)} --out {place}"


@contextlib.contextmanager
def packed(errand: Errand, pip: Path | None) -> Iterator[dict[str, Any]]:
    """The environment of the job: the study and its files, and this package as it is here.

    What Ray's processes read from the environment is set by the driver for all that it starts
    (cluster.connected), the same as on one machine.
    """
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        shutil.copy(errand.file, folder)
        for path in errand.files:
            there = Path(folder) / path
            there.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (errand.root / path).is_dir() else shutil.copy
            copy(errand.root / path, there)
        for path, source in modules(errand.study).items():
            there = Path(folder) / path
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, there)
        package = Path(__file__).parents[1]
        environment: dict[str, Any] = {
            "working_dir": folder,
            "py_modules": [str(package)],
            "excludes": ["__pycache__"],
        }
        if pip:
            environment["pip"] = {"packages": requirements(pip)}
        yield environment


def modules(study: Study) -> dict[Path, Path]:
    """Where each file of plug-ins of the user's own belongs, below a folder that Python looks in."""
    scorers = [("scorers", scorer) for r in study.readers.values() if (scorer := getattr(r, "scorer", ""))]
    found = [
        plugins.find(kind, name) for kind, name in [*study.plugged, *scorers] if plugins.is_outside(name)
    ]
    sent: dict[Path, Path] = {}
    for name, file in (named for plugin in found for named in sources.files_of(plugin).items()):
        if not file.is_relative_to(sources.ROOT):  # which is sent whole
            folder = Path(*name.split("."))
            sent[folder / file.name if file.name == "__init__.py" else folder.with_suffix(".py")] = file
    return sent


def requirements(pins: Path) -> list[str]:
    """The pinned set but for Ray, which is the image's own, and checked."""
    lines = (line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("ray==")]


# -- what can be checked on this machine -----------------------------------------------------------


def checked(file: Path, data: str | None, store: str | None, pip: Path | None = None) -> Errand:
    """StudyError with every fault of the file, and of its data as far as they are on this machine."""
    raw, lines, faults = loader.parse(file, store)
    plugins.reach(file.absolute().parent)
    built = loader.build(raw, registry.ANYWHERE, files=False) if isinstance(raw, Mapping) else (None, [])
    study, found = built
    faults += found
    root = Path(os.environ.get("DGG_RAY_DATA") or file.parent).expanduser().absolute()
    if pip and not pip.is_file():
        faults.append(Fault("--pip", "must be a file of pinned versions", repr(str(pip))))
    if study is None:
        raise StudyError(list(yaml_reader.with_lines(faults, lines)), str(file))
    faults += [*store_faults(raw), *warm_faults(raw), *model_faults(raw)]
    relative, elsewhere = places(study)
    notes = [f"{path}: looked at on the cluster" for path in elsewhere]
    if data:
        notes += [f"{path}, from {data}: looked at on the cluster" for path in relative]
    else:
        faults += sent_faults(relative, root)
    if not faults and not notes:
        study, found = loader.build(raw, str(root))
        faults += found
        if study is not None and not found:
            study, found = loader.read_data(study)
            faults += found
    if faults or study is None:
        raise StudyError(list(yaml_reader.with_lines(faults, lines)), str(file))
    files = () if data else tuple(relative)
    return Errand(study, file, root, files, str(raw["output"]["store"]), tuple(notes))


def places(study: Study) -> tuple[dict[Path, str], list[str | Path]]:
    """(Relative paths that the study names → the setting, URLs and full paths that are not here)."""
    relative: dict[Path, str] = {}
    elsewhere: list[str | Path] = []
    parts = [(f"tasks.{name}", reader) for name, reader in study.readers.items()]
    for at, plugin in [("model", study.model), *parts]:
        for f in fields(plugin) if is_dataclass(plugin) else ():  # what is broken is none
            value = getattr(plugin, f.name)
            if (f.name == "path" or isinstance(value, Path)) and (url := fetching.address(value)):
                elsewhere.append(url)
                continue
            if isinstance(value, str) and value.startswith(("/", "~")):
                value = Path(value).expanduser()
            if not isinstance(value, Path):
                continue
            if value.is_relative_to(registry.ANYWHERE):
                relative[value.relative_to(registry.ANYWHERE)] = f"{at}.{f.name}"
            elif not value.exists():
                elsewhere.append(value)
    return relative, elsewhere


def sent_faults(relative: Mapping[Path, str], root: Path) -> Iterator[Fault]:
    size = 0
    for path, at in relative.items():
        whole = root / path
        if ".." in path.parts:
            yield Fault(
                at, "must lie below the study's folder to be sent along, or be a full path", str(path)
            )
        elif not whole.exists():
            names = [p.name for p in whole.parent.iterdir()] if whole.parent.is_dir() else []
            rule = f"must be here, in {root}; --data DIR says that it is on the cluster"
            yield Fault(at, rule, str(path), nearest(path.name, names))
        else:
            size += weight(whole) if whole.is_dir() else whole.stat().st_size
    if size > LARGEST:
        rule = f"may send files of {LARGEST / 1e6:.0f} MB along with a study"
        todo = "put them where all machines reach them, and name that folder with --data"
        yield Fault("tasks", f"{rule}; {todo}", f"{size / 1e6:.0f} MB")


def store_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """A folder of one machine is no store of a cluster: the next machine would find nothing in it."""
    output = raw.get("output")
    store = output.get("store") if isinstance(output, Mapping) else None
    wanted = "where all machines reach it: s3://BUCKET/PATH, or the full path of a shared disk"
    if store is None:
        yield Fault("output.store", f"is required on a cluster, {wanted}; --store sets it")
    elif isinstance(store, str) and not ("://" in store or store.startswith(("/", "~"))):
        yield Fault("output.store", f"must be {wanted}", repr(store))


def warm_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    search = raw.get("search")
    warm = search.get("warm_start_from") if isinstance(search, Mapping) else None
    for i, place in enumerate([warm] if isinstance(warm, str) else warm or ()):
        if isinstance(place, str) and not place.startswith(("/", "~")):
            rule = f"must be a full path on the cluster, such as ~/{HOME}/NAME for a study that was run there"
            yield Fault(f"search.warm_start_from[{i}]", rule, repr(place))


def model_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    model = raw.get("model")
    path = model.get("path") if isinstance(model, Mapping) else None
    if isinstance(path, str) and not path.startswith(("/", "~")) and Path(path).is_dir():
        rule = "must be a URL, a hub name, or a full path that all machines have: weights are not sent along"
        yield Fault("model.path", rule, repr(path))


# -- looking after it ------------------------------------------------------------------------------


def the_job(head: Head, name: str) -> Job:
    """The study's last run; ClusterError where the head knows none."""
    jobs = head.jobs()
    mine = [job for job in jobs if job.study == name]
    if not mine:
        names = sorted({job.study for job in jobs})
        near = f"did you mean {near!r}? " if (near := nearest(name, names)) else ""
        raise ClusterError(
            f"{head.address} has run no study {name!r}; {near}it knows {', '.join(names) or 'none'}. "
            f"A cluster forgets when it goes down; the store does not (--store)"
        )
    return mine[-1]


def listed(address: str | None, store: str | None) -> list[dict[str, Any]]:
    """Every study that the head or the store knows: {name, state, at, where, question}, by name."""
    found: dict[str, dict[str, Any]] = {}
    for entry in registry.entries(reached(store)) if store else ():
        found[entry.name] = entry._asdict() | {"where": store}
    for job in Head(address).jobs() if address else ():  # the last one of a name stays
        about = {"where": job.about["store"], "question": job.about["question"]}
        now = {"name": job.study, "state": in_words(job), "at": job.ended or job.began}
        found[job.study] = found.get(job.study, {}) | now | about
    return [found[name] for name in sorted(found)]


def as_table(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no studies"
    rows = [(f["name"], f["state"], stamp(f["at"]) if f["at"] else "", f["question"]) for f in found]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, wide)).rstrip() for row in rows)


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def in_words(job: Job) -> str:
    """Of Ray's states, as the store's are told."""
    state = {"SUCCEEDED": "ended", "FAILED": "failed"}.get(job.state, job.state.lower())
    return f"{state}: exit code {job.code}" if state == "failed" and job.code is not None else state


def said(job: Job) -> str:
    """One line on a run."""
    since = stamp(job.ended or job.began)
    return f"{job.study}: {in_words(job)} since {since}, job {job.id}, stages in {job.about['store']}"


def reached(place: str) -> StageStore:
    """The store at a place; StoreError for a folder that is not here: it may be a disk of the cluster."""
    if "://" not in place and not Path(place).expanduser().is_dir():
        raise StoreError(f"there is no folder {place} on this machine")
    return store_at(place)


def unread(job: Job) -> str:
    """Why nothing can be read of a run yet; empty where it can, or where reading it says why not."""
    try:
        kept = reached(job.about["store"]).noted(registry.note(job.study, registry.STUDY))
    except StoreError as error:
        return (
            "" if "://" in job.about["store"] else f"nothing can be read from here yet: {error}{there(job)}"
        )
    except (DggError, OSError, ImportError):
        return ""
    return "" if kept else "its first stages are not known yet"


def there(job: Job) -> str:
    """What to do about a store that is not reached from here."""
    ask = f"`ray exec cluster.yaml 'dgg-ray report ~/{job.about['out']}'`"
    return f". Where it is a disk of the cluster, ask there: {ask}"


def copied(name: str, address: str | None, store: str | None, out: Path | None) -> Path:
    """A folder here with the small files of the study's results; its stages stay in the store."""
    job = the_job(Head(address), name) if address and not store else None
    place = store or (job.about["store"] if job else "")
    try:
        return registry.fetched(reached(place), name, (out or Path("out/cluster") / name).absolute())
    except DggError as error:
        if job is None:
            raise
        raise ClusterError(
            f"{said(job)}\nThat store cannot be read from here ({error}){there(job)}; a study that has just "
            f"begun is there in a moment"
        ) from error
