//! Tests of the whole: what each file in `tests/` says in its first line.
