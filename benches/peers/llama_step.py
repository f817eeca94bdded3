"""PyTorch's training step of a small Llama: the peer of `mdlc bench step`.

Needs Python 3.9 and PyTorch 2.4 or later. Prints one JSON line per variant, eager and compiled:

    python benches/peers/llama_step.py --shape llama_110m --batch 2 --width 1024 --threads 2

With `--dtype bf16` the step runs under autocast, with weights and moments in f32. The model is the
plain Llama that transformers computes (RMSNorm, rotate-half RoPE, SwiGLU, causal attention, tied
head), with PyTorch's fastest stock parts: fused attention and fused AdamW.
`peak_bytes` is the most that the process had resident, `before_bytes` what it had before the model.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


SHAPES = {
    "llama_15m": Shape(hidden=288, layers=6, heads=6, ffn=768, vocab=32000),
    "llama_110m": Shape(hidden=768, layers=12, heads=12, ffn=2048, vocab=32000),
    # Llama 2 7B cut to two layers, for the time that compiling takes.
    "llama2_7b_cut": Shape(hidden=4096, layers=2, heads=32, ffn=11008, vocab=32000),
}


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):  # [B, T, D]
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def rope_tables(width, channels, base):
    rates = base ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.outer(torch.arange(width, dtype=torch.float64), rates).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()  # [T, C] each


def rotate(x, cos, sin):  # [B, H, T, C]
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        d, f = shape.hidden, shape.ffn
        self.heads = shape.heads
        self.attention_norm = RMSNorm(d, shape.norm_eps)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.mlp_norm = RMSNorm(d, shape.norm_eps)
        self.gate, self.up = (nn.Linear(d, f, bias=False) for _ in range(2))
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x, cos, sin):  # [B, T, D]
        batch, width, hidden = x.shape
        h = self.attention_norm(x)
        by_head = (batch, width, self.heads, hidden // self.heads)
        q, k, v = (w(h).view(by_head).transpose(1, 2) for w in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(batch, width, hidden))
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.norm_eps)
        cos, sin = rope_tables(width, shape.hidden // shape.heads, shape.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):  # [B, T] each
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)  # [B, T, V]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def optimizer_of(model):
    settings = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
    return torch.optim.AdamW(model.parameters(), fused=True, **settings)


def peak_bytes():
    """The most that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(variant, shape, args):
    """The median time of a whole step: forward, backward, clipping, AdamW."""
    before = peak_bytes()
    torch.manual_seed(12345)
    model = Llama(shape, args.width)
    optimizer = optimizer_of(model)
    loss_of = torch.compile(model) if variant == "compile" else model
    generator = torch.Generator(device=args.device).manual_seed(1)
    tokens = torch.randint(shape.vocab, (args.batch, args.width + 1), generator=generator)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    times, losses = [], []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = loss_of(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
    first, times = times[0], times[args.warmup :]
    step_s = statistics.median(times)
    return {
        "implementation": f"pytorch {torch.__version__} {variant}",
        "tokens_per_s": round(args.batch * args.width / step_s, 1),
        "step_ms": round(step_s * 1e3, 2),
        "step_ms_fastest": round(min(times) * 1e3, 2),
        # The first step compiles, if anything does.
        "first_step_s": round(first, 2),
        "steps": len(times),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "shape": args.shape,
        "batch": args.batch,
        "width": args.width,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "variant": variant,
        "before_bytes": before,
        "peak_bytes": peak_bytes(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama_15m")
    parser.add_argument("--variant", choices=["eager", "compile", "both"], default="both")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=10, help="steps whose median counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.set_float32_matmul_precision("highest")

    failed = False
    for variant in ["eager", "compile"] if args.variant == "both" else [args.variant]:
        try:
            result = measure(variant, SHAPES[args.shape], args)
        except Exception as error:  # torch.compile needs a C++ compiler; eager still counts
            print(f"{variant} did not run: {error}", file=sys.stderr)
            failed = True
            continue
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
