"""The command line: arguments → calls. `dgg-ray COMMAND --help` shows each command's options and examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import dgg_ray
from dgg_ray.cli_arguments import (
    TUNNEL,
    Commands,
    Dashboard,
    Data,
    DownloadTo,
    ExportTo,
    Json,
    Local,
    OnCluster,
    Order,
    Out,
    Quiet,
    RayAddress,
    Results,
    ResultsStore,
    Seed,
    Server,
    Setting,
    Store,
    StudyFile,
    ask,
    checked_study,
    given,
    points,
    print_json,
    results_folder,
    task_and_path,
)
from dgg_ray.cli_control import control
from dgg_ray.cli_remote import logs, stop, studies, submit
from dgg_ray.cli_service import serve, users
from dgg_ray.core import process_setup, terminal
from dgg_ray.core.errors import DggError, StudyError

STUDY_IS_WRONG = 2
# The base class of usage errors: typer brings its own copy of click, and exports some of its classes alone.
UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    cls=Commands,
    help="Study how a vision-language model learns one dataset after another without forgetting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


# -- writing a study -------------------------------------------------------------------------------


@app.command()
def init(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the train and test files of your tasks.")
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use the tasks in the package, which need no data.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="NAME, NAME=FOLDER or NAME=HUB_NAME@COMMIT.", show_default="embedded"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The study's name.", show_default="the folder's")] = None,
    out_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="NAME.yaml")
    ] = None,
) -> None:
    """Write a first study for the tasks found in a folder.

    Example: `dgg-ray init --data data/my_tasks --model llava_1_5=/models/llava-1.5-7b-hf`
    """
    from dgg_ray.planning.init import init

    interactive = sys.stdin is not None and sys.stdin.isatty()
    print(init(data, embedded, model, name, out_file, ask if interactive else None))


@app.command()
def extend(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The finished study's YAML file.")],
    task: Annotated[
        list[str],
        typer.Option(metavar="NAME=PATH", help="A folder, a train file, or `embedded`. Repeatable."),
    ],
    reader: Annotated[str, typer.Option(help="The reader of the files.")] = "llava",
    data: Data = None,
    results: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Results to go on from.", show_default="out/NAME"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The new study's name.", show_default="the old one's and the tasks'")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write.", show_default="beside the old one")
    ] = None,
) -> None:
    """Write a study with one more task, which goes on from a finished one.

    Example: `dgg-ray extend studies/quickstart.yaml --task menus=data/menus`
    """
    from dgg_ray.planning.extend import extend

    tasks = dict(task_and_path(text) for text in task)
    print(extend(study, tasks, data, reader, results, name, out_file))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from dgg_ray.config.json_schema import schema

    print_json(schema())


# -- running a study -------------------------------------------------------------------------------


@app.command()
def plan(
    study: StudyFile,
    data: Data = None,
    out: Out = None,
    store: Store = None,
    detect: Annotated[
        float | None,
        typer.Option(
            parser=points, metavar="POINTS", help="Say how many blocks detect a difference of this size."
        ),
    ] = None,
    sd: Annotated[
        float | None,
        typer.Option(
            parser=points,
            metavar="POINTS",
            help="Standard deviation of a paired difference.",
            show_default="measured",
        ),
    ] = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Check a study and its data, and predict what it costs; start nothing.

    Example: `dgg-ray plan studies/quickstart.yaml --detect 5`
    """
    from dgg_ray import api

    checked, folder = checked_study(study, data, store, out)
    if ray_address:
        from dgg_ray.execution import cluster  # late: a plan of this machine does without Ray

        with cluster.connected(checked, ray_address):
            pass  # it warns of what the cluster can never hold
    predicted = api.plan_study(checked, folder, detect, sd, on_this_machine=not ray_address)
    print_json(predicted.as_json()) if as_json else print(predicted)


@app.command()
def profile(
    study: StudyFile,
    data: Data = None,
    out: Out = None,
    store: Store = None,
    local: Local = False,
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> int:
    """Time a few steps of every kind of stage, so that `plan` can predict the cost."""
    checked, folder = checked_study(study, data, store, out)
    from dgg_ray.execution import driver

    predicted, errors = driver.profile(checked, folder, local, ray_address, quiet)
    print(predicted)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


@app.command()
def run(
    study: StudyFile,
    data: Data = None,
    out: Out = None,
    store: Store = None,
    local: Local = False,
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> int:
    """Run a study, or continue it: what the store holds already is not trained again.

    Example: `dgg-ray run studies/quickstart.yaml`
    """
    checked, folder = checked_study(study, data, store, out)
    from dgg_ray import api

    outcome = api.run_checked_study(checked, folder, local, ray_address, quiet)
    print(outcome)
    return 1 if outcome.results.failures or outcome.tally["failed"] else 0


@app.command()
def gc(
    out: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]...", help="Results of studies in the store.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Folder or URL of the store, if no study names it.")
    ] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Include weights that nothing will start from.")
    ] = False,
    deleted_study: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A study that no longer exists. Repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only shown.")] = False,
    as_json: Json = False,
) -> None:
    """Show what the studies of a store no longer need; with --delete, remove it."""
    from dgg_ray.planning import store_gc

    garbage = store_gc.find_garbage(out or [], store, deleted_study or [], adapters)
    freed = garbage.delete() if delete else 0
    if as_json:
        return print_json(garbage.as_json() | {"freed": freed})
    print(garbage)
    print(f"{freed / 1e9:.3g} GB freed" if delete else "nothing was removed; --delete removes it")


