"""Which of the servers that share a store are alive, as seen from one of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from control_plane.domain.errors import Refusal

if TYPE_CHECKING:
    from control_plane.services.ports import Steady, Store


class Replicas:
    """Says of itself that it is alive, and watches others do so.

    Each replica counts on in the store. One whose count has moved within the time allowed
    is alive: what is compared are steady seconds of this server alone, up to its last look.
    While the store is away nobody can be seen counting, so everybody gets the time anew when
    it is back.

    Attributes:
        own: What this server is called.
        since: When it could look, at first or after the store had been away; None: not yet.
    """

    def __init__(self, store: Store, steady: Steady, allowed: float) -> None:
        """Takes its parts.

        Args:
            store: Where replicas count.
            steady: What silence is measured by.
            allowed: How many seconds a replica may be silent before it counts as dead.
        """
        self._store = store
        self._steady = steady
        self._allowed = allowed
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked = -math.inf  # or it could not
        self.own = store.replica
        self.since: float | None = None

    async def beat(self) -> None:
        """Counts on, and looks how far the others are. To be done several times in the time.

        Raises:
            Refusal: STORE_UNAVAILABLE.
        """
        if not self._store.is_shared:
            return
        try:
            counts = await self._store.write(lambda tx: tx.beat(self.own))
        except Refusal:
            self._looked = -math.inf
            raise
        now = self._steady()
        if not self.is_up_to_date:
            self.since = now
            self._seen.clear()
        self._looked = now
        for replica, count in counts.items():
            if replica != self.own and self._seen.get(replica, (None,))[0] != count:
                self._seen[replica] = count, now
        for replica in self._seen.keys() - counts.keys():
            del self._seen[replica]  # it has said goodbye

    @property
    def is_up_to_date(self) -> bool:
        """Whether it has looked lately; else it can not tell who is dead."""
        return not self._store.is_shared or self._steady() - self._looked <= self._allowed

    def alive(self) -> set[str]:
        """Those that are alive, this one among them."""
        return {self.own, *(replica for replica in self._seen if self.is_alive(replica))}

    def is_alive(self, replica: str) -> bool:
        """Whether a replica is alive, as far as is known."""
        if replica == self.own:
            return True
        seen = self._seen.get(replica)
        # Up to the last look: what has passed since then says nothing of others.
        return seen is not None and self._looked - seen[1] <= self._allowed

    def may_be_alive(self, replica: str) -> bool:
        """Whether another replica is not known to be dead: it may have begun just now."""
        if replica == self.own or not self._store.is_shared:
            return False
        return replica not in self._seen or self.is_alive(replica)

    def heard(self, replica: str) -> float | None:
        """When another replica was last seen to be alive; None: never."""
        seen = self._seen.get(replica)
        return seen[1] if seen is not None else None

    async def bury(self) -> None:
        """Takes those off the list that have been dead for long."""
        long = self._looked - 2 * self._allowed
        for replica in [each for each, (_, seen) in self._seen.items() if seen < long]:
            await self._forget(replica)

    async def leave(self) -> None:
        """Takes this one off the list, as it ends."""
        if self._store.is_shared:
            await self._forget(self.own)

    async def _forget(self, replica: str) -> None:
        await self._store.write(lambda tx: tx.forget_replica(replica))
