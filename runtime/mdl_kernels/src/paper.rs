//! The paper of an NVIDIA GPU: a device on which nothing runs, but whose kernels are compiled to
//! PTX, without a driver or a GPU.
//!
//! It is a server of CubeCL's like that of a real device, so that whatever would be launched there
//! is compiled here, by the same code. Memory has sizes and no bytes.

use crate::device::{Class, Device};
use crate::host::{Slot, Whole, compile, compiler, key, store};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::cpu::compute::server::CpuServer;
use cubecl::future::DynFut;
use cubecl::prelude::*;
use cubecl::server::{
    BufferBinding, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_core::Compiler;
use cubecl_core::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_core::environment::stream::StreamId;
use cubecl_core::ir::features::MmaConfig;
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::ir::{
    DeviceIdentity, ElemType, FloatKind, HardwareProperties, IntKind, MemoryDeviceProperties,
    TargetProperties, UIntKind, features::TypeUsage,
};
use cubecl_core::profile::{ProfileDuration, TimingMethod};
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{CubeKernel, define_kernel};
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};
use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A kernel in PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptx {
    /// The entry, and a number for each of a plan's forms of it.
    pub name: String,
    /// The function in the text.
    pub entry: String,
    pub text: String,
    /// Bytes of memory that a cube shares, which the launch asks for.
    pub shared_bytes: u64,
    pub units: u32,
    /// It was compiled here, and not kept from before.
    pub new: bool,
}

/// What has been launched so far, each kernel once.
#[derive(Debug, Default)]
struct Found {
    seen: HashSet<KernelId>,
    kernels: Vec<Slot<Ptx>>,
}

/// The device of a compute capability, and what was compiled for it.
#[derive(Debug)]
pub struct Paper {
    pub device: Device,
    pub found: Compiled,
}

/// What a paper device compiled.
#[derive(Clone, Debug, Default)]
pub struct Compiled(Arc<Mutex<Found>>);

impl Compiled {
    /// All kernels that were launched before the device's last `sync`, each once, by name; or why
    /// one could not be compiled.
    pub fn kernels(&self) -> Result<Vec<Ptx>, String> {
        let slots = self.lock().kernels.clone();
        let mut kernels: BTreeMap<String, Ptx> = BTreeMap::new();
        for slot in slots {
            let mut ptx = slot.wait().clone()?;
            let form = kernels.values().filter(|other| other.entry == ptx.entry).count();
            ptx.name = format!("{}_{form}", ptx.entry);
            kernels.insert(ptx.name.clone(), ptx);
        }
        Ok(kernels.into_values().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().expect("invariant: nobody panics while holding it")
    }
}

impl Paper {
    /// `capability` is 80 for sm_80; from 90 on the variant with an `a` is meant.
    pub fn new(capability: u32) -> Paper {
        let found = Compiled::default();
        let server = PaperServer::new(capability, found.clone());
        let client = Client::init(server.id, server);
        Paper { device: Device::gpu(client, Class::Cuda, true), found }
    }

    /// What all launches so far were compiled to.
    pub fn kernels(&self) -> Result<Vec<Ptx>, String> {
        self.device.sync();
        self.found.kernels()
    }
}

/// Every paper is a device of its own.
static PAPERS: AtomicU16 = AtomicU16::new(0);
/// No runtime of CubeCL's numbers its devices like this.
const TYPE: u16 = 0x4d44;

#[derive(Debug)]
struct PaperServer {
    id: DeviceId,
    capability: u32,
    utilities: Arc<ServerUtilities>,
    found: Compiled,
}

impl PaperServer {
    fn new(capability: u32, found: Compiled) -> PaperServer {
        let number = PAPERS.fetch_add(1, Ordering::Relaxed);
        let id = DeviceId { type_id: TYPE, index_id: number };
        let logger = Arc::new(ServerLogger::default());
        let service = ServiceId::of::<PaperServer>(id);
        let (properties, target) = (properties(capability), TargetProperties::default());
        let (utilities, _) =
            ServerUtilities::init(service, "paper", properties, target, logger, Whole);
        PaperServer { id, capability, utilities: Arc::new(utilities), found }
    }
}

fn ptx(kernel: &dyn CubeKernel, capability: u32) -> Result<Ptx, String> {
    let units = kernel.id().cube_dim.num_elems();
    let key = key(&kernel.id(), &format!("{}, PTX for {DRIVER}, sm_{capability}", compiler()));
    let kept = store().read(&key).and_then(|text| read(&text, units));
    if let Some(ptx) = kept {
        return Ok(ptx);
    }
    let definition = define_kernel(kernel).map_err(|fault| fault.to_string())?;
    let mut compiler = PlironCompiler { target: LlvmTarget::Nvptx };
    let options = PlironOptions {
        sm_arch: Some(SmArch::new(capability, true)),
        ptx_version: PtxVersion::for_driver(DRIVER),
        ..Default::default()
    };
    let artifact = compiler.compile(definition, &options).map_err(|fault| fault.to_string())?;
    let PlironArtifact::NvptxCode(module) = artifact else {
        return Err("the compiler made no PTX".to_string());
    };
    let bytes = module.ptx.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let text = String::from_utf8(bytes).map_err(|fault| fault.to_string())?;
    let shared_bytes = module.shared_memory_size as u64;
    store().write(&key, format!("{} {shared_bytes}\n{text}", module.entrypoint).as_bytes());
    let (name, entry) = (String::new(), module.entrypoint);
    Ok(Ptx { name, entry, text, shared_bytes, units, new: true })
}

/// From the entry's name and the shared bytes in a line, and the text behind it.
fn read(kept: &[u8], units: u32) -> Option<Ptx> {
    let (head, text) = std::str::from_utf8(kept).ok()?.split_once('\n')?;
    let (entry, shared) = head.split_once(' ')?;
    let shared_bytes = shared.parse().ok()?;
    let (name, entry, text) = (String::new(), entry.to_string(), text.to_string());
    Some(Ptx { name, entry, text, shared_bytes, units, new: false })
}

/// The CUDA release whose form of PTX is written.
const DRIVER: i32 = 12040;

impl DeviceService for PaperServer {
    fn init(_: DeviceId) -> Self {
        PaperServer::new(80, Compiled::default())
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone() as ServerUtilitiesHandle
    }
}

impl ServerCommunication for PaperServer {}

impl ServerStorage for PaperServer {
    type Storage = <CpuServer as ServerStorage>::Storage;

