//! What ranks give each other in a step: each collective with its bytes, and those on the wire.

use super::timeline::mib;
use mdl_ir::kernel::KernelSpec;
use mdl_ir::kernel::collective::CollectiveSpec;
use mdl_passes::executable::Step;
use mdl_train::step::StepPlan;
use serde_json::{Value, json};

/// One kind of collective on one value.
#[derive(Debug)]
pub struct Row<'a> {
    spec: &'a CollectiveSpec,
    what: &'a str,
    /// In a step, on one rank.
    count: u64,
}

impl Row<'_> {
    /// Bytes that a rank sends in a step.
    pub fn wire_bytes(&self) -> u64 {
        self.count * self.spec.wire_bytes()
    }

    fn json(&self) -> Value {
        json!({
            "kind": self.spec.kind.name(), "what": self.what, "ranks": self.spec.group.ranks,
            "count": self.count, "bytes": self.spec.bytes(), "wire_bytes": self.wire_bytes(),
        })
    }
}

/// All of a step, in the order in which they come first.
pub fn rows(plan: &StepPlan) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (e, times) in plan.runs() {
        let launches = e.steps.iter().flat_map(|step| match step {
            Step::Launch(launch) => vec![(launch, 1)],
            Step::Loop { count, body } => body.iter().map(|launch| (launch, *count)).collect(),
        });
        for (launch, count) in launches {
            let KernelSpec::Collective(spec) = &e.specs[launch.spec] else { continue };
            let kinds = [".all_reduce", ".reduce_scatter", ".all_gather"];
            let what = kinds
                .iter()
                .fold(launch.name.as_str(), |name, kind| name.strip_suffix(kind).unwrap_or(name));
            match rows.iter_mut().find(|r| r.spec == spec && r.what == what) {
                Some(row) => row.count += times * count,
                None => rows.push(Row { spec, what, count: times * count }),
            }
        }
    }
    rows
}

pub fn json(rows: &[Row<'_>]) -> Value {
    rows.iter().map(Row::json).collect()
}

/// A table; nothing where there are none.
pub fn text(rows: &[Row<'_>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head = ["collective", "of", "times", "bytes each", "sent by a rank"].map(String::from);
    let line = |row: &Row<'_>| {
        let (kind, what) = (row.spec.kind.name().to_string(), row.what.to_string());
        [kind, what, row.count.to_string(), mib(row.spec.bytes()), mib(row.wire_bytes())]
    };
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = "what ranks give each other in a step:\n".to_string();
    for line in &lines {
        let cell = |(c, cell): (usize, &String)| match c {
            0 | 1 => format!("{cell:<width$}", width = widths[c]),
            _ => format!("{cell:>width$}", width = widths[c]),
        };
        let cells: Vec<String> = line.iter().enumerate().map(cell).collect();
        out += &format!("  {}\n", cells.join("  "));
    }
    let all: u64 = rows.iter().map(Row::wire_bytes).sum();
    out + &format!("  a rank sends {} in a step\n", mib(all))
}
