"""Where a ledger keeps its entries: in memory, in an SQLite file, or in PostgreSQL."""
