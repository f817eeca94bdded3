//! Executes an executable on a device: an allocation for each space, then launches at the planned
//! places.

use crate::overlap::Overlap;
use mdl_ir::graph::{InputRole, OutputRole, Param};
use mdl_ir::kernel::KernelSpec;
use mdl_ir::rounding::{bf16_nearest, bf16_to_f32};
use mdl_ir::tensor_type::DType;
use mdl_kernels::{Arena, Copier, Device, Exchange, Job, Repeated, Seat, Side, Slice};
use mdl_kernels::{StateFileError, StateFiles, Together, Transfer};
use mdl_passes::executable::{Arg, Executable, Launch, Slot, Space, Step};
use std::borrow::Cow;
use std::sync::Arc;

/// A loaded executable. Several may share one state: training, validation and generation see the
/// same weights.
#[derive(Debug)]
pub struct Machine {
    pub device: Arc<Device>,
    pub executable: Executable,
    /// None where the state is in the host's memory.
    state: Option<Arena>,
    work: Arena,
    /// Host memory and its transfers, and collectives, where the plan has some.
    copier: Option<Arc<Copier>>,
    /// Which rank of a mesh this is.
    rank: u64,
    repeated: Repeated,
}

/// Values as memory has them.
fn to_bytes(dtype: DType, values: &[f32]) -> Cow<'_, [u8]> {
    match dtype {
        DType::Bf16 => values.iter().flat_map(|x| bf16_nearest(*x).to_le_bytes()).collect(),
        DType::F32 | DType::I32 | DType::Bool => Cow::Borrowed(bytemuck::cast_slice(values)),
    }
}

fn from_bytes(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let one = |b: &[u8]| match dtype {
        DType::Bf16 => bf16_to_f32(u16::from_le_bytes([b[0], b[1]])),
        DType::F32 | DType::I32 | DType::Bool => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    };
    let all = bytes.chunks_exact(dtype.bytes() as usize);
    out.iter_mut().zip(all).for_each(|(x, b)| *x = one(b));
}

/// Two arenas for each of `n` ranks, the smaller ones first: the device's pool makes every page as
/// large as the largest allocation before it, and touches all of it.
fn alloc_both(
    device: &Device,
    [first, second]: [u64; 2],
    n: u64,
) -> Vec<(Option<Arena>, Option<Arena>)> {
    let alloc = |bytes: u64| -> Vec<Option<Arena>> {
        (0..n).map(|_| (bytes > 0).then(|| device.alloc(bytes))).collect()
    };
    if first <= second {
        let arenas = alloc(first);
        return arenas.into_iter().zip(alloc(second)).collect();
    }
    let arenas = alloc(second);
    alloc(first).into_iter().zip(arenas).collect()
}

/// Has a CPU start to compile all kernels at once, in parallel: a launch would wait for its own
/// alone. Nothing waits here.
fn compile_ahead(device: &Device, executable: &Executable) {
    let Some(paper) = device.on_paper() else { return };
    let Room { state, work, .. } = Room::of(executable);
    let state = (state > 0).then(|| paper.alloc(state));
    let (work, device, executable) = (paper.alloc(work), Arc::new(paper), executable.clone());
    let repeated = Repeated::default();
    Machine { device, executable, state, work, copier: None, rank: 0, repeated }.issue_each();
}

/// Bytes of each space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub state: u64,
    pub work: u64,
    pub host: u64,
}

impl Room {
    pub fn of(e: &Executable) -> Room {
        Room { state: e.state_bytes, work: e.work_bytes, host: e.host_bytes }
    }

    /// Room for either.
    pub fn max(self, other: Room) -> Room {
        Room {
            state: self.state.max(other.state),
            work: self.work.max(other.work),
            host: self.host.max(other.host),
        }
    }
}

impl Machine {
    /// Allocates what the plan says, once.
    pub fn new(device: Arc<Device>, executable: Executable) -> Machine {
        let room = Room::of(&executable);
        Machine::with_room(device, executable, room, None)
    }

    /// As `new`, with room for other executables besides, and with files for the start of the
    /// host's memory if there are any.
    pub fn with_room(
        device: Arc<Device>,
        executable: Executable,
        room: Room,
        files: Option<StateFiles>,
    ) -> Machine {
        let room = room.max(Room::of(&executable));
        let mut arenas = alloc_both(&device, [room.state, room.work], 1);
        let (state, work) = arenas.pop().unwrap_or_default();
        let work = work.expect("a step has some work space");
        compile_ahead(&device, &executable);
        let copier = (room.host > 0).then(|| Copier::new(&device, &work, room.host, files));
        Machine {
            device,
            executable,
            state,
            work,
            copier: copier.map(Arc::new),
            rank: 0,
            repeated: Repeated::default(),
        }
    }

