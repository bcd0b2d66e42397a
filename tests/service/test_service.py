"""Commands, and what the service does by itself: nothing is lost, nothing starts twice."""

from __future__ import annotations

import random
import threading

import pytest
from server_samples import NotedLauncher, text

from dgg_ray.core.errors import StudyError
from dgg_ray.service import runner
from dgg_ray.service import service as module
from dgg_ray.service.refused import RefusedError
from dgg_ray.service.scheduling import Capacity
from dgg_ray.storage.leases import LeaseOwner, host_id


def end(service, name, how="finished", **facts):
    """What a runner adds when its study ends."""
    service.journal.commit(
        lambda state: {"kind": "ended", "by": "runner", "study": name, "how": how, "message": "", **facts}
    )


def ready(service, runner_id, pid=None):
    """Let a runner be ready, as a process of this machine."""
    owner = LeaseOwner(runner_id, host_id(), pid or LeaseOwner.this_process().pid)
    assert service.store.acquire_lease(runner.lease_key(runner_id), owner) is None
    facts = {"kind": "runner ready", "by": "runner", "runner": runner_id, "owner": vars(owner)}
    service.journal.commit(lambda state: facts)


def states(service):
    return {name: study.state for name, study in service.journal.catch_up().studies.items()}


def test_a_study_waits_starts_and_ends(service):
    study = service.submit(text(), "ada", 3)
    assert (study.owner, study.priority, study.needs, study.state) == ("ada", 3, {"cpus": 1}, "queued")
    service.supervise()
    (launched,) = service.launcher.started
    assert states(service) == {"small": "starting"}
    ready(service, launched)
    end(service, "small", spent={"worker-hours": 0.5})
    assert states(service) == {"small": "finished"}
    assert service.journal.state.spent_by("ada") == 0.5
    assert service.card("small")["state"] == "finished"


def test_an_idle_runner_is_given_the_next_study(service):
    service.submit(text("a"), "ada")
    service.supervise()
    ready(service, service.launcher.started[0])
    end(service, "a")
    service.submit(text("b"), "ada")
    service.supervise()
    assert len(service.launcher.started) == 1
    assert service.journal.state.studies["b"].runner == service.launcher.started[0]


def test_as_many_run_as_there_is_room_for(make):
    service = make(capacity=Capacity(2))
    for name in "abc":
        service.submit(text(name), "ada")
    service.supervise()
    assert states(service) == {"a": "starting", "b": "starting", "c": "queued"}
    assert service.card("c")["place"] == 1
    assert service.card("c")["waits_for"] == "needs 1 cores, 0 are free"