    fn get_resource(
        &mut self,
        _: BufferBinding,
        _: StreamId,
    ) -> Result<ManagedResource<<Self::Storage as ComputeStorage>::Resource>, ServerError> {
        Err(no_bytes())
    }
}

fn no_bytes() -> ServerError {
    IoError::UnsupportedIoOperation { backtrace: Default::default() }.into()
}

impl Server for PaperServer {
    fn initialize_memory(
        &mut self,
        _: ManagedMemoryHandle,
        _: u64,
        _: StreamId,
    ) -> Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        _: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        Box::pin(async { Err(no_bytes()) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: Vec<BufferBinding>, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    // SAFETY: nothing is run.
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        _: CubeCount,
        _: KernelArguments,
        _: StreamId,
        _: LaunchMode,
    ) {
        let mut found = self.found.lock();
        if found.seen.insert(kernel.id()) {
            let capability = self.capability;
            found.kernels.push(compile(kernel, move |kernel| ptx(kernel, capability)));
        }
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(no_bytes())
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        _: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: Default::default() })
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

fn properties(capability: u32) -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        // What the driver lets a cube ask for on compute capability 8.0, and on 9.0.
        max_shared_memory_size: if capability >= 90 { 232_448 } else { 166_912 },
        max_cube_count: (i32::MAX as u32, u32::from(u16::MAX), u32::from(u16::MAX)),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(if capability >= 90 { 132 } else { 108 }),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: VectorSize::MAX,
        cube_mma_reserved_shared_memory: 0,
    };
    let identity = DeviceIdentity {
        name: format!("sm_{capability}"),
        fingerprint: format!("paper_sm{capability}"),
        physical: None,
    };
    let mut properties = DeviceProperties::new(
        Default::default(),
        MemoryDeviceProperties::new(u64::MAX, 256),
        hardware,
        TimingMethod::Device,
        identity,
    );
    register_types(&mut properties);
    properties
}

fn register_types(properties: &mut DeviceProperties) {
    properties.register_address_type(AddressType::U32);
    properties.register_address_type(AddressType::U64);
    let types = [
        ElemType::Index,
        ElemType::UInt(UIntKind::U16),
        ElemType::UInt(UIntKind::U32),
        ElemType::UInt(UIntKind::U64),
        ElemType::Int(IntKind::I32),
        ElemType::Int(IntKind::I64),
        ElemType::Float(FloatKind::BF16),
        ElemType::Float(FloatKind::F32),
        ElemType::Bool,
    ];
    for elem in types {
        properties.register_type_usage(elem, TypeUsage::all());
    }
    let tf32 = ElemType::Float(FloatKind::TF32);
    properties.register_type_usage(tf32, TypeUsage::Conversion);
    let mma = |elem, k| MmaConfig {
        a_type: elem,
        b_type: elem,
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 16,
        k,
    };
    let matmul = &mut properties.features.matmul;
    matmul.cmma.insert(mma(ElemType::Float(FloatKind::BF16), 16));
    matmul.cmma.insert(mma(tf32, 8));
}
