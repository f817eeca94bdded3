//! The roofline of a step as an SVG: FLOPs a byte across, GFLOP/s upwards, both logarithmic. No
//! kernel is above the roof, unless its operands come out of caches.

use super::page::escaped;
use super::report::{Report, Row};
use std::fmt::Write;

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Radius of a dot without a share, and what the square root of its share adds.
const DOT: f64 = 3.0;
const SHARE: f64 = 22.0;
/// Shares from which a label says more than a number.
const NAMED: f64 = 0.02;
/// Height of a label, and the width of one of its characters.
const LINE: f64 = 13.0;
const CHARACTER: f64 = 6.2;
/// Kernels slower than the peak divided by this lie on the lower edge: they are tiny, and would
/// make all others small.
const DEPTH: f64 = 1e4;
/// Space between a dot and its label.
const GAP: f64 = 4.0;

/// A range of powers of ten that is drawn over so many points.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// All values, and whole decades around them.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low.floor(), high.ceil()) };
        Axis { low, high: high.max(low + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - self.low).max(0.0) / (self.high - self.low);
        self.from + part * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power))
    }
}

/// A rectangle that a label or a dot takes.
#[derive(Clone, Copy)]
struct Taken {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Taken {
    fn meets(&self, other: &Taken) -> bool {
        let apart = self.x + self.width <= other.x
            || other.x + other.width <= self.x
            || self.y + self.height <= other.y
            || other.y + other.height <= self.y;
        !apart
    }

    fn is_inside(&self) -> bool {
        self.x >= LEFT && self.x + self.width <= WIDTH && self.y >= 0.0 && self.y <= HEIGHT - BOTTOM
    }
}

/// The picture, with the kernels that compute something.
pub fn svg(report: &Report) -> String {
    let (peak, triad) = (report.machine.peak, report.machine.triad);
    let rows = || report.rows.iter().filter(|row| row.flops > 0);
    let ridge = peak / triad;
    let x = Axis::over(rows().map(Row::intensity).chain([ridge]), LEFT, WIDTH - RIGHT);
    let low = (10f64.powf(x.low) * triad).max(peak / DEPTH);
    let rates = rows().map(|row| row.gflops().max(peak / DEPTH));
    let y = Axis::over(rates.chain([peak, low]), HEIGHT - BOTTOM, TOP);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"roofline\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n"
    );
    grid(&mut out, &x, &y);
    roof(&mut out, &x, &y, (peak, triad));
    dots(&mut out, report, &x, &y);
    out + "</svg>\n"
}

fn grid(out: &mut String, x: &Axis, y: &Axis) {
    let mut line = |[x1, y1, x2, y2]: [f64; 4]| {
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
    };
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    x.decades().for_each(|v| line([x.at(v), TOP, x.at(v), bottom]));
    y.decades().for_each(|v| line([LEFT, y.at(v), right, y.at(v)]));
    for value in x.decades() {
        let at = x.at(value);
        let text = text(at, bottom + 16.0, "middle", "", &value.to_string());
        out.push_str(&text);
    }
    for value in y.decades() {
        out.push_str(&text(LEFT - 6.0, y.at(value) + 4.0, "end", "", &value.to_string()));
    }
    let middle = (LEFT + right) / 2.0;
    out.push_str(&text(middle, bottom + 34.0, "middle", "", "FLOPs for each byte"));
    out.push_str(&text(LEFT + 4.0, TOP + 8.0, "start", "", "GFLOP/s"));
}

fn text(x: f64, y: f64, anchor: &str, class: &str, what: &str) -> String {
    let what = escaped(what);
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{class}>{what}</text>\n")
}

/// Up with the memory's speed to the ridge, and level from there.
fn roof(out: &mut String, x: &Axis, y: &Axis, (peak, triad): (f64, f64)) {
    let (left, right) = (10f64.powf(x.low), 10f64.powf(x.high));
    let (x1, y1) = (x.at(left), y.at(left * triad));
    let (x2, y2, x3) = (x.at(peak / triad), y.at(peak), x.at(right));
    let _ = writeln!(
        out,
        "<path class=\"peak\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}L{x3:.1} {y2:.1}\"/>"
    );
    let name = format!("multiply-adds on registers: {peak:.0} GFLOP/s");
    out.push_str(&text(x3 - 4.0, y2 - 6.0, "end", "peakname", &name));
    let (half, name) = ((x1 + x2) / 2.0, format!("triad: {triad:.1} GB/s"));
    out.push_str(&text(half - 8.0, (y1 + y2) / 2.0 - 6.0, "end", "peakname", &name));
}

fn dots(out: &mut String, report: &Report, x: &Axis, y: &Axis) {
    let share = |row: &Row| row.total() / report.step;
    let radius = |row: &Row| DOT + SHARE * share(row).sqrt();
    let numbered = report.rows.iter().zip(1..).filter(|(row, _)| row.flops > 0);
    let mut all: Vec<(&Row, usize)> = numbered.collect();
    // Large ones first, so that small ones are drawn on top and labels of large ones have room.
    all.sort_by(|a, b| share(b.0).total_cmp(&share(a.0)));
    let mut taken = Vec::new();
    for (row, number) in &all {
        let (cx, cy, r) = (x.at(row.intensity()), y.at(row.gflops()), radius(row));
        taken.push(Taken { x: cx - r, y: cy - r, width: 2.0 * r, height: 2.0 * r });
        let class = if row.is_bound_by_arithmetic() { "arithmetic" } else { "memory" };
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{r:.1}\"><title>{}</title>\
             </circle>",
            escaped(&told(row, *number, share(row)))
        );
    }
    for (row, number) in all {
        let (cx, cy, r) = (x.at(row.intensity()), y.at(row.gflops()), radius(row));
        let long = format!("{number} {}", row.name);
        let short = number.to_string();
        let names =
            if share(row) >= NAMED { [long, short.clone()] } else { [short.clone(), short] };
        out.push_str(&label(&names, (cx, cy, r), &mut taken));
    }
}

/// A label where there is room for one, right of its dot if possible; the short one in the dot
/// itself where there is none.
fn label(names: &[String; 2], (cx, cy, r): (f64, f64, f64), taken: &mut Vec<Taken>) -> String {
    for name in names {
        let width = CHARACTER * name.chars().count() as f64;
        let places = [
            (cx + r + GAP, cy - LINE / 2.0),
            (cx - r - GAP - width, cy - LINE / 2.0),
            (cx - width / 2.0, cy - r - GAP - LINE),
            (cx - width / 2.0, cy + r + GAP),
            (cx + r, cy - r - LINE),
            (cx + r, cy + r),
            (cx - r - width, cy - r - LINE),
            (cx - r - width, cy + r),
        ];
        for (x, y) in places {
            let here = Taken { x, y, width, height: LINE };
            if here.is_inside() && !taken.iter().any(|t| t.meets(&here)) {
                taken.push(here);
                return text(x, y + LINE - 3.0, "start", "", name);
            }
        }
    }
    text(cx, cy + 4.0, "middle", "", &names[1])
}

fn told(row: &Row, number: usize, share: f64) -> String {
    format!(
        "{number}  {}\n{}\n{} launches of {:.3} ms, {:.1} % of the step\n{:.1} GFLOP/s, \
         {:.1} GB/s, {:.2} FLOPs a byte\n{:.0} % of the limit; {:.2} ms to be won",
        row.name,
        row.place(),
        row.launches,
        row.measured * 1e3,
        100.0 * share,
        row.gflops(),
        row.gb_per_s(),
        row.intensity(),
        100.0 * row.of_limit(),
        row.won() * 1e3,
    )
}
