#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one go: kernels against f64 on it, then timings beside
# PyTorch's where a Python with torch is there.
#   benches/gpu.sh              builds here
#   BIN=DIR benches/gpu.sh      takes mdlc and the programs of tests from DIR
# PYTHON names the Python with torch; TEXT a file to train on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
text=${TEXT:-ARCHITECTURE.md}
kernels="contract program linear_cross_entropy"
# What CPUs compute is tested everywhere else, and compiling for them takes most of the time.
export MDL_GPUS_ALONE=1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
if [ -n "${BIN:-}" ]; then
    mdlc=$BIN/mdlc
    for suite in lib $kernels; do
        "$BIN/$suite" --test-threads 4 2>&1 | grep -E "panicked|FAILED|test result" &
    done
    wait
else
    cargo build --release --workspace || exit 1
    mdlc=target/release/mdlc
    suites=$(printf -- "--test %s " $kernels)
    # shellcheck disable=SC2086
    cargo test --release --workspace --lib $suites || exit 1
fi

step() { # preset batch width
    for flags in "" "--bf16 1 --optimizer_state bf16"; do
        # shellcheck disable=SC2086
        "$mdlc" train llama --preset "$1" --dataset "$text" --device cuda --max_steps 12 \
            --train_batch_size "$2" --max_context_width "$3" $flags \
            --checkpoint_dir "$(mktemp -d)/run" 2>&1 | grep -E "Batch|memory" | tail -3
    done
}
for dtype in f32 bf16; do
    echo "== contractions, $dtype"
    "$mdlc" bench gemm --device cuda --dtype $dtype --runs 7
    "$python" benches/peers/torch_gemm.py --device cuda --dtype $dtype --runs 7 |
        "$python" -c "import json, sys; [print(r['shape'], r['form'], round(r['gflops'])) \
for r in json.load(sys.stdin)]"
done
echo "== attention"
"$mdlc" bench attention --device cuda --runs 5
echo "== llama_15m, 8 x 256"
step llama_15m 8 256
echo "== llama_110m, 8 x 1024"
step llama_110m 8 1024
for dtype in f32 bf16; do
    for shape in "llama_15m --batch 8 --width 256" "llama_110m --batch 8 --width 1024"; do
        # shellcheck disable=SC2086
        "$python" benches/peers/llama_step.py --device cuda --dtype $dtype --shape $shape
    done
done
