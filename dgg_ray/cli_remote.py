"""The commands for studies that run elsewhere: on a cluster, or by a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dgg_ray.cli_arguments import (
    TUNNEL,
    Dashboard,
    JobName,
    Json,
    Server,
    Store,
    StudyFile,
    given,
    print_json,
)


def submit(
    ctx: typer.Context,
    study: StudyFile,
    dashboard: Dashboard = TUNNEL,
    store: Store = None,
    data: Annotated[
        str | None,
        typer.Option(help="URL, or folder there, of the tasks' files.", show_default="sent along"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the results on the head.", show_default="dgg_ray/NAME in its home"),
    ] = None,
    pip: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Install what is needed there, at this constraints file's versions."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its output until it ends.")] = False,
    server: Server = None,
) -> int:
    """Run or continue a study on a cluster, or with --server by a service.

    Example: `dgg-ray submit studies/quickstart.yaml --follow`
    """
    if server:
        from dgg_ray.service import terminal_client

        if of_cluster := given(ctx, "store", "data", "out", "pip"):
            options = ", ".join(of_cluster)
            raise typer.BadParameter(
                f"the service at {server} has a store, data and packages of its own, so {options} would do "
                'nothing; leave that out, or submit to a cluster with --server ""'
            )
        return terminal_client.submit(server, study, follow)
    from dgg_ray.remote import submission

    job, new, notes = submission.submit(study, dashboard, data, store, out, pip)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{submission.describe_job(job)}{'' if new else '; it runs already and was not started again'}")
    return submission.follow_job(dashboard, job) if follow else 0


def studies(
    cluster: Annotated[
        bool, typer.Option("--cluster", help="With --store, list those of the cluster too.")
    ] = False,
    dashboard: Dashboard = TUNNEL,
    store: Annotated[str | None, typer.Option(metavar="URL", help="A store.")] = None,
    as_json: Json = False,
) -> None:
    """List all studies that a cluster or a store knows; without --store, those of the cluster."""
    from dgg_ray.remote import submission

    listed = submission.list_studies(dashboard if cluster or not store else None, store)
    print_json(listed) if as_json else print(submission.format_studies(listed))


def logs(
    name: JobName,
    dashboard: Dashboard = TUNNEL,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it ends.")] = False,
    server: Server = None,
) -> int:
    """Show the output of a study on a cluster or a service."""
    if server:
        from dgg_ray.service import terminal_client

        return terminal_client.show_logs(server, name, follow)
    from dgg_ray.remote import submission

    client = submission.RayJobsClient(dashboard)
    job = submission.find_job(client, name)
    if follow:
        return submission.follow_job(dashboard, job)
    print(client.log(job), end="")
    return 0


def stop(name: JobName, dashboard: Dashboard = TUNNEL, server: Server = None) -> None:
    """Stop a study on a cluster or a service as Ctrl-C does; its finished stages are kept."""
    if server:
        from dgg_ray.service import terminal_client

        print(terminal_client.describe(terminal_client.Client(server).stop(name)))
        return
    from dgg_ray.remote import submission

    client = submission.RayJobsClient(dashboard)
    print(submission.describe_job(client.stop(submission.find_job(client, name))))
