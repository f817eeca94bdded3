//! Memory over the launches of a step: what is in use at each of them, and as a picture of text.

use crate::source_line::SourceLine;
use mdl_ir::place::Place;
use mdl_passes::executable::{BufferPlan, Executable, Launch, Space, Step};
use mdl_syntax::source::SourceMap;
use serde_json::{Value, json};
use std::ops::Range;

/// One launch of the plan's clock; one in a loop stands for all its iterations.
#[derive(Debug)]
pub struct Event<'a> {
    pub launch: &'a Launch,
    pub kernel: String,
    /// Iterations of the loop that it is in; 1 outside of loops.
    pub count: u64,
    /// Bytes of the work space that are in use while it runs, padded as the arena pads them.
    pub live: u64,
}

#[derive(Debug)]
pub struct Timeline<'a> {
    pub events: Vec<Event<'a>>,
    /// Which launches a loop has, and how often it runs.
    pub loops: Vec<(Range<usize>, u64)>,
    executable: &'a Executable,
    sources: &'a SourceMap,
}

/// Columns and rows of the picture.
const WIDTH: usize = 72;
const HEIGHT: usize = 8;

/// Buffers of the peak that are listed, the biggest ones.
const SHOWN: usize = 8;

impl<'a> Timeline<'a> {
    pub fn of(e: &'a Executable, sources: &'a SourceMap) -> Timeline<'a> {
        let (events, loops) = (Vec::new(), Vec::new());
        let mut timeline = Timeline { events, loops, executable: e, sources };
        for step in &e.steps {
            match step {
                Step::Launch(launch) => timeline.add(e, launch, 1),
                Step::Loop { count, body } => {
                    let start = timeline.events.len();
                    body.iter().for_each(|launch| timeline.add(e, launch, *count));
                    timeline.loops.push((start..timeline.events.len(), *count));
                }
            }
        }
        timeline
    }

    fn add(&mut self, e: &Executable, launch: &'a Launch, count: u64) {
        let live = e.live_bytes(self.events.len());
        let kernel = format!("{:?}", e.specs[launch.spec]);
        let kernel = kernel.split('(').next().unwrap_or("").to_string();
        self.events.push(Event { launch, kernel, count, live });
    }

    pub fn source(&self, place: Place) -> Value {
        SourceLine::of(self.sources, place).map_or(Value::Null, |l| l.json())
    }

    pub fn json(&self) -> (Value, Value, Value) {
        let launches = self.events.iter().map(|e| {
            json!({
                "name": e.launch.name, "kernel": e.kernel, "times": e.count,
                "live_bytes": e.live, "flops": e.launch.flops, "bytes": traffic(e.launch),
                "source": self.source(e.launch.place),
            })
        });
        let last = self.events.len().saturating_sub(1);
        let work = self.executable.buffers.iter().filter(|b| b.space == Space::Work);
        let buffers = work.map(|b| {
            json!({
                "name": b.name, "offset": b.offset, "bytes": b.bytes, "first": b.first.min(last),
                "last": b.last.min(last), "source": self.source(b.place),
            })
        });
        let loops = self.loops.iter();
        let loops = loops.map(|(l, n)| json!({ "first": l.start, "last": l.end - 1, "times": n }));
        (launches.collect(), buffers.collect(), loops.collect())
    }

    /// Bars of bytes over the launches, the loops below them, and what makes the peak.
    pub fn text(&self) -> String {
        let (when, most) = self.executable.peak();
        if most == 0 {
            return String::new();
        }
        let columns = self.events.len().min(WIDTH);
        let column = |at: usize| at * columns / self.events.len();
        let mut bars = vec![0; columns];
        for (at, e) in self.events.iter().enumerate() {
            bars[column(at)] = e.live.max(bars[column(at)]);
        }
        let mut out = "work in use, launch by launch:\n".to_string();
        for row in (0..HEIGHT).rev() {
            let label = match row {
                7 => mib(most),
                3 => mib(most / 2),
                _ => String::new(),
            };
            let bar: String = bars.iter().map(|live| block(*live, most, row)).collect();
            out += format!("{label:>14} |{bar}").trim_end();
            out.push('\n');
        }
        out += &self.below(columns, &column, when);
        out + &self.at_peak(when)
    }

    /// The axis: loops with their counts, and a mark where the peak is.
    fn below(&self, columns: usize, column: &dyn Fn(usize) -> usize, when: usize) -> String {
        let mut axis = vec!['-'; columns];
        for (range, count) in &self.loops {
            let (from, to) = (column(range.start), column(range.end - 1));
            let label: Vec<char> = format!(" {count} times ").chars().collect();
            axis[from..=to].fill('=');
            axis[from] = '[';
            axis[to] = ']';
            if label.len() + 2 <= to - from {
                let start = from + (to - from + 1 - label.len()) / 2;
                axis[start..start + label.len()].copy_from_slice(&label);
            }
        }
        let axis: String = axis.into_iter().collect();
        let mark = " ".repeat(column(when));
        format!("{:>14} +{axis}\n{:>14}  {mark}^ launch {when}\n", "0", "")
    }

    fn at_peak(&self, when: usize) -> String {
        let mut here: Vec<&BufferPlan> = self.executable.in_use(when).collect();
        here.sort_by_key(|b| std::cmp::Reverse(b.bytes));
        let name = self.events.get(when).map_or("", |e| &e.launch.name);
        let mut out = format!("in use at launch {when}, `{name}`:\n");
        let last = self.events.len().saturating_sub(1);
        let what =
            |b: &BufferPlan| format!("{}, launches {} to {}", b.name, b.first, b.last.min(last));
        let shown: Vec<_> = here.iter().take(SHOWN).map(|b| (b, what(b))).collect();
        let width = shown.iter().map(|(_, what)| what.chars().count()).max().unwrap_or(0);
        for (b, what) in shown {
            let source = SourceLine::of(self.sources, b.place);
            let source = source.map_or(String::new(), |l| format!("{}:{}", l.file, l.number));
            let line = format!("{:>14}   {what:<width$}  {source}", mib(b.bytes));
            out += &format!("{}\n", line.trim_end());
        }
        let rest = here.iter().skip(SHOWN);
        let bytes: u64 = rest.clone().map(|b| b.bytes).sum();
        if rest.len() > 0 {
            out += &format!("{:>14}   in {} smaller ones\n", mib(bytes), rest.len());
        }
        out
    }
}

/// A character of a bar: eighths of a row.
fn block(live: u64, most: u64, row: usize) -> char {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let eighths = (live as f64 / most as f64 * (HEIGHT * 8) as f64).round() as usize;
    // What is in use at all is seen.
    let eighths = eighths.max(usize::from(live > 0));
    EIGHTHS[eighths.saturating_sub(row * 8).min(8)]
}

/// Bytes that a launch reads and writes.
fn traffic(launch: &Launch) -> u64 {
    launch.args.iter().map(|a| a.bytes).sum()
}

pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