    /// One for each rank of a mesh, with this room and a seat at the exchange.
    pub fn of_ranks(
        device: &Arc<Device>,
        executable: &Executable,
        room: Room,
        exchange: &Arc<Exchange>,
        ranks: u64,
    ) -> Vec<Machine> {
        let arenas = alloc_both(device, [room.state, room.work], ranks);
        compile_ahead(device, executable);
        let machine = |(rank, (state, work)): (u64, (Option<Arena>, Option<Arena>))| {
            let state = state.expect("a rank has its part of the state");
            let work = work.expect("a step has some work space");
            let seat = Seat { exchange: exchange.clone(), rank };
            let copier = Copier::of_rank(device, &work, &state, room.host, seat);
            let (device, executable) = (device.clone(), executable.clone());
            let (state, copier) = (Some(state), Some(Arc::new(copier)));
            Machine { device, executable, state, work, copier, rank, repeated: Repeated::default() }
        };
        (0..).zip(arenas).map(machine).collect()
    }

    /// Uses the state of another machine, which must be at least as large, and its work space where
    /// that is large enough: the two never run at one time, and every run writes its inputs anew.
    /// With a state in host memory the work space has to be.
    pub fn beside(&self, executable: Executable) -> Machine {
        let (state, _) = self.allocated();
        assert!(executable.state_bytes <= state, "the same model has the same state");
        assert!(executable.host_bytes <= self.host_allocated(), "and in the same place");
        let moves = executable.specs.iter().any(KernelSpec::moves);
        assert!(!moves || executable.work_bytes <= self.work.bytes(), "transfers reach one arena");
        let work = match executable.work_bytes <= self.work.bytes() {
            true => self.work.clone(),
            false => self.device.alloc(executable.work_bytes),
        };
        compile_ahead(&self.device, &executable);
        let (device, state) = (self.device.clone(), self.state.clone());
        let copier = self.copier.clone();
        Machine {
            device,
            executable,
            state,
            work,
            copier,
            rank: self.rank,
            repeated: Repeated::default(),
        }
    }

    fn arena(&self, space: Space) -> &Arena {
        match space {
            Space::State => self.state.as_ref().expect("the plan has some"),
            Space::Work => &self.work,
            Space::Host => unreachable!("transfers alone reach the host's memory"),
        }
    }

    /// Bytes allocated for this machine on the device: state and work.
    pub fn allocated(&self) -> (u64, u64) {
        (self.state.as_ref().map_or(0, Arena::bytes), self.work.bytes())
    }

    /// Bytes of host memory allocated for this machine.
    pub fn host_allocated(&self) -> u64 {
        self.copier.as_ref().map_or(0, |c| c.host_bytes())
    }

