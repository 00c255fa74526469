"""The durable record of what was asked, sent and received. Not a queue and not a log.

An entry is written before its request is sent and its task id straight after, so that whatever dies in between, the
same key never pays twice.
"""

from .entry import Entry
from .ledger import Ledger, LedgerStore, open_ledger
from .states import EntryState

__all__ = ["Entry", "EntryState", "Ledger", "LedgerStore", "open_ledger"]
