//! `mdlc plan`: what a training step needs, known before anything runs.

mod collectives;
mod decided;
mod sweep;
mod timeline;

use super::{STYLE, say};
use crate::choose::{Chosen, choose};
use crate::flags::StepFlags;
use crate::flags::run::RunFlags;
use crate::hardware::{Hardware, Machine, speed_of_cpu};
use crate::{Failure, Outcome};
use clap::Parser;
use collectives::Row;
use decided::Decided;
use mdl_check::config::Setting;
use mdl_ir::active::active_params;
use mdl_ir::tensor_type::DType;
use mdl_passes::executable::{BufferPlan, Space};
use mdl_passes::optimise::StateTypes;
use mdl_passes::request::Division;
use mdl_train::session::{Settings, executables};
use mdl_train::step::StepPlan;
use serde_json::{Value, json};
use std::path::PathBuf;
use timeline::{Timeline, mib};

#[derive(Debug, Parser)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// A path, or the name of an embedded model; --preset or --model_type may stand for it
    file: Option<String>,
    /// One JSON object on standard output; all its numbers are bytes or counts
    #[arg(long)]
    json: bool,
    /// Write a page for a browser with memory over the step and every kernel; it needs no network
    #[arg(long, value_name = "REPORT.html")]
    html: Option<PathBuf>,
    /// Plan every combination of these values of a flag, such as `train_batch_size=1,2,4`
    #[arg(long, value_name = "FLAG=N,N", conflicts_with = "html")]
    sweep: Vec<String>,
    #[command(flatten)]
    flags: StepFlags,
}

const EXAMPLE: &str = "\
Does a published model fit a machine, and what does a wider feed-forward block change?
  mdlc plan --preset llama3_2_3b --max_context_width 8192 --hardware p5
  mdlc plan --preset llama3_2_3b --intermediate_size 11008 --max_context_width 8192
Sizes alone choose the nearest preset of a family, and differences from it are noted:
  mdlc plan --model_type llama_v3 --hidden_width 2048 --num_layers 16 --num_heads 32
Which batch still fits, and where does the memory go?
  mdlc plan --preset llama3_2_3b --sweep train_batch_size=1,2,4,8 --hardware p5
  mdlc plan --preset llama3_2_3b --html report.html
The flags are those of `mdlc train`; a tokenizer and data sets are never opened here.
The exit status is 0 whether or not the plan fits.";

/// Buffers of the work space that are shown, the biggest ones.
const SHOWN_BUFFERS: usize = 8;

/// All that is said about a step.
struct Report {
    chosen: Chosen,
    settings: Settings,
    parameters: u64,
    active: u64,
    step: StepPlan,
    types: StateTypes,
    hardware: Option<(Hardware, Machine)>,
    decided: Decided,
}

pub fn run(args: &Args) -> Outcome {
    args.flags.note_without_effect(&RunFlags::names());
    if !args.sweep.is_empty() {
        say(&sweep::run(&args.sweep, args.json)?);
        return Ok(());
    }
    let report = Report::of(args)?;
    report.chosen.note_differences();
    if let Some(path) = &args.html {
        let page = page(&report.json());
        std::fs::write(path, page).map_err(|e| {
            let path = path.display();
            Failure::coded("E0941", format!("--html `{path}` cannot be written: {e}"))
        })?;
        eprintln!("note: the report is in {}", path.display());
    }
    match args.json {
        true => say(&format!("{}\n", serde_json::to_string_pretty(&report.json())?)),
        false => say(&report.text()),
    }
    Ok(())
}

/// The page that shows this plan. A text within it cannot end the element that it stands in.
fn page(plan: &Value) -> String {
    let data = plan.to_string().replace('<', "\\u003c");
    let page = include_str!("plan/report.html").replace("/* the style */\n", STYLE);
    page.replace("\"the plan\"", &data)
}

impl Report {
    fn of(args: &Args) -> Result<Report, Failure> {
        let flags = &args.flags;
        let mut chosen = choose(args.file.as_deref(), &flags.model)?;
        let hardware = match flags.sources.hardware {
            Some(hardware) => Some((hardware, hardware.machine()?)),
            None => None,
        };
        let mut settings = flags.settings()?;
        // Whoever names a machine wants to know what fits, and not to be refused.
        if let Some(budget) = settings.memory.budget.as_mut().filter(|_| hardware.is_some()) {
            budget.or_least = !flags.given.has("memory");
        }
        let (units, target) = (flags.training.units(), flags.training.target());
        let (graph, step, _) = executables(&mut chosen.model, &settings, target)?;
        let (parameters, active) = (graph.param_count(), active_params(&graph));
        let budget = settings.memory.budget;
        let speed = budget.map_or_else(|| speed_of_cpu(units), |budget| budget.speed);
        let cost = (&speed, step.seconds(&speed));
        let decided = Decided::of(&mut chosen.model, &settings, cost, target)?;
        let types = StateTypes::of(&graph.params, settings.optimizer_state);
        Ok(Report { chosen, settings, parameters, active, step, types, hardware, decided })
    }

