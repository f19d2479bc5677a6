"""Agreement among the ranks of a distributed run, over a gloo group of its own.

A blocking collective at every step would be waste, as there is almost never anything to agree on.
So the ranks agree one step ahead: at a boundary each begins an asynchronous reduction of how much
it has to say, and looks at the result at the next boundary, when it has long arrived. Only where
somebody has something to say, all gather what it is, and handle it at that boundary.

The group lies on the CPU, whatever the training itself communicates with, and is known to nobody
else: it is not among the groups that ``torch.distributed`` counts and names.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from midcourse.link.v1 import link_pb2
from trainer_agent.link.framing import MAX_MESSAGE_BYTES, FrameDecoder, frame
from trainer_agent.parameters import Refused
from trainer_agent.ranks import Problem

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, Work

    from trainer_agent.ranks import Messages

# Stubs say less than there is. It is absent where PyTorch was built without.
c10d: Any = getattr(dist, "distributed_c10d", None)

logger = logging.getLogger(__name__)

SEVERAL_RANKS = "SEVERAL_RANKS"
"""Reason why a run of several ranks is not steered: they can not agree."""
RANKS_LOST = "RANKS_LOST"
"""Reason why an update was undone: another rank was lost while all were to say how it went."""

MAX_WAIT = 600.0
"""Longest wait, in seconds, for another rank, where the training's own timeout is not shorter."""
MAX_GATHERING = 60.0
"""Longest wait, in seconds, for all ranks to begin training."""
CLOSE_WAIT = 2.0
"""Longest wait, in seconds, for the others at the end."""

_SLICE = timedelta(seconds=1)  # so often a wait lets Python see to signals, such as Ctrl-C
_MAX_BYTES = MAX_MESSAGE_BYTES + 1024  # of the agent's largest message with its wrapping
_HEADER = 8

_TOGETHER = "together"
_APART = "apart"

_starts = itertools.count(1)


class RanksLostError(RuntimeError):
    """The ranks do not agree any more: one is gone, or the connection to it is."""


