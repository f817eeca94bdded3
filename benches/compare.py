#!/usr/bin/env python3
"""`mdlc bench` beside its peers, alternating, so that both see the same machine.

    python3 benches/compare.py gemm --pairs 3
    python3 benches/compare.py attention --pairs 3
    python3 benches/compare.py step --presets llama_15m,llama_110m --pairs 3
    python3 benches/compare.py build --pairs 2
    python3 benches/compare.py step --peers candle,burn --presets llama_15m

A pair is one run of `mdlc` and one of each peer, in a process of its own each; every other pair
goes the other way round. A figure is the median of the ratios within pairs. Prints a table in
Markdown; progress goes to standard error. `--python` is one with PyTorch.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benches" / "peers"
# Sequences and tokens of a step.
STEPS = {"llama_15m": (8, 256), "llama_110m": (2, 1024)}
# Peers in Rust: the crate whose version counts, and the suites and element types that they have.
FRAMEWORK = [("gemm", "f32"), ("gemm", "bf16"), ("attention", "f32"), ("step", "f32")]
BUILT = {
    "gemm": ("gemm", [("gemm", "f32")]),
    "candle": ("candle-core", FRAMEWORK),
    "burn": ("burn", FRAMEWORK),
}


def binary(peer):
    target = os.environ.get("CARGO_TARGET_DIR", PEERS / peer / "target")
    return Path(target) / "release" / f"{peer}_peer"


def peers_of(text):
    """The peers asked for, all of them known and built."""
    for peer in text.split(","):
        if peer != "torch" and peer not in BUILT:
            sys.exit(f"there is no peer `{peer}`: torch, {', '.join(BUILT)}")
        if peer in BUILT and not binary(peer).exists():
            build = f"cargo build --release --manifest-path benches/peers/{peer}/Cargo.toml"
            sys.exit(f"there is no {binary(peer)}\nRUSTFLAGS='-C target-cpu=native' {build}")
    return text.split(",")


def called(command, env=None):
    """Standard output of a child, the most that it had resident, and its seconds."""
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    taken = time.perf_counter() - start
    name = " ".join(str(word) for word in command[:4])
    print(f"{taken:7.1f} s  {name}", file=sys.stderr, flush=True)
    if child.returncode != 0:
        sys.exit(f"`{' '.join(map(str, command))}` failed")
    return out, usage.ru_maxrss * 1024


class Suite:
    """Implementations of one element type, ours first: name, and a run that gives rows by key."""

    def __init__(self, args, dtype):
        self.args, self.dtype = args, dtype
        self.flags = ["--threads", str(args.threads), "--runs", str(args.runs)]

    def mdlc(self, *words):
        out, peak = called([self.args.mdlc, "bench", *words, "--json"])
        return json.loads(out), peak

    def python(self, script, *words):
        out, peak = called([self.args.python, PEERS / script, *words])
        return out, peak

    def built(self):
        """The peers in Rust that were asked for and have this."""
        asked = (self.args.suite, self.dtype)
        for peer in [peer for peer in self.args.peers if peer in BUILT]:
            if asked in BUILT[peer][1]:
                yield peer
            else:
                print(f"{peer} has no {asked[0]} in {asked[1]}", file=sys.stderr)


class Rates(Suite):
    """GFLOP/s of kernels, by shape and form."""

    def implementations(self):
        yield "mdl", self.ours
        if "torch" in self.args.peers:
            yield "PyTorch", self.torch
        for peer in self.built():
            yield peer, lambda peer=peer: self.rust(peer)

    def ours(self):
        dtype = [] if self.dtype == "f32" else ["--dtype", self.dtype]
        rows, _ = self.mdlc(self.args.suite, *self.flags, *dtype)
        return by_shape(rows)

    def torch(self):
        script = f"torch_{self.args.suite}.py"
        out, _ = self.python(script, "--dtype", self.dtype, *self.flags)
        return by_shape(json.loads(out))

    def rust(self, peer):
        out, _ = called([binary(peer), self.args.suite, "--dtype", self.dtype, *self.flags])
        return by_shape(json.loads(out))


def by_shape(rows):
    """Rates in the order in which they were measured, which is the same everywhere."""
    return {(i, *row["shape"], row["form"]): row["gflops"] for i, row in enumerate(rows)}


class Step(Suite):
    """Tokens per second of a step, and bytes."""

    def __init__(self, args, dtype, preset):
        super().__init__(args, dtype)
        self.preset = preset
        self.batch, self.width = STEPS[preset]

    def implementations(self):
        yield "mdl", self.ours
        for variant in ("eager", "compile") if "torch" in self.args.peers else ():
            yield f"PyTorch {variant}", lambda variant=variant: self.torch(variant)
        for peer in self.built():
            yield peer, lambda peer=peer: self.rust(peer)

    def ours(self):
        sizes = ["--train_batch_size", str(self.batch), "--max_context_width", str(self.width)]
        bf16 = ["--bf16", "1"] if self.dtype == "bf16" else []
        rows, peak = self.mdlc("step", "--preset", self.preset, *sizes, *self.flags, *bf16)
        return {"tokens/s": rows[0]["tokens_per_s"], "peak": peak}

    def flags_of_peers(self):
        sizes = ["--shape", self.preset, "--batch", str(self.batch), "--width", str(self.width)]
        return [*sizes, "--threads", str(self.args.threads), "--steps", str(self.args.runs)]

    def torch(self, variant):
        which = ["--variant", variant, "--dtype", self.dtype]
        out, peak = self.python("llama_step.py", *which, *self.flags_of_peers())
        return {"tokens/s": json.loads(out)["tokens_per_s"], "peak": peak}

    def rust(self, peer):
        out, peak = called([binary(peer), "step", *self.flags_of_peers()])
        return {"tokens/s": json.loads(out)["tokens_per_s"], "peak": peak}


class Build(Suite):
    """Seconds until a step of Llama 2 7B can run, with nothing compiled before.

    Of ours that is the whole program, which plans all 32 layers. Of the peer it is what the first
    step takes longer than the second, of a model cut to two layers."""

    def implementations(self):
        yield "mdl, 32 layers", lambda: self.ours(32)
        yield "mdl, 80 layers", lambda: self.ours(80)
        yield "PyTorch compile, 2 layers", self.torch

    def ours(self, layers):
        start, cold = time.perf_counter(), {**os.environ, "MDL_KERNEL_CACHE": "off"}
        which = ["llama", "--preset", "llama2_7b", "--num_hidden_layers", str(layers)]
        called([self.args.mdlc, "build", *which, "--json"], env=cold)
        return {"s": time.perf_counter() - start}

    def torch(self):
        which = ["--shape", "llama2_7b_cut", "--batch", "1", "--width", "64"]
        counts = ["--threads", str(self.args.threads), "--warmup", "1", "--steps", "1"]
        with tempfile.TemporaryDirectory() as empty:
            cold = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": empty}
            command = [self.args.python, PEERS / "llama_step.py", *which, *counts]
            out, _ = called([*command, "--variant", "compile"], env=cold)
        row = json.loads(out)
        return {"s": row["first_step_s"] - row["step_ms"] / 1e3}


def build_table(found):
    out = ["| implementation | seconds | as long as the first |", "|---|---|---|"]
    first = found[next(iter(found))]
    for name, results in found.items():
        ratio = statistics.median(b["s"] / a["s"] for a, b in zip(first, results))
        out.append(f"| {name} | {median_of(found, name, 's'):.2f} | {ratio:.2f} |")
    return out


def measured(suite, pairs):
    """For each implementation its results of all pairs."""
    implementations = list(suite.implementations())
    found = {name: [] for name, _ in implementations}
    for pair in range(pairs):
        for name, run in implementations[:: -1 if pair % 2 else 1]:
            found[name].append(run())
    return found


def ratios(found, peer, key):
    """How many times as fast ours is, pair by pair."""
    return [a[key] / b[key] for a, b in zip(found["mdl"], found[peer])]


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def median_of(found, name, key):
    return statistics.median(result[key] for result in found[name])


def rates_table(found):
    """Three or two forms in a row: GFLOP/s of ours and of the peer, and the median ratio."""
    out = []
    for peer in [name for name in found if name != "mdl"]:
        # The longest sequences are not everyone's.
        keys = [key for key in found["mdl"][0] if key in found[peer][0]]
        forms = list(dict.fromkeys(key[-1] for key in keys))
        out.append(f"| shape of the first form | {' | '.join(forms)} |")
        out.append("|---" * (1 + len(forms)) + "|")
        for first in range(0, len(keys), len(forms)):
            cells = []
            for key in keys[first : first + len(forms)]:
                ours, theirs = (median_of(found, name, key) for name in ("mdl", peer))
                ratio = statistics.median(ratios(found, peer, key))
                cells.append(f"{ours:.0f} / {theirs:.0f} = {ratio:.2f}")
            shape = ", ".join(map(str, keys[first][1:-1]))
            out.append(f"| {shape} | {' | '.join(cells)} |")
        means = []
        for form in forms:
            of_form = [key for key in keys if key[-1] == form]
            medians = [statistics.median(ratios(found, peer, key)) for key in of_form]
            means.append(f"**{geometric_mean(medians):.2f}**")
        out.append(f"| geometric mean, mdl / {peer} | {' | '.join(means)} |")
        out.append("")
    return out


def step_table(tables):
    out = ["| model | type | implementation | tokens/s | mdl is | peak, MiB |"]
    out.append("|---" * 6 + "|")
    for suite, found in tables:
        batch = f"`{suite.preset}`, {suite.batch} × {suite.width}"
        for name in found:
            rate = median_of(found, name, "tokens/s")
            peak = median_of(found, name, "peak") / 2**20
            all_ratios = ratios(found, name, "tokens/s")
            spread = f"{min(all_ratios):.2f} to {max(all_ratios):.2f}"
            ratio = "" if name == "mdl" else f"{statistics.median(all_ratios):.2f} × ({spread})"
            cells = [batch, suite.dtype, name, f"{rate:,.0f}", ratio, f"{peak:,.0f}"]
            out.append(f"| {' | '.join(cells)} |")
    return out


def version(peer):
    lock = (PEERS / peer / "Cargo.lock").read_text()
    return re.search(f'name = "{BUILT[peer][0]}"\nversion = "(.*)"', lock)[1]


def machine(args):
    """A line about where and with what this was measured."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    versions = "import torch, platform; print(torch.__version__, platform.python_version())"
    torch = subprocess.run([args.python, "-c", versions], capture_output=True, text=True)
    torch, python = (torch.stdout.split() + ["none", "none"])[:2]
    commit = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    today = datetime.date.today().isoformat()
    crates = "".join(f"{peer} {version(peer)}, " for peer in args.peers if peer in BUILT)
    return (
        f"{today}, {cpu[0] if cpu else platform.processor()}, {os.cpu_count()} cores, "
        f"{args.threads} threads each, PyTorch {torch} on Python {python}, {crates}"
        f"mdl {commit or 'none'}, {args.pairs} pairs"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=["gemm", "attention", "step", "build"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10, help="timed runs of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="f32", help="f32, bf16 or f32,bf16")
    parser.add_argument("--presets", default=",".join(STEPS), help="models of `step`")
    parser.add_argument("--peers", default="torch", type=peers_of, help="torch,gemm,candle,burn")
    parser.add_argument("--mdlc", default=ROOT / "target/release/mdlc")
    parser.add_argument("--python", default=os.environ.get("PYTHON", sys.executable))
    parser.add_argument("--raw", type=Path, help="a file for every result, as JSON")
    args = parser.parse_args()

    before, lines, raw, tables = os.getloadavg()[0], [], {}, []
    if args.suite == "build":
        raw["build"] = measured(Build(args, "f32"), args.pairs)
        lines, args.dtypes = build_table(raw["build"]), ""
    for dtype in filter(None, args.dtypes.split(",")):
        if args.suite == "step":
            for preset in args.presets.split(","):
                suite = Step(args, dtype, preset)
                tables.append((suite, measured(suite, args.pairs)))
                raw[f"{preset} {dtype}"] = tables[-1][1]
        else:
            found = measured(Rates(args, dtype), args.pairs)
            unit = f"{dtype}: GFLOP/s of mdl / of the peer = median ratio"
            lines += [unit, "", *rates_table(found)]
            raw[dtype] = {
                name: [{" ".join(map(str, k)): v for k, v in r.items()} for r in results]
                for name, results in found.items()
            }
    lines += step_table(tables) if tables else []
    load = f"load {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    print(f"{machine(args)}; {load}\n\n" + "\n".join(lines))
    if args.raw:
        args.raw.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
