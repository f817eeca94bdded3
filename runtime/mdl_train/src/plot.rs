//! Draws the loss curve as an SVG: training loss, the same smoothed, and validation loss.
//!
//! The file needs neither network nor fonts of its own. A run of any length gives a small
//! file: the training line has at most 2,000 points, each the mean of its neighbours.

use std::io;
use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use crate::log::{Record, replace};

const SIZE: (u32, u32) = (960, 540);
const MAX_POINTS: usize = 2000;
const TRAINING: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const VALIDATION: RGBColor = RGBColor(0xc2, 0x4a, 0x10);

#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    #[error("there is no finite loss to draw yet; let the run log at least one step")]
    NoPoints,
    #[error("the loss curve cannot be drawn: {reason}")]
    Draw { reason: String },
    #[error("loss curve `{path}` cannot be written: {source}; change --log_json")]
    Write { path: String, source: io::Error },
}

impl PlotError {
    pub fn code(&self) -> &'static str {
        "E0932"
    }
}

/// Writes the curve beside the log, in one go: a browser never sees half of it.
pub fn write(path: &Path, records: &[Record], title: &str) -> Result<(), PlotError> {
    let svg = loss_curve(records, title)?;
    replace(path, &svg)
        .map_err(|source| PlotError::Write { path: path.display().to_string(), source })
}

/// The curve as SVG text. Losses that are not finite are left out.
pub fn loss_curve(records: &[Record], title: &str) -> Result<String, PlotError> {
    let point = |step: u64, loss: f64| loss.is_finite().then_some((step, loss));
    let training: Vec<_> = records.iter().filter_map(|it| point(it.step, it.loss)).collect();
    let validation: Vec<_> = records.iter().filter_map(|it| point(it.step, it.val_loss?)).collect();
    let smoothed = thinned(&smoothed(&training));
    let training = thinned(&training);
    let steps = training.iter().chain(&validation).map(|it| it.0);
    let Some((x, y)) = ranges(steps, &training, &validation) else {
        return Err(PlotError::NoPoints);
    };
    let mut svg = String::new();
    draw(&mut svg, title, (x, y), [&training, &smoothed, &validation])
        .map_err(|error| PlotError::Draw { reason: error.to_string() })?;
    Ok(svg)
}

/// Step and loss.
type Point = (u64, f64);

fn draw(
    svg: &mut String,
    title: &str,
    (x, y): (Range<u64>, Range<f64>),
    [training, smoothed, validation]: [&[Point]; 3],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption(title, ("sans-serif", 22))
        .x_label_area_size(48)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y.clone())?;
    // About ten lines cross the chart: enough decimals that neighbouring labels differ.
    let decimals = (2.0 - (y.end - y.start).log10()).max(0.0) as usize;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .axis_desc_style(("sans-serif", 16))
        .label_style(("sans-serif", 14))
        .y_label_formatter(&|it| format!("{it:.decimals$}"))
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    let key = |style: ShapeStyle| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 24, y)], style)
    };
    let (light, strong) = (TRAINING.mix(0.5).stroke_width(1), TRAINING.stroke_width(2));
    chart
        .draw_series(LineSeries::new(training.iter().copied(), light))?
        .label("training")
        .legend(key(light));
    chart
        .draw_series(LineSeries::new(smoothed.iter().copied(), strong))?
        .label("training, smoothed")
        .legend(key(strong));
    if let [only] = training {
        chart.draw_series([Circle::new(*only, 4, TRAINING.filled())])?;
    }
    if !validation.is_empty() {
        let line = VALIDATION.stroke_width(1);
        chart.draw_series(LineSeries::new(validation.iter().copied(), line))?;
        chart
            .draw_series(validation.iter().map(|at| Circle::new(*at, 4, VALIDATION.filled())))?
            .label("validation")
            .legend(|(x, y)| Circle::new((x + 12, y), 4, VALIDATION.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}

/// Axes that hold every point with a little room; `None` without points.
fn ranges(
    steps: impl Iterator<Item = u64> + Clone,
    training: &[Point],
    validation: &[Point],
) -> Option<(Range<u64>, Range<f64>)> {
    let (first, last) = (steps.clone().min()?, steps.max()?);
    // A run from its beginning starts at 0; a log of a later part does not.
    let first = if first <= last / 10 { 0 } else { first };
    let losses = || training.iter().chain(validation).map(|it| it.1);
    let low = losses().fold(f64::INFINITY, f64::min);
    let high = losses().fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-6);
    Some((first..last.max(first + 1), low - room..high + room))
}

/// The mean of a fiftieth of the run around each point, less near the ends: it has no lag.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let n = points.len();
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, (_, loss)| {
            *sum += loss;
            Some(*sum)
        }))
        .collect();
    let mean = |i: usize| {
        let half = (n / 100).min(i).min(n - 1 - i);
        let (from, to) = (i - half, i + half + 1);
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..n).map(mean).collect()
}

/// Means of equal runs of points, few enough to draw.
fn thinned(points: &[Point]) -> Vec<Point> {
    let mean = |part: &[Point]| {
        let loss = part.iter().map(|it| it.1).sum::<f64>() / part.len() as f64;
        (part[part.len() / 2].0, loss)
    };
    points.chunks(points.len().div_ceil(MAX_POINTS).max(1)).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(n: u64) -> Vec<Record> {
        let noise = |step: u64| ((step * 7919) % 101) as f64 / 400.0;
        let loss = |step: u64| 1.5 + 3.0 * (-(step as f64) / (n as f64 / 5.0)).exp();
        let record = |step| Record {
            step,
            loss: loss(step) + noise(step),
            lr: 1e-4,
            grad_norm: 1.0,
            tokens_per_s: 1000.0,
            val_loss: (step % (n / 10).max(1) == 0).then(|| loss(step) + 0.1),
            val_tokens: Some(1),
            planned_bytes: None,
            observed_bytes: None,
            runtime_bytes: None,
        };
        (1..=n).map(record).collect()
    }

    #[test]
    fn the_curve_has_its_labels_and_stays_small() {
        for n in [1, 2, 50, 5000, 100_000] {
            let svg = loss_curve(&records(n), "Llama <tiny> & co").expect("there are points");
            for text in
                ["step", "loss (nats per token)", "validation", "Llama &lt;tiny&gt; &amp; co"]
            {
                assert!(svg.contains(&format!("\n{text}\n")), "{text} at {n} steps");
            }
            assert!(svg.len() < 200_000 && !svg.contains("NaN"), "{n} steps: {}", svg.len());
        }
    }

    #[test]
    fn odd_losses_are_drawn_or_refused() {
        assert_eq!(loss_curve(&[], "none").expect_err("empty").code(), "E0932");
        let mut records = records(20);
        records.iter_mut().for_each(|it| it.loss = 2.0);
        records[3].loss = f64::INFINITY;
        assert!(loss_curve(&records, "flat").is_ok());
        records.iter_mut().for_each(|it| (it.loss, it.val_loss) = (f64::NAN, None));
        assert!(loss_curve(&records, "lost").is_err());
    }

    #[test]
    fn smoothing_keeps_a_constant() {
        let points: Vec<Point> = (0..500).map(|i| (i, 2.5)).collect();
        assert!(smoothed(&points).iter().all(|it| (it.1 - 2.5).abs() < 1e-9));
    }
}
