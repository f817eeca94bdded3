#!/usr/bin/env bash
# The llama_15m step beside PyTorch, alternating in one run so that both see the same machine.
# Needs a Python with torch: PYTHON=path/to/python benches/step.sh [PAIRS]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet -p mdlc
for _ in $(seq "${1:-3}"); do
    "${PYTHON:-python3}" benches/peers/llama_step.py
    target/release/mdlc bench step --preset llama_15m --train_batch_size 8 \
        --max_context_width 256 --runs 10 --json
done
