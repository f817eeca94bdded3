#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one go: kernels against f64 on it, then timings beside
# PyTorch's where a Python with torch is there.
#   benches/gpu.sh              builds here
#   BIN=DIR benches/gpu.sh      takes mdlc and the programs of tests from DIR
# Ends with an error where a test or a timing fails, after all of them.
# PYTHON names the Python with torch; TEXT a file to train on.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
text=${TEXT:-ARCHITECTURE.md}
kernels="contract program linear_cross_entropy"
# What CPUs compute is tested everywhere else, and compiling for them takes most of the time.
export MDL_GPUS_ALONE=1
failed=0

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1
if [ -n "${BIN:-}" ]; then
    mdlc=$BIN/mdlc
    jobs=()
    for suite in lib $kernels; do
        "$BIN/$suite" --test-threads 4 2>&1 | grep -E "panicked|FAILED|test result" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
else
    cargo build --release --workspace || exit 1
    mdlc=target/release/mdlc
    suites=$(printf -- "--test %s " $kernels)
    # shellcheck disable=SC2086
    cargo test --release --workspace --lib $suites || exit 1
fi

run() { # title command…
    echo "== $1"
    shift
    "$@" || { echo "FAILED: $*"; failed=1; }
}
train() { # device preset batch width steps flags…
    "$mdlc" train llama --preset "$2" --dataset "$text" --device "$1" --train_batch_size "$3" \
        --max_context_width "$4" --max_steps "$5" "${@:6}" \
        --checkpoint_dir "$(mktemp -d)/run" 2>&1 | grep -E "Batch|memory|error"
}
rates() { # script flags…
    "$python" "benches/peers/$1" --device cuda --runs 7 "${@:2}" |
        "$python" -c "import json, sys; [print(r['shape'], r['form'], round(r['gflops'])) \
for r in json.load(sys.stdin)]"
}

for device in cpu cuda; do
    run "the first losses on $device" train $device llama_15m 2 256 5
done
for dtype in f32 bf16; do
    run "contractions, $dtype" "$mdlc" bench gemm --device cuda --dtype $dtype --runs 7
    run "the same in PyTorch" rates torch_gemm.py --dtype $dtype
done
run "attention" "$mdlc" bench attention --device cuda --runs 5
run "the same in PyTorch" rates torch_attention.py
for step in "llama_15m 8 256" "llama_110m 8 1024"; do
    read -r preset batch width <<< "$step"
    run "the step of $preset, f32" train cuda "$preset" "$batch" "$width" 12
    run "the step of $preset, bf16" train cuda "$preset" "$batch" "$width" 12 \
        --bf16 1 --optimizer_state bf16
    for dtype in f32 bf16; do
        run "the same in PyTorch, $dtype" "$python" benches/peers/llama_step.py --device cuda \
            --dtype $dtype --shape "$preset" --batch "$batch" --width "$width"
    done
    run "its kernels" "$mdlc" bench llama --preset "$preset" --device cuda --runs 5 \
        --train_batch_size "$batch" --max_context_width "$width"
done
exit $failed
