"""The durable record of requests: what was sent under each key, and what came back.

The ledger is neither a queue nor a log. An entry is written before its request is sent,
and the task id as soon as the provider returns it. After a crash, the same key is
therefore never paid for twice.
"""

from .entry import Attempt, Entry
from .ledger import Ledger
from .opening import open_ledger
from .states import EntryState
from .stores.protocol import LedgerStore

__all__ = ["Attempt", "Entry", "EntryState", "Ledger", "LedgerStore", "open_ledger"]
