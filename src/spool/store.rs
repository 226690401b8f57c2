//! A queue in SQLite.
