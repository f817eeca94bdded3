//! What the runtime executes: launches with their buffers, as plain data. It decides nothing that
//! is not written here.

use crate::plan::padded;
use mdl_ir::graph::{InputRole, OutputRole, Param};
use mdl_ir::kernel::{KernelSpec, Target};
use mdl_ir::place::Place;
use mdl_ir::tensor_type::Type;
use serde::{Deserialize, Serialize};

/// Parameters, gradients and optimizer state live in `State`, which outlives an executable and is
/// laid out by the model alone, with the caches of a generation behind them; `Host` is the host's
/// memory, which no kernel reads; all else lives in `Work`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    State,
    Work,
    Host,
}

impl Space {
    pub fn name(self) -> &'static str {
        match self {
            Space::State => "state",
            Space::Work => "work",
            Space::Host => "host",
        }
    }
}

/// Which slot an iteration of a loop uses: `(start + step · i) mod slots` (no modulus where `slots`
/// is 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    pub stride: u64,
    pub start: i64,
    pub step: i64,
    pub slots: u64,
}

impl Index {
    /// Bytes to add in iteration `i`.
    pub fn at(&self, i: u64) -> u64 {
        let slot = self.start + self.step * i as i64;
        let slot = if self.slots > 0 { slot.rem_euclid(self.slots as i64) } else { slot };
        slot as u64 * self.stride
    }
}

/// Bytes of a space, in a loop those of the iteration's slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    pub space: Space,
    pub offset: u64,
    pub bytes: u64,
    pub index: Option<Index>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Name of the first result, for people.
    pub name: String,
    /// Number in `Executable::specs`.
    pub spec: usize,
    pub args: Vec<Arg>,
    pub flops: u64,
    /// Where the model file says what is computed, or what it was made from; for people.
    #[serde(skip)]
    pub place: Place,
    /// In a loop, how many iterations before its own it is issued: its work for iteration i is
    /// issued in iteration i − ahead, or before the loop where there is none.
    pub ahead: u64,
    /// What must have ended before it begins, where that is in the other queue: the last that is
    /// issued of those that there are.
    pub wait: Vec<Wait>,
}

impl Launch {
    /// Seconds of a kernel: the longer of its arithmetic and its traffic.
    pub fn seconds(&self, speed: &Speed) -> f64 {
        let bytes: u64 = self.args.iter().map(|a| a.bytes).sum();
        (self.flops as f64 / speed.flops).max(bytes as f64 / speed.bytes)
    }
}

/// A launch of the same loop, by its place in the body: of the iteration that lies `lag` before the
/// waiting one, if there is such an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    pub launch: usize,
    pub lag: i64,
}

/// There are two queues, one of kernels and one of transfers; each keeps its order. Between them
/// holds what `Launch::wait` says. A loop with transfers begins when everything before it has
/// ended, and ends when its transfers have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    Launch(Launch),
    Loop { count: u64, body: Vec<Launch> },
}

impl Step {
    /// Launches of the plan's clock, in which a loop counts once.
    pub fn launches(&self) -> usize {
        match self {
            Step::Launch(_) => 1,
            Step::Loop { body, .. } => body.len(),
        }
    }
}

/// Where a tensor of the graph's border lies. `slice` is the distance of its outermost slices in
/// bytes where a repeated block stacks it; slices are dense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    pub space: Space,
    pub offset: u64,
    pub ty: Type,
    pub slice: Option<u64>,
    /// Where a rank has a piece of each slice and not all of it.
    pub piece: Option<Piece>,
}

/// A slice in as many pieces, one on each rank; the last ones may reach past its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub ranks: u64,
    pub elements: u64,
    pub stacked: bool,
}

/// Elements of a tensor that lie one after the other: where, from which one on, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub first: u64,
    pub elements: u64,
}

impl Slot {
    /// Contiguous parts, of those that a rank has.
    pub fn parts(&self, rank: u64) -> Vec<Part> {
        let all = self.ty.elements();
        let (slices, stride) = match (self.piece, self.slice) {
            (Some(piece), _) if piece.stacked => {
                (self.ty.axes[0].size, piece.elements * self.ty.dtype.bytes())
            }
            (None, Some(stride)) => (self.ty.axes[0].size, stride),
            _ => (1, 0),
        };
        let each = all / slices;
        let (from, to) = match self.piece {
            None => (0, each),
            Some(Piece { ranks, elements, .. }) => {
                let from = (rank % ranks * elements).min(each);
                (from, (from + elements).min(each))
            }
        };
        let part = |i: u64| Part {
            offset: self.offset + i * stride,
            first: i * each + from,
            elements: to - from,
        };
        (0..slices).map(part).filter(|p| p.elements > 0).collect()
    }
}

