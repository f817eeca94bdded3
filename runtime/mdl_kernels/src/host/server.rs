//! The server of a CPU: memory is CubeCL's, launches are this crate's. On paper it compiles, and
//! has no memory and runs nothing.

use super::table::{Slot, request};
use super::threads::{Launch, Span, Threads};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::cpu::compute::server::CpuServer;
use cubecl::future::DynFut;
use cubecl::prelude::*;
use cubecl::server::{
    BufferBinding, CopyDescriptor, Handle, IoError, KernelArguments, KernelResource, LaunchError,
    MemoryLayout, MemoryLayoutDescriptor, MemoryLayoutPolicy, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_core::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_core::environment::stream::StreamId;
use cubecl_core::ir::TargetProperties;
use cubecl_core::profile::ProfileDuration;
use cubecl_core::zspace::strides;
use cubecl_core::{CompilationError, CubeKernel};
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};
use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// No runtime of CubeCL's numbers its devices like this.
const TYPE: u16 = 0x4d43;
/// Every one with memory is a device of its own.
static SERVERS: AtomicU16 = AtomicU16::new(0);
/// That of CubeCL's allocations, in bytes. A kernel is compiled for the least of its buffers'.
const ALIGNMENT: u32 = 64;

/// The kernels that were asked for on paper.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requested(Arc<Mutex<Vec<Slot>>>);

impl Requested {
    fn add(&self, slot: Slot) {
        let mut slots = self.0.lock().expect("invariant: nobody panics while holding it");
        if !slots.iter().any(|other| Arc::ptr_eq(other, &slot)) {
            slots.push(slot);
        }
    }

    /// Waits for all of them. How many there are, and how many of those had to be compiled.
    pub(crate) fn wait(&self) -> Result<(usize, usize), String> {
        let slots = self.0.lock().expect("invariant: nobody panics while holding it").clone();
        let mut new = 0;
        for slot in &slots {
            new += usize::from(slot.wait().as_ref().map_err(String::clone)?.new);
        }
        Ok((slots.len(), new))
    }
}

/// The one on paper is a service of the same device as the first of the others: a device has one
/// thread for its services, and CubeCL's threads wake thousands of times a second while they have
/// nothing to do, on cores that units want.
pub(crate) struct HostServer<const PAPER: bool = false> {
    id: DeviceId,
    utilities: Arc<ServerUtilities>,
    /// None on paper.
    memory: Option<CpuServer>,
    threads: Threads,
    /// Of the launches that are being profiled.
    span: Option<Arc<Span>>,
    requested: Requested,
    /// Why the first kernel that was refused was.
    fault: Option<String>,
}

impl<const PAPER: bool> fmt::Debug for HostServer<PAPER> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostServer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl HostServer {
    /// The CPU, as a client sees it.
    pub(crate) fn open() -> Client {
        <HostServer as DeviceService>::init(next_id()).client()
    }
}

impl HostServer<true> {
    /// One like it that only compiles, and what is asked of it. There is a CPU already.
    pub(crate) fn on_paper(properties: &DeviceProperties) -> (Client, Requested) {
        let first = DeviceId { type_id: TYPE, index_id: 0 };
        let server = HostServer::<true>::new(first, properties.clone(), None);
        let requested = server.requested.clone();
        (server.client(), requested)
    }
}

impl<const PAPER: bool> HostServer<PAPER> {
    fn new(id: DeviceId, properties: DeviceProperties, memory: Option<CpuServer>) -> Self {
        let service = ServiceId::of::<HostServer<PAPER>>(id);
        let (target, logger) = (TargetProperties::default(), Arc::new(ServerLogger::default()));
        let (utilities, _) =
            ServerUtilities::init(service, "cpu", properties, target, logger, Whole);
        HostServer {
            id,
            utilities: Arc::new(utilities),
            memory,
            threads: Threads::new(),
            span: None,
            requested: Requested::default(),
            fault: None,
        }
    }

    fn client(self) -> Client {
        Client::init(self.id, self)
    }

    /// Waits for all launches; then their memory may be touched.
    fn settled(&mut self) -> Result<&mut CpuServer, ServerError> {
        self.threads.wait();
        self.sound()
    }

    /// The memory, unless a kernel was refused.
    fn sound(&mut self) -> Result<&mut CpuServer, ServerError> {
        if let Some(reason) = self.fault.clone() {
            let error = CompilationError::Generic { reason, backtrace: Default::default() };
            return Err(ServerError::Launch(LaunchError::CompilationError(error)));
        }
        self.memory.as_mut().ok_or_else(no_bytes)
    }

    fn run(
        &mut self,
        slot: &Slot,
        units: [u32; 3],
        cubes: [u32; 3],
        arguments: KernelArguments,
        stream: StreamId,
    ) -> Result<(), String> {
        let compiled = slot.wait().as_ref().map_err(String::clone)?;
        let memory = self.memory.as_mut().ok_or("there is no memory on paper")?;
        let mut buffers = Vec::with_capacity(arguments.resources.len());
        let mut kept: Vec<Box<dyn Send>> = Vec::with_capacity(arguments.resources.len());
        for resource in arguments.resources {
            let KernelResource::Buffer(binding) = resource else {
                return Err("a CPU's kernels take buffers".to_string());
            };
            let held = memory.get_resource(binding, stream).map_err(|fault| fault.to_string())?;
            buffers.push(held.resource().get_write_ptr_and_length().0.cast());
            kept.push(Box::new(held));
        }
        let (metadata, barrier) = (arguments.info.data, Default::default());
        let (function, span) = (compiled.function, self.span.clone());
        let launch = Launch { function, cubes, buffers, metadata, barrier, span, _kept: kept };
        self.threads.send(launch, units, compiled.barrier);
        Ok(())
    }
}

