"""Leases: one of several processes has a key, until it releases it or is silent for too long."""

import os
import random
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from dgg_ray.storage import leases
from dgg_ray.storage.backend import LocalBackend
from dgg_ray.storage.lease_keeper import LeaseKeeper
from dgg_ray.storage.leases import KEPT_NUMBERS, SLACK, LeaseOwner
from dgg_ray.storage.memory import MemoryBackend
from dgg_ray.storage.stage_store import open_store

A, B, C = (LeaseOwner(name, "elsewhere", 1) for name in "abc")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture()
def clock():
    return Clock()


def test_a_lease_that_is_not_renewed_ends_and_others_wait_for_a_twelfth_more(clock):
    backend = MemoryBackend()
    assert leases.acquire(backend, "k", A, 60, clock) is None
    clock.now += 60 * (1 + SLACK) - 0.1
    assert leases.acquire(backend, "k", B, 60, clock) == A
    clock.now += 0.2
    assert leases.acquire(backend, "k", B, 60, clock) is None
    assert leases.acquire(backend, "k", A, 60, clock) == B


def test_renewing_keeps_a_lease_and_few_objects_are_stored(clock):
    backend = MemoryBackend()
    for _ in range(50):
        assert leases.acquire(backend, "k", A, 60, clock) is None
        clock.now += 20
        assert leases.acquire(backend, "k", B, 60, clock) == A
    assert len(backend.list_names("leases/k/")) == KEPT_NUMBERS


def test_the_lease_of_a_dead_process_of_this_machine_ends_at_once(clock):
    backend, me = MemoryBackend(), LeaseOwner.this_process()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = replace(me, id="dead", pid=ended.pid)
    assert leases.acquire(backend, "k", dead, 60, clock) is None
    assert leases.acquire(backend, "k", me, 60, clock) is None
    assert leases.acquire(backend, "elsewhere", replace(dead, host="elsewhere"), 60, clock) is None
    assert leases.acquire(backend, "elsewhere", me, 60, clock) is not None  # no process here can know


def test_a_process_numbered_by_another_container_is_not_considered_dead(clock):
    backend, me = MemoryBackend(), LeaseOwner.this_process()
    name, boot, numbering = me.host.split("/")
    assert numbering == str(os.stat("/proc/self/ns/pid").st_ino)
    other = LeaseOwner("other", f"{name}/{boot}/1", 2**22 + 1)  # no process here has such a number
    assert leases.acquire(backend, "k", other, 60, clock) is None
    assert leases.acquire(backend, "k", me, 60, clock) == other


def test_other_objects_among_the_leases_are_ignored(clock):
    backend = MemoryBackend()
    for name in ("notes.txt", "x.json", "000009.json.bak", "sub/000099.json"):
        backend.write(f"leases/k/{name}", b"{}")
    backend.write("leases/k/000009.json", b"[]")
    assert leases.acquire(backend, "k", A, 60, clock) is None
    assert leases.acquire(backend, "k", B, 60, clock) == A


def test_the_lease_of_a_living_process_of_this_machine_is_respected(clock):
    backend, me = MemoryBackend(), LeaseOwner.this_process()
    parent = replace(me, id="parent", pid=os.getppid())
    assert leases.acquire(backend, "k", parent, 60, clock) is None
    assert leases.acquire(backend, "k", me, 60, clock) == parent


def test_a_process_that_paused_before_its_creation_has_lost_although_its_number_is_free_again(clock):
    backend = MemoryBackend()
    assert leases.acquire(backend, "k", A, 60, clock) is None
    clock.now += 100  # A's lease has ended: C reads, and pauses
    _, numbers = leases.latest_lease(backend, "k")
    for _ in range(KEPT_NUMBERS + 2):  # B acquires and renews it, until the numbers that C read are removed
        assert leases.acquire(backend, "k", B, 60, clock) is None
    assert leases.lease_name("k", numbers[-1] + 1) not in backend.list_names("leases/")
    assert not leases.append(backend, "k", numbers, C, clock.now + 60, 60)
    assert leases.acquire(backend, "k", C, 60, clock) == B
    assert leases.acquire(backend, "k", B, 60, clock) is None


def test_a_lease_that_was_cut_off_has_no_owner(clock):
    backend = MemoryBackend()
    backend.create(leases.lease_name("k", 1), b'{"id": "a", "ho')
    assert leases.acquire(backend, "k", B, 60, clock) is None


