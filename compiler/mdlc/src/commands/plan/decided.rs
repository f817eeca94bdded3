//! What was decided about the values that layers save for their gradients, and what it is against.

use super::timeline::{Timeline, mib};
use crate::Failure;
use mdl_driver::savings::{Saving, savings};
use mdl_ir::kernel::Target;
use mdl_passes::executable::Speed;
use mdl_passes::request::MemoryRequest;
use mdl_passes::saving::Way;
use mdl_train::model::Model;
use mdl_train::session::{Settings, executables, training_trace};
use serde_json::{Value, json};

/// Ways in the order in which they are told, with what they are called.
const WAYS: [(Way, &str); 3] =
    [(Way::Kept, "kept"), (Way::Made, "computed again"), (Way::Away, "in the host")];

#[derive(Debug)]
pub struct Decided {
    savings: Vec<Saving>,
    /// By the cost model's speeds.
    seconds: f64,
    /// Device bytes and seconds of a step that keeps everything, where this one does not.
    all_kept: Option<(u64, f64)>,
}

impl Decided {
    /// Of a step that takes so many seconds.
    pub fn of(
        model: &mut Model,
        settings: &Settings,
        (speed, seconds): (&Speed, f64),
        target: Target,
    ) -> Result<Decided, Failure> {
        let savings = savings(&training_trace(model, settings)?);
        let kept = savings.iter().all(|s| s.way == Way::Kept);
        let all_kept = match kept {
            true => None,
            false => {
                let memory = MemoryRequest {
                    budget: None,
                    activation_checkpointing: false,
                    offload_activations: false,
                    ..settings.memory
                };
                let (_, step, _) =
                    executables(model, &Settings { memory, ..settings.clone() }, target)?;
                Some((step.state_bytes() + step.work_bytes(), step.seconds(speed)))
            }
        };
        Ok(Decided { savings, seconds, all_kept })
    }

    pub fn json(&self, timeline: &Timeline<'_>) -> Value {
        let name = |way: Way| WAYS.iter().find(|(w, _)| *w == way).map_or("", |(_, name)| name);
        let saving = |s: &Saving| {
            let source = timeline.source(s.place);
            json!({ "name": s.name, "bytes": s.bytes, "way": name(s.way), "source": source })
        };
        json!({
            "saved": self.savings.iter().map(saving).collect::<Vec<_>>(),
            "predicted_seconds": self.seconds,
            "all_kept": self.all_kept.map(|(bytes, seconds)| {
                json!({ "device_bytes": bytes, "predicted_seconds": seconds })
            }),
        })
    }

    /// Nothing where everything is kept.
    pub fn text(&self) -> String {
        let Some((bytes, seconds)) = self.all_kept else { return String::new() };
        let mut out = "what layers save for their gradients:\n".to_string();
        for (way, name) in WAYS {
            let these: Vec<&Saving> = self.savings.iter().filter(|s| s.way == way).collect();
            let total: u64 = these.iter().map(|s| s.bytes).sum();
            if !these.is_empty() {
                out += &format!("{:>14}   {name}: {}\n", mib(total), listed(&these));
            }
        }
        let more = (self.seconds / seconds - 1.0) * 100.0;
        out + &format!(
            "{:>14}   would be needed on the device to keep it all; this step takes {more:.1} % \
             longer than that one, by the cost model\n",
            mib(bytes)
        )
    }
}

/// Names that are shown of one way.
const NAMES: usize = 4;

/// How many, and the largest by name.
fn listed(savings: &[&Saving]) -> String {
    let mut largest = savings.to_vec();
    largest.sort_by_key(|s| std::cmp::Reverse(s.bytes));
    let names: Vec<&str> = largest.iter().take(NAMES).map(|s| s.name.as_str()).collect();
    let more = match largest.len() > NAMES {
        true => ", …",
        false => "",
    };
    format!("{} ({}{more})", largest.len(), names.join(", "))
}
