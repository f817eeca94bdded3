#!/usr/bin/env python3
"""The step under five memory budgets, from all that it would take down to the least that there is.

Runs of the budgets alternate, so that all of them see the same machine; a figure is the median of
the ratios to the run without a budget of the same round.
    python3 benches/budgets.py [ROUNDS] [FLAGS OF mdlc bench step]
"""
import json
import re
import statistics
import subprocess
import sys

MDLC = "target/release/mdlc"
SHARES = [1.0, 0.75, 0.5, 0.25, 0.0]


def mdlc(*args):
    return subprocess.run([MDLC, *args], capture_output=True, text=True)


def step(flags, budget):
    memory = [] if budget is None else ["--memory", str(budget)]
    called = mdlc("bench", "step", "--json", "--runs", "5", *flags, *memory)
    assert called.returncode == 0, called.stderr
    return json.loads(called.stdout)[0]


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    default = ["--preset", "llama_15m", "--train_batch_size", "2", "--max_context_width", "1024"]
    flags = sys.argv[2:] or default
    everything = json.loads(mdlc("plan", "--json", *flags).stdout)["needs_bytes"]["device"]
    refused = mdlc("plan", "--memory", "1", *flags).stderr
    least = int(re.search(r"needs (\d+) bytes", refused).group(1))
    below = mdlc("plan", "--memory", str(least - 1), *flags)
    assert below.returncode == 1 and f"needs {least} bytes" in below.stderr, below.stderr
    budgets = [least + round((everything - least) * share) for share in SHARES]
    ratios = {budget: [] for budget in budgets}
    rows = {}
    for _ in range(rounds):
        plain = step(flags, None)["step_ms"]
        for budget in budgets:
            rows[budget] = step(flags, budget)
            ratios[budget].append(rows[budget]["step_ms"] / plain)
    print(f"{'budget':>13} {'planned':>13} {'observed':>13} {'predicted':>10} {'time':>6}")
    for budget in budgets:
        row = rows[budget]
        assert row["planned_bytes"] <= budget, row
        print(
            f"{budget:>13} {row['planned_bytes']:>13} {row['observed_bytes'] or 0:>13} "
            f"{row['predicted_ms']:>8.1f}ms {statistics.median(ratios[budget]):>6.3f}"
        )


main()
