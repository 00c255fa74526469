"""Stateful test of whole sessions that share a ledger, in virtual time.

Random requests, responses, crashes, callbacks and take-overs run against a model of what really
happened, which decides what the ledger may hold and what callers may receive.
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

from sora_chars.errors import InvalidRequestError, KeyConflictError, LedgerError, NoAnswerError, StaleEntryError
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
        *["rejected"] * 3,
        "hangs",
        "late",
        "upload lost",
        "upload rejected",
    ]
)
KEYS = st.sampled_from(["k-1", "k-2", "k-3", "k-4", "k-5", "k-6"])
NUMBERS = st.integers(0, 2)
VICTIMS = st.integers(0, 5)  # from 3 on: a process that is sending, if there is one
SECONDS = st.sampled_from([0.0, 0.004, 0.02, 0.06, 0.12, 0.3, 3.0, 40.0, 400.0])


class SessionMachine(RuleBasedStateMachine):
    """Three processes that share a ledger and a provider."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=partial(looptime.new_event_loop, noop_cycles=0))
        self.world = SimulatedWorld()
        self.started = 0
        self.processes: list[SimulatedProcess] = []

    @initialize(callbacks=st.booleans(), synchronous=st.sampled_from([False] * 4 + [True]))
    def begin(self, callbacks: bool, synchronous: bool) -> None:  # noqa: FBT001 # drawn
        """Start the processes; without `callbacks` a person resolves what is unknown at the end."""
        self.callbacks = callbacks and not synchronous
        self.world.synchronous = synchronous
        self.runner.get_loop().set_task_factory(partial(own_task, self.world))
        self.runner.get_loop().set_exception_handler(lambda _, facts: self.world.wrong.append(str(facts)))
        self.processes = [self.start_process(number) for number in range(3)]

    def start_process(self, number: int) -> SimulatedProcess:
        """Return a new process with this number."""
        self.started += 1
        return SimulatedProcess(self.world, self.runner, f"p{number}-{self.started}")

    def available(self, number: int) -> SimulatedProcess | None:
        """Return the process unless it is dead or stopped."""
        process = self.processes[number]
        return process if process.alive and process.goes.is_set() else None

    def victim(self, number: int) -> int:
        """Return the number of the process that a drawn number selects."""
        sending = {entry.owner for entry in self.world.kept.values() if entry.state is EntryState.SENDING}
        senders = [index for index, process in enumerate(self.processes) if process.store.owner in sending]
        if number < 3:
            return number
        return senders[number % len(senders)] if senders else number - 3

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        """Let time pass in all processes."""
        self.runner.run(asyncio.sleep(seconds))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, how=st.sampled_from(["create", "submit", "register"]), seconds=SECONDS)
    def request(self, number: int, key: str, fate: str, how: str, seconds: float) -> None:
        """Request a key; `fate` states how the next request for it from this process ends."""
        if process := self.available(number):
            process.provider.fates[key] = fate
            process.start(key, getattr(process.session, how)(from_task="origin", key=key))
        self.pass_time(seconds)

    @rule(key=KEYS, fates=st.tuples(FATES, FATES, FATES), seconds=SECONDS)
    def request_everywhere(self, key: str, fates: tuple[str, str, str], seconds: float) -> None:
        """Request a key in all processes at the same time."""
        for number in range(3):
            self.request(number, key, fates[number], "create", 0.0)
        self.pass_time(seconds)

    @rule(number=NUMBERS, key=KEYS)
    def request_another(self, number: int, key: str) -> None:
        """Request another character under a recorded key."""
        if (process := self.available(number)) and key in self.world.kept and not process.faulted:
            with pytest.raises(KeyConflictError):
                process.run(process.session.register(from_task="other", key=key))

    @rule(number=NUMBERS, key=KEYS, fate=FATES, seconds=SECONDS)
    def advance(self, number: int, key: str, fate: str, seconds: float) -> None:
        """Take one step of a key."""
        if (process := self.available(number)) and key in self.world.kept:
            process.provider.fates[key] = fate
            process.start(key, process.session.advance(key))
        self.pass_time(seconds)

    @rule(number=NUMBERS)
    def recover(self, number: int) -> None:
        """Wait for all running tasks."""
        if process := self.available(number):
            process.start("", self._recover(process))

    async def _recover(self, process: SimulatedProcess) -> None:
        async for handle in process.session.recover():
            process.start(handle.key, handle.result())

    @rule(number=VICTIMS)
    def kill(self, number: int) -> None:
        """Kill a process at any point of its work, and start a new one."""
        number = self.victim(number)
        self.processes[number].kill()
        self.processes[number] = self.start_process(number)

    @rule(number=VICTIMS, presumed_dead=st.booleans())
    def stop(self, number: int, presumed_dead: bool) -> None:  # noqa: FBT001 # drawn
        """Stop a process at any point of its work."""
        self.processes[self.victim(number)].stop(presumed_dead=presumed_dead)

    @rule()
    def resume(self) -> None:
        """Resume stopped processes."""
        for process in self.processes:
            process.cont()

    @rule(number=VICTIMS)
    def close(self, number: int) -> None:
        """Close the session of a process, and start a new one."""
        number = self.victim(number)
        if process := self.available(number):
            self.world.doubted.update(process.callers.values())
            process.run(process.session.aclose())
            process.doubt()
            self.pass_time(1.0)  # callers that had not entered the session yet find it closed
            self._check_callers(process, closed=True)
            assert not process.callers
            assert not process.asyncio_tasks
            self.processes[number] = self.start_process(number)

    @rule(which=st.integers(0, 99))
    def cancel_caller(self, which: int) -> None:
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
        """Let some of the next reads and writes of a process fail, before or after the write."""
        process = self.processes[number]
        process.faulted = True
        process.store.faults.extend(faults)
        process.store.reads = reads

    @rule(polls=st.integers(1, 3))
    def break_polls(self, polls: int) -> None:
        """Let some of the next polls fail."""
        self.world.faulty_polls = polls

    @rule(key=KEYS, state=st.sampled_from(ENDS))
    def end_tasks(self, key: str, state: str) -> None:
        """Let the running tasks of a key end at the provider."""
        for made in self.world.tasks(key):
            made.state = made.state if made.state in ENDS else state

    @rule(number=NUMBERS, key=KEYS, other=KEYS)
    def call_back(self, number: int, key: str, other: str) -> None:
        """Deliver a callback to any process: early, late, repeated, or with another task's token."""
        process, made = self.available(number), self.world.tasks(key)
        if process and made and not self.world.synchronous:
            token_of = (self.world.tasks(other) or made)[0]
            process.start("", process.call_back(token_of.url, made[0].task_id))

    @rule(number=NUMBERS, key=KEYS, give_up=st.booleans())
    def resolve(self, number: int, key: str, give_up: bool) -> None:  # noqa: FBT001 # drawn
        """Resolve a key as a person does who sees the provider's site, or who gives up."""
        process, made = self.available(number), self.world.tasks(key)
        if process is None or key not in self.world.kept:
            return
        options: dict[str, Any] = {"task_id": made[0].task_id} if made else {"never_sent": True}
        if give_up or (made and self.world.synchronous):
            options = {"give_up": True}
        elif not made and self.world.on_the_way[key]:
            return  # the request may still arrive
        try:
            process.run(process.session.resolve(key, **options))
        except (InvalidRequestError, NoAnswerError, StaleEntryError):
            pass
        except LedgerError:
            assert process.faulted

    @invariant()
    def check(self) -> None:
        """Assert that the ledger and the callers agree with what really happened."""
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
                assert not caller.cancelled(), "the machine did not cancel it"
                outcome = caller.exception() or caller.result()
                self.world.check_answer(key, outcome, faulted=process.faulted, closed=closed)

    def teardown(self) -> None:
        """Remove all faults, and assert that every key ends in agreement with the provider."""
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
        self.resume()
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
            self.request_everywhere(key, ("answer",) * 3, 0.0)
        self._wait_for_all(WAIT + 1.0)
        for key, entry in world.kept.items():
            assert entry.state in {EntryState.SUCCEEDED, EntryState.FAILED}
            assert len(world.tasks(key)) == 1 or given_up(entry)
        for number in range(3):
            self.close(number)

    def _wait_for_all(self, seconds: float) -> None:
        self.pass_time(seconds)
        self.check()
        assert not any(process.callers for process in self.processes), "a caller waits for ever"


