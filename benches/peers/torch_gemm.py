"""PyTorch's matrix products at the shapes of `mdlc bench gemm`: one JSON array, as it prints.

Needs Python 3.9 and PyTorch 2.4 or later:

    python benches/peers/torch_gemm.py --dtype bf16 --threads 2
"""

import argparse
import json
import statistics
import time

import torch

# m, n, k of the forward form, as compiler/mdlc/src/commands/bench.rs has them.
SHAPES = [
    (512, 512, 512),
    (768, 768, 768),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (2048, 288, 288),
    (2048, 768, 288),
    (2048, 288, 768),
    (2048, 32000, 288),
    (2048, 768, 768),
    (2048, 2048, 768),
    (2048, 768, 2048),
    (2048, 32000, 768),
]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


# Runs of a small kernel follow each other until so many seconds have passed, as in `mdlc bench`.
TOGETHER = 0.01


def timed(work, times):
    """Seconds of a run, of several that are waited for together."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def median_seconds(runs, work):
    """The median of `runs` timed ones, after a warm-up."""
    timed(work, 1)
    times = min(max(int(TOGETHER / timed(work, 1)), 1), 1000)
    return statistics.median(timed(work, times) for _ in range(runs))


def forms(m, n, k, dtype):
    """Each form with its own m, n and k, and what computes it into a tensor that is there."""
    x, w, dy = (torch.randn(shape).to(dtype) for shape in ((m, k), (n, k), (m, n)))
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
    yield "forward", (m, n, k), lambda: torch.mm(x, w.t(), out=y)
    yield "backward_x", (m, k, n), lambda: torch.mm(dy, w, out=dx)
    yield "backward_w", (n, k, m), lambda: torch.mm(dy.t(), x, out=dw)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="f32")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.set_float32_matmul_precision("highest")
    rows = []
    for shape in SHAPES:
        for form, (m, n, k), work in forms(*shape, DTYPES[args.dtype]):
            seconds = median_seconds(args.runs, work)
            rows.append(
                {
                    "implementation": f"pytorch {torch.__version__}",
                    "shape": [m, n, k],
                    "form": form,
                    "dtype": args.dtype,
                    "threads": args.threads,
                    "gflops": 2 * m * n * k / seconds / 1e9,
                }
            )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
