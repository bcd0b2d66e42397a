"""dgg-ray: arguments → calls.

init | plan | profile | run | status | best | examples | robustness | report | extend | gc | schema
submit | studies | logs | stop: on a cluster, from afar
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dgg_ray
from dgg_ray.core import surroundings, terminal
from dgg_ray.core.errors import DggError, Fault, StudyError
from dgg_ray.core.fence import Fence

STUDY_IS_WRONG, STOPPED = 2, 130
ABOUT = "Study how a vision-language model learns one dataset after another without forgetting."
TUNNEL = "http://127.0.0.1:8265"  # where `ray dashboard` opens the head's door
STORED = "stages go there (else $DGG_RAY_STORE, else the study's output.store)"
THERE = f"the cluster's head (else $DGG_RAY_ADDRESS, else {TUNNEL})"

Command = Callable[[str, Any, str], argparse.ArgumentParser]  # name, function, what it does


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a stage or the cluster failed; 2 where the study is wrong; 130 after Ctrl-C or a signal."""
    with terminal.lasting():
        return code_of(parser().parse_args(arguments))


def code_of(options: argparse.Namespace) -> int:
    try:
        return options.do(options) or 0
    except StudyError as error:
        print(error, file=sys.stderr)
        return STUDY_IS_WRONG
    except (DggError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if surroundings.folder_is_gone():
            print("the folder that this was started in was deleted; `cd` to another one", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished stages are kept, the same command goes on from them", file=sys.stderr)
        return STOPPED


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="dgg-ray", description=ABOUT)
    p.add_argument("--version", action="version", version=f"dgg-ray {dgg_ray.__version__}")
    commands = p.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=text, description=text)
        c.set_defaults(do=do)
        return c

    to_begin(command)
    on_this_machine(command)
    on_results(command)
    from_afar(command)
    command("schema", schema, "JSON Schema of a study file, for editors")
    return p


def to_begin(command: Command) -> None:
    c = command("init", init, "write a study for the tasks found in a folder, to begin with")
    c.add_argument("--data", type=Path, metavar="DIR", help="folder with train and test files of your tasks")
    c.add_argument("--embedded", action="store_true", help="the tasks in the package, which need no data")
    c.add_argument("--model", help="NAME, NAME=FOLDER or NAME=HUB_NAME@COMMIT (default: embedded)")
    c.add_argument("--name", help="the study's name (default: the data folder's)")
    c.add_argument("--out-file", type=Path, metavar="FILE", help="to write (default: NAME.yaml)")


def on_this_machine(command: Command) -> None:
    def takes_study(c: argparse.ArgumentParser) -> None:
        c.add_argument("study", type=Path, help="a study's YAML file")
        c.add_argument(
            "--data", type=Path, help="folder or URL of the tasks' files (else $DGG_RAY_DATA, the study's)"
        )
        c.add_argument("--out", type=Path, help="folder of the results (default: out/STUDY)")
        c.add_argument("--store", default=os.environ.get("DGG_RAY_STORE"), metavar="URL", help=STORED)

    c = command("plan", plan, "check a study and its data, count its stages, start nothing")
    takes_study(c)
    c.add_argument("--see", type=points, metavar="POINTS", help="say what it takes to see this difference")
    c.add_argument("--sd", type=points, metavar="POINTS", help="spread of a difference (default: measured)")
    c.add_argument("--address", help="check against this Ray cluster in place of this machine")
    c.add_argument("--json", action="store_true", help="counts as JSON")
    for name, do, text in (
        ("profile", profile, "measure what a study's stages will cost, a few steps of each kind"),
        ("run", run, "run a study, or continue it"),
    ):
        c = command(name, do, text)
        takes_study(c)
        c.add_argument("--local", action="store_true", help="in this process, without Ray")
        c.add_argument("--address", help="a Ray cluster, such as `auto` on its head (default: this machine)")
        c.add_argument("--quiet", action="store_true", help="no progress display")
    c = command("extend", extend, "a new dataset has come: write a study that has one more task")
    c.add_argument("study", type=Path, help="the finished study's YAML file")
    what = "a folder or a train file; or `embedded`. May be given several times"
    c.add_argument("--task", type=pair, action="append", required=True, metavar="NAME=PATH", help=what)
    c.add_argument("--reader", default="llava", help="what reads the files (default: llava)")
    c.add_argument("--data", type=Path, help="folder or URL of the tasks' files, as for `run`")
    c.add_argument("--from", type=Path, dest="results", help="the old results (default: out/STUDY)")
    c.add_argument("--name", help="the new study's name (default: the old one's and the tasks')")
    c.add_argument("--out-file", type=Path, metavar="FILE", help="to write (default: beside the old one)")
    c = command("gc", gc, "what the studies of a store no longer need; with --delete, remove it")
    c.add_argument("out", type=Path, nargs="*", help="results of a study in the store; or name that:")
    c.add_argument("--store", metavar="PLACE", help="folder or URL of the store")
    c.add_argument("--adapters", action="store_true", help="weights that nothing will start from, too")
    c.add_argument("--gone", action="append", default=[], metavar="NAME", help="a study that is no more")
    c.add_argument("--delete", action="store_true", help="remove it; without, it is only shown")
    c.add_argument("--json", action="store_true", help="each piece, as JSON")


