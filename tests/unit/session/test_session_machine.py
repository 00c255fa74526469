"""Random asks, answers, crashes, callbacks and takeovers of whole sessions on one ledger, in virtual time.

A model of what really happened at the provider says what the ledger may hold and what those who wait may hear.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import looptime
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sora_chars.errors import InvalidRequestError, KeyConflictError, LedgerError, StaleEntryError
from sora_chars.ledger import EntryState
from sora_chars.ledger.states import TRANSITIONS
from sora_chars.models import FAIL, SUCCESS
from tests.support.simulated_process import TIMEOUT, WAIT, SimulatedProcess, own_task
from tests.support.simulated_world import EMPTY, ENDS, SimulatedWorld, given_up

FATES = st.sampled_from(
    [
        *["answer"] * 3,
        "empty",
        *["answer lost"] * 3,
        "request lost",
        "never left",
        "busy",
        "rejected",
        "hangs",
        "late",
        "upload lost",
        "upload rejected",
    ]
)
KEYS = st.sampled_from(["k-1", "k-2", "k-3", "k-4", "k-5", "k-6"])
NUMBERS = st.integers(0, 2)
VICTIMS = st.integers(0, 5)  # from 3 on: one that is sending, if there is any
SECONDS = st.sampled_from([0.0, 0.004, 0.02, 0.06, 0.12, 0.3, 3.0, 40.0, 400.0])


class SessionMachine(RuleBasedStateMachine):
    """Three processes on one ledger before one provider."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=partial(looptime.new_event_loop, noop_cycles=0))
        self.world = SimulatedWorld()
        self.births = 0
        self.processes: list[SimulatedProcess] = []

    @initialize(callbacks=st.booleans(), synchronous=st.sampled_from([False] * 4 + [True]))
    def begin(self, callbacks: bool, synchronous: bool) -> None:  # noqa: FBT001 # drawn
        """Start them. `callbacks`: whether those come that are left at the end, or a person has to look."""
        self.callbacks = callbacks and not synchronous
        self.world.synchronous = synchronous
        self.runner.get_loop().set_task_factory(partial(own_task, self.world))
        self.runner.get_loop().set_exception_handler(lambda _, facts: self.world.wrong.append(str(facts)))
        self.processes = [self.born(number) for number in range(3)]

    def born(self, number: int) -> SimulatedProcess:
        """Start a process, in the place of the one before it."""
        self.births += 1
        return SimulatedProcess(self.world, self.runner, f"p{number}-{self.births}")

    def living(self, number: int) -> SimulatedProcess | None:
        """Return the process, if it lives and is not stopped."""
        process = self.processes[number]
        return process if process.alive and process.goes.is_set() else None

    def victim(self, number: int) -> int:
        """Return the number of the process that is meant."""
        sending = {entry.owner for entry in self.world.kept.values() if entry.state is EntryState.SENDING}
        senders = [at for at, process in enumerate(self.processes) if process.store.owner in sending]
        return number if number < 3 else senders[number % len(senders)] if senders else number - 3

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        """Let everybody go on."""
        self.runner.run(asyncio.sleep(seconds))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, how=st.sampled_from(["create", "submit", "register"]), seconds=SECONDS)
    def ask(self, number: int, key: str, fate: str, how: str, seconds: float) -> None:
        """Ask for a key; the next request for it from this process meets its fate."""
        if process := self.living(number):
            process.provider.fates[key] = fate
            process.start(key, getattr(process.session, how)(from_task="origin", key=key))
        self.time_passes(seconds)

    @rule(key=KEYS, fates=st.tuples(FATES, FATES, FATES), seconds=SECONDS)
    def ask_everywhere(self, key: str, fates: tuple[str, str, str], seconds: float) -> None:
        """Ask for a key in all processes in the same instant."""
        for number in range(3):
            self.ask(number, key, fates[number], "create", 0.0)
        self.time_passes(seconds)

    @rule(number=NUMBERS, key=KEYS)
    def ask_for_something_else(self, number: int, key: str) -> None:
        """Ask for another character under a key that has a request."""
        if (process := self.living(number)) and key in self.world.kept and not process.faulted:
            with pytest.raises(KeyConflictError):
                process.run(process.session.register(from_task="other", key=key))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, seconds=SECONDS)
    def advance(self, number: int, key: str, fate: str, seconds: float) -> None:
        """Take a key one step on."""
        if (process := self.living(number)) and key in self.world.kept:
            process.provider.fates[key] = fate
            process.start(key, process.session.advance(key))
        self.time_passes(seconds)

    @rule(number=NUMBERS)
    def recover(self, number: int) -> None:
        """Wait for all that runs."""
        if process := self.living(number):
            process.start("", self._recover(process))

    async def _recover(self, process: SimulatedProcess) -> None:
        async for handle in process.session.recover():
            process.start(handle.key, handle.result())

    @rule(number=VICTIMS)
    def kill(self, number: int) -> None:
        """Kill a process, at whatever it is doing, and start it anew."""
        number = self.victim(number)
        self.processes[number].kill()
        self.processes[number] = self.born(number)

    @rule(number=VICTIMS, presumed_dead=st.booleans())
    def stop(self, number: int, presumed_dead: bool) -> None:  # noqa: FBT001 # drawn
        """Stop a process, at whatever it is doing."""
        self.processes[self.victim(number)].stop(presumed_dead=presumed_dead)

    @rule()
    def cont(self) -> None:
        """Let stopped processes go on."""
        for process in self.processes:
            process.cont()

    @rule(number=VICTIMS)
    def close(self, number: int) -> None:
        """End a process as it should be, and start it anew."""
        number = self.victim(number)
        if process := self.living(number):
            self.world.doubted.update(process.callers.values())
            process.run(process.session.aclose())
            process.doubt()
            self.time_passes(1.0)  # callers that were not inside yet meet a closed door
            self._check_callers(process, closed=True)
            assert not process.callers
            assert not process.asyncio_tasks
            self.processes[number] = self.born(number)

    @rule(which=st.integers(0, 99))
    def give_up_waiting(self, which: int) -> None:
        """Cancel a caller."""
        if callers := [(process, caller) for process in self.processes for caller in process.callers]:
            process, caller = callers[which % len(callers)]
            del process.callers[caller]
            caller.cancel()

    @rule(
        number=NUMBERS,
        reads=st.integers(0, 3),
        faults=st.lists(st.sampled_from(["", "not written", "written"]), max_size=3),
    )
    def break_ledger(self, number: int, reads: int, faults: list[str]) -> None:
        """Let some of the next reads and writes of a process fail, whether these reached the ledger or not."""
        process = self.processes[number]
        process.faulted = True
        process.store.faults.extend(faults)
        process.store.reads = reads

    @rule(polls=st.integers(1, 3))
    def break_looks(self, polls: int) -> None:
        """Let some of the next looks at tasks fail."""
        self.world.faulty_polls = polls

    @rule(key=KEYS, state=st.sampled_from(ENDS))
    def end_tasks(self, key: str, state: str) -> None:
        """Let what runs for a key end at the provider."""
        for made in self.world.tasks(key):
            made.state = made.state if made.state in ENDS else state

    @rule(number=NUMBERS, key=KEYS, other=KEYS)
    def call_back(self, number: int, key: str, other: str) -> None:
        """Bring a callback to any process: early, late, again, or with the token of another task."""
        process, made = self.living(number), self.world.tasks(key)
        if process and made and not self.world.synchronous:
            token_of = (self.world.tasks(other) or made)[0]
            process.start("", process.call_back(token_of.url, made[0].task_id))

    @rule(number=NUMBERS, key=KEYS, give_up=st.booleans())
    def resolve(self, number: int, key: str, give_up: bool) -> None:  # noqa: FBT001 # drawn
        """Have a person look at the provider's own site, and tell the truth, or give up."""
        process, made = self.living(number), self.world.tasks(key)
        if process is None or key not in self.world.kept:
            return
        how: dict[str, Any] = {"task_id": made[0].task_id} if made else {"never_sent": True}
        if give_up or (made and self.world.synchronous):
            how = {"give_up": True}
        elif not made and self.world.on_the_way[key]:
            return  # it may yet arrive
        try:
            process.run(process.session.resolve(key, **how))
        except (InvalidRequestError, StaleEntryError):
            pass
        except LedgerError:
            assert process.faulted

    @invariant()
    def all_is_right(self) -> None:
        """The ledger and all who wait agree with what really happened."""
        world = self.world
        assert not world.wrong
        assert {made.key for made in world.made.values()} <= world.kept.keys()
        for entry in world.kept.values():
            world.check_entry(entry)
        for process in self.processes:
            self._check_callers(process)

    def _check_callers(self, process: SimulatedProcess, *, closed: bool = False) -> None:
        for caller, key in list(process.callers.items()):
            if caller.done():
                del process.callers[caller]
                assert not caller.cancelled(), "nobody did that"
                heard = caller.exception() or caller.result()
                self.world.check_answer(key, heard, faulted=process.faulted, closed=closed)

    def teardown(self) -> None:
        """Heal everything: then every key reaches an end that agrees with the provider."""
        try:
            if self.processes:
                self._heal()
        finally:
            for process in self.processes:
                process.kill()
            self.runner.close()

    def _heal(self) -> None:
        world, first = self.world, self.processes[0]
        world.healed, world.faulty_polls = True, 0
        self.cont()
        for process in self.processes:
            process.store.faults.clear()
            process.store.reads = 0
            process.provider.fates.clear()
        for key in world.kept:
            self.end_tasks(key, SUCCESS)
        self._wait_for_all(WAIT + TIMEOUT)
        for made in world.made.values() if self.callbacks else ():
            assert first.run(first.call_back(made.url, made.task_id)) == 200 or made.state == EMPTY
        for number in range(3):
            self.recover(number)
        self._wait_for_all(WAIT + 1.0)
        for key, entry in world.kept.items():
            if entry.state is EntryState.UNKNOWN:
                assert not self.callbacks or all(made.state == EMPTY for made in world.tasks(key))
                self.resolve(0, key, give_up=False)
        for key in world.kept:
            self.ask_everywhere(key, ("answer",) * 3, 0.0)
        self._wait_for_all(WAIT + 1.0)
        for key, entry in world.kept.items():
            assert entry.state in {EntryState.SUCCEEDED, EntryState.FAILED}
            assert len(world.tasks(key)) == 1 or given_up(entry)
        for number in range(3):
            self.close(number)

    def _wait_for_all(self, seconds: float) -> None:
        self.time_passes(seconds)
        self.all_is_right()
        assert not any(process.callers for process in self.processes), "somebody waits for ever"


