"""Arguments and options, and what several commands share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from dgg_ray.core.errors import Fault, StudyError

TUNNEL = "http://127.0.0.1:8265"  # where `ray dashboard` opens the tunnel to the head
STOPPED = 130  # exit code after Ctrl-C
HEAD = "Dashboard of the cluster's head."


class Commands(typer.core.TyperGroup):
    """The commands. Ctrl-C and signals are answered here, because typer turns them into a bare exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("\nstopped; finished stages are kept, the same command goes on from them", file=sys.stderr)
            return STOPPED


def points(text: str) -> float:
    """A difference of scores, in points of 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise typer.BadParameter(f"needs a number of points above 0 and at most 100, got {text!r}")
    return value


def task_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise typer.BadParameter(f"needs NAME=PATH, got {text!r}")
    return name, path


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's YAML file.")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="DGG_RAY_DATA", help="Folder or URL of the tasks' files, in place of the study's."),
]
Out = Annotated[Path | None, typer.Option(help="Folder of the results.", show_default="out/NAME")]
Store = Annotated[
    str | None,
    typer.Option(envvar="DGG_RAY_STORE", metavar="URL", help="Store of the stages, in place of the study's."),
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray.")]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster, such as `auto` on its head; none: this machine."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print every number as JSON.")]
Results = Annotated[
    str,
    typer.Argument(metavar="DIR", help="Folder of the results; with --cluster or --store, the study's name."),
]
ResultsStore = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store that the study was run with.")
]
OnCluster = Annotated[bool, typer.Option("--cluster", help="Fetch the results from the cluster's head.")]
Dashboard = Annotated[str, typer.Option(envvar="DGG_RAY_ADDRESS", metavar="URL", help=HEAD)]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="DGG_RAY_SERVER",
        metavar="URL",
        help="Ask the service at this address (`dgg-ray serve`); its token is in DGG_RAY_TOKEN.",
    ),
]
DownloadTo = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for what is fetched.", show_default="out/cluster/NAME"),
]
Setting = Annotated[
    str,
    typer.Option(help="`best`, the recommended setting; a method as `best` prints it; or a setting's id."),
]
ExportTo = Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new or empty folder.")]
Order = Annotated[
    str | None,
    typer.Option(help="`a > b > c`, or its number; the first is 0.", show_default="the first run's"),
]
Seed = Annotated[int | None, typer.Option(help="The run's seed.", show_default="the first run's")]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.")]


def checked_study(study: Path, data: Path | None, store: str | None, out: Path | None) -> tuple[Any, Path]:
    """Load a study, check its data and its results folder."""
    from dgg_ray import api

    loaded = api.load_study(study, data, store)
    api.check(loaded)
    folder = (out or Path("out") / loaded.name).absolute()
    nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        fault = Fault("--out", "must be a folder that can be written", repr(str(folder)))
        raise StudyError([fault], "arguments")
    return loaded, folder


def results_folder(
    name: str, cluster: bool, dashboard: str, store: str | None, download_to: Path | None
) -> Path:
    """The folder of the results; those of a cluster or a store are fetched."""
    if not cluster and not store:
        return Path(name)
    from dgg_ray.remote import submission

    return submission.download_results(name, dashboard if cluster else None, store, download_to)


def given(ctx: typer.Context, *names: str) -> list[str]:
    """Return those of these options that the command line has, not the environment: `--download-to`."""
    options = [p for p in ctx.command.params if p.name in names]
    sources = {p.opts[0]: ctx.get_parameter_source(str(p.name)) for p in options}
    return [option for option, source in sources.items() if source and source.name == "COMMANDLINE"]


def ask(question: str, default: str) -> str:
    """Ask a person; the default where the answer is empty or there is nobody."""
    try:
        return input(f"{question}{default and f' [{default}]'}: ").strip() or default
    except EOFError:
        return default


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))
