//! The kernels of a step as an aligned table of text.

use super::report::{Report, Row};

/// Headings with the number of columns that each takes; what has no fixed width comes last.
const HEADINGS: [(&str, usize); 8] = [
    ("won ms", 9),
    ("share", 7),
    ("times", 6),
    ("each ms", 10),
    ("predicted", 10),
    ("GFLOP/s", 9),
    ("GB/s", 7),
    ("of limit", 10),
];
/// Columns of a name and of results, at most: longer names push what follows, and of results the
/// first ones are shown.
const NAME: usize = 44;
const RESULTS: usize = 24;

pub fn text(report: &Report) -> String {
    let machine = &report.machine;
    let mut out = format!(
        "{}\n{} threads, peak {:.0} GFLOP/s, triad {:.1} GB/s, an empty launch {:.0} µs; medians \
         of {} runs\n\n",
        report.title(),
        machine.threads,
        machine.peak,
        machine.triad,
        machine.launch * 1e6,
        report.runs,
    );
    let longest = |of: &dyn Fn(&Row) -> usize| report.rows.iter().map(of).max().unwrap_or(0);
    let name = longest(&|row| row.name.chars().count()).min(NAME);
    let result = longest(&|row| results(row).chars().count());
    for (heading, width) in HEADINGS {
        out += &format!("{heading:>width$}");
    }
    out += &format!("  {:<name$}  {:<result$}  place\n", "kernel", "result");
    for row in &report.rows {
        let (numbers, place) = (numbers(row, report.step), row.place());
        let line = format!("{numbers}  {:<name$}  {:<result$}  {place}", row.name, results(row));
        out += line.trim_end();
        out.push('\n');
    }
    out + &total(report)
}

/// As many of the results' names as there is room for, and a sign where there are more.
fn results(row: &Row) -> String {
    let mut out = String::new();
    for name in &row.results {
        let comma = if out.is_empty() { "" } else { ", " };
        if !out.is_empty() && out.chars().count() + name.chars().count() + 4 > RESULTS {
            return out + ", …";
        }
        out += &format!("{comma}{name}");
    }
    out
}

fn numbers(row: &Row, step: f64) -> String {
    let cells = [
        format!("{:.2}", row.won() * 1e3),
        format!("{:.1} %", 100.0 * row.total() / step),
        row.launches.to_string(),
        format!("{:.3}", row.measured * 1e3),
        row.predicted.map_or(String::from("-"), |s| format!("{:.3}", s * 1e3)),
        format!("{:.1}", row.gflops()),
        format!("{:.1}", row.gb_per_s()),
        format!("{:.0} %", 100.0 * row.of_limit()),
    ];
    cells.iter().zip(HEADINGS).map(|(cell, (_, width))| format!("{cell:>width$}")).collect()
}

/// What the kernels are together beside the step that they are taken from.
fn total(report: &Report) -> String {
    let [measured, limit, won] = report.sums().map(|seconds| seconds * 1e3);
    let step = report.step * 1e3;
    let predicted = report.predicted();
    let predicted = predicted.map_or(String::new(), |s| format!("; predicted {:.2} ms", s * 1e3));
    format!(
        "\nall kernels {measured:.2} ms in {} launches, {:.1} % of the step's {step:.2} \
         ms{predicted}\nat their limits {limit:.2} ms, so {won:.2} ms could be won at most\n",
        report.launches(),
        100.0 * measured / step,
    )
}