def test_several_servers_start_each_study_once(make):
    servers = [make(capacity=Capacity(50)) for _ in range(4)]
    for i in range(20):
        servers[i % 4].submit(text(f"s{i}"), "ada")
    threads = [threading.Thread(target=server.supervise) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [runner_id for server in servers for runner_id in server.launcher.started]
    assert len(started) == len(set(started)) == 20
    assert all(study.run == 1 for study in servers[0].journal.catch_up().studies.values())


def test_a_name_is_taken_once(service):
    service.submit(text(), "ada")
    with pytest.raises(RefusedError, match="of ada; give this one another name"):
        service.submit(text(), "bob")


def test_faults_are_raised_and_nothing_is_submitted(service):
    with pytest.raises(StudyError) as caught:
        service.submit(text(**{"model: embedded": "model: embeded"}), "ada")
    assert [(fault.path, fault.line) for fault in caught.value.faults] == [("model.name", 2)]
    with pytest.raises(StudyError, match="priority"):
        service.submit(text(), "ada", 11)
    assert service.journal.catch_up().number == 0


def test_a_waiting_study_is_stopped_at_once_and_can_be_resumed(service):
    service.submit(text(), "ada")
    service.stop("small", "ada")
    assert states(service) == {"small": "stopped"}
    service.supervise()
    assert service.launcher.started == []
    with pytest.raises(RefusedError, match="is stopped already"):
        service.stop("small", "ada")
    service.resume("small", "ada")
    service.supervise()
    assert states(service) == {"small": "starting"}
    with pytest.raises(RefusedError, match="only a study that is over"):
        service.resume("small", "ada")


def test_a_running_study_is_stopping_until_its_runner_says_so(service):
    service.submit(text(), "ada")
    service.supervise()
    service.stop("small", "ada")
    assert states(service) == {"small": "stopping"}
    end(service, "small", "stopped")
    assert states(service) == {"small": "stopped"}


def test_the_study_of_a_dead_runner_waits_again(service, monkeypatch):
    service.submit(text(), "ada")
    service.supervise()
    first = service.launcher.started[0]
    ready(service, first, pid=2**22 - 1)  # no process has this number
    service.supervise()
    study = service.journal.state.studies["small"]
    assert (study.state, study.run) == ("starting", 2)
    assert study.runner == service.launcher.started[1] != first
    assert first not in service.journal.state.runners


def test_a_study_whose_runners_all_die_fails_and_says_where_to_look(service, monkeypatch):
    monkeypatch.setattr(module, "START_S", -1.0)  # no runner comes up in time
    service.submit(text(), "ada")
    for _ in range(module.MOST_LOSSES + 1):
        service.supervise()
    card = service.card("small")
    assert (card["state"], len(service.launcher.started)) == ("failed", module.MOST_LOSSES)
    assert card["message"].endswith(f"{service.launcher.started[-1]}.log")
    service.resume("small", "ada")
    service.supervise()
    assert service.card("small")["state"] == "starting"


def test_a_runner_that_never_came_up_is_given_up_after_a_while(service, monkeypatch):
    service.submit(text(), "ada")
    service.supervise()
    service.supervise()
    assert len(service.launcher.started) == 1
    monkeypatch.setattr(module, "START_S", 0.0)
    service.supervise()
    assert len(service.launcher.started) == 2


def test_a_lost_study_that_was_to_stop_is_stopped(service):
    service.submit(text(), "ada")
    service.supervise()
    ready(service, service.launcher.started[0], pid=2**22 - 1)
    service.stop("small", "ada")
    service.supervise()
    assert states(service) == {"small": "stopped"}


def test_a_study_is_resumed_with_another_text_of_its_own_name(service):
    service.submit(text(), "ada")
    service.stop("small", "ada")
    with pytest.raises(RefusedError, match="is of a study 'other'"):
        service.resume("small", "ada", text("other"))
    service.resume("small", "ada", text(**{"trials: 4": "trials: 5"}))
    assert "trials: 5" in service.text("small")


def test_a_clone_is_a_study_of_its_own(service):
    service.submit(text(), "ada")
    clone = service.clone("small", "bob", "second", {"strategy.buffer": 9})
    assert (clone.owner, clone.cloned_from) == ("bob", "small")
    assert "buffer: 9" in service.text("second")


def test_a_study_that_runs_is_not_deleted_and_a_deleted_one_is_gone(service):
    service.submit(text(), "ada")
    service.supervise()
    with pytest.raises(RefusedError, match="stop it first"):
        service.delete("small", "ada")
    end(service, "small")
    service.delete("small", "ada")
    assert service.names() == []
    with pytest.raises(RefusedError) as caught:
        service.card("small")
    assert caught.value.status == 404
    service.submit(text(), "bob")  # the name is free again


def test_a_study_that_vanishes_while_it_is_listed_is_left_out(service, monkeypatch):
    service.submit(text("a"), "ada")
    monkeypatch.setattr(type(service), "names", lambda self: ["a", "gone"])
    assert [card["name"] for card in service.cards()] == ["a"]


def test_a_studys_results_lie_apart_from_the_store_whatever_its_name(tmp_path):
    for name in ("store", "cache", "studies"):
        assert runner.results_folder(tmp_path, name) == tmp_path / "studies" / name


def test_a_waiting_study_says_what_it_will_spend_and_when_it_will_start(make, monkeypatch):
    service = make(capacity=Capacity(1))
    for name in "ab":
        service.submit(text(name), "ada")
    service.supervise()
    found = {"wall_s": 60.0, "unit": "worker-hours", "forecast": [2.0, 1.0, 3.0]}
    monkeypatch.setattr(module.checks, "predict", lambda *_: found)
    service.predict_next()
    service.known["a"] = module.Known("", {"at": 1e9, "left_s": [90.0, 80.0, 100.0]}, 1e9)
    monkeypatch.setattr(module.scheduling.time, "time", lambda: 1e9)
    card = service.card("b")
    assert (card["forecast"], card["spent_unit"]) == ([2.0, 1.0, 3.0], "worker-hours")
    assert 0 <= card["starts_at"] - (1e9 + 90) < 60
    assert service.card("a")["starts_at"] is None


def test_an_unknown_study_is_named_with_the_nearest(service):
    service.submit(text(), "ada")
    with pytest.raises(RefusedError, match="Did you mean 'small'") as caught:
        service.stop("smal", "ada")
    assert caught.value.status == 404


def test_whatever_happens_in_whatever_order_the_history_makes_sense(make, monkeypatch):
    """Random commands, deaths and servers: each study has one runner, and none is lost."""
    monkeypatch.setattr(module, "START_S", 0.0)
    rng = random.Random(1)
    servers = [make(capacity=Capacity(2)) for _ in range(2)]
    submitted = []
    for step in range(150):
        server = servers[rng.randrange(2)] if rng.random() < 0.97 else make(capacity=Capacity(2))
        act = rng.choice(["submit", "supervise", "stop", "resume", "end", "die"])
        state = server.journal.catch_up()
        active = [study.name for study in state.active]
        try:
            if act == "submit" and len(submitted) < 12:
                name = f"s{step}"
                server.submit(text(name), rng.choice(["ada", "bob"]))
                submitted.append(name)
            elif act == "supervise":
                server.supervise()
            elif act in ("stop", "resume") and submitted:
                getattr(server, act)(rng.choice(submitted), "ada")
            elif act == "end" and active:
                end(server, rng.choice(active), rng.choice(["finished", "failed", "stopped"]))
            elif act == "die" and active:
                study = state.studies[rng.choice(active)]
                if study.runner in state.runners and not state.runners[study.runner].owner:
                    ready(server, study.runner, pid=2**22 - 1)
        except RefusedError:
            pass
        found = server.journal.catch_up()
        runners = [study.runner for study in found.active]
        assert len(runners) == len(set(runners)) <= 2
        assert sorted(found.studies) == sorted(submitted)
        assert all(bool(study.runner) == (study in found.active) for study in found.studies.values())
    fresh = make()
    assert fresh.journal.catch_up() == servers[0].journal.catch_up()


def test_the_launcher_of_processes_names_the_rules(service):
    launcher = NotedLauncher(service.rules, service.root, ("--local",))
    words = launcher.command("r1", "python")
    assert words[:4] == ["python", "-m", "dgg_ray.service.runner", "r1"]
    assert words[-1] == "--local"
    assert words[words.index("--allow") + 1] == service.rules.roots[0]
