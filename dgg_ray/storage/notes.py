"""What is kept beside the stages, in the same place: small notes, leases; and whether the place is fit."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from dgg_ray.core.errors import StoreError
from dgg_ray.storage import leases
from dgg_ray.storage.backend import Objects
from dgg_ray.storage.leases import LEASE_S, SLACK, Holder


class Notes:
    """Notes, leases and a check of the place, for whoever has `objects`.

    A note's name has parts with / between them, of any characters; probes, failures and what studies and
    watchers say of themselves are notes.
    """

    objects: Objects

    @property
    def url(self) -> str:
        """How another machine names the place."""
        return self.objects.url

    def size(self) -> int:
        """Bytes of all that is there."""
        return sum(self.objects.sizes("").values())

    def note(self, name: str, content: dict[str, Any]) -> None:
        """Keep a small document, in place of an earlier one of that name."""
        self.objects.write(of_note(name), json.dumps(content, indent=1, sort_keys=True).encode())

    def noted(self, name: str) -> dict[str, Any] | None:
        """None where there is nothing that can be read."""
        return content_of(self.objects.read(of_note(name)))

    def notes(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, content) of all notes whose names begin so, in order."""
        for name in self.objects.names(quote(prefix)):
            if (content := content_of(self.objects.read(name))) is not None:
                yield unquote(name.removesuffix(".json")), content

    def forget(self, name: str) -> None:
        self.objects.remove(of_note(name))

    def lease(self, key: str, holder: Holder, seconds: float = LEASE_S) -> Holder | None:
        """Take or renew the right to work on a key; None where it is `holder`'s now, else who has it."""
        return leases.take(self.objects, key, holder, seconds)

    def release(self, key: str, holder: Holder) -> None:
        """Give it back; nothing happens where another has it."""
        leases.release(self.objects, key, holder)

    def check(self) -> None:
        """Raises StoreError, in seconds, where the place cannot hold a store: it cannot be written or read
        back, it creates what is there already, or its clock is not ours."""
        objects, name, mine = self.objects, f"checks/{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            before = time.time()
            created, again = objects.create(name, mine), objects.create(name, b"again")
            at, after = objects.modified(name), time.time()
            found = objects.read(name)
            listed = objects.names(name) == [name]
            objects.remove(name)
        except OSError as error:
            raise StoreError(
                f"{self.url} cannot be written: {error}. Name a place that can be, as output.store"
            ) from error
        if not created or again or not listed or found != mine:
            raise StoreError(
                f"{self.url} does not keep things as a store needs it (created {created}, created again "
                f"{again}, listed {listed}, read back {found == mine}); use another place as output.store"
            )
        apart = (
            0.0 if at is None else max(before - at - 1, at - after, 0.0)
        )  # some cut their clock to seconds
        if apart > LEASE_S * SLACK:
            raise StoreError(
                f"the clocks of this machine and of {self.url} are {apart:.0f} s apart, more than "
                f"{LEASE_S * SLACK:.0f}: set this machine's clock (NTP), as leases end by it"
            )


def of_note(name: str) -> str:
    return f"{quote(name)}.json"


def content_of(data: bytes | None) -> Any:
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None
