//! A device with its one stream, and arenas: the memory that kernels read and write.
//!
//! A device is a CPU or a GPU, or the paper of one: nothing runs there, but kernels are compiled.
//! On the CPU runtime a kernel is compiled per common alignment of its buffers; binding one buffer
//! at an odd element (`Device::unaligned`) is what makes vector accesses at any element legal.

use crate::host::{HostServer, Requested};
use crate::products::Products;
use crate::tuning::{Blocks, Cpu, Rows, Table, Tuning};
use cubecl::MemoryScope;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;
use mdl_ir::kernel::{Elem, KernelSpec, Target};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Beyond about 48 launches in flight the queue's back-pressure puts the caller to sleep.
const LAUNCHES_PER_FLUSH: u32 = 32;
/// Kept behind each arena so that `Device::unaligned` may bind past the last slice's first element.
const ARENA_TAIL_BYTES: u64 = 64;
/// All launches of a process go to one stream, the opening thread's: memory that CubeCL gives to
/// one stream is not another's.
static CPU: OnceLock<Client> = OnceLock::new();
static CPU_ON_PAPER: OnceLock<(Client, Requested)> = OnceLock::new();
#[cfg(feature = "cuda")]
static CUDA: OnceLock<Result<Client, KernelError>> = OnceLock::new();
#[cfg(feature = "wgpu")]
static WGPU: OnceLock<Result<Client, KernelError>> = OnceLock::new();

/// What computes: it decides which routine of a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Cpu,
    /// NVIDIA's GPUs, through PTX.
    Cuda,
    /// Vulkan, Metal or DirectX, through WGSL: f32 alone, and no tensor cores.
    Wgpu,
}

/// What a caller can get wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// The machine has no such device, or this build does not know its class.
    NoDevice { name: &'static str, why: String },
    /// A slice reaches past the end of its arena.
    OutOfArena { offset: u64, bytes: u64, arena: u64 },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelError::NoDevice { name, why } => write!(f, "no {name} device: {why}"),
            KernelError::OutOfArena { offset, bytes, arena } => write!(
                f,
                "bytes {offset}..{} lie outside an arena of {arena} bytes",
                offset + bytes
            ),
        }
    }
}

impl std::error::Error for KernelError {}

/// One allocation, from which every tensor is a slice.
#[derive(Clone, Debug)]
pub struct Arena {
    handle: Handle,
    bytes: u64,
}

impl Arena {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part `offset..offset + bytes`.
    pub fn slice(&self, offset: u64, bytes: u64) -> Slice<'_> {
        Slice { arena: self, offset, bytes }
    }
}

/// A part of an arena, in bytes. Offsets of tensors are multiples of 256.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    pub arena: &'a Arena,
    pub offset: u64,
    pub bytes: u64,
}

impl<'a> Slice<'a> {
    /// The part of this slice that starts `offset` bytes in.
    pub fn part(&self, offset: u64, bytes: u64) -> Slice<'a> {
        assert!(offset + bytes <= self.bytes, "a part lies inside its slice");
        Slice { arena: self.arena, offset: self.offset + offset, bytes }
    }
}

/// Bytes that the device's pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    pub allocations: u64,
    pub in_use: u64,
    pub reserved: u64,
}

fn open_cpu() -> Client {
    on_one_stream(HostServer::open())
}

fn on_one_stream(mut client: Client) -> Client {
    let stream = client.empty(4).binding().stream;
    // SAFETY: this crate issues all work of this client on the one stream, so order is kept.
    unsafe { client.set_stream(stream) };
    client
}

/// Loading it is how the CUDA runtime starts, which ends the program where it fails.
#[cfg(feature = "cuda")]
fn driver_is_here() -> bool {
    ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].iter().any(|name| {
        // SAFETY: the driver's initialisation is what the runtime does next.
        unsafe { libloading::Library::new(name) }.is_ok()
    })
}

/// A device and its stream.
pub struct Device {
    client: Client,
    class: Class,
    tensor_cores: bool,
    units: u32,
    cpu: Cpu,
    tuning: Tuning,
    products: Products,
    in_flight: AtomicU32,
    recording: AtomicBool,
    /// Launches are compiled and dropped, and memory has sizes and no bytes.
    paper: Option<Requested>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("class", &self.class)
            .field("units", &self.units)
            .field("vector_width", &self.cpu.width)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// The CPU, with as many units as cores unless `threads` says otherwise.
    pub fn cpu(threads: Option<u32>) -> Device {
        let client = CPU.get_or_init(open_cpu).clone();
        let hardware = &client.properties().hardware;
        let cores = hardware.num_cpu_cores.unwrap_or(1);
        let width = (hardware.load_width / 32).max(1) as usize;
        let registers = hardware.vector_register_count.unwrap_or(16) as usize;
        let cpu = Cpu::new(registers, width);
        Device {
            class: Class::Cpu,
            tensor_cores: false,
            units: threads.unwrap_or(cores).max(1),
            cpu,
            tuning: Tuning::of(Table::shipped(), &Device::cpu_name(), &cpu),
            products: if width == 16 { Products::fastest() } else { Products::Widened },
            in_flight: AtomicU32::new(0),
            recording: AtomicBool::new(false),
            paper: None,
            client,
        }
    }