def join(args: Any = None) -> GroupRanks:
    """Meet the other ranks of this run; to be called on every one of them as training begins.

    Args:
        args: The run's ``TrainingArguments``, of which ``ddp_timeout`` counts; None: a raw loop.

    Raises:
        Refused: They did not all come, or there is no way to talk to them. Nobody is left waiting.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.is_gloo_available()):
        raise Refused(
            SEVERAL_RANKS,
            "this run has several ranks without a torch.distributed process group, or with a "
            "PyTorch that lacks gloo: they have no way to agree, and the run is only watched",
        )
    get_store = getattr(c10d, "_get_default_store", None)
    if get_store is None:
        raise Refused(
            SEVERAL_RANKS,
            f"PyTorch {torch.__version__} has no torch.distributed.distributed_c10d."
            "_get_default_store, through which the ranks of this run would find each other: the "
            "run is only watched",
        )
    wait = min(MAX_WAIT, float(getattr(args, "ddp_timeout", None) or MAX_WAIT))
    store = c10d.PrefixStore("midcourse", get_store())
    return meet(store, next(_starts), dist.get_rank(), dist.get_world_size(), wait=wait)


def meet(
    store: Store,
    start: int,
    rank: int,
    size: int,
    *,
    wait: float = MAX_WAIT,
    gathering: float = MAX_GATHERING,
) -> GroupRanks:
    """Meet the other ranks at a store.

    Were the group made at once, a rank whose script has no callback would leave the others waiting
    for it. So each first leaves a mark, and the first one that has seen all marks, or has waited
    long enough, says for everybody whether there will be a group. Where there was none once there
    never is, as from then on the ranks do not count alike.

    Args:
        store: Used for nothing else.
        start: Which start of training this is, as this rank counts.
        rank: This rank.
        size: How many there are.
        wait: Longest wait for another rank later on, in seconds.
        gathering: Longest wait for all ranks to come, in seconds; ``wait`` at the most.

    Raises:
        Refused: They did not all come, or they can not reach one another.
    """
    gathering = min(gathering, wait)
    place = c10d.PrefixStore(str(start), store)
    try:
        if store.check([_APART]):
            raise Refused(SEVERAL_RANKS, store.get(_APART).decode())
        place.set(f"here/{rank}", "yes")
        absent = _absent(place, size, gathering)
        verdict = _missed(absent, size, gathering) if absent else _TOGETHER
        said = place.compare_set("verdict", "", verdict).decode()
        if said != _TOGETHER:
            store.set(_APART, said)
            raise Refused(SEVERAL_RANKS, said)
        group = c10d.ProcessGroupGloo(place, rank, size, timedelta(seconds=gathering))
    except RuntimeError as error:  # torch.distributed's errors are
        raise Refused(
            SEVERAL_RANKS,
            f"the ranks of this run could not reach one another over gloo: {error}; the run is "
            "only watched. GLOO_SOCKET_IFNAME names the network interface to use",
        ) from error
    return GroupRanks(group, rank, size, wait=wait)


def _missed(absent: list[int], size: int, seconds: float) -> str:
    return (
        f"of the {size} ranks of this run {', '.join(map(str, absent))} did not begin training "
        f"with Midcourse's callback within {seconds:g} s of the others: the run is only watched; "
        "attach it on every rank, not on the first alone"
    )


def _absent(place: Store, size: int, seconds: float) -> list[int]:
    keys = [f"here/{rank}" for rank in range(size)]
    try:
        place.wait(keys, timedelta(seconds=seconds))
    except dist.DistStoreError:
        return [rank for rank, key in enumerate(keys) if not place.check([key])]
    return []


class GroupRanks:
    """The ranks of a run, joined by a gloo group; fulfils :class:`trainer_agent.ranks.Ranks`.

    Whatever the ranks do together begins with a reduction of the same two numbers: how much the
    rank with most to say has to say, and whether one leaves. A rank that leaves begins one such
    reduction more, whatever the others take it for. So they learn of it at once, rather than wait
    for nobody.

    Once a rank is lost nothing is asked of the group any more.

    Args:
        group: The group, used by nobody else.
        rank: This rank's number in it.
        size: How many ranks it has.
        wait: Longest wait for another rank, in seconds.
    """

    def __init__(self, group: Any, rank: int, size: int, *, wait: float = MAX_WAIT) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = group
        self._wait_seconds = wait
        self._reduce = c10d.AllreduceOptions()
        self._reduce.reduceOp = c10d.ReduceOp.MAX
        self._reduce.timeout = timedelta(seconds=wait)
        self._gather = c10d.AllgatherOptions()
        self._gather.timeout = timedelta(seconds=wait)
        self._given: list[link_pb2.RankMessage] = []
        # What was begun at the last boundary: whether there is anything to share at the next.
        self._announced: _Reduction | None = None
        self._lost: str | None = None
        self._stuck = False

    def exchange(self, messages: Messages) -> Messages:
        """Give what this rank has learned, and get what all have to act on at this boundary.

        Raises:
            RanksLostError: A rank is gone. What was given is returned by ``close``.
        """
        self._given += messages
        due = self._shared_messages() if self._anything_announced() else ()
        self._announced = self._begin(len(self._given))
        return due

    def hold(self, messages: Messages) -> Messages:
        """Exchange without waiting for the next boundary.

        Raises:
            RanksLostError: A rank is gone. What was given is returned by ``close``.
        """
        self._given += messages
        self._anything_announced()  # it comes back now, whether or not it was announced
        return self._shared_messages()

    def vote(self, problem: Problem | None) -> Problem | None:
        """Say whether this rank could do what all were to do, and hear of the others.

        Where a rank is lost before it has said so that is the problem, and the next exchange
        raises.
        """
        try:
            problems = self._shared(b"" if problem is None else _encoded_problem(problem))
        except RanksLostError as lost:
            return problem or Problem(RANKS_LOST, str(lost))
        for rank, data in enumerate(problems):
            if data:
                return _decoded_problem(data).on_rank(rank)
        return None

    def close(self) -> Messages:
        """Let go of the others. Waits ``CLOSE_WAIT`` seconds for them at the most, never raises.

        Returns:
            What was given here and never came back.
        """
        group, self._group = self._group, None
        if group is not None:
            begun = [] if self._announced is None else [self._announced]
            try:
                if self._lost is None:
                    begun.append(_Reduction(group, self._reduce, 0, leaving=self.rank + 1))
                    _wait(begun[-1].work, CLOSE_WAIT)
            except RuntimeError as error:
                logger.debug("rank %d ended before another one: %s", self.rank, error)
            if self._stuck or not all(each.work.is_completed() for each in begun):
                _leave_to_itself(group)
        unreturned, self._given = self._given, []
        return unreturned

    # Within.

    def _anything_announced(self) -> bool:
        self._whole_group()
        announced, self._announced = self._announced, None
        return announced is not None and self._end(announced) > 0

    def _shared_messages(self) -> Messages:
        parts = self._shared(b"".join(map(_encoded, self._given)))
        self._given.clear()
        return [message for part in parts for message in _decoded(part)]

    def _shared(self, said: bytes) -> list[bytes]:
        """Return what every rank says now, empty where none says anything."""
        size = self._end(self._begin(len(said)))
        if not size:
            return []
        row = len(said).to_bytes(_HEADER, "big") + said.ljust(size, b"\0")
        rows = [torch.empty(len(row), dtype=torch.uint8, device="cpu") for _ in range(self.size)]
        mine = torch.frombuffer(bytearray(row), dtype=torch.uint8)
        group = self._whole_group()
        try:
            self._wait(group.allgather([rows], [mine], self._gather))
        except RuntimeError as error:
            raise self._now_lost(error) from error
        return [_cut(bytes(each.tolist())) for each in rows]

    def _begin(self, size: int) -> _Reduction:
        group = self._whole_group()
        try:
            return _Reduction(group, self._reduce, size)
        except RuntimeError as error:
            raise self._now_lost(error) from error

    def _end(self, reduction: _Reduction) -> int:
        """Wait for a reduction and return the largest size."""
        try:
            self._wait(reduction.work)
        except RuntimeError as error:
            raise self._now_lost(error) from error
        size, leaving = reduction.numbers.tolist()
        if leaving:
            raise self._now_lost(
                f"rank {leaving - 1} has left: its training or Midcourse's work there has ended, "
                "and its log says why"
            )
        return int(size)

    def _wait(self, work: Work) -> None:
        try:
            _wait(work, self._wait_seconds)
        finally:
            self._stuck = self._stuck or not work.is_completed()

    def _whole_group(self) -> Any:
        if self._group is None or self._lost is not None:
            raise RanksLostError(self._lost or "this rank has left the others already")
        return self._group

    def _now_lost(self, why: object) -> RanksLostError:
        self._lost = (
            f"the ranks of this run do not agree any more, as rank {self.rank} found out: {why}"
        )
        return RanksLostError(self._lost)


class _Reduction:
    """The largest size among the ranks, and the highest rank that leaves, on its way."""

    __slots__ = ("numbers", "work")

    def __init__(self, group: Any, options: Any, size: int, leaving: int = 0) -> None:
        """Begin it.

        Args:
            group: The group.
            options: Of the reduction.
            size: This rank's.
            leaving: This rank's number and one, if it leaves.
        """
        self.numbers = torch.tensor([size, leaving], dtype=torch.int64, device="cpu")
        self.work = group.allreduce([self.numbers], options)


def _wait(work: Work, seconds: float) -> None:
    """Wait for a collective.

    Raises:
        RuntimeError: It failed, or took too long.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            work.wait(min(_SLICE, timedelta(seconds=seconds)))
        except RuntimeError:
            if work.is_completed() or time.monotonic() >= end:
                raise
        else:
            return


def _leave_to_itself(group: Any) -> None:
    """Keep a group with unfinished work for ever: to let go of it waits for that work."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _encoded(message: link_pb2.RankMessage) -> bytes:
    return frame(message.SerializeToString(), max_bytes=_MAX_BYTES)


def _decoded(data: bytes) -> list[link_pb2.RankMessage]:
    decoder = FrameDecoder(max_bytes=_MAX_BYTES)
    return [link_pb2.RankMessage.FromString(each) for each in decoder.feed(data)]


def _cut(row: bytes) -> bytes:
    """Return what a rank has said, without what filled its row up."""
    return row[_HEADER : _HEADER + int.from_bytes(row[:_HEADER], "big")]


def _encoded_problem(problem: Problem) -> bytes:
    return json.dumps([problem.reason, problem.message, problem.parameter]).encode()


def _decoded_problem(data: bytes) -> Problem:
    return Problem(*json.loads(data))
