"""The stores of a ledger: in memory, in an SQLite file, and in PostgreSQL."""