    /// This CPU on paper: launches are compiled, in parallel and for every CPU of the process, and
    /// dropped. None for what is on paper already, and for GPUs, whose paper is `Paper`.
    pub fn on_paper(&self) -> Option<Device> {
        if self.class != Class::Cpu || self.paper.is_some() {
            return None;
        }
        let open = || {
            let (client, requested) = HostServer::on_paper(self.client.properties());
            (on_one_stream(client), requested)
        };
        let (client, requested) = CPU_ON_PAPER.get_or_init(open).clone();
        Some(Device {
            client,
            in_flight: AtomicU32::new(0),
            recording: AtomicBool::new(false),
            paper: Some(requested),
            ..*self
        })
    }

    /// Waits for what this process asked CPUs on paper to compile: how many kernels those are, and
    /// how many of them were not in the cache.
    pub fn compiled(&self) -> Result<(usize, usize), String> {
        self.sync();
        self.paper.as_ref().map_or(Ok((0, 0)), Requested::wait)
    }

    /// The first NVIDIA GPU of this machine.
    #[cfg(feature = "cuda")]
    pub fn cuda() -> Result<Device, KernelError> {
        let open = || {
            let missing = |why: String| KernelError::NoDevice { name: "CUDA", why };
            if !driver_is_here() {
                let why = "the driver's library libcuda.so is not installed";
                return Err(missing(why.to_string()));
            }
            let device = cubecl::Device::cuda(0).map_err(|fault| missing(fault.to_string()))?;
            Ok(on_one_stream(device.client()))
        };
        let client = CUDA.get_or_init(open).clone()?;
        Ok(Device::gpu(client, Class::Cuda, true))
    }

    #[cfg(not(feature = "cuda"))]
    pub fn cuda() -> Result<Device, KernelError> {
        let why = "this program was built without the feature `cuda`".to_string();
        Err(KernelError::NoDevice { name: "CUDA", why })
    }

    /// The best device that Vulkan, Metal or DirectX has: a GPU, or a CPU that stands in for one.
    #[cfg(feature = "wgpu")]
    pub fn wgpu() -> Result<Device, KernelError> {
        let open = || {
            let missing = |why: String| KernelError::NoDevice { name: "wgpu", why };
            let kind = cubecl::device::WgpuDeviceKind::default();
            let device = cubecl::Device::wgpu(kind).map_err(|fault| missing(fault.to_string()))?;
            Ok(on_one_stream(device.client()))
        };
        let client = WGPU.get_or_init(open).clone()?;
        Ok(Device::gpu(client, Class::Wgpu, false))
    }

    #[cfg(not(feature = "wgpu"))]
    pub fn wgpu() -> Result<Device, KernelError> {
        let why = "this program was built without the feature `wgpu`".to_string();
        Err(KernelError::NoDevice { name: "wgpu", why })
    }

    pub(crate) fn gpu(client: Client, class: Class, tensor_cores: bool) -> Device {
        let hardware = &client.properties().hardware;
        let cpu = Cpu { registers: 0, width: 1, caches: [0; 3] };
        Device {
            class,
            tensor_cores,
            units: hardware.num_streaming_multiprocessors.unwrap_or(1),
            cpu,
            tuning: Tuning::of(&Table::default(), "", &cpu),
            products: Products::Widened,
            in_flight: AtomicU32::new(0),
            recording: AtomicBool::new(false),
            paper: None,
            client,
        }
    }

    /// Every device of this machine, the CPU first.
    pub fn all() -> Vec<Device> {
        let gpus = [Device::cuda(), Device::wgpu()].into_iter().flatten();
        [Device::cpu(None)].into_iter().chain(gpus).collect()
    }

    /// Whether kernels of this device read and write such elements.
    pub fn takes(&self, elem: Elem) -> bool {
        elem != Elem::Bf16 || self.has_pointer_casts()
    }

    /// Bytes of the largest arena that this device gives.
    pub fn largest_arena(&self) -> u64 {
        match self.class {
            Class::Cpu => u64::MAX,
            _ => self.client.properties().memory.max_page_size,
        }
    }