@pytest.mark.timeout(300)  # many lives; with less, a slow machine would be taken for a hang
def test_random_lives() -> None:
    """Whatever happens, no key has two tasks, no task is lost, nobody is told an untruth, and every state is met."""
    moves: set[tuple[EntryState, EntryState]] = set()

    class Life(SessionMachine):
        def teardown(self) -> None:
            super().teardown()
            moves.update(self.world.moves)

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert {state for move in moves for state in move} == {*EntryState}


def test_every_move() -> None:
    """The machine can lead a session through every legal move of the ledger."""
    life, short = SessionMachine(), SessionMachine()
    life.begin(callbacks=True, synchronous=False)
    life.ask(0, "k-1", "upload rejected", "create", 40.0)
    life.ask(0, "k-1", "busy", "create", 40.0)
    life.kill(0)
    life.recover(1)
    life.end_tasks("k-1", SUCCESS)
    life.ask(0, "k-2", "answer lost", "create", 0.0)
    life.ask(0, "k-3", "request lost", "create", 40.0)
    life.resolve(2, "k-2", give_up=False)
    life.resolve(2, "k-3", give_up=False)
    life.end_tasks("k-2", FAIL)
    life.advance(2, "k-2", "answer", 40.0)
    life.ask(2, "k-3", "rejected", "create", 40.0)
    life.ask(0, "k-4", "answer lost", "create", 40.0)
    life.resolve(1, "k-4", give_up=True)
    life.teardown()
    short.begin(callbacks=False, synchronous=True)
    short.ask(0, "k-1", "answer", "create", 40.0)
    short.ask(0, "k-2", "empty", "create", 40.0)
    short.ask(0, "k-3", "answer", "create", 0.12)
    short.ask(0, "k-4", "rejected", "create", 0.12)
    short.stop(0, presumed_dead=True)
    short.recover(1)
    short.time_passes(40.0)
    short.cont()
    short.time_passes(40.0)
    short.teardown()
    assert life.world.moves | short.world.moves == {
        (before, after) for before in TRANSITIONS for after in TRANSITIONS[before]
    }


def test_a_try_again_of_a_process_that_others_take_for_dead() -> None:
    """Where the provider was too busy it did nothing, so that the doubt of others is over, and one request is made."""
    life = SessionMachine()
    life.begin(callbacks=False, synchronous=False)
    life.ask(0, "k-1", "busy", "create", 0.12)
    life.stop(0, presumed_dead=True)
    life.recover(1)
    life.time_passes(40.0)
    life.cont()
    life.time_passes(40.0)
    life.all_is_right()
    assert (EntryState.UNKNOWN, EntryState.PENDING) in life.world.moves
    assert life.world.kept["k-1"].state is EntryState.RUNNING
    life.teardown()
