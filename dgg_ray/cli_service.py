"""The commands of the service: start a server, and manage its users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgg_ray.cli_arguments import TUNNEL, Dashboard, Json, OnCluster, print_json

users = typer.Typer(help="The users of a service, and their tokens.", no_args_is_help=True)
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="PLACE", help="A further folder or URL that studies may read. Repeatable."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="HOST", help="A name by which browsers call it. Repeatable."),
]
ServiceStore = Annotated[
    str, typer.Option("--store", envvar="DGG_RAY_STORE", metavar="URL", help="The service's store.")
]
DEFAULT_SERVICE_STORE = "out/service/store"
UserName = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]


def serve(
    store: Annotated[
        str | None,
        typer.Option(
            envvar="DGG_RAY_STORE", metavar="URL", help="Store of the studies.", show_default="ROOT/store"
        ),
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of results; it can be deleted and made anew.")
    ] = Path("out/service"),
    data: Annotated[
        str,
        typer.Option(
            envvar="DGG_RAY_DATA", metavar="PLACE", help="Where relative paths in submitted studies start."
        ),
    ] = ".",
    allow: Allow = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8750,
    name: Names = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Ask for no token; only on this machine's own address.")
    ] = False,
    cpus: Annotated[
        float | None, typer.Option(min=0, help="Cores for studies.", show_default="this machine's")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs for studies.", show_default="this machine's")
    ] = None,
    cluster: OnCluster = False,
    dashboard: Dashboard = TUNNEL,
) -> None:
    """Serve all studies of a store over HTTP, with a web page.

    Example: `dgg-ray serve`
    """
    from dgg_ray.service import server

    server.serve(
        server.Options(
            root=root.absolute(),
            store=store or str(root.absolute() / "store"),
            data=data,
            allow=tuple(allow or ()),
            host=host,
            port=port,
            names=tuple(name or ()),
            open_to_all=open_to_all,
            capacity=server.capacity_of(cpus, gpus),
            dashboard=dashboard if cluster else None,
        )
    )


@users.command("add")
def add_user(
    name: UserName,
    role: Annotated[str, typer.Option(help="view, run or admin.")] = "run",
    at_once: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The most studies that run at once.")
    ] = None,
    worker_hours: Annotated[
        float | None, typer.Option(min=0, metavar="H", help="The most worker-hours in all.")
    ] = None,
    store: ServiceStore = DEFAULT_SERVICE_STORE,
) -> None:
    """Add a user and print the token, which is shown this once.

    Example: `dgg-ray user add ada --role admin`
    """
    from dgg_ray.service import accounts
    from dgg_ray.service.server import journal_of

    limits = {"at_once": at_once, "worker_hours": worker_hours}
    given = {key: float(value) for key, value in limits.items() if value is not None}
    print(accounts.add_user(journal_of(store), name, role, "command line", given))


@users.command("list")
def list_users(store: ServiceStore = DEFAULT_SERVICE_STORE, as_json: Json = False) -> None:
    """List the users with their roles and limits."""
    from dgg_ray.service.server import journal_of

    found = journal_of(store).catch_up().users.values()
    if as_json:
        print_json([{"name": user.name, "role": user.role, "limits": user.limits} for user in found])
        return
    for user in found:
        limits = ", ".join(f"{key} {value:g}" for key, value in user.limits.items())
        print(f"{user.name:<20} {user.role:<6} {limits}".rstrip())


@users.command("token")
def user_token(name: UserName, store: ServiceStore = DEFAULT_SERVICE_STORE) -> None:
    """Give a user a new token and print it; the old one is worth nothing from now on."""
    from dgg_ray.service import accounts
    from dgg_ray.service.server import journal_of

    print(accounts.new_token_for(journal_of(store), name, "command line"))


@users.command("remove")
def remove_user(name: UserName, store: ServiceStore = DEFAULT_SERVICE_STORE) -> None:
    """Remove a user; their studies stay."""
    from dgg_ray.service import accounts
    from dgg_ray.service.server import journal_of

    accounts.remove_user(journal_of(store), name, "command line")