fn next_id() -> DeviceId {
    DeviceId { type_id: TYPE, index_id: SERVERS.fetch_add(1, Ordering::Relaxed) }
}

/// The largest power of two that every buffer starts at a multiple of.
fn alignment(arguments: &KernelArguments) -> u32 {
    let starts = arguments.resources.iter().filter_map(|resource| match resource {
        KernelResource::Buffer(binding) => binding.offset_start,
        _ => None,
    });
    starts.fold(ALIGNMENT, |least, start| 1 << start.trailing_zeros().min(least.trailing_zeros()))
}

fn no_bytes() -> ServerError {
    IoError::UnsupportedIoOperation { backtrace: Default::default() }.into()
}

impl<const PAPER: bool> DeviceService for HostServer<PAPER> {
    fn init(id: DeviceId) -> Self {
        let memory = <CpuServer as DeviceService>::init(DeviceId { type_id: 0, index_id: 0 });
        let properties = (*Server::utilities(&memory).properties).clone();
        HostServer::new(id, properties, (!PAPER).then_some(memory))
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone() as ServerUtilitiesHandle
    }
}

impl<const PAPER: bool> ServerCommunication for HostServer<PAPER> {}

impl<const PAPER: bool> ServerStorage for HostServer<PAPER> {
    type Storage = <CpuServer as ServerStorage>::Storage;

    fn get_resource(
        &mut self,
        binding: BufferBinding,
        stream: StreamId,
    ) -> Result<ManagedResource<<Self::Storage as ComputeStorage>::Resource>, ServerError> {
        self.settled()?.get_resource(binding, stream)
    }
}

impl<const PAPER: bool> Server for HostServer<PAPER> {
    fn initialize_memory(
        &mut self,
        memory: ManagedMemoryHandle,
        size: u64,
        stream: StreamId,
    ) -> Result<(), ServerError> {
        match self.memory {
            Some(_) => self.settled()?.initialize_memory(memory, size, stream),
            None => Ok(()),
        }
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        match self.settled() {
            Ok(memory) => memory.read(descriptors, stream),
            Err(fault) => Box::pin(async { Err(fault) }),
        }
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, stream: StreamId) {
        // What is wrong is said by the next read, `flush` or `sync`.
        if let Ok(memory) = self.settled() {
            memory.write(descriptors, stream);
        }
    }

    fn sync(
        &mut self,
        handles: Vec<BufferBinding>,
        stream: StreamId,
    ) -> DynFut<Result<(), ServerError>> {
        if self.memory.is_none() {
            let done = self.flush(stream);
            return Box::pin(async { done });
        }
        match self.settled() {
            Ok(memory) => memory.sync(handles, stream),
            Err(fault) => Box::pin(async { Err(fault) }),
        }
    }

    fn check(&mut self, handles: Vec<BufferBinding>, stream: StreamId) -> Result<(), ServerError> {
        self.settled()?.check(handles, stream)
    }

    // SAFETY: the caller answers for what the kernel does with its arguments.
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        arguments: KernelArguments,
        stream: StreamId,
        mode: LaunchMode,
    ) {
        let units = kernel.id().cube_dim;
        let slot = request(kernel, alignment(&arguments));
        if self.memory.is_none() || mode.is_skipped() {
            self.requested.add(slot);
            return;
        }
        let CubeCount::Static(x, y, z) = count else {
            self.fault.get_or_insert("the number of cubes is known at the launch".to_string());
            return;
        };
        let units = [units.x, units.y, units.z];
        if let Err(fault) = self.run(&slot, units, [x, y, z], arguments, stream) {
            self.fault.get_or_insert(fault);
        }
    }

    /// Launches are with the threads already, and there is nothing to wait for.
    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        match self.memory {
            Some(_) => self.sound().map(|_| ()),
            None => Ok(()),
        }
    }

    fn memory_report(&mut self, stream: StreamId) -> Option<StreamMemoryReport> {
        self.settled().ok()?.memory_report(stream)
    }

    fn memory_cleanup(&mut self, stream: StreamId) -> Result<(), ServerError> {
        self.settled()?.memory_cleanup(stream)
    }

    /// What is profiled is the threads' time, without the time that it takes to wake them.
    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        self.threads.wake();
        self.span = Some(Arc::default());
        Ok(ProfilingToken { id: 0 })
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        _token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.threads.wait();
        let span = self.span.take().and_then(|span| span.get());
        let none = || ProfileError::NotRegistered { backtrace: Default::default() };
        span.map(|(start, end)| ProfileDuration::new_system_time(start, end)).ok_or_else(none)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, stream: StreamId) {
        if let Ok(memory) = self.settled() {
            memory.allocation_mode(mode, stream);
        }
    }
}

/// Everything lies in one piece.
pub(crate) struct Whole;

impl MemoryLayoutPolicy for Whole {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        descriptors: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let bytes = |d: &MemoryLayoutDescriptor| d.shape.iter().product::<usize>() * d.elem_size;
        let total: usize = descriptors.iter().map(bytes).sum();
        let whole = Handle::new(service, stream, total as u64);
        let layouts = descriptors.iter().map(|_| MemoryLayout::new(whole.clone(), strides![1]));
        (whole.clone(), layouts.collect())
    }
}
