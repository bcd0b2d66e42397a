"""Leases: of two who want a key one has it, until it gives it back or is silent for too long."""

import os
import random
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from dgg_ray.storage import leases
from dgg_ray.storage.backend import Folder
from dgg_ray.storage.lease_keeper import Claims
from dgg_ray.storage.leases import KEPT, SLACK, Holder
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.training.simulated import Memory

A, B, C = (Holder(name, "elsewhere", 1) for name in "abc")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture()
def clock():
    return Clock()


def test_a_lease_that_is_not_renewed_ends_and_others_wait_for_a_twelfth_more(clock):
    objects = Memory()
    assert leases.take(objects, "k", A, 60, clock) is None
    clock.now += 60 * (1 + SLACK) - 0.1
    assert leases.take(objects, "k", B, 60, clock) == A
    clock.now += 0.2
    assert leases.take(objects, "k", B, 60, clock) is None
    assert leases.take(objects, "k", A, 60, clock) == B


def test_renewing_keeps_it_and_what_is_stored_stays_small(clock):
    objects = Memory()
    for _ in range(50):
        assert leases.take(objects, "k", A, 60, clock) is None
        clock.now += 20
        assert leases.take(objects, "k", B, 60, clock) == A
    assert len(objects.names("leases/k/")) == KEPT


def test_the_lease_of_a_dead_process_of_this_machine_ends_at_once(clock):
    objects, me = Memory(), Holder.here()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = replace(me, id="dead", pid=ended.pid)
    assert leases.take(objects, "k", dead, 60, clock) is None
    assert leases.take(objects, "k", me, 60, clock) is None
    assert leases.take(objects, "elsewhere", replace(dead, host="elsewhere"), 60, clock) is None
    assert leases.take(objects, "elsewhere", me, 60, clock) is not None  # nobody can know


def test_a_process_that_another_container_numbers_is_not_taken_for_dead(clock):
    objects, me = Memory(), Holder.here()
    name, boot, numbering = me.host.split("/")
    assert numbering == str(os.stat("/proc/self/ns/pid").st_ino)
    other = Holder("other", f"{name}/{boot}/1", 2**22 + 1)  # no process here has such a number
    assert leases.take(objects, "k", other, 60, clock) is None
    assert leases.take(objects, "k", me, 60, clock) == other


def test_what_others_put_among_leases_counts_for_nothing(clock):
    objects = Memory()
    for name in ("notes.txt", "x.json", "000009.json.bak", "sub/000099.json"):
        objects.write(f"leases/k/{name}", b"{}")
    objects.write("leases/k/000009.json", b"[]")
    assert leases.take(objects, "k", A, 60, clock) is None
    assert leases.take(objects, "k", B, 60, clock) == A


def test_the_lease_of_a_living_process_of_this_machine_holds(clock):
    objects, me = Memory(), Holder.here()
    parent = replace(me, id="parent", pid=os.getppid())
    assert leases.take(objects, "k", parent, 60, clock) is None
    assert leases.take(objects, "k", me, 60, clock) == parent


def test_who_stopped_between_look_and_creation_has_lost_though_the_number_is_free_again(clock):
    objects = Memory()
    assert leases.take(objects, "k", A, 60, clock) is None
    clock.now += 100  # A's has ended: C looks, and stops
    _, numbers = leases.look(objects, "k")
    for _ in range(KEPT + 2):  # B takes it and renews, until what C saw is long removed
        assert leases.take(objects, "k", B, 60, clock) is None
    assert leases.place("k", numbers[-1] + 1) not in objects.names("leases/")
    assert not leases.add(objects, "k", numbers, C, clock.now + 60, 60)
    assert leases.take(objects, "k", C, 60, clock) == B
    assert leases.take(objects, "k", B, 60, clock) is None


def test_a_lease_that_was_cut_off_is_nobodys(clock):
    objects = Memory()
    objects.create(leases.place("k", 1), b'{"id": "a", "ho')
    assert leases.take(objects, "k", B, 60, clock) is None