def on_results(command: Command) -> None:
    """Commands for what a study has found, on this machine or on a cluster."""

    def takes_results(c: argparse.ArgumentParser, as_json: bool = True) -> argparse.ArgumentParser:
        c.add_argument("out", metavar="DIR", help="folder of the results; with --address or --store a NAME")
        c.add_argument("--address", nargs="?", const=tunnel(), help=THERE)
        c.add_argument("--store", metavar="URL", help="the store that the study was run with")
        c.add_argument("--copy", type=Path, metavar="DIR", help="what is fetched (default: out/cluster/NAME)")
        if as_json:
            c.add_argument("--json", action="store_true", help="every number, as JSON")
        return c

    takes_results(command("status", status, "how far a study is"))
    what = "the setting to use and how sure that is, what it was compared with, where its adapter lies"
    takes_results(command("best", best, what))
    what = "answers that were right when their task was learned and are wrong at the end"
    c = takes_results(command("examples", examples, what))
    c.add_argument("--task", default="", help="of this task alone")
    c.add_argument("--split", default="", help="validation or test (default: that of the comparison)")
    c.add_argument("--count", type=positive, default=20, metavar="N", help="at most (default: 20)")
    c.add_argument(
        "--method", default="", help="of this one, as `best` names it (default: the chosen setting)"
    )
    takes_results(command("robustness", robustness, "how much the order of the tasks matters"))
    takes_results(command("report", report, "write the report of what is finished"), as_json=False)


def tunnel() -> str:
    return os.environ.get("DGG_RAY_ADDRESS") or TUNNEL


def from_afar(command: Command) -> None:
    """Commands for a study on a cluster, given on any machine that reaches its head."""
    c = command("submit", submit, "run a study on a cluster, or go on with it, from afar")
    c.add_argument("study", type=Path, help="a study's YAML file")
    c.add_argument("--address", default=tunnel(), help=THERE)
    c.add_argument("--store", default=os.environ.get("DGG_RAY_STORE"), metavar="URL", help=STORED)
    c.add_argument("--data", help="URL, or folder there, of the tasks' files (default: they are sent along)")
    c.add_argument("--out", help="folder of the results on the head (default: dgg_ray/NAME in its home)")
    pins = {"nargs": "?", "const": Path("constraints.txt"), "metavar": "FILE"}
    c.add_argument("--pip", type=Path, **pins, help="install what is needed there, at this file's versions")
    c.add_argument("--follow", action="store_true", help="pass on what it says until it ends")
    c = command("studies", studies, "all studies that a cluster or a store knows")
    c.add_argument("--address", nargs="?", const=tunnel(), help=THERE)
    c.add_argument("--store", metavar="URL", help="a store")
    c.add_argument("--json", action="store_true", help="as JSON")
    for name, do, text in (
        ("logs", logs, "what a study on a cluster says"),
        ("stop", stop, "stop a study on a cluster as Ctrl-C does; its finished stages are kept"),
    ):
        c = command(name, do, text)
        c.add_argument("name", help="the study's name")
        c.add_argument("--address", default=tunnel(), help=THERE)
        if do is logs:
            c.add_argument("--follow", action="store_true", help="go on until it ends")