    /// Bytes that the start of each arena is a multiple of.
    pub fn alignment(&self) -> u64 {
        self.client.properties().memory.alignment
    }

    /// Units that run in step and exchange registers: a warp; one on a CPU.
    pub fn plane_units(&self) -> u32 {
        self.client.properties().hardware.plane_size_min
    }

    pub fn class(&self) -> Class {
        self.class
    }

    /// What executables for this device are planned for.
    pub fn target(&self) -> Target {
        match self.class {
            Class::Cpu => Target::Threads(self.units),
            Class::Cuda | Class::Wgpu => Target::Gpu,
        }
    }

    /// Whether products of matrices have instructions of their own.
    pub(crate) fn tensor_cores(&self) -> bool {
        self.tensor_cores
    }

    /// Whether a pointer to an element can be taken for one to several, or to halves of it.
    pub(crate) fn has_pointer_casts(&self) -> bool {
        self.class != Class::Wgpu
    }

    /// How the elements of so many bytes are counted.
    pub(crate) fn address_type(&self, bytes: u64) -> AddressType {
        let large = bytes > u64::from(u32::MAX) / 2 && self.class != Class::Wgpu;
        if large { AddressType::U64 } else { AddressType::U32 }
    }

    /// The same device with other instructions for bf16, which have to be available.
    pub fn with_products(self, products: Products) -> Device {
        assert!(products.available(), "this machine has no {products} of bf16");
        Device { products, ..self }
    }

    /// The instructions for contractions of bf16 by bf16.
    pub fn products(&self) -> Products {
        self.products
    }

    /// Units of a cube: the threads that share one launch. On a GPU its multiprocessors.
    pub fn units(&self) -> u32 {
        self.units
    }

    /// f32 lanes of one vector register.
    pub fn vector_width(&self) -> usize {
        self.cpu.width
    }

    /// Vector registers that a kernel may keep its accumulators in.
    pub fn vector_registers(&self) -> usize {
        self.cpu.registers
    }

    /// This machine's CPU as LLVM calls it.
    pub fn cpu_name() -> String {
        crate::host::cpu_name()
    }

    /// The device as the model of contractions sees it.
    pub fn as_cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The sizes that contractions work in, as far as there is room.
    pub fn blocks(&self, products: Products, a: Rows) -> Blocks {
        self.tuning.get(products, a)
    }

