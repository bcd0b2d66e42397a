"""Users and tokens: kept as salted hashes, changed by commands that refuse what cannot be."""

import pytest

from dgg_ray.core.errors import StudyError
from dgg_ray.service import accounts


@pytest.fixture
def journal(service):
    return service.journal


def test_a_token_lets_its_user_in_and_the_store_does_not_hold_it(journal, service):
    token, other = (accounts.add_user(journal, name, "run", "test") for name in ("ada", "bob"))
    assert accounts.user_of(journal.state, token).name == "ada"
    assert accounts.user_of(journal.state, other).name == "bob"
    assert accounts.user_of(journal.state, token[:-1]) is None
    stored = b"".join(file.read_bytes() for file in (service.store.backend.root / "service").rglob("*.json"))
    assert token.encode() not in stored
    assert journal.state.users["ada"].salt != journal.state.users["bob"].salt


def test_a_new_token_ends_the_old_one(journal):
    old = accounts.add_user(journal, "ada", "run", "test")
    new = accounts.new_token_for(journal, "ada", "test")
    assert accounts.user_of(journal.state, old) is None
    assert accounts.user_of(journal.state, new).name == "ada"


def test_a_role_includes_those_before_it(journal):
    for role in ("view", "run", "admin"):
        accounts.add_user(journal, role, role, "test")
    allowed = {
        name: [r for r in ("view", "run", "admin") if accounts.may(u, r)]
        for name, u in journal.state.users.items()
    }
    assert allowed == {"view": ["view"], "run": ["view", "run"], "admin": ["view", "run", "admin"]}


@pytest.mark.parametrize(
    ("name", "role", "limits", "paths"),
    [
        ("a b", "run", {}, ["name"]),
        ("../x", "boss", {"at_one": 1}, ["role", "limits.at_one", "name"]),
        ("local", "run", {}, ["name"]),
        ("ada", "run", {"at_once": -1}, ["limits.at_once"]),
        ("ada", "run", {"worker_hours": float("nan")}, ["limits.worker_hours"]),
    ],
)
def test_what_cannot_be_is_refused_with_every_fault(journal, name, role, limits, paths):
    with pytest.raises(StudyError) as caught:
        accounts.add_user(journal, name, role, "test", limits)
    assert [fault.path for fault in caught.value.faults] == paths
    assert not journal.state.users


def test_a_name_is_taken_once_and_a_mistyped_one_is_recognised(journal):
    accounts.add_user(journal, "ada", "run", "test")
    with pytest.raises(StudyError, match="is a user already"):
        accounts.add_user(journal, "ada", "view", "test")
    with pytest.raises(StudyError, match="Did you mean 'ada'"):
        accounts.remove_user(journal, "adaa", "test")


def test_the_last_admin_stays(journal):
    accounts.add_user(journal, "ada", "admin", "test")
    for act in (
        lambda: accounts.remove_user(journal, "ada", "test"),
        lambda: accounts.change_user(journal, "ada", "test", role="run"),
    ):
        with pytest.raises(StudyError, match="last admin"):
            act()
    accounts.add_user(journal, "bob", "admin", "test")
    accounts.remove_user(journal, "ada", "test")
    assert list(journal.state.users) == ["bob"]