def points(text: str) -> float:
    """A difference of scores in points of 100."""
    if not 0 < (value := float(text)) <= 100:
        raise ValueError
    return value


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def pair(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError
    return name, place


def load(options: argparse.Namespace) -> tuple[Any, Path]:
    from dgg_ray import api

    study = api.load_study(options.study, options.data, options.store)
    api.check(study)
    out = (options.out or Path("out") / study.name).absolute()
    above = next(place for place in (out, *out.parents) if os.path.lexists(place))
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise StudyError(
            [Fault("--out", "must be a folder that can be written", repr(str(out)))], "arguments"
        )
    return study, out


def folder(options: argparse.Namespace) -> Path:
    """The folder of the results; those of a cluster are fetched."""
    if not options.address and not options.store:
        return Path(options.out)
    from dgg_ray.remote import submission

    return submission.copied(options.out, options.address, options.store, options.copy)


def init(options: argparse.Namespace) -> None:
    from dgg_ray.planning.init import init

    def ask(question: str, usual: str) -> str:
        try:
            return input(f"{question}{usual and f' [{usual}]'}: ").strip() or usual
        except EOFError:
            return usual

    o = options
    asked = sys.stdin is not None and sys.stdin.isatty()
    print(init(o.data, o.embedded, o.model, o.name, o.out_file, ask if asked else None))


def plan(options: argparse.Namespace) -> None:
    from dgg_ray.config import takeover
    from dgg_ray.cost import budget
    from dgg_ray.execution import capacity
    from dgg_ray.planning import edited_plugins, order_designs
    from dgg_ray.planning.plan import plan
    from dgg_ray.search import comparison, warm_start

    study, out = load(options)
    if options.address:
        from dgg_ray.execution import cluster  # with Ray, which a plan of this machine does without

        with cluster.connected(study, options.address):
            pass  # it says what the cluster can never hold
    study = warm_start.settled(study, out)
    if changes := takeover.changes(study, out):
        terminal.warn(changes)
    store = study.store(out)
    found = replace(plan(study, store), designs=order_designs.table(study, store, options.see, options.sd))
    budget.purse(study, store, comparison.comparison_items).check(comparison.first_run_items(study))
    print(json.dumps(found.as_json(), indent=1) if options.json else found)
    for line in () if options.address else capacity.sentences(study, store.url, found.outlook):
        terminal.warn(line)
    for line in edited_plugins.sentences(study, store):
        print(line, file=sys.stderr)


def profile(options: argparse.Namespace) -> int:
    study, out = load(options)
    from dgg_ray.execution import driver

    found, errors = driver.profile(study, out, options.local, options.address, options.quiet)
    print(found)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


def run(options: argparse.Namespace) -> int:
    study, out = load(options)
    from dgg_ray import api

    outcome = api.carry_out(study, out, options.local, options.address, options.quiet)
    print(outcome)
    return 1 if outcome.results.failures or outcome.tally["failed"] else 0


def status(options: argparse.Namespace) -> None:
    from dgg_ray.analysis import load
    from dgg_ray.config.loader import the_kept
    from dgg_ray.core import blame
    from dgg_ray.execution import progress
    from dgg_ray.planning.plan import plan
    from dgg_ray.search import comparison
    from dgg_ray.storage.store_view import Glance

    if options.address:
        from dgg_ray.remote import submission

        print(
            submission.said(job := submission.the_job(submission.Head(options.address), options.out)),
            file=sys.stderr,
        )
        if not job.over and (why := submission.unread(job)):
            print(f"{why}; `dgg-ray logs {job.study}` shows what it says", file=sys.stderr)
            return
    out = folder(options)
    study = the_kept(out)
    store = study.store(out)
    found, live = plan(study, store), progress.live(out)
    asked = load.gathered(study, seen := Glance(store))
    fence = Fence(terminal.warn)
    name = "the best setting so far"
    best = fence.tried(name, "", comparison.best_so_far, asked.search) if asked.search else ""
    if options.json:
        print(json.dumps(found.as_json() | live | {"best": best}, indent=1))
        return
    print(found)
    print(f"  now               {len(live['running'])} running, {live['queued']} queued")
    for stage in live["running"]:
        print(f"    {stage['stage']}  step {stage['steps'][0]}/{stage['steps'][1]}")
    print(f"  best so far       {best or 'none yet'}")
    for line in dict.fromkeys(blame.line(error) for error in load.failures(seen, asked.stages)):
        print(f"  failed            {line}")


def best(options: argparse.Namespace) -> None:
    from dgg_ray.analysis import load

    fence = Fence(terminal.warn)
    loaded = load.load(folder(options), fence)
    if options.json:
        print(json.dumps(load.recommendation(loaded), indent=1))
    else:
        from dgg_ray.report import closing

        adapters = fence.tried("where the adapters lie", [], closing.adapters, loaded)
        print("\n".join([*closing.summary(loaded, fence), "", *adapters]))


def examples(options: argparse.Namespace) -> None:
    from dgg_ray.analysis import examples, load

    o = options
    found = examples.listing(load.load(folder(o), Fence(terminal.warn)), o.task, o.split, o.count, o.method)
    print(json.dumps(found, indent=1) if o.json else examples.as_text(found))


def robustness(options: argparse.Namespace) -> None:
    from dgg_ray.analysis import load, order_sensitivity

    fence = Fence(terminal.warn)
    loaded = load.load(out := folder(options), fence)
    with fence("robustness.csv"):
        order_sensitivity.write(loaded, out)
    print(
        order_sensitivity.as_json(loaded) if options.json else "\n".join(order_sensitivity.sentences(loaded))
    )


def report(options: argparse.Namespace) -> None:
    from dgg_ray.analysis import load
    from dgg_ray.config import loader
    from dgg_ray.core import event_log
    from dgg_ray.report import report

    fence = Fence(terminal.warn)
    out = folder(options)
    name = loader.the_kept(out).name  # first: logs make their folder, and a mistyped one stays unmade
    with event_log.of_driver(name, out):
        print(report.write(load.load(out, fence), out, fence))


def extend(options: argparse.Namespace) -> None:
    from dgg_ray.planning.extend import extend

    o = options
    print(extend(o.study, dict(o.task), o.data, o.reader, o.results, o.name, o.out_file))


def gc(options: argparse.Namespace) -> None:
    from dgg_ray.planning import store_gc

    litter = store_gc.find(options.out, options.store, options.gone, options.adapters)
    freed = litter.delete() if options.delete else 0
    if options.json:
        return print(json.dumps(litter.as_json() | {"freed": freed}, indent=1))
    print(litter)
    print(f"{freed / 1e9:.3g} GB freed" if options.delete else "nothing was removed; --delete removes it")


def submit(options: argparse.Namespace) -> int:
    from dgg_ray.remote import submission

    o = options
    job, new, notes = submission.submit(o.study, o.address, o.data, o.store, o.out, o.pip)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{submission.said(job)}{'' if new else '; it is not started a second time'}")
    return listen(o.address, job) if o.follow else 0


def studies(options: argparse.Namespace) -> None:
    from dgg_ray.remote import submission

    address = options.address if options.store else options.address or tunnel()
    found = submission.listed(address, options.store)
    print(json.dumps(found, indent=1) if options.json else submission.as_table(found))


def logs(options: argparse.Namespace) -> int:
    from dgg_ray.remote import submission

    head = submission.Head(options.address)
    job = submission.the_job(head, options.name)
    if options.follow:
        return listen(options.address, job)
    print(head.log(job), end="")
    return 0


def listen(address: str, job: Any) -> int:
    """Its exit code, or 130 where it was stopped; Ctrl-C ends the listening alone."""
    from dgg_ray.remote import submission

    try:
        job = submission.Head(address).follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\nit goes on there; `dgg-ray stop {job.study}` stops it", file=sys.stderr)
        return 0
    print(submission.said(job), file=sys.stderr)
    return STOPPED if job.state == "STOPPED" else job.code if job.code is not None else 1


def stop(options: argparse.Namespace) -> None:
    from dgg_ray.remote import submission

    head = submission.Head(options.address)
    print(submission.said(head.stop(submission.the_job(head, options.name))))


def schema(options: argparse.Namespace) -> None:
    from dgg_ray.config.json_schema import schema

    print(json.dumps(schema(), indent=1))
