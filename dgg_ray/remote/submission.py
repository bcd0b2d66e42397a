"""Send studies to a cluster and look after them from another machine.

    submit             check a study here, upload it with its files and this package, run it on the head
    list_studies       the studies that the head or a store knows
    download_results   the small files of a study's results, so that reports are written here

A study is addressed by its name. Its runs are the jobs NAME-1, NAME-2, …. Each run continues from what the
store holds. There is never more than one at a time, because Ray accepts a job id only once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dgg_ray.config import loader, registry, yaml_reader
from dgg_ray.config.study import Study
from dgg_ray.core import plugins, sources
from dgg_ray.core.errors import ClusterError, DggError, Fault, StoreError, StudyError, did_you_mean
from dgg_ray.core.hashing import digest
from dgg_ray.remote.ray_jobs import Job, RayJobsClient
from dgg_ray.storage import fetching
from dgg_ray.storage.backend import folder_size
from dgg_ray.storage.stage_store import StageStore, open_store

MAX_UPLOAD_BYTES = 100_000_000  # of a study's files; every machine of the cluster copies them
STOPPED = 130  # exit code of a job that was stopped, as after Ctrl-C
RESULTS_FOLDER = "dgg_ray"  # below the home folder on the head: one folder of results per study


class Submission(NamedTuple):
    """A checked study with what has to be uploaded.

    file: the study file.
    files: paths that the study names, relative to `root`.
    store: where the cluster keeps the stages.
    notes: what could not be checked on this machine.
    """

    study: Study
    file: Path
    root: Path
    files: tuple[Path, ...]
    store: str
    notes: tuple[str, ...] = ()


def submit(
    file: Path,
    dashboard: str,
    data: str | None,
    store: str | None,
    out: str | None,
    pip: Path | None = None,
) -> tuple[Job, bool, tuple[str, ...]]:
    """Run or continue a study on a cluster; return (its job, whether this call started it, notes).

    data: URL or folder on the cluster that the tasks' relative paths start from. None means the URL in
        $DGG_RAY_DATA, or else that this machine's files are uploaded.
    pip: file of pinned versions, to install the dependencies on machines that lack them.

    Raises StudyError with every fault that shows on this machine.
    """
    data = data or fetching.url_of(os.environ.get("DGG_RAY_DATA", "")) or None
    submission = check_submission(file, data, store, pip)
    name = submission.study.name
    part_hashes = registry.part_hashes(submission.study.file.content)
    client = RayJobsClient(dashboard)
    last = client.last_job(name)
    if last is not None:
        registry.refuse_another_study(name, part_hashes, last.metadata["parts"], client.address)
        if not last.is_over:
            return last, False, submission.notes
    with contextlib.suppress(
        DggError, OSError, ImportError
    ):  # unreachable from here: the driver checks again
        stored = study_document(open_reachable_store(submission.store), name)
        if stored:
            stored_hashes = registry.part_hashes(stored["content"]["raw"])
            registry.refuse_another_study(name, part_hashes, stored_hashes, submission.store)
    out = out or f"{RESULTS_FOLDER}/{name}"
    metadata = {
        "study": name,
        "parts": part_hashes,
        "store": submission.store,
        "out": out,
        "question": submission.study.question,
    }
    with runtime_environment(submission, pip) as environment:
        job_id = f"{job_id_prefix(name)}-{last.number + 1 if last else 1}"
        started = client.submit(job_id, job_command(submission, data, out), metadata, **environment)
    job = client.last_job(name)
    if job is None:
        raise ClusterError(
            f"{client.address} accepted the job of {name} and does not list it; look at its dashboard"
        )
    registry.refuse_another_study(name, part_hashes, job.metadata["parts"], client.address)
    return job, started, submission.notes


def job_id_prefix(name: str) -> str:
    """The study's name as it can stand in addresses and file names."""
    plain = re.sub(r"[^\w-]+", "-", name)
    return plain if plain == name else f"{plain}-{digest(name)[:6]}"


def job_command(submission: Submission, data: str | None, out: str) -> str:
    """The job's shell command; through `exec`, signals reach Python."""
    folder = shlex.quote(out) if out.startswith("/") else f'"$HOME"/{shlex.quote(out)}'
    words = ["python", "-m", "dgg_ray", "run", submission.file.name]
    words += ["--ray-address", "auto", "--store", submission.store]
    if data:
        words += ["--data", data]
    return f"exec {shlex.join(words)} --out {folder}"