    /// What the state is made of, in which bits.
    fn state(&self) -> &'static str {
        match (self.types.params, self.types.master) {
            (DType::Bf16, true) => {
                "parameters and gradients in bf16, two moments and a master copy in f32"
            }
            (DType::Bf16, false) => "parameters, gradients, two moments, all in bf16",
            _ => "parameters, gradients, two moments",
        }
    }

    /// How numbers are stored; arithmetic and sums are f32.
    fn precision(&self) -> Value {
        let StateTypes { params, moments, master } = self.types;
        let master = master.then_some(DType::F32.name());
        json!({
            "parameters": params.name(), "gradients": params.name(), "activations": params.name(),
            "moments": moments.name(), "master": master,
        })
    }

    fn timeline(&self) -> Timeline<'_> {
        Timeline::of(self.step.largest(), &self.chosen.model.front.sources)
    }

    /// How the state is divided among the devices that the plan is for.
    fn division(&self) -> Division {
        self.settings.memory.division().unwrap_or(Division { pieces: 1, copies: 1 })
    }

    /// Devices of one machine that the plan is for.
    fn devices(&self) -> u64 {
        self.settings.memory.mesh.map_or(1, |mesh| mesh.devices)
    }

    /// Bytes of device memory that the step needs, on each device.
    fn device_need(&self) -> u64 {
        self.step.state_bytes() + self.step.work_bytes()
    }

    /// Bytes of the host's memory, without what is on disk.
    fn host_need(&self) -> u64 {
        self.step.host_bytes() - self.disk_need()
    }

    fn disk_need(&self) -> u64 {
        match self.settings.memory.state_on_disk {
            true => self.step.host_state_bytes(),
            false => 0,
        }
    }

    /// All of that.
    fn needs(&self) -> Value {
        let (device, host, disk) = (self.device_need(), self.host_need(), self.disk_need());
        json!({ "device": device, "host": host, "disk": disk })
    }

    fn fits(&self, machine: &Machine) -> bool {
        let host = self.devices() * self.host_need() <= machine.host_bytes;
        self.devices() <= machine.devices && host && self.device_need() <= machine.device_bytes
    }

    fn biggest(&self) -> Vec<&BufferPlan> {
        let buffers = self.step.largest().buffers.iter();
        let mut biggest: Vec<_> = buffers.filter(|b| b.space == Space::Work).collect();
        biggest.sort_by_key(|b| std::cmp::Reverse(b.bytes));
        biggest.truncate(SHOWN_BUFFERS);
        biggest
    }

    fn json(&self) -> Value {
        let (step, e) = (&self.step, self.step.largest());
        let (flops, traffic) = step.work();
        let timeline = self.timeline();
        let (when, live) = e.peak();
        let (launch_list, buffer_list, loops) = timeline.json();
        let differences = self.chosen.differences.iter().map(|d| {
            json!({ "field": d.field, "value": value(&d.value), "preset": value(&d.instead_of) })
        });
        let buffers = self
            .biggest()
            .into_iter()
            .map(|b| json!({ "name": b.name, "bytes": b.bytes, "first": b.first, "last": b.last }));
        let hardware = self.hardware.as_ref().map(|(name, machine)| {
            json!({
                "name": name.name(), "device": machine.device, "devices": machine.devices,
                "device_bytes": machine.device_bytes, "host_bytes": machine.host_bytes,
            })
        });
        let machine = self.hardware.as_ref().map(|(_, machine)| machine);
        let mesh = self.settings.memory.mesh.map(|mesh| {
            json!({
                "machines": mesh.machines, "devices": mesh.devices,
                "pieces": self.division().pieces, "copies": self.division().copies,
            })
        });
        let collectives = collectives::rows(step);
        json!({
            "model": self.chosen.model.name,
            "preset": self.chosen.preset,
            "differences": differences.collect::<Vec<_>>(),
            "parameters": self.parameters,
            "active_parameters": self.active,
            "batch": self.settings.batch,
            "gradient_accumulation": step.micro_batches,
            "context": self.settings.t,
            "precision": self.precision(),
            "hardware": hardware,
            "device_bytes": machine.map(|m| m.device_bytes),
            "needs_bytes": self.needs(),
            "fits": machine.map(|m| self.fits(m)),
            "devices_used": self.settings.ranks(),
            "sharded": self.division().pieces > 1,
            "mesh": mesh,
            "collectives": collectives::json(&collectives),
            "wire_bytes_per_step": collectives.iter().map(Row::wire_bytes).sum::<u64>(),
            "target": e.target,
            "peak_bytes": self.needs(),
            "state_bytes": step.state_bytes(),
            "work_bytes": step.work_bytes(),
            "live_bytes_at_peak": live,
            "peak_at_launch": when,
            "decided": self.decided.json(&timeline),
            "biggest_buffers": buffers.collect::<Vec<_>>(),
            "launches": step.launches(),
            "flops_per_step": flops,
            "bytes_per_step": traffic,
            "tokens_per_step": self.settings.sequences() * self.settings.t,
            "schedule": launch_list,
            "loops": loops,
            "buffers": buffer_list,
        })
    }

    fn text(&self) -> String {
        let (step, e) = (&self.step, self.step.largest());
        let (flops, traffic) = step.work();
        let timeline = self.timeline();
        let (when, live) = e.peak();
        let active = match self.active == self.parameters {
            true => String::new(),
            false => format!(" ({} active)", grouped(self.active)),
        };
        let times = match step.micro_batches {
            1 => String::new(),
            n => format!("{n} × "),
        };
        let ranks = match self.settings.memory.mesh {
            Some(mesh) => {
                format!(" on each rank of {} ({} × {})", mesh.ranks(), mesh.machines, mesh.devices)
            }
            None => String::new(),
        };
        let of_each = match self.division().pieces {
            1 => String::new(),
            pieces => format!("1/{pieces} of "),
        };
        let sums = match step.ranks.as_ref().map_or(0, |ranks| ranks.carries.len()) {
            0 => String::new(),
            n => format!(", {n} × partial sums of gradients"),
        };
        let mut out = format!(
            "{}: {} parameters{active}, {times}{} sequences of {} tokens{ranks}\n\
             device  {:>14} at the peak\n  \
             state {:>14}   {}{}{}\n  \
             work  {:>14}   (at least {} is in use at launch {when})\n\
             host    {:>14} at the peak\n\
             step    {:>10.2} GFLOP, {:.2} GB read and written, {} launches\n",
            self.chosen.name(),
            grouped(self.parameters),
            self.settings.batch,
            self.settings.t,
            mib(self.device_need()),
            mib(step.state_bytes()),
            of_each,
            self.state(),
            sums,
            mib(step.work_bytes()),
            mib(live).trim(),
            mib(self.host_need()),
            flops as f64 / 1e9,
            traffic as f64 / 1e9,
            step.launches(),
        );
        if self.disk_need() > 0 {
            out += &format!("disk    {:>14}\n", mib(self.disk_need()));
        }
        out += &self.hardware.as_ref().map_or(String::new(), |(name, m)| self.fit(*name, m));
        out += &self.decided.text();
        out += &collectives::text(&collectives::rows(step));
        out + &timeline.text()
    }

    /// Whether the machine has what the plan needs, and what was taken for granted.
    fn fit(&self, name: Hardware, machine: &Machine) -> String {
        let (need, has) = (self.device_need(), machine.device_bytes);
        let verdict = match self.fits(machine) {
            true => format!("fits, with {} to spare", mib(has - need)),
            false if self.devices() > machine.devices => {
                format!("does not fit: a machine has {} devices", machine.devices)
            }
            false if need > has => format!("does not fit: {} are missing", mib(need - has)),
            false => "does not fit: the host has too little memory".to_string(),
        };
        let chosen = match (self.settings.memory.mesh, self.division().pieces) {
            (None, _) => "assumed: one device, nothing sharded".to_string(),
            (Some(mesh), 1) => format!("assumed: {} devices, nothing sharded", mesh.ranks()),
            (Some(mesh), pieces) => format!(
                "chosen: the state in {pieces} pieces on {} devices, since all of it is {}",
                mesh.ranks(),
                mib(pieces * self.step.state_bytes())
            ),
        };
        format!(
            "{:<8}{:>14} on each of {} × {}, {} in the host\n        {verdict}; {chosen}\n",
            name.name(),
            mib(has),
            machine.devices,
            machine.device,
            mib(machine.host_bytes),
        )
    }
}

/// A setting as a value of JSON, which has no infinity: that is a text.
fn value(setting: &Setting) -> Value {
    match setting {
        Setting::Real(x) if !x.is_finite() => json!(x.to_string()),
        Setting::Size(size) => json!(size.value()),
        Setting::Real(x) => json!(x),
        Setting::Bool(b) => json!(b),
        Setting::Text(text) => json!(text),
        Setting::Config(config) => json!(config.name),
    }
}

/// A count with a comma between thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
