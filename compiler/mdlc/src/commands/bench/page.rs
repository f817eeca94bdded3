//! The kernels of a step as a page for a browser: the roofline and the table. It needs neither a
//! network nor a script.

use super::report::{Report, Row};
use super::roofline;
use crate::commands::STYLE;

/// A text that cannot end the element that it stands in.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub fn page(report: &Report) -> String {
    let page = include_str!("page.html");
    let parts = [
        ("/* the style */\n", STYLE.to_string()),
        ("<!-- the title -->", escaped(&report.title())),
        ("<!-- the facts -->\n", facts(report)),
        ("<!-- the roofline -->\n", roofline::svg(report)),
        ("<!-- the kernels -->\n", kernels(report)),
    ];
    parts.iter().fold(page.to_string(), |page, (mark, part)| page.replace(mark, part))
}

fn facts(report: &Report) -> String {
    let ms = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
    let [measured, limit, won] = report.sums().map(ms);
    let predicted = report.predicted().map_or(String::from("-"), ms);
    let machine = &report.machine;
    let facts = [
        ("whole step", format!("{:.2} ms", report.step * 1e3)),
        ("all kernels", measured),
        ("predicted", predicted),
        ("at their limits", limit),
        ("could be won", won),
        ("launches", report.launches().to_string()),
        ("threads", machine.threads.to_string()),
        ("peak", format!("{:.0} GFLOP/s", machine.peak)),
        ("triad", format!("{:.1} GB/s", machine.triad)),
        ("an empty launch", format!("{:.0} µs", machine.launch * 1e6)),
    ];
    let fact =
        |(name, value): (&str, String)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    facts.map(fact).concat()
}

fn kernels(report: &Report) -> String {
    report.rows.iter().zip(1..).map(|(row, number)| line(row, number, report.step)).collect()
}

fn line(row: &Row, number: usize, step: f64) -> String {
    let numbers = [
        number.to_string(),
        format!("{:.2}", row.won() * 1e3),
        format!("{:.1} %", 100.0 * row.total() / step),
        row.launches.to_string(),
        format!("{:.3}", row.measured * 1e3),
        row.predicted.map_or(String::from("-"), |s| format!("{:.3}", s * 1e3)),
        format!("{:.1}", row.gflops()),
        format!("{:.1}", row.gb_per_s()),
        format!("{:.2}", row.intensity()),
        format!("{:.0} %", 100.0 * row.of_limit()),
    ];
    let source = row.sources.first().map_or("", |(_, _, text)| text.as_str());
    let texts = [row.name.clone(), row.results.join(", "), row.place(), source.to_string()];
    let numbers = numbers.map(|cell| format!("<td>{cell}</td>"));
    let texts = texts.map(|cell| {
        let cell = escaped(&cell);
        format!("<td class=\"left\" title=\"{cell}\">{cell}</td>")
    });
    format!("<tr>{}{}</tr>\n", numbers.concat(), texts.concat())
}
