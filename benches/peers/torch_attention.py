"""PyTorch's causal attention at the shapes of `mdlc bench attention`: one JSON array, as it prints.

Needs Python 3.9 and PyTorch 2.4 or later:

    python benches/peers/torch_attention.py --dtype bf16 --threads 2
"""

import argparse
import json

import torch
import torch.nn.functional as F

from torch_gemm import DTYPES, median_seconds

# As compiler/mdlc/src/commands/bench.rs has them.
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
HEADS = 6
CHANNELS = (48, 64, 128)


def measure(t, channels, dtype, runs):
    """Seconds of the forward part, and of the gradients of all three arguments."""
    shape = (1, HEADS, t, channels)
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    dy = torch.randn(shape).to(dtype)

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def backward():
        torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

    return median_seconds(runs, forward), median_seconds(runs, backward)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="f32")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    rows = []
    for t in WIDTHS:
        for channels in CHANNELS:
            # Half of the scores are masked: two such products forward, five backward.
            product = t * t * HEADS * channels
            seconds = measure(t, channels, DTYPES[args.dtype], args.runs)
            for form, products, taken in zip(("forward", "backward"), (2, 5), seconds):
                rows.append(
                    {
                        "implementation": f"pytorch {torch.__version__}",
                        "shape": [1, t, HEADS, channels],
                        "form": form,
                        "dtype": args.dtype,
                        "threads": args.threads,
                        "gflops": products * product / taken / 1e9,
                    }
                )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
