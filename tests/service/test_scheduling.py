"""The queue: priority, fair share, first come; limits and room."""

import random

from dgg_ray.service import scheduling
from dgg_ray.service.scheduling import Capacity, next_study, queue, start_times
from dgg_ray.service.state import State

NOW = 1_000_000.0


def state_of(*studies, spending=(), limits=None) -> State:
    """studies: (name, owner, priority, needs, started)."""
    state, events = State(), []
    for owner, most in (limits or {}).items():
        user = {"name": owner, "role": "run", "salt": "", "token_hash": "", "limits": most}
        events.append({"kind": "user added", **user})
    for name, owner, priority, needs, _ in studies:
        facts = {"text": "", "question": "", "needs": needs, "priority": priority}
        events.append({"kind": "submitted", "by": owner, "study": name, **facts})
    for name, *_, started in studies:
        if started:
            events.append({"kind": "started", "study": name, "runner": f"of {name}"})
    for number, event in enumerate(events, start=1):
        state.apply(number, {"at": NOW, "by": "x", **event})
    state.spending += spending
    return state


def waiting(name, owner, priority=0, cpus=1.0):
    return (name, owner, priority, {"cpus": cpus}, False)


def names(state, capacity=Capacity(1), hours=None):  # noqa: B008 - it is frozen
    return [p.study.name for p in queue(state, capacity, hours or {}, NOW)]


def test_priority_comes_before_everything():
    state = state_of(waiting("a", "ada"), waiting("b", "bob", 1), waiting("c", "ada", -1))
    assert names(state) == ["b", "a", "c"]


def test_users_take_turns_whoever_submitted_more():
    state = state_of(*[waiting(f"a{i}", "ada") for i in range(3)], waiting("b0", "bob"), waiting("b1", "bob"))
    assert names(state) == ["a0", "b0", "a1", "b1", "a2"]


def test_who_has_spent_less_this_week_comes_first():
    spent = {"user": "ada", "study": "x", "worker-hours": 5.0}
    state = state_of(waiting("a", "ada"), waiting("b", "bob"), spending=[{"at": NOW - 3600, **spent}])
    assert names(state) == ["b", "a"]
    state = state_of(waiting("a", "ada"), waiting("b", "bob"), spending=[{"at": NOW - 8 * 86_400, **spent}])
    assert names(state) == ["a", "b"]


def test_what_runs_counts_with_what_it_has_spent_and_at_least_an_hour():
    running = [("ra", "ada", 0, {"cpus": 1.0}, True), ("rb", "bob", 0, {"cpus": 1.0}, True)]
    studies = [
        *running,
        *[waiting(f"a{i}", "ada") for i in range(2)],
        *[waiting(f"b{i}", "bob") for i in range(4)],
    ]
    state = state_of(*studies)
    assert names(state) == ["a0", "b0", "a1", "b1", "b2", "b3"]
    assert names(state, hours={"ra": 3.5}) == ["b0", "b1", "b2", "a0", "b3", "a1"]
    state.studies["ra"].spent["worker-hours"] = 3.0  # of earlier runs, which count with these
    assert names(state, hours={"ra": 3.5}) == ["a0", "b0", "a1", "b1", "b2", "b3"]


def test_nothing_overtakes_the_first_study():
    running = ("r", "ada", 0, {"cpus": 2.0}, True)
    state = state_of(running, waiting("large", "bob", cpus=3), waiting("tiny", "cy", cpus=1))
    assert next_study(state, Capacity(4), {}, NOW) is None
    assert queue(state, Capacity(4), {}, NOW)[0].reason == "needs 3 cores, 2 are free"
    assert next_study(state, Capacity(5), {}, NOW).name == "large"


def test_a_study_larger_than_the_machines_runs_alone():
    state = state_of(waiting("huge", "ada", cpus=64))
    assert next_study(state, Capacity(2), {}, NOW).name == "huge"


def test_gpus_and_cores_are_counted_apart():
    running = ("r", "ada", 0, {"gpus": 4.0}, True)
    state = state_of(running, ("g", "bob", 1, {"gpus": 1.0}, False), waiting("c", "bob", cpus=2))
    assert next_study(state, Capacity(2, 4), {}, NOW) is None
    state = state_of(running, waiting("c", "bob", cpus=2))
    assert next_study(state, Capacity(2, 4), {}, NOW).name == "c"


def test_a_user_at_a_limit_holds_nobody_up():
    running = ("r", "ada", 0, {"cpus": 1.0}, True)
    state = state_of(running, waiting("a", "ada", 5), waiting("b", "bob"), limits={"ada": {"at_once": 1}})
    assert next_study(state, Capacity(4), {}, NOW).name == "b"
    assert queue(state, Capacity(4), {}, NOW)[-1].reason == "ada may run 1 at once"
    spent = [{"at": 0.0, "user": "ada", "study": "x", "worker-hours": 2.0}]
    studies = [("r", "ada", 0, {"cpus": 1.0}, True), waiting("a", "ada")]  # what runs counts too
    state = state_of(*studies, limits={"ada": {"worker_hours": 3}}, spending=spent)
    assert next_study(state, Capacity(4), {}, NOW) is None
    assert queue(state, Capacity(4), {}, NOW)[0].reason == "ada has spent 3 of 3 worker-hours"


def test_every_study_has_one_place_whatever_the_queue():
    rng = random.Random(0)
    for _ in range(50):
        studies = [
            waiting(f"s{i}", rng.choice("abc"), rng.randint(-1, 1), rng.choice([1.0, 2.0])) for i in range(12)
        ]
        found = queue(state_of(*studies), Capacity(2), {}, NOW)
        assert sorted(p.study.name for p in found) == sorted(s[0] for s in studies)
        assert [p.place for p in found] == list(range(1, 13))
        priorities = [p.study.priority for p in found]
        assert priorities == sorted(priorities, reverse=True)
        for owner in "abc":  # of one user and priority, first come first
            for priority in (-1, 0, 1):
                own = [
                    p.study.number for p in found if (p.study.owner, p.study.priority) == (owner, priority)
                ]
                assert own == sorted(own)


def test_waiting_studies_start_when_those_before_them_have_ended(monkeypatch):
    monkeypatch.setattr(scheduling.time, "time", lambda: NOW)
    running = [(name, "ada", 0, {"cpus": 1.0}, True) for name in ("r1", "r2")]
    state = state_of(
        *running, waiting("first", "bob", 2), ("wide", "bob", 1, {"cpus": 2.0}, False), waiting("last", "bob")
    )
    places = queue(state, Capacity(2), {}, NOW)
    ends = {"r1": NOW + 100, "r2": NOW + 300}
    wall_s = {"first": 50.0, "wide": 1000.0, "last": 1.0}
    found = start_times(state, Capacity(2), places, ends, wall_s)
    # `first` takes the place of r1, `wide` needs both places, and `last` follows it.
    assert found == {"first": NOW + 100, "wide": NOW + 300, "last": NOW + 1300}
    assert start_times(state, Capacity(2), places, ends, {}) == {"first": NOW + 100}
    assert start_times(state, Capacity(2), places, {"r1": NOW - 5}, wall_s) == {"first": NOW}