@pytest.mark.timeout(300)  # many histories; less would fail on a slow machine
def test_random_histories() -> None:
    """No key has two tasks, no task is lost, no outcome is false; every state is reached but that of a deletion."""
    moves: set[tuple[EntryState, EntryState]] = set()

    class RecordedMachine(SessionMachine):
        def teardown(self) -> None:
            super().teardown()
            moves.update(self.world.moves)

    run_state_machine_as_test(
        RecordedMachine,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert {state for move in moves for state in move} == {*EntryState} - {EntryState.DELETED}


def test_reaches_every_transition() -> None:
    """The machine can make every legal transition of the ledger, apart from deletions."""
    machine = SessionMachine()
    synchronous = SessionMachine()
    machine.begin(callbacks=True, synchronous=False)
    machine.request(0, "k-1", "upload rejected", "create", 40.0)
    machine.request(0, "k-1", "busy", "create", 40.0)
    machine.kill(0)
    machine.recover(1)
    machine.end_tasks("k-1", SUCCESS)
    machine.request(0, "k-2", "answer lost", "create", 0.0)
    machine.request(0, "k-3", "request lost", "create", 40.0)
    machine.resolve(2, "k-2", give_up=False)
    machine.resolve(2, "k-3", give_up=False)
    machine.end_tasks("k-2", FAIL)
    machine.advance(2, "k-2", "answer", 40.0)
    machine.request(2, "k-3", "rejected", "create", 40.0)
    machine.request(0, "k-4", "answer lost", "create", 40.0)
    machine.resolve(1, "k-4", give_up=True)
    machine.teardown()
    synchronous.begin(callbacks=False, synchronous=True)
    synchronous.request(0, "k-1", "answer", "create", 40.0)
    synchronous.request(0, "k-2", "empty", "create", 40.0)
    synchronous.request(0, "k-3", "answer", "create", 0.12)
    synchronous.request(0, "k-4", "rejected", "create", 0.12)
    synchronous.stop(0, presumed_dead=True)
    synchronous.recover(1)
    synchronous.pass_time(40.0)
    synchronous.resume()
    synchronous.pass_time(40.0)
    synchronous.teardown()
    assert machine.world.moves | synchronous.world.moves == {
        (before, after) for before in TRANSITIONS for after in TRANSITIONS[before] - {EntryState.DELETED}
    }


def test_retry_by_a_process_presumed_dead() -> None:
    """A harmless response resolves what others recorded as unknown, and one task is made."""
    machine = SessionMachine()
    machine.begin(callbacks=False, synchronous=False)
    machine.request(0, "k-1", "busy", "create", 0.12)
    machine.stop(0, presumed_dead=True)
    machine.recover(1)
    machine.pass_time(40.0)
    machine.resume()
    machine.pass_time(40.0)
    machine.check()
    assert (EntryState.UNKNOWN, EntryState.PENDING) in machine.world.moves
    assert machine.world.kept["k-1"].state is EntryState.RUNNING
    machine.teardown()