@contextlib.contextmanager
def runtime_environment(submission: Submission, pip: Path | None) -> Iterator[dict[str, Any]]:
    """Ray's runtime environment for the job: the study, its files and plug-ins, and this package.

    Environment variables are missing on purpose: the driver sets them for all processes that it starts
    (cluster.connected), as it does on one machine.
    """
    with tempfile.TemporaryDirectory(prefix="dgg-") as folder:
        shutil.copy(submission.file, folder)
        for path in submission.files:
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            source = submission.root / path
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, target)
        for path, source in plugin_files(submission.study).items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        environment: dict[str, Any] = {
            "working_dir": folder,
            "py_modules": [str(Path(__file__).parents[1])],
            "excludes": ["__pycache__"],
        }
        if pip:
            environment["pip"] = {"packages": pip_requirements(pip)}
        yield environment


def plugin_files(study: Study) -> dict[Path, Path]:
    """The files of the user's own plug-ins: path below a folder on Python's search path → file here."""
    files: dict[Path, Path] = {}
    for kind, name in study.outside_plugins:
        for module, file in sources.own_files(plugins.find(kind, name)).items():
            # This package is uploaded as a whole; an installed one must be installed on the cluster too.
            if file.is_relative_to(sources.ROOT) or sources.is_installed(file):
                continue
            path = Path(*module.split("."))
            target = path / file.name if file.name == "__init__.py" else path.with_suffix(".py")
            files[target] = file
    return files


def plugin_notes(study: Study) -> Iterator[str]:
    """Say which plug-ins come from installed packages, which the cluster needs too."""
    for kind, name in study.outside_plugins:
        files = sources.own_files(plugins.find(kind, name)).values()
        if not plugins.is_import_path(name) or any(map(sources.is_installed, files)):
            plugin = plugins.describe_plugin(f"{kind}/{name}")
            yield f"{plugin}: its package must be installed on every machine of the cluster"


