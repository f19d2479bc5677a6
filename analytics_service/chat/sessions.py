"""Sessions: made, read, changed and deleted by those whose they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from analytics_service.chat.conversation import Message, ModelChoice, Session
from analytics_service.chat.plan import Caller
from analytics_service.errors import Reason, Refusal, invalid
from analytics_service.ports import Clock, SessionChange, SessionCursor, Store

MAX_TITLE = 200
"""Characters of a title."""
_TITLE_OF_QUESTION = 60


class Chooser(Protocol):
    """Chooses a model; see `ChatService.choose`."""

    def __call__(
        self, requested: str | None, session: Session | None, *, follow: bool | None = None
    ) -> ModelChoice:
        """Returns the choice, or refuses."""


class SessionService:
    """What callers do with sessions."""

    def __init__(
        self, store: Store, clock: Clock, choose: Chooser, new_id: Callable[[], str]
    ) -> None:
        """Puts the parts together.

        Args:
            store: Where sessions are kept.
            clock: Tells the time.
            choose: Checks that a model can be chosen.
            new_id: Makes ids.
        """
        self._store = store
        self._clock = clock
        self._choose = choose
        self._new_id = new_id

    async def create(
        self, title: str, model_id: str, follow_successor: bool, caller: Caller
    ) -> Session:
        """Creates a session.

        Raises:
            Refusal: The title or the model is not allowed.
        """
        now = self._clock()
        kept = None
        if model_id:
            kept = _kept(self._choose(model_id, None, follow=follow_successor or None))
        session = Session(
            id=self._new_id(),
            principal=caller.name,
            title=_checked(title),
            model_id=kept,
            follow_successor=follow_successor,
            created=now,
            updated=now,
        )
        await self._store.create_session(session)
        return session

    async def get(self, session_id: str, caller: Caller) -> Session:
        """Returns a session.

        Raises:
            Refusal: SESSION_NOT_FOUND.
        """
        return await owned(self._store, session_id, caller)

    async def list(
        self, caller: Caller, after: SessionCursor | None, limit: int
    ) -> Sequence[Session]:
        """Returns the caller's sessions, the one used last first."""
        return await self._store.list_sessions(caller.name, after, limit)

    async def change(
        self, session_id: str, change: SessionChange, version: int | None, caller: Caller
    ) -> Session:
        """Changes a session.

        Raises:
            Refusal: SESSION_NOT_FOUND, ETAG_MISMATCH, or what is to be is not allowed.
        """
        session = await owned(self._store, session_id, caller)
        if change.title is not None:
            _checked(change.title)
        if change.model_id:
            follow = change.follow_successor
            chosen = self._choose(change.model_id, session, follow=follow)
            change = SessionChange(change.title, _kept(chosen), follow)
        return await self._store.change_session(session_id, change, self._clock(), version)

    async def delete(self, session_id: str, version: int | None, caller: Caller) -> None:
        """Deletes a session with its messages.

        Raises:
            Refusal: SESSION_NOT_FOUND, ETAG_MISMATCH, SESSION_BUSY.
        """
        await owned(self._store, session_id, caller)
        await self._store.delete_session(session_id, version)

    async def messages(
        self, session_id: str, after: int, limit: int, caller: Caller
    ) -> Sequence[Message]:
        """Returns messages, the oldest first.

        Raises:
            Refusal: SESSION_NOT_FOUND.
        """
        await owned(self._store, session_id, caller)
        return await self._store.list_messages(session_id, after, limit)


def _kept(choice: ModelChoice) -> str:
    """The model to keep with a session: a retired one as such, so that each answer tells of it."""
    return choice.requested if choice.difference else choice.used


async def owned(store: Store, session_id: str, caller: Caller) -> Session:
    """Returns a session if it is the caller's to see.

    Raises:
        Refusal: SESSION_NOT_FOUND; nobody learns of the sessions of others.
    """
    session = await store.get_session(session_id)
    if session is None or (session.principal != caller.name and not caller.is_admin):
        raise Refusal(
            Reason.SESSION_NOT_FOUND,
            f"there is no session {session_id!r}; `midcourse sessions` lists them",
        )
    return session


def title_of(question: str) -> str:
    """A title made of a session's first question."""
    seen = "".join(each if each.isprintable() else " " for each in question)
    line = " ".join(seen.split())
    if len(line) <= _TITLE_OF_QUESTION:
        return line
    return line[: _TITLE_OF_QUESTION - 1].rstrip() + "…"


def _checked(title: str) -> str:
    if len(title) > MAX_TITLE:
        raise invalid("title", f"got {len(title)} characters, allowed: at most {MAX_TITLE}")
    if not title.isprintable():
        raise invalid("title", "got control characters, allowed: one line of text")
    return title