    /// The same device with other blocks for such contractions.
    pub fn with_blocks(mut self, products: Products, a: Rows, blocks: Blocks) -> Device {
        assert_eq!(blocks.fault(products, self.cpu.width), None, "blocks are whole tiles");
        self.tuning.set(products, a, blocks);
        self
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The shape of a launch on this device: one cube whose units are the threads.
    pub(crate) fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units)
    }

    /// One zeroed allocation.
    pub fn alloc(&self, bytes: u64) -> Arena {
        let bytes = bytes.next_multiple_of(256).max(256);
        if self.paper.is_some() {
            let some = self.client.empty(4).binding();
            let handle =
                Handle::new(self.client.service_id(), some.stream, bytes + ARENA_TAIL_BYTES);
            return Arena { handle, bytes };
        }
        let handle = self.client.empty((bytes + ARENA_TAIL_BYTES) as usize);
        let arena = Arena { handle, bytes };
        match self.class {
            Class::Cpu => {
                let (at, _held) = self.address(&arena);
                crate::large_pages::ask(at, bytes as usize);
                crate::peak::fill(self, &arena.slice(0, bytes), 0.0);
            }
            Class::Cuda | Class::Wgpu => crate::gpu::fill(self, &arena.slice(0, bytes), 0.0),
        }
        self.sync();
        arena
    }

    /// Writes `data` into the arena, in place.
    pub fn write(&self, arena: &Arena, offset: u64, data: &[u8]) -> Result<(), KernelError> {
        self.check(arena, offset, data.len() as u64)?;
        if !data.is_empty() {
            let handle = self.handle(&arena.slice(offset, data.len() as u64));
            self.client.write(&handle, Bytes::from_bytes_vec(data.to_vec()));
        }
        Ok(())
    }

    /// Waits for all launches before it and reads the bytes back.
    pub fn read(&self, arena: &Arena, offset: u64, bytes: u64) -> Result<Vec<u8>, KernelError> {
        self.check(arena, offset, bytes)?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let handle = self.handle(&arena.slice(offset, bytes));
        self.in_flight.store(0, Ordering::Relaxed);
        Ok(self.client.read_one(handle).expect("invariant: launches compile").to_vec())
    }

    /// The address of an arena on a device whose memory the host reaches, with what keeps it there.
    pub(crate) fn address(&self, arena: &Arena) -> (*mut u8, Box<dyn Send>) {
        let held = self.client.get_resource::<HostServer>(arena.handle.clone());
        let held = held.expect("invariant: the device is the CPU, and the arena was allocated");
        let (address, _) = held.resource().get_write_ptr_and_length();
        (address, Box::new(held))
    }

    fn check(&self, arena: &Arena, offset: u64, bytes: u64) -> Result<(), KernelError> {
        if offset.checked_add(bytes).is_none_or(|end| end > arena.bytes) {
            return Err(KernelError::OutOfArena { offset, bytes, arena: arena.bytes });
        }
        Ok(())
    }

    /// Why this device has no such kernel, and the way out, where that is so.
    pub fn refusal(&self, spec: &KernelSpec) -> Option<String> {
        if self.class == Class::Cpu { None } else { crate::gpu::refusal(self, spec) }
    }

    /// Issues one kernel; `args` in the order that the spec states.
    pub fn launch(&self, spec: &KernelSpec, args: &[Slice]) {
        match self.class {
            Class::Cpu => crate::launch::dispatch(self, spec, args),
            Class::Cuda | Class::Wgpu => crate::gpu::dispatch(self, spec, args),
        }
    }

    /// Issues launches of which none may be flushed, since they are recorded and do not run.
    pub(crate) fn while_recording(&self, issue: impl Fn()) {
        self.recording.store(true, Ordering::Relaxed);
        issue();
        self.recording.store(false, Ordering::Relaxed);
    }

    /// To be called after each launch into the client; flushes in time.
    pub(crate) fn launched(&self) {
        if self.recording.load(Ordering::Relaxed) {
            return;
        }
        if self.in_flight.fetch_add(1, Ordering::Relaxed) + 1 >= LAUNCHES_PER_FLUSH {
            self.flush();
        }
    }

    /// Hands all launches so far to the device.
    pub fn flush(&self) {
        self.in_flight.store(0, Ordering::Relaxed);
        self.client.flush().expect("invariant: launches compile");
    }

    /// Waits until all launches have run.
    pub fn sync(&self) {
        self.in_flight.store(0, Ordering::Relaxed);
        cubecl::future::block_on(self.client.sync()).expect("invariant: launches compile");
    }

    /// How long what `issue` launches takes, which is waited for. On a CPU that is the threads' own
    /// time, from the first one's start to the last one's end: in a step launches follow each
    /// other, and nobody waits to be woken.
    pub fn timed(&self, issue: impl FnOnce()) -> Duration {
        self.sync();
        let start = Instant::now();
        let window = (self.class == Class::Cpu).then(|| self.client.profile_start());
        issue();
        let Some(Ok(window)) = window else {
            self.sync();
            return start.elapsed();
        };
        let span = self.client.profile_end(window).ok();
        let span = span.and_then(|span| cubecl::future::block_on(span.into_future()));
        span.map_or(Duration::ZERO, |span| span.duration())
    }

    /// What the pool holds: a step that allocates would show here.
    pub fn memory_usage(&self) -> MemoryUse {
        let usage = self.client.memory_report(MemoryScope::Device).usage();
        MemoryUse {
            allocations: usage.number_allocs,
            in_use: usage.bytes_in_use,
            reserved: usage.bytes_reserved,
        }
    }

    fn handle(&self, slice: &Slice) -> Handle {
        let end = slice.offset + slice.bytes;
        assert!(end <= slice.arena.bytes + ARENA_TAIL_BYTES, "a slice lies inside its arena");
        let tail = slice.arena.bytes + ARENA_TAIL_BYTES - end;
        slice.arena.handle.clone().offset_start(slice.offset).offset_end(tail)
    }

    /// A kernel argument, in elements of four bytes; `vector_io` reads those of two.
    pub(crate) fn buffer(&self, slice: &Slice) -> BufferArg {
        // SAFETY: the length is that of the bytes the handle names, but for half an element of four
        // bytes at the end, which nothing reads as such.
        unsafe { BufferArg::from_raw_parts(self.handle(slice), slice.bytes.div_ceil(4) as usize) }
    }

    /// The argument that each kernel using `vector_io` takes besides its buffers: one element that
    /// is never accessed, at an odd element offset, so that the kernel is compiled to access
    /// vectors with the alignment of one element, the smallest of these.
    pub(crate) fn unaligned(
        &self,
        any: &Slice,
        elems: impl IntoIterator<Item = Elem>,
    ) -> BufferArg {
        let smallest = elems.into_iter().map(Elem::bytes).min().unwrap_or(4);
        let offset = any.offset / 8 * 8 + smallest;
        self.buffer(&Slice { arena: any.arena, offset, bytes: 4 })
    }
}
