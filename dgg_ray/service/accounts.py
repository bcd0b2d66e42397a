"""Users and their tokens: made, checked, changed.

A token is 256 random bits, so that a fast hash is enough; the store keeps SHA-256 of a salt and the token. It
is printed once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Any

from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.service.journal import Journal
from dgg_ray.service.state import ROLES, Event, Role, State, User

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
LOCAL = "local"  # the name of whoever holds the token that a server printed when it started
PREFIX = "dgg-"  # so that a token is recognised as one, by people and by scanners
LIMITS = ("at_once", "worker_hours")


def new_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(salt: str, token: str) -> str:
    return hashlib.sha256(f"{salt}{token}".encode()).hexdigest()


def secret_of(token: str) -> dict[str, str]:
    """Return what the journal keeps of a token."""
    salt = secrets.token_hex(16)
    return {"salt": salt, "token_hash": token_hash(salt, token)}


def user_of(state: State, token: str) -> User | None:
    """Return the user whose token this is; every user's is compared, in a time that tells nothing."""
    found = None
    for user in list(state.users.values()):
        if hmac.compare_digest(token_hash(user.salt, token), user.token_hash):
            found = user
    return found


def may(user: User, role: Role) -> bool:
    """Return whether the user may do what this role may do."""
    return ROLES.index(user.role) >= ROLES.index(role)


def add_user(
    journal: Journal, name: str, role: str, by: str, limits: Mapping[str, float] | None = None
) -> str:
    """Add a user and return the token. Raises StudyError for a name, role or limit that cannot be."""
    token, limits = new_token(), dict(limits or {})
    faults = [*role_faults(role), *limit_faults(limits)]
    if not NAME.fullmatch(name):
        faults.append(Fault("name", "must be up to 64 letters, digits, _ . and -", repr(name)))
    elif name == LOCAL:
        faults.append(
            Fault("name", "is who holds the link that a server prints; take another one", repr(name))
        )

    def decide(state: State) -> Event:
        taken = [Fault("name", "is a user already", repr(name))] if name in state.users else []
        if faults + taken:
            raise StudyError(faults + taken, "user")
        return {"kind": "user added", "name": name, "role": role, "limits": limits, "by": by} | secret_of(
            token
        )

    journal.commit(decide)
    return token


def change_user(journal: Journal, name: str, by: str, **changes: Any) -> None:
    """Change a user's `role` or `limits`. Raises StudyError where that cannot be."""
    faults = role_faults(changes["role"]) if "role" in changes else []
    faults += limit_faults(changes["limits"]) if "limits" in changes else []

    def decide(state: State) -> Event:
        found = [*faults, *known_user_faults(state, name)]
        if not found and changes.get("role", "admin") != "admin":
            found = last_admin_faults(state, name)
        if found:
            raise StudyError(found, "user")
        return {"kind": "user changed", "name": name, "by": by} | changes

    journal.commit(decide)


def new_token_for(journal: Journal, name: str, by: str) -> str:
    """Give a user a new token, which is returned; the old one is worth nothing from now on."""
    token = new_token()

    def decide(state: State) -> Event:
        if found := known_user_faults(state, name):
            raise StudyError(found, "user")
        return {"kind": "user changed", "name": name, "by": by} | secret_of(token)

    journal.commit(decide)
    return token


def remove_user(journal: Journal, name: str, by: str) -> None:
    """Remove a user; studies that they submitted stay."""

    def decide(state: State) -> Event:
        if found := known_user_faults(state, name) or last_admin_faults(state, name):
            raise StudyError(found, "user")
        return {"kind": "user removed", "name": name, "by": by}

    journal.commit(decide)


def role_faults(role: str) -> list[Fault]:
    if role in ROLES:
        return []
    return [Fault("role", f"must be one of {', '.join(ROLES)}", repr(role), nearest_name(role, ROLES))]


def limit_faults(limits: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for name, value in limits.items():
        if name not in LIMITS:
            faults.append(Fault(f"limits.{name}", "no such limit", near=nearest_name(name, LIMITS)))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            faults.append(Fault(f"limits.{name}", "must be a number of at least 0", repr(value)))
    return faults


def known_user_faults(state: State, name: str) -> list[Fault]:
    if name in state.users:
        return []
    return [Fault("name", "there is no such user", repr(name), nearest_name(name, state.users))]


def last_admin_faults(state: State, name: str) -> list[Fault]:
    """A fault where nobody could manage users any more."""
    others = [u for u in state.users.values() if u.role == "admin" and u.name != name]
    if others or state.users[name].role != "admin":
        return []
    return [Fault("name", "is the last admin; make another user admin first", repr(name))]
