//! Arenas: bytes land in place, one launch reads and writes one arena, launches allocate nothing.

use mdl_ir::kernel::{ContractSpec, Dim, Elem, KernelSpec, workspace_bytes};
use mdl_kernels::{Device, KernelError};
use std::sync::Mutex;
use std::time::Instant;

/// The pool is the process's, so tests that count what it holds must not run beside others.
static POOL: Mutex<()> = Mutex::new(());

fn column_times_row(m: u32, n: u32) -> KernelSpec {
    let dim = |size| vec![Dim { size, stride: 1, stride_b: 1 }];
    KernelSpec::Contract(ContractSpec {
        a: Elem::F32,
        b: Elem::F32,
        outputs: vec![Elem::F32],
        batch: vec![],
        m: dim(m),
        n: dim(n),
        k: dim(1),
        prologue: None,
        rotary: None,
        epilogue_inputs: vec![],
        epilogue: vec![],
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn arenas_are_zeroed_and_written_in_place() {
    let _alone = POOL.lock().expect("no test panicked");
    let device = Device::cpu(None);
    let arena = device.alloc(1000);
    assert!(device.read(&arena, 0, 1000).expect("inside").iter().all(|byte| *byte == 0));
    device.write(&arena, 300, &[1, 2, 3]).expect("inside");
    assert_eq!(device.read(&arena, 298, 7).expect("inside"), [0, 0, 1, 2, 3, 0, 0]);
    let outside = device.write(&arena, 1020, &[0; 8]);
    assert_eq!(outside, Err(KernelError::OutOfArena { offset: 1020, bytes: 8, arena: 1024 }));
    assert!(device.read(&arena, u64::MAX, 2).is_err());
}

#[test]
fn one_arena_is_read_and_written_and_steps_allocate_nothing() {
    let _alone = POOL.lock().expect("no test panicked");
    let device = Device::cpu(None);
    let spec = column_times_row(20, 33);
    let scratch = workspace_bytes(&spec, device.units());
    let (a, b, c, workspace) = (0, 256, 512, 512 + 2816);
    let arena = device.alloc(workspace + scratch);
    let column: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let row: Vec<f32> = (0..33).map(|i| 1.0 + i as f32).collect();
    device.write(&arena, a, bytemuck::cast_slice(&column)).expect("inside");
    device.write(&arena, b, bytemuck::cast_slice(&row)).expect("inside");
    let args = [
        arena.slice(a, 80),
        arena.slice(b, 132),
        arena.slice(c, 20 * 33 * 4),
        arena.slice(workspace, scratch),
    ];
    let (start, time) = (Instant::now(), device.timed(|| device.launch(&spec, &args)));
    assert!(!time.is_zero() && time < start.elapsed());
    // A thread that is not let run may hand in the launch before only now.
    let nothing = || device.timed(|| ()).is_zero();
    assert!((0..10).any(|_| nothing()), "nothing takes no time");
    let before = device.memory_usage();
    for _ in 0..200 {
        device.launch(&spec, &args);
    }
    device.sync();
    assert_eq!(device.memory_usage(), before);
    let product = floats(&device.read(&arena, c, 20 * 33 * 4).expect("inside"));
    for (i, value) in product.iter().enumerate() {
        assert_eq!(*value, column[i / 33] * row[i % 33]);
    }
    assert_eq!(floats(&device.read(&arena, a, 80).expect("inside")), column);
}

/// Such arenas get pages of their own; what is in the others stays.
#[test]
fn a_large_arena_is_zeroed_however_often_its_memory_is_used() {
    const BYTES: u64 = 5 << 20;
    let device = Device::cpu(Some(1));
    let ones = vec![1; BYTES as usize];
    let kept = device.alloc(BYTES);
    device.write(&kept, 0, &ones).expect("it fits");
    for _ in 0..3 {
        let arena = device.alloc(BYTES);
        assert!(device.read(&arena, 0, BYTES).expect("it fits").iter().all(|byte| *byte == 0));
        device.write(&arena, 0, &ones).expect("it fits");
    }
    assert_eq!(device.read(&kept, 0, BYTES).expect("it fits"), ones);
}
