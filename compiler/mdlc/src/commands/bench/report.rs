//! What `mdlc bench FILE` found: a row for each kernel, and the step that they add up to.

use serde_json::{Value, json};

/// What the machine can do at most, measured between the runs.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub threads: u32,
    /// GFLOP/s of fused multiply-adds on registers.
    pub peak: f64,
    /// GB/s of a triad on arrays beyond the caches.
    pub triad: f64,
    /// Seconds of a launch that computes nothing.
    pub launch: f64,
}

/// One kernel; seconds are those of one launch.
#[derive(Clone, Debug)]
pub struct Row {
    pub kernel: &'static str,
    /// With its element type and its shape.
    pub name: String,
    /// What it computes, by the names in the graph.
    pub results: Vec<String>,
    /// File, line and text of the places in the model that it comes from.
    pub sources: Vec<(String, usize, String)>,
    /// In one step.
    pub launches: u64,
    pub flops: u64,
    pub bytes: u64,
    /// By the cost model, which knows no GPU.
    pub predicted: Option<f64>,
    pub measured: f64,
    /// What its arithmetic takes at the peak, and its bytes at the triad's speed.
    pub arithmetic: f64,
    pub traffic: f64,
}

impl Row {
    /// No kernel is faster than this, unless its operands come out of caches.
    pub fn limit(&self) -> f64 {
        self.arithmetic.max(self.traffic)
    }

    pub fn is_bound_by_arithmetic(&self) -> bool {
        self.arithmetic >= self.traffic
    }

    /// Seconds of a step that a kernel at its limit would save.
    pub fn won(&self) -> f64 {
        (self.measured - self.limit()).max(0.0) * self.launches as f64
    }

    /// Seconds of a step.
    pub fn total(&self) -> f64 {
        self.measured * self.launches as f64
    }

    pub fn gflops(&self) -> f64 {
        self.flops as f64 / self.measured / 1e9
    }

    pub fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.measured / 1e9
    }

    pub fn intensity(&self) -> f64 {
        self.flops as f64 / self.bytes.max(1) as f64
    }

    pub fn of_limit(&self) -> f64 {
        self.limit() / self.measured
    }

    /// The first place in the model, and how many more there are.
    pub fn place(&self) -> String {
        let Some((file, line, _)) = self.sources.first() else { return String::new() };
        match self.sources.len() - 1 {
            0 => format!("{file}:{line}"),
            more => format!("{file}:{line} and {more} more"),
        }
    }

    fn json(&self, of: f64) -> Value {
        let sources = self
            .sources
            .iter()
            .map(|(file, line, text)| json!({ "file": file, "line": line, "text": text }));
        json!({
            "kernel": self.kernel, "name": self.name, "results": self.results,
            "sources": sources.collect::<Vec<_>>(),
            "launches": self.launches, "flops": self.flops, "bytes": self.bytes,
            "predicted_ms": self.predicted.map(|s| s * 1e3), "measured_ms": self.measured * 1e3,
            "limit_ms": self.limit() * 1e3,
            "bound_by": if self.is_bound_by_arithmetic() { "arithmetic" } else { "memory" },
            "gflops": self.gflops(), "gb_per_s": self.gb_per_s(),
            "flops_per_byte": self.intensity(), "fraction_of_limit": self.of_limit(),
            "share": self.total() / of, "won_ms": self.won() * 1e3,
        })
    }
}

#[derive(Clone, Debug)]
pub struct Report {
    pub model: String,
    pub preset: Option<String>,
    pub batch: u64,
    pub context: u64,
    pub bf16: bool,
    pub runs: usize,
    /// Seconds of the whole step, run as it always is.
    pub step: f64,
    pub machine: Machine,
    pub rows: Vec<Row>,
}

impl Report {
    /// What there is most to win at comes first.
    pub fn sorted(mut self) -> Report {
        self.rows.sort_by(|a, b| b.won().total_cmp(&a.won()));
        self
    }

    pub fn title(&self) -> String {
        let preset = self.preset.as_deref().map_or(String::new(), |p| format!(" {p}"));
        let stored = if self.bf16 { "bf16" } else { "f32" };
        let (model, batch, t) = (&self.model, self.batch, self.context);
        format!("{model}{preset}: {batch} sequences of {t} tokens, {stored}")
    }

    /// Seconds that the cost model gives to all kernels of a step.
    pub fn predicted(&self) -> Option<f64> {
        self.rows.iter().map(|row| Some(row.predicted? * row.launches as f64)).sum()
    }

    /// Seconds of all kernels of a step, measured, at their limits, and to be won.
    pub fn sums(&self) -> [f64; 3] {
        let sum = |of: &dyn Fn(&Row) -> f64| self.rows.iter().map(of).sum();
        let times = |row: &Row| row.launches as f64;
        [sum(&|row| row.total()), sum(&|row| row.limit() * times(row)), sum(&|row| row.won())]
    }

    pub fn launches(&self) -> u64 {
        self.rows.iter().map(|row| row.launches).sum()
    }

    pub fn json(&self) -> Value {
        let [measured, limit, won] = self.sums().map(|seconds| seconds * 1e3);
        json!({
            "model": self.model, "preset": self.preset, "batch": self.batch,
            "context": self.context, "dtype": if self.bf16 { "bf16" } else { "f32" },
            "threads": self.machine.threads, "runs": self.runs,
            "peak_gflops": self.machine.peak, "triad_gb_per_s": self.machine.triad,
            "launch_ms": self.machine.launch * 1e3, "launches": self.launches(),
            "step_ms": self.step * 1e3, "kernels_ms": measured,
            "predicted_ms": self.predicted().map(|s| s * 1e3),
            "limit_ms": limit, "won_ms": won,
            "tokens_per_s": (self.batch * self.context) as f64 / self.step,
            "kernels": self.rows.iter().map(|row| row.json(self.step)).collect::<Vec<_>>(),
        })
    }
}
