//! Benches against peers; see `README.md`.
