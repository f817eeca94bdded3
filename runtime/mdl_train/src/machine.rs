//! Executes an executable on a device: two allocations, then launches at the planned places.

use mdl_ir::graph::{InputRole, OutputRole, Param};
use mdl_kernels::{Arena, Device, Slice};
use mdl_passes::executable::{Arg, Executable, Launch, Slot, Space, Step};
use std::sync::Arc;

/// A loaded executable. Several may share one state: training, validation and generation see the
/// same weights.
#[derive(Debug)]
pub struct Machine {
    pub device: Arc<Device>,
    pub executable: Executable,
    state: Arena,
    work: Arena,
}

/// Two arenas, the smaller one first: the device's pool makes every page as large as the largest
/// allocation before it, and touches all of it.
fn alloc_both(device: &Device, [first, second]: [u64; 2]) -> [Arena; 2] {
    if first <= second {
        let arena = device.alloc(first);
        return [arena, device.alloc(second)];
    }
    let arena = device.alloc(second);
    [device.alloc(first), arena]
}

impl Machine {
    /// Allocates what the plan says, once.
    pub fn new(device: Arc<Device>, executable: Executable) -> Machine {
        let (state, work) = (executable.state_bytes, executable.work_bytes);
        Machine::with_room(device, executable, state, work)
    }

    /// As `new`, with room for other executables besides.
    pub fn with_room(
        device: Arc<Device>,
        executable: Executable,
        state_bytes: u64,
        work_bytes: u64,
    ) -> Machine {
        let sizes =
            [state_bytes.max(executable.state_bytes), work_bytes.max(executable.work_bytes)];
        let [state, work] = alloc_both(&device, sizes);
        Machine { device, executable, state, work }
    }

    /// Uses the state of another machine, which must be at least as large, and its work space where
    /// that is large enough: the two never run at one time, and every run writes its inputs anew.
    pub fn beside(&self, executable: Executable) -> Machine {
        assert!(executable.state_bytes <= self.state.bytes(), "the same model has the same state");
        let work = match executable.work_bytes <= self.work.bytes() {
            true => self.work.clone(),
            false => self.device.alloc(executable.work_bytes),
        };
        Machine { device: self.device.clone(), executable, state: self.state.clone(), work }
    }

    fn arena(&self, space: Space) -> &Arena {
        match space {
            Space::State => &self.state,
            Space::Work => &self.work,
        }
    }

    /// Bytes allocated for this machine: state and work.
    pub fn allocated(&self) -> (u64, u64) {
        (self.state.bytes(), self.work.bytes())
    }

    /// Issues every launch of one run.
    pub fn run(&self) {
        for step in &self.executable.steps {
            match step {
                Step::Launch(launch) => self.launch(launch, 0),
                Step::Loop { count, body } => {
                    for i in 0..*count {
                        body.iter().for_each(|launch| self.launch(launch, i));
                    }
                }
            }
        }
        self.device.flush();
    }

    fn launch(&self, launch: &Launch, i: u64) {
        let slice = |a: &Arg| -> Slice<'_> {
            let turn = a.index.map_or(0, |index| index.at(i));
            self.arena(a.space).slice(a.offset + turn, a.bytes)
        };
        let args: Vec<Slice<'_>> = launch.args.iter().map(slice).collect();
        self.device.launch(&self.executable.specs[launch.spec], &args);
    }

    /// Writes f32 values to a slot, slice by slice.
    pub fn write(&self, slot: &Slot, values: &[f32]) {
        self.write_bytes(slot, bytemuck::cast_slice(values));
    }

    pub fn write_ids(&self, slot: &Slot, values: &[i32]) {
        self.write_bytes(slot, bytemuck::cast_slice(values));
    }

    fn write_bytes(&self, slot: &Slot, mut bytes: &[u8]) {
        for (offset, elements) in slot.parts() {
            let (now, rest) = bytes.split_at(elements as usize * 4);
            let written = self.device.write(self.arena(slot.space), offset, now);
            written.expect("slots lie inside their arena");
            bytes = rest;
        }
    }

    /// Writes every parameter that the executable reads.
    pub fn write_params(&self, values: impl Fn(&Param) -> Vec<f32>) {
        for (p, param) in self.executable.params.iter().enumerate() {
            self.write_input(&InputRole::Param(p), &values(param));
        }
    }

    /// Writes some of an input's values: those from element `start` on, in the order of its type.
    pub fn write_range(&self, role: &InputRole, start: u64, mut values: &[f32]) {
        let Some(slot) = self.executable.input(role) else { return };
        let (mut at, mut first) = (start, 0);
        for (offset, elements) in slot.parts() {
            let inside = at - first;
            if inside < elements && !values.is_empty() {
                let n = (elements - inside).min(values.len() as u64);
                let (now, rest) = values.split_at(n as usize);
                let bytes = bytemuck::cast_slice(now);
                let written = self.device.write(self.arena(slot.space), offset + inside * 4, bytes);
                written.expect("slots lie inside their arena");
                (at, values) = (at + n, rest);
            }
            first += elements;
            if at < first {
                break;
            }
        }
        assert!(values.is_empty(), "an input has room for what is written to it");
    }

    /// Waits for all launches and reads a slot back.
    pub fn read(&self, slot: &Slot) -> Vec<f32> {
        let mut out = Vec::with_capacity(slot.ty.elements() as usize);
        for (offset, elements) in slot.parts() {
            let bytes = self.device.read(self.arena(slot.space), offset, elements * 4);
            let bytes = bytes.expect("slots lie inside their arena");
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        out
    }

    pub fn write_input(&self, role: &InputRole, values: &[f32]) {
        if let Some(slot) = self.executable.input(role) {
            self.write(slot, values);
        }
    }

    pub fn write_data(&self, name: &str, ids: &[i32]) {
        if let Some(slot) = self.executable.input(&InputRole::Data(name.to_string())) {
            self.write_ids(slot, ids);
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
