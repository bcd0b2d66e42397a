"""Find commands in documents and comments, and check them without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer

from dgg_ray import cli

ROOT = Path(__file__).parent.parent
PROGRAMS = (
    "ray",
    "dgg-ray",
    "kubectl",
    "docker",
    "gcloud",
    "aws",
    "sbatch",
    "squeue",
    "scancel",
    "pip",
)

# Programs that are not installed here: command → its options, as the manuals list them.
OTHERS: dict[str, set[str]] = {
    "kubectl apply": {"--filename"},
    "kubectl delete": {"--filename"},
    "kubectl port-forward": {"--selector", "--output"},  # of the pod that it names
    "kubectl get raycluster": set(),
    "kubectl logs": {"--selector", "--container"},
    "kubectl create secret generic": {"--from-file", "--from-env-file"},
    "docker build": {"--file", "--tag"},
    "docker push": set(),
    "gcloud auth application-default login": set(),
    "gcloud iam service-accounts create": set(),
    "gcloud storage buckets create": {"--location"},
    "gcloud storage buckets add-iam-policy-binding": {"--member", "--role"},
    "aws configure": set(),
    "aws s3 mb": {"--region"},
    "aws s3 rm": {"--recursive"},
    "aws s3 sync": set(),
    "aws iam create-role": {"--role-name", "--assume-role-policy-document"},
    "aws iam put-role-policy": {"--role-name", "--policy-name", "--policy-document"},
    "aws iam create-instance-profile": {"--instance-profile-name"},
    "aws iam add-role-to-instance-profile": {"--instance-profile-name", "--role-name"},
    "sbatch": {"--nodes", "--time"},
    "squeue": {"--me"},
    "scancel": set(),
    "pip install": {"--constraint"},
}


def in_comments(text: str) -> Iterator[str]:
    """Yield the commands of comment lines such as `#   ray up cluster.yaml      starts a cluster`."""
    for line in re.findall(r"^ *#   (\S.*)$", text, re.MULTILINE):
        command = re.split(r" {3,}", line)[0]
        if command.split()[0] in PROGRAMS:
            yield command


def in_blocks(text: str) -> Iterator[str]:
    """Yield the commands of a Markdown page's indented blocks: continued lines joined, comments removed."""
    blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        command = re.split(r" {3,}#|  # ", line.strip())[0].strip()
        if command:
            yield re.sub(r"\s{2,}", " ", command)


def check(command: str) -> None:
    """Raise AssertionError if the program has no such command or option."""
    words = [w for w in shlex.split(command) if "=" not in w or not re.match(r"[A-Z_]+=", w)]
    program = words[0]
    if program == "dgg-ray":
        parse(words[1:])
    elif program == "ray":
        check_ray(words[1:], command)
    else:
        found = [verb for verb in OTHERS if command.startswith(verb)]
        assert found, f"not in the table of commands: {command}"
        legal = OTHERS[max(found, key=len)]
        script = next((i for i, w in enumerate(words) if w.endswith(".sh")), None)
        words = words[:script]  # the options after a script are the script's
        used = {w.partition("=")[0] for w in words if w.startswith("-")}
        assert used <= legal, f"{sorted(used - legal)} of: {command}"


def parse(words: list[str]) -> dict[str, object]:
    """Return the options of a `dgg-ray` command by name.

    Raises AssertionError if it has no such command or option.
    """
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    if words == ["--version"]:
        return {}
    assert words[0] in commands, f"dgg-ray has no {words[0]!r}"
    command = commands[words[0]]
    if hasattr(command, "commands"):  # a group: `dgg-ray user add`
        words = words[1:]
        assert words[0] in command.commands, f"dgg-ray has no {words[0]!r}"
        command = command.commands[words[0]]
    try:
        return command.make_context(words[0], list(words[1:])).params
    except cli.UsageError as error:
        raise AssertionError(f"{error.format_message()}: dgg-ray {shlex.join(words)}") from None


def check_ray(words: list[str], command: str) -> None:
    import click
    from ray.scripts.scripts import cli as ray

    verb = ray.get_command(None, words[0])  # type: ignore[arg-type]
    assert verb is not None, f"ray has no {words[0]!r}: {command}"
    try:
        verb.make_context(words[0], words[1:])
    except click.ClickException as error:
        raise AssertionError(f"{error.format_message()}: {command}") from None
