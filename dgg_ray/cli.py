"""dgg-ray plan | probe | run | status | best | robustness | report | extend | schema: arguments → calls."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgg_ray.errors import DggError, Fault, StudyError

STUDY_IS_WRONG, STOPPED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a stage or the cluster failed; 2 where the study is wrong; 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.do(options) or 0
    except StudyError as error:
        print(error, file=sys.stderr)
        return STUDY_IS_WRONG
    except (DggError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished stages are kept, the same command goes on from them", file=sys.stderr)
        return STOPPED


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="dgg-ray", description=__import__("dgg_ray").__doc__.splitlines()[0])
    commands = p.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=text, description=text)
        c.set_defaults(do=do)
        return c

    def takes_study(c: argparse.ArgumentParser) -> None:
        c.add_argument("study", type=Path, help="a study's YAML file")
        c.add_argument(
            "--data", type=Path, help="folder of the tasks' files (else $DGG_RAY_DATA, else the study's)"
        )
        c.add_argument("--out", type=Path, help="folder of the results (default: out/STUDY)")

    c = command("plan", plan, "check a study and its data, count its stages, start nothing")
    takes_study(c)
    c.add_argument("--see", type=points, metavar="POINTS", help="say what it takes to see this difference")
    c.add_argument("--sd", type=points, metavar="POINTS", help="spread of a difference (default: measured)")
    c.add_argument("--json", action="store_true", help="counts as JSON")
    for name, do, text in (
        ("probe", probe, "measure what a study's stages will cost, a few steps of each kind"),
        ("run", run, "run a study, or continue it"),
    ):
        c = command(name, do, text)
        takes_study(c)
        c.add_argument("--local", action="store_true", help="in this process, without Ray")
        c.add_argument("--address", help="a Ray cluster, such as `auto` on its head (default: this machine)")
        c.add_argument("--quiet", action="store_true", help="no progress display")
    c = command("status", status, "how far a study is")
    c.add_argument("out", type=Path, help="folder of the results")
    c.add_argument("--json", action="store_true", help="counts as JSON")
    c = command("best", best, "the recommended setting and what it was compared with")
    c.add_argument("out", type=Path, help="folder of the results")
    c.add_argument("--json", action="store_true", help="as JSON")
    c = command("robustness", robustness, "how much the order of the tasks matters")
    c.add_argument("out", type=Path, help="folder of the results")
    c.add_argument("--json", action="store_true", help="every number, as JSON")
    c = command("report", report, "write the report of what is finished")
    c.add_argument("out", type=Path, help="folder of the results")
    c = command("extend", extend, "a new dataset has come: write a study that has one more task")
    c.add_argument("study", type=Path, help="the finished study's YAML file")
    what = "a folder or a train file; or `embedded`. May be given several times"
    c.add_argument("--task", type=pair, action="append", required=True, metavar="NAME=PATH", help=what)
    c.add_argument("--reader", default="llava", help="what reads the files (default: llava)")
    c.add_argument("--data", type=Path, help="folder of the tasks' files, as for `run`")
    c.add_argument("--from", type=Path, dest="results", help="the old results (default: out/STUDY)")
    c.add_argument("--name", help="the new study's name (default: the old one's and the tasks')")
    c.add_argument(
        "--out-file", type=Path, metavar="FILE", help="the file to write (default: beside the old one)"
    )
    command("schema", schema, "JSON Schema of a study file, for editors")
    return p


def points(text: str) -> float:
    """A difference of scores in points of 100."""
    if not 0 < (value := float(text)) <= 100:
        raise ValueError
    return value


def pair(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError
    return name, place


def load(options: argparse.Namespace) -> tuple[Any, Path]:
    from dgg_ray.study import Study

    study = Study.load(options.study, options.data)
    for note in study.warnings:
        print(f"warning: {note}", file=sys.stderr)
    out = (options.out or Path("out") / study.name).absolute()
    above = next(place for place in (out, *out.parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise StudyError(
            [Fault("--out", "must be a folder that can be written", repr(str(out)))], "arguments"
        )
    return study, out


def plan(options: argparse.Namespace) -> None:
    from dgg_ray import budget, designs, methods, warm
    from dgg_ray.plan import plan

    study, out = load(options)
    study = warm.settled(study, out)
    store = study.store(out)
    found = replace(plan(study, store), designs=designs.table(study, store, options.see, options.sd))
    budget.purse(study, store, methods.at_the_end).check(methods.first_run(study))
    print(json.dumps(found.as_json(), indent=1) if options.json else found)


def probe(options: argparse.Namespace) -> int:
    study, out = load(options)
    from dgg_ray import tune

    found, errors = tune.probe(study, out, options.local, options.address, options.quiet)
    print(found)
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


def run(options: argparse.Namespace) -> int:
    study, out = load(options)
    from dgg_ray import tune

    outcome = tune.run(study, out, options.local, options.address, options.quiet)
    print(outcome)
    return 1 if outcome.results.failures or outcome.tally["failed"] else 0


def status(options: argparse.Namespace) -> None:
    from dgg_ray import methods, progress
    from dgg_ray.plan import plan
    from dgg_ray.studyfile import the_kept

    study = the_kept(options.out)
    store = study.store(options.out)
    found, live = plan(study, store), progress.live(options.out)
    search, _ = methods.inquiries(study, store)
    best = methods.best_so_far(search) if search else ""
    if options.json:
        print(json.dumps(found.as_json() | live | {"best": best}, indent=1))
        return
    print(found)
    print(f"  now               {len(live['running'])} running, {live['queued']} queued")
    for stage in live["running"]:
        print(f"    {stage['stage']}  step {stage['steps'][0]}/{stage['steps'][1]}")
    print(f"  best so far       {best or 'none yet'}")


def best(options: argparse.Namespace) -> None:
    from dgg_ray import results

    loaded = results.load(options.out)
    if options.json:
        print(json.dumps(results.recommendation(loaded), indent=1))
    else:
        from dgg_ray.report import answer

        print("\n".join(answer(loaded)))


def robustness(options: argparse.Namespace) -> None:
    from dgg_ray import results, robustness

    loaded = results.load(options.out)
    robustness.write(loaded, options.out)
    print(robustness.as_json(loaded) if options.json else "\n".join(robustness.sentences(loaded)))


def report(options: argparse.Namespace) -> None:
    from dgg_ray import report, results

    print(report.write(results.load(options.out), options.out))


def extend(options: argparse.Namespace) -> None:
    from dgg_ray.extend import extend

    o = options
    print(extend(o.study, dict(o.task), o.data, o.reader, o.results, o.name, o.out_file))


def schema(options: argparse.Namespace) -> None:
    from dgg_ray.schema import schema

    print(json.dumps(schema(), indent=1))
