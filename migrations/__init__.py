"""The database's versions, run by `calls.store.upgrade`."""