/// One buffer of the plan: a range of a space and the launches between which it is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BufferPlan {
    pub name: String,
    pub space: Space,
    pub offset: u64,
    pub bytes: u64,
    pub first: usize,
    pub last: usize,
    /// Where the model file says what lies in it, or what it was made from; for people.
    #[serde(skip)]
    pub place: Place,
}

/// What a device does in a second: FLOPs, bytes read and written, and bytes that move to or from
/// the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub flops: f64,
    pub bytes: f64,
    pub host: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Executable {
    pub name: String,
    pub params: Vec<Param>,
    pub specs: Vec<KernelSpec>,
    pub steps: Vec<Step>,
    pub inputs: Vec<(InputRole, Slot)>,
    pub outputs: Vec<(OutputRole, Slot)>,
    pub state_bytes: u64,
    pub work_bytes: u64,
    pub host_bytes: u64,
    /// Bytes of the state at the start of `Host`, which outlives an executable.
    pub host_state_bytes: u64,
    pub buffers: Vec<BufferPlan>,
    /// What workspaces are sized for.
    pub target: Target,
}

impl Executable {
    pub fn input(&self, role: &InputRole) -> Option<&Slot> {
        self.inputs.iter().find(|(r, _)| r == role).map(|(_, s)| s)
    }

    pub fn output(&self, role: &OutputRole) -> Option<&Slot> {
        self.outputs.iter().find(|(r, _)| r == role).map(|(_, s)| s)
    }

    /// Bytes of the host's memory that are memory: all of them, or those that are not on disk.
    pub fn host_memory(&self, state_on_disk: bool) -> u64 {
        self.host_bytes - if state_on_disk { self.host_state_bytes } else { 0 }
    }

    /// Launches of one run, loops counted with their iterations.
    pub fn launches(&self) -> u64 {
        let count = |s: &Step| match s {
            Step::Launch(_) => 1,
            Step::Loop { count, body } => count * body.len() as u64,
        };
        self.steps.iter().map(count).sum()
    }

    /// Buffers of the work space that are in use at a launch of the plan's clock.
    pub fn in_use(&self, at: usize) -> impl Iterator<Item = &BufferPlan> {
        let work = self.buffers.iter().filter(|b| b.space == Space::Work);
        work.filter(move |b| b.first <= at && at <= b.last)
    }

    /// Their bytes, padded as the arena pads them.
    pub fn live_bytes(&self, at: usize) -> u64 {
        self.in_use(at).map(|b| padded(b.bytes)).sum()
    }

    /// The first launch at which most bytes are in use, and how many.
    pub fn peak(&self) -> (usize, u64) {
        let clock: usize = self.steps.iter().map(Step::launches).sum();
        let all = (0..clock).map(|at| (at, self.live_bytes(at)));
        all.max_by_key(|(at, live)| (*live, usize::MAX - at)).unwrap_or((0, 0))
    }

    /// Seconds of one run where every launch takes the longer of its arithmetic and its traffic,
    /// and a loop the longer of its kernels and its transfers, which go on beside them.
    pub fn seconds(&self, speed: &Speed) -> f64 {
        let kernels = |l: &Launch| l.seconds(speed);
        let transfer = |l: &&Launch| self.specs[l.spec] == KernelSpec::Transfer;
        let step = |s: &Step| match s {
            Step::Launch(l) => kernels(l),
            Step::Loop { count, body } => {
                let moved = body.iter().filter(transfer).map(|l| l.args[0].bytes).sum::<u64>();
                let computed = body.iter().filter(|l| !transfer(l)).map(kernels).sum::<f64>();
                *count as f64 * computed.max(moved as f64 / speed.host)
            }
        };
        self.steps.iter().map(step).sum()
    }

    /// FLOPs of one run, and bytes that its launches read and write.
    pub fn work(&self) -> (u64, u64) {
        let (mut flops, mut bytes) = (0, 0);
        let mut add = |l: &Launch, times: u64| {
            flops += times * l.flops;
            bytes += times * l.args.iter().map(|a| a.bytes).sum::<u64>();
        };
        for step in &self.steps {
            match step {
                Step::Launch(l) => add(l, 1),
                Step::Loop { count, body } => body.iter().for_each(|l| add(l, *count)),
            }
        }
        (flops, bytes)
    }
}