class Stepwise(Memory):
    """Every access waits until it is its thread's turn."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns

    def __getattribute__(self, name):
        if name in ("read", "create", "names", "remove"):
            object.__getattribute__(self, "turns").wait()
        return object.__getattribute__(self, name)


class Turns:
    """Runs threads one access at a time, in an order drawn from a seed."""

    def __init__(self, seed):
        self.rng, self.go, self.idle = random.Random(seed), {}, threading.Semaphore(0)
        self.free = False

    def wait(self):
        mine = self.go.get(threading.get_ident())
        if mine is not None:
            self.idle.release()
            mine.acquire()

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
def test_two_never_hold_a_live_lease_however_their_accesses_fall(block):
    for seed in range(25 * block, 25 * (block + 1)):
        clock, turns = Clock(), Turns(seed)
        objects, rng = Stepwise(turns), random.Random(-seed - 1)
        until = dict.fromkeys("abc", 0.0)  # by each holder's own belief

        def live(holder, seed=seed, clock=clock, objects=objects, rng=rng, until=until):
            for _ in range(6):
                clock.now += rng.choice([0, 0, 1, 5, 11, 14])
                before = clock.now
                if leases.take(objects, "k", holder, 10, clock) is None:
                    if clock.now >= before + 10:
                        continue  # it took longer than the lease, and is told nothing
                    until[holder.id] = before + 10
                    others = [name for name, end in until.items() if name != holder.id and end > clock.now]
                    assert not others, (seed, holder.id, others)
                    if rng.random() < 0.3:
                        until[holder.id] = 0.0
                        leases.release(objects, "k", holder)
                elif until[holder.id] > clock.now:
                    raise AssertionError(f"seed {seed}: {holder.id} lost what it held")

        failed = []

        def kept(holder, live=live, failed=failed):
            try:
                live(holder)
            except BaseException as error:
                failed.append(error)

        turns.run([lambda holder=holder: kept(holder) for holder in (A, B, C)])
        assert failed == []


@pytest.mark.whole
def test_of_many_that_take_at_once_in_a_folder_one_has_it(tmp_path):
    objects, found = Folder(tmp_path), []
    for round_ in range(20):
        start, taken = threading.Barrier(6), []

        def take(n, round_=round_, start=start, taken=taken):
            start.wait()
            if leases.take(objects, f"k{round_}", Holder(str(n), "elsewhere", 1), 60) is None:
                taken.append(n)

        threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(len(taken))
    assert found == [1] * 20


# -- what a driver claims --------------------------------------------------------------------------


def two_drivers(store):
    return Claims(store, Holder("one", "a", 1)), Claims(store, Holder("two", "b", 2))


def test_a_claim_taken_again_before_it_was_given_back_is_kept(tmp_path):
    one, two = two_drivers(StageStore(tmp_path))
    assert one.take("key") is None
    with one._lock("key"):  # as when the store is slow
        one.drop("key")
        one.leaving.discard("key")  # what taking it again does first
    one.pool.shutdown()
    assert two.take("key") == one.holder


def test_a_claim_that_was_given_back_is_not_renewed(tmp_path):
    one, two = two_drivers(StageStore(tmp_path))
    assert one.take("key") is None
    one.drop("key").result()
    one._again("key")
    assert two.take("key") is None


def test_a_claim_that_another_driver_has_by_now_is_forgotten(tmp_path):
    store = StageStore(tmp_path)
    one, two = two_drivers(store)
    assert one.take("key") is None
    store.release("key", one.holder)  # as if it had run out
    assert two.take("key") is None
    one._again("key")
    assert one.held == set()
    one.close()
    assert store.lease("key", Holder("three", "c", 3)) == two.holder


def test_all_claims_are_given_back_at_the_end(tmp_path):
    one, two = two_drivers(StageStore(tmp_path))
    assert [one.take(key) for key in "abc"] == [None] * 3
    one.close()
    assert [two.take(key) for key in "abc"] == [None] * 3