class Stepwise(MemoryBackend):
    """A backend on which every access waits for its thread's turn."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns

    def __getattribute__(self, name):
        if name in ("read", "create", "list_names", "remove"):
            object.__getattribute__(self, "turns").wait()
        return object.__getattribute__(self, name)


class Turns:
    """Runs threads one access at a time, in an order drawn from a seed."""

    def __init__(self, seed):
        self.rng, self.go, self.idle = random.Random(seed), {}, threading.Semaphore(0)
        self.free = False

    def wait(self):
        turn = self.go.get(threading.get_ident())
        if turn is not None:
            self.idle.release()
            turn.acquire()

    def run(self, bodies):
        threads, done = [], set()

        def life(n, body):
            self.go[threading.get_ident()] = locks[n]
            locks[n].acquire()
            body()
            done.add(n)
            self.idle.release()

        locks = [threading.Semaphore(0) for _ in bodies]
        for n, body in enumerate(bodies):
            threads.append(threading.Thread(target=life, args=(n, body)))
            threads[-1].start()
        while len(done) < len(bodies):
            locks[self.rng.choice([n for n in range(len(bodies)) if n not in done])].release()
            self.idle.acquire()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("block", range(8))
def test_two_processes_never_have_a_live_lease_whatever_the_order_of_their_accesses(block):
    for seed in range(25 * block, 25 * (block + 1)):
        clock, turns = Clock(), Turns(seed)
        backend, rng = Stepwise(turns), random.Random(-seed - 1)
        until = dict.fromkeys("abc", 0.0)  # as each owner believes

        def live(owner, seed=seed, clock=clock, backend=backend, rng=rng, until=until):
            for _ in range(6):
                clock.now += rng.choice([0, 0, 1, 5, 11, 14])
                before = clock.now
                if leases.acquire(backend, "k", owner, 10, clock) is None:
                    if clock.now >= before + 10:
                        continue  # acquiring took longer than the lease
                    until[owner.id] = before + 10
                    others = [name for name, end in until.items() if name != owner.id and end > clock.now]
                    assert not others, (seed, owner.id, others)
                    if rng.random() < 0.3:
                        until[owner.id] = 0.0
                        leases.release(backend, "k", owner)
                elif until[owner.id] > clock.now:
                    raise AssertionError(f"seed {seed}: {owner.id} lost its live lease")

        failed = []

        def record_errors(owner, live=live, failed=failed):
            try:
                live(owner)
            except BaseException as error:
                failed.append(error)

        turns.run([lambda owner=owner: record_errors(owner) for owner in (A, B, C)])
        assert failed == []


@pytest.mark.whole
def test_one_of_many_threads_that_acquire_a_lease_in_a_folder_has_it(tmp_path):
    backend, winners = LocalBackend(tmp_path), []
    for round_ in range(20):
        start, owners = threading.Barrier(6), []

        def acquire(n, round_=round_, start=start, owners=owners):
            start.wait()
            if leases.acquire(backend, f"k{round_}", LeaseOwner(str(n), "elsewhere", 1), 60) is None:
                owners.append(n)

        threads = [threading.Thread(target=acquire, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners.append(len(owners))
    assert winners == [1] * 20


# -- the lease keeper -------------------------------------------------------------------------------


def two_drivers(store):
    return LeaseKeeper(store, LeaseOwner("one", "a", 1)), LeaseKeeper(store, LeaseOwner("two", "b", 2))


def test_a_lease_acquired_again_before_its_release_is_kept(tmp_path):
    one, two = two_drivers(open_store(tmp_path))
    assert one.acquire("key") is None
    with one._lock("key"):  # as if the store were slow
        one.release("key")
        one.releasing.discard("key")  # the first step of acquiring it again
    one.pool.shutdown()
    assert two.acquire("key") == one.owner


def test_a_released_lease_is_not_renewed(tmp_path):
    one, two = two_drivers(open_store(tmp_path))
    assert one.acquire("key") is None
    one.release("key").result()
    one._renew("key")
    assert two.acquire("key") is None


def test_a_lease_that_another_driver_has_acquired_is_forgotten(tmp_path):
    store = open_store(tmp_path)
    one, two = two_drivers(store)
    assert one.acquire("key") is None
    store.release_lease("key", one.owner)  # as if it had expired
    assert two.acquire("key") is None
    one._renew("key")
    assert one.held == set()
    one.close()
    assert store.acquire_lease("key", LeaseOwner("three", "c", 3)) == two.owner


def test_all_leases_are_released_at_the_end(tmp_path):
    one, two = two_drivers(open_store(tmp_path))
    assert [one.acquire(key) for key in "abc"] == [None] * 3
    one.close()
    assert [two.acquire(key) for key in "abc"] == [None] * 3