app.command()(control)


# -- results ---------------------------------------------------------------------------------------


@app.command()
def status(
    ctx: typer.Context,
    out: Results,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Show how far a study is, what runs now, and the best setting so far."""
    if server and asks_service(ctx, out):
        from dgg_ray.service import terminal_client

        card = terminal_client.Client(server).study(out)
        print_json(card) if as_json else print(terminal_client.describe(card))
        return
    from dgg_ray import api

    if cluster:
        from dgg_ray.remote import submission

        job = submission.find_job(submission.RayJobsClient(dashboard), out)
        print(submission.describe_job(job), file=sys.stderr)
        if not job.is_over and (why := submission.why_unreadable(job)):
            return print(f"{why}; `dgg-ray logs {job.study}` shows its output", file=sys.stderr)
    found = api.study_status(results_folder(out, cluster, dashboard, store, download_to))
    print_json(found.as_json()) if as_json else print(found)


def asks_service(ctx: typer.Context, out: str) -> bool:
    """Return whether `status` asks the service; one of the environment alone gives way to other results."""
    from dgg_ray.config.saved_study import SAVED_STUDY

    elsewhere = given(ctx, "cluster", "store", "download_to")
    if not given(ctx, "server"):
        return not elsewhere and not Path(out, SAVED_STUDY).exists()
    if elsewhere:
        raise typer.BadParameter(
            f"--server asks a service, and {', '.join(elsewhere)} reads results elsewhere; leave one out"
        )
    return True


@app.command()
def best(
    out: Results,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
    as_json: Json = False,
) -> None:
    """Show which setting to use, how sure that is, what it was compared with, and where its adapter is."""
    from dgg_ray import api

    outcome = api.open(results_folder(out, cluster, dashboard, store, download_to))
    print_json(outcome.best) if as_json else print(outcome.answer_text())


@app.command()
def export(
    out: Results,
    to: ExportTo,
    setting: Setting = "best",
    order: Order = None,
    seed: Seed = None,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
    as_json: Json = False,
) -> None:
    """Export the adapter at the end of a run with a model card, as plain LoRA where the method allows it.

    Example: `dgg-ray export out/quickstart --setting best --to my_adapter`
    """
    from dgg_ray import api

    outcome = api.open(results_folder(out, cluster, dashboard, store, download_to))
    name = None if setting == "best" else setting
    exported = outcome.export(to, name, int(order) if order and order.isdecimal() else order, seed)
    print_json(exported.as_json()) if as_json else print(exported)


@app.command()
def examples(
    out: Results,
    task: Annotated[str, typer.Option(help="Show this task alone.")] = "",
    split: Annotated[
        str, typer.Option(help="validation or test.", show_default="that of the comparison")
    ] = "",
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number shown.")] = 20,
    method: Annotated[
        str, typer.Option(help="A method as `best` names it.", show_default="the chosen setting")
    ] = "",
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
    as_json: Json = False,
) -> None:
    """Show answers that were right when their task was trained and are wrong at the end."""
    from dgg_ray import api
    from dgg_ray.analysis import examples

    outcome = api.open(results_folder(out, cluster, dashboard, store, download_to))
    report = examples.examples_report(outcome.results, task, split, count, method)
    print_json(report) if as_json else print(examples.format_examples(report))


@app.command()
def robustness(
    out: Results,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
    as_json: Json = False,
) -> None:
    """Show how much the results depend on the order of the tasks."""
    from dgg_ray import api
    from dgg_ray.analysis import order_sensitivity, order_sentences

    folder = results_folder(out, cluster, dashboard, store, download_to)
    outcome = api.open(folder)
    with outcome.optional.attempt("robustness.csv"):
        order_sensitivity.write_order_tables(outcome.results, folder)
    if as_json:
        print(order_sensitivity.order_tables_as_json(outcome.results))
    else:
        print("\n".join(order_sentences.order_sensitivity_sentences(outcome.results)))


@app.command()
def report(
    out: Results,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
    store: ResultsStore = None,
    download_to: DownloadTo = None,
) -> None:
    """Write the report of what is finished: an HTML page, its figures and tables."""
    from dgg_ray import api
    from dgg_ray.config import saved_study
    from dgg_ray.core import event_log

    folder = results_folder(out, cluster, dashboard, store, download_to)
    name = saved_study.require_saved_study(folder).name  # first: the log would create a mistyped folder
    with event_log.driver_log(name, folder):
        print(api.open(folder).report())


# -- on a cluster, and the service -------------------------------------------------------------------

for command in (submit, studies, logs, stop, serve):
    app.command()(command)
app.add_typer(users, name="user")


# -- the program -----------------------------------------------------------------------------------


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"dgg-ray {dgg_ray.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0: done; 1: a stage or the cluster failed; 2: the arguments or the study are wrong; 130: stopped by
    Ctrl-C or a signal.
    """
    with terminal.robust_output():
        return run_command(list(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="dgg-ray", standalone_mode=False) or 0
    except UsageError as error:  # the arguments are wrong
        error.show()
        return error.exit_code
    except StudyError as error:
        print(error, file=sys.stderr)
        return STUDY_IS_WRONG
    except (DggError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if process_setup.working_folder_is_deleted():
            print("the folder that this was started in was deleted; `cd` to another one", file=sys.stderr)
        return 1