    /// How many of them are on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.copier.as_ref().map_or(0, |c| c.disk_bytes())
    }

    /// The first fault of the files that hold the state.
    pub fn fault(&self) -> Option<StateFileError> {
        self.copier.as_ref()?.fault()
    }

    /// Issues every launch of one run.
    pub fn run(&self) {
        self.repeated.run(&self.device, || self.issue());
    }

    fn issue(&self) {
        for step in &self.executable.steps {
            match step {
                Step::Launch(launch) if self.is_transfer(launch) => {
                    self.device.sync();
                    let number = self.send(launch, 0);
                    self.copier().wait(number);
                }
                Step::Launch(launch) => self.launch(launch, 0),
                Step::Loop { count, body } if body.iter().any(|l| self.is_transfer(l)) => {
                    Overlap::new(self, *count, body).run();
                }
                Step::Loop { count, body } => {
                    for i in 0..*count {
                        body.iter().for_each(|launch| self.launch(launch, i));
                    }
                }
            }
        }
    }

    /// Issues every launch once, whatever loops it is in, for a device that only compiles.
    pub fn issue_each(&self) {
        for step in &self.executable.steps {
            let launches = match step {
                Step::Launch(launch) => std::slice::from_ref(launch),
                Step::Loop { body, .. } => body,
            };
            for launch in launches.iter().filter(|launch| !self.is_transfer(launch)) {
                self.launch(launch, 0);
            }
        }
        self.device.flush();
    }

    pub(crate) fn is_transfer(&self, launch: &Launch) -> bool {
        self.executable.specs[launch.spec].moves()
    }

    /// Sends the transfer or the collective of an iteration, and gives its number.
    pub(crate) fn send(&self, launch: &Launch, i: u64) -> u64 {
        let side = |a: &Arg| {
            let at = a.offset + a.index.map_or(0, |index| index.at(i));
            match a.space {
                Space::Host => Side::Host(at),
                Space::State => Side::State(at),
                Space::Work => Side::Device(at),
            }
        };
        let (from, to) = (&launch.args[0], launch.args.last().expect("something is moved"));
        let (sides, bytes) = ((side(from), side(to)), from.bytes);
        self.copier().send(match &self.executable.specs[launch.spec] {
            KernelSpec::Collective(spec) => {
                Job::Together(Together { spec: spec.clone(), from: sides.0, to: sides.1 })
            }
            _ => Job::Transfer(Transfer { from: sides.0, to: sides.1, bytes }),
        })
    }

    pub(crate) fn copier(&self) -> &Copier {
        self.copier.as_ref().expect("a plan with transfers has host memory")
    }

    pub(crate) fn launch(&self, launch: &Launch, i: u64) {
        let slice = |a: &Arg| -> Slice<'_> {
            let turn = a.index.map_or(0, |index| index.at(i));
            self.arena(a.space).slice(a.offset + turn, a.bytes)
        };
        let args: Vec<Slice<'_>> = launch.args.iter().map(slice).collect();
        self.device.launch(&self.executable.specs[launch.spec], &args);
    }

    /// Writes values to a slot, slice by slice, in the bits that it has for them.
    pub fn write(&self, slot: &Slot, values: &[f32]) {
        self.write_bytes(slot, &to_bytes(slot.ty.dtype, values));
    }

    pub fn write_ids(&self, slot: &Slot, values: &[i32]) {
        self.write_bytes(slot, bytemuck::cast_slice(values));
    }

    fn write_bytes(&self, slot: &Slot, bytes: &[u8]) {
        let each = slot.ty.dtype.bytes() as usize;
        for part in slot.parts(self.rank) {
            let from = part.first as usize * each;
            let to = from + part.elements as usize * each;
            self.put(slot.space, part.offset, &bytes[from..to]);
        }
    }

    fn put(&self, space: Space, offset: u64, bytes: &[u8]) {
        match space {
            Space::Host => self.copier().write(offset, bytes),
            space => {
                let written = self.device.write(self.arena(space), offset, bytes);
                written.expect("slots lie inside their arena");
            }
        }
    }

    /// Writes every parameter that the executable reads.
    pub fn write_params(&self, values: impl Fn(&Param) -> Vec<f32>) {
        for (p, param) in self.executable.params.iter().enumerate() {
            self.write_input(&InputRole::Param(p), &values(param));
        }
    }

    /// Writes some of an input's values: those from element `start` on, in the order of its type,
    /// and of those the ones that this rank has. A parameter's are also those of its master copy.
    pub fn write_range(&self, role: &InputRole, start: u64, values: &[f32]) {
        for slot in self.slots(role) {
            self.write_part(slot, start, values);
        }
    }

    /// Where the values of an input lie.
    fn slots(&self, role: &InputRole) -> impl Iterator<Item = &Slot> {
        let master = match role {
            InputRole::Param(p) => self.executable.input(&InputRole::Master(*p)),
            _ => None,
        };
        self.executable.input(role).into_iter().chain(master)
    }

    fn write_part(&self, slot: &Slot, start: u64, values: &[f32]) {
        let (dtype, end) = (slot.ty.dtype, start + values.len() as u64);
        assert!(end <= slot.ty.elements(), "an input has room for what is written to it");
        for part in slot.parts(self.rank) {
            let from = part.first.max(start);
            let to = (part.first + part.elements).min(end);
            if from < to {
                let now = &values[(from - start) as usize..(to - start) as usize];
                let offset = part.offset + (from - part.first) * dtype.bytes();
                self.put(slot.space, offset, &to_bytes(dtype, now));
            }
        }
    }

    /// Waits for all launches and reads a slot back.
    pub fn read(&self, slot: &Slot) -> Vec<f32> {
        let mut values = vec![0.0; slot.ty.elements() as usize];
        self.read_into(slot, &mut values);
        values
    }

    /// As `read`, for those of a slot's values that this rank has.
    pub fn read_into(&self, slot: &Slot, values: &mut [f32]) {
        let dtype = slot.ty.dtype;
        for part in slot.parts(self.rank) {
            let (offset, n) = (part.offset, part.elements * dtype.bytes());
            let bytes = match slot.space {
                Space::Host => self.copier().read(offset, n),
                space => {
                    let bytes = self.device.read(self.arena(space), offset, n);
                    bytes.expect("slots lie inside their arena")
                }
            };
            let from = part.first as usize;
            from_bytes(dtype, &bytes, &mut values[from..from + part.elements as usize]);
        }
    }

    pub fn write_input(&self, role: &InputRole, values: &[f32]) {
        for slot in self.slots(role) {
            self.write(slot, values);
        }
    }

    pub fn write_data(&self, name: &str, ids: &[i32]) {
        if let Some(slot) = self.executable.input(&InputRole::Data(name.to_string())) {
            self.write_ids(slot, ids);
        }
    }

    /// A whole number that the host gives for a step.
    pub fn write_number(&self, name: &str, value: i32) {
        if let Some(slot) = self.executable.input(&InputRole::Scalar(name.to_string())) {
            self.write_ids(slot, &[value]);
        }
    }

    pub fn write_scalar(&self, name: &str, value: f32) {
        self.write_input(&InputRole::Scalar(name.to_string()), &[value]);
    }

    pub fn read_output(&self, role: &OutputRole) -> Option<Vec<f32>> {
        self.executable.output(role).map(|slot| self.read(slot))
    }

    pub fn read_value(&self, name: &str) -> Option<Vec<f32>> {
        self.read_output(&OutputRole::Value(name.to_string()))
    }
}