def pip_requirements(pins: Path) -> list[str]:
    """The pinned versions without Ray, which the cluster's image provides and the client compares."""
    lines = (line.partition("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("ray==")]


# -- checks on this machine ------------------------------------------------------------------------


def check_submission(file: Path, data: str | None, store: str | None, pip: Path | None = None) -> Submission:
    """The study with the files to upload; its data are checked if all of them are on this machine.

    Raises StudyError with every fault of the file and of the data.
    """
    raw, lines, faults = loader.parse_file(file, store)
    plugins.add_search_folders(file.absolute().parent)
    study = None
    if isinstance(raw, Mapping):
        study, build_faults = loader.build_study(raw, registry.ANYWHERE, files=False)
        faults += build_faults
    if pip and not pip.is_file():
        faults.append(Fault("--pip", "must be a file of pinned versions", repr(str(pip))))
    if study is None:
        raise StudyError(list(yaml_reader.add_lines(faults, lines)), str(file))
    root = Path(os.environ.get("DGG_RAY_DATA") or file.parent).expanduser().absolute()
    faults += [*store_faults(raw), *warm_start_faults(raw), *model_faults(raw)]
    relative, elsewhere = named_paths(study)
    notes = [f"{path}: checked on the cluster" for path in elsewhere]
    if data:
        notes += [f"{path}, from {data}: checked on the cluster" for path in relative]
    else:
        faults += upload_faults(relative, root)
    if not faults and not notes:  # everything is here
        study, faults = loader.build_study(raw, str(root))
        if study is not None and not faults:
            study, faults = loader.read_data(study)
    if faults or study is None:
        raise StudyError(list(yaml_reader.add_lines(faults, lines)), str(file))
    notes += plugin_notes(study)
    files = () if data else tuple(relative)
    return Submission(study, file, root, files, str(raw["output"]["store"]), tuple(notes))


def named_paths(study: Study) -> tuple[dict[Path, str], list[str | Path]]:
    """(Relative path → the setting that names it, URLs and absolute paths that this machine lacks)."""
    relative: dict[Path, str] = {}
    elsewhere: list[str | Path] = []
    readers = [(f"tasks.{name}", reader) for name, reader in study.readers.items()]
    for section, plugin in [("model", study.model), *readers]:
        for setting in fields(plugin) if is_dataclass(plugin) else ():  # a faulty section has no fields
            value = getattr(plugin, setting.name)
            if (setting.name == "path" or isinstance(value, Path)) and (url := fetching.url_of(value)):
                elsewhere.append(url)
                continue
            if isinstance(value, str) and value.startswith(("/", "~")):
                value = Path(value).expanduser()
            if not isinstance(value, Path):
                continue
            if value.is_relative_to(registry.ANYWHERE):
                relative[value.relative_to(registry.ANYWHERE)] = f"{section}.{setting.name}"
            elif not value.exists():
                elsewhere.append(value)
    return relative, elsewhere


def upload_faults(relative: Mapping[Path, str], root: Path) -> Iterator[Fault]:
    """Faults of the files to upload: outside the study's folder, missing, or too large together."""
    size = 0
    for path, setting in relative.items():
        file = root / path
        if ".." in path.parts:
            rule = "must lie below the study's folder to be uploaded, or be an absolute path on the cluster"
            yield Fault(setting, rule, str(path))
        elif not file.exists():
            names = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            rule = f"must exist in {root}; if it is on the cluster, name its folder with --data DIR"
            yield Fault(setting, rule, str(path), did_you_mean(path.name, names))
        else:
            size += folder_size(file) if file.is_dir() else file.stat().st_size
    if size > MAX_UPLOAD_BYTES:
        rule = f"must name files of at most {MAX_UPLOAD_BYTES / 1e6:.0f} MB, which are uploaded with a study"
        advice = "put them where all machines can read them, and name that folder with --data"
        yield Fault("tasks", f"{rule}; {advice}", f"{size / 1e6:.0f} MB")


def store_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for a store on one machine only, in which other machines would find nothing."""
    output = raw.get("output")
    store = output.get("store") if isinstance(output, Mapping) else None
    shared = "a place that all machines reach: s3://BUCKET/PATH, or the absolute path of a shared disk"
    if store is None:
        yield Fault("output.store", f"is required on a cluster and must be {shared}; --store sets it")
    elif isinstance(store, str) and not ("://" in store or store.startswith(("/", "~"))):
        yield Fault("output.store", f"must be {shared}", repr(store))


def warm_start_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults for earlier results that are named by a path of this machine."""
    search = raw.get("search")
    warm_starts = search.get("warm_start_from") if isinstance(search, Mapping) else None
    folders = [warm_starts] if isinstance(warm_starts, str) else warm_starts or ()
    for i, folder in enumerate(folders):
        if isinstance(folder, str) and not folder.startswith(("/", "~")):
            example = f"~/{RESULTS_FOLDER}/NAME"
            rule = f"must be an absolute path on the cluster, such as {example} for a study that ran there"
            yield Fault(f"search.warm_start_from[{i}]", rule, repr(folder))


def model_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for model weights in a relative folder of this machine."""
    model = raw.get("model")
    path = model.get("path") if isinstance(model, Mapping) else None
    if isinstance(path, str) and not path.startswith(("/", "~")) and Path(path).is_dir():
        rule = (
            "must be a URL, a hub name, or an absolute path on all machines, because weights are not uploaded"
        )
        yield Fault("model.path", rule, repr(path))


# -- studies on a cluster --------------------------------------------------------------------------


def find_job(client: RayJobsClient, name: str) -> Job:
    """The study's latest run; ClusterError where the head knows none."""
    jobs = client.jobs()
    runs = [job for job in jobs if job.study == name]
    if not runs:
        names = sorted({job.study for job in jobs})
        raise ClusterError(
            f"{client.address} has run no study {name!r}; it knows {', '.join(names) or 'none'}"
            f"{did_you_mean(name, names) or '.'} A head forgets its jobs when the cluster goes down; the "
            "store does not (--store)"
        )
    return runs[-1]


def list_studies(dashboard: str | None, store: str | None) -> list[dict[str, Any]]:
    """Every study that the head or the store knows: {name, state, at, where, question}, by name."""
    studies: dict[str, dict[str, Any]] = {}
    if store:
        for entry in registry.list_studies(open_reachable_store(store)):
            studies[entry.name] = entry._asdict() | {"where": store}
    if dashboard:
        for job in RayJobsClient(dashboard).jobs():  # a study's latest run comes last
            studies[job.study] = studies.get(job.study, {}) | {
                "name": job.study,
                "state": describe_state(job),
                "at": job.ended or job.started,
                "where": job.metadata["store"],
                "question": job.metadata["question"],
            }
    return [studies[name] for name in sorted(studies)]


def format_studies(studies: list[dict[str, Any]]) -> str:
    """The studies as a text table."""
    if not studies:
        return "no studies"
    rows = [
        (study["name"], study["state"], format_time(study["at"]) if study["at"] else "", study["question"])
        for study in studies
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def format_time(seconds: float) -> str:
    """Seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def describe_state(job: Job) -> str:
    """The job's state in the words that the store uses."""
    state = {"SUCCEEDED": "ended", "FAILED": "failed"}.get(job.state, job.state.lower())
    if state == "failed" and job.exit_code is not None:
        return f"failed: exit code {job.exit_code}"
    return state


def describe_job(job: Job) -> str:
    """A run in one line: study, state, since when, job id, store."""
    since = format_time(job.ended or job.started)
    return (
        f"{job.study}: {describe_state(job)} since {since}, job {job.id}, stages in {job.metadata['store']}"
    )


def open_reachable_store(url: str) -> StageStore:
    """The store at a URL or folder; StoreError for a missing folder or a store of another format."""
    if "://" not in url and not Path(url).expanduser().is_dir():
        raise StoreError(f"there is no folder {url} on this machine")
    store = open_store(url)
    store.verify_format()
    return store


def study_document(store: StageStore, name: str) -> dict[str, Any] | None:
    """The study as its driver saved it in the store; None before that."""
    return store.get_document(registry.document_name(name, registry.STUDY))


def why_unreadable(job: Job) -> str:
    """Why no results of a run can be read yet; empty if they can, or if reading them explains it."""
    url = job.metadata["store"]
    try:
        document = study_document(open_reachable_store(url), job.study)
    except StoreError as error:
        return (
            ""
            if "://" in url
            else f"its results cannot be read from here yet: {error}{shared_disk_advice(job)}"
        )
    except (DggError, OSError, ImportError):
        return ""
    return "" if document else "its first stages are not known yet"


def shared_disk_advice(job: Job) -> str:
    """Advise what to do about a store that this machine does not reach."""
    command = f"`ray exec cluster.yaml 'dgg-ray report ~/{job.metadata['out']}'`"
    return f". If it is a disk of the cluster, run the report there: {command}"


def store_of(name: str, dashboard: str | None, store: str | None) -> StageStore:
    """The store that a study was run with: the one given, or that of its job on a cluster."""
    if store is None:
        assert dashboard is not None
        return open_reachable_store(find_job(RayJobsClient(dashboard), name).metadata["store"])
    return open_reachable_store(store)


def download_results(name: str, dashboard: str | None, store: str | None, out: Path | None) -> Path:
    """A local folder with the small files of the study's results; the stages stay in the store."""
    job = find_job(RayJobsClient(dashboard), name) if dashboard and not store else None
    url = store or (job.metadata["store"] if job else "")
    folder = (out or Path("out/cluster") / name).absolute()
    try:
        return registry.fetch_results(open_reachable_store(url), name, folder)
    except DggError as error:
        if job is None:
            raise
        raise ClusterError(
            f"{describe_job(job)}\nThat store cannot be read from here ({error}){shared_disk_advice(job)}; "
            f"a study that has just started appears there shortly"
        ) from error


def follow_job(dashboard: str, job: Job) -> int:
    """Show a job's output until it ends; return its exit code, or 130 if it was stopped.

    Ctrl-C ends only the display.
    """
    try:
        job = RayJobsClient(dashboard).follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\nthe study goes on; `dgg-ray stop {job.study}` stops it", file=sys.stderr)
        return 0
    print(describe_job(job), file=sys.stderr)
    if job.state == "STOPPED":
        return STOPPED
    return job.exit_code if job.exit_code is not None else 1
