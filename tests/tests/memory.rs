//! The plan is what is allocated, and steps allocate nothing. Alone in its process: the device's
//! pool is shared, and other tests would be counted.

use mdl_kernels::Device;
use mdl_train::model::Model;
use mdl_train::packing::Stream;
use mdl_train::session::{Session, Settings};
use std::sync::Arc;

fn settings() -> Settings {
    Settings {
        lr_decay_style: "wsd".into(),
        // A factor of one disappears from the formula that the kernel's numbers are read from.
        weight_decay: 1.0,
        matrices_only: false,
        ..mdl_tests::settings(3, 37)
    }
}

#[test]
fn the_plan_is_what_is_allocated_and_steps_allocate_nothing() {
    let model = Model::open("llama", Some("tiny")).expect("an embedded preset");
    let device = Arc::new(Device::cpu(None));
    let mut session = Session::open(model, settings(), device).expect("compiles");
    let e = &session.train.first.executable;
    assert_eq!((e.state_bytes, e.work_bytes), session.train.allocated());
    let ids: Vec<u32> = (0..500).map(|i| (i * i + 3 * i) % 320).collect();
    let stream = Stream::new(&[ids], 5);
    let mut step = || {
        let batch = stream.batch(session.cursor, 3, 37).expect("long enough");
        session.step(&batch);
        session.train.first.device.memory_usage()
    };
    step();
    let before = step();
    for _ in 0..5 {
        let after = step();
        assert_eq!(before.reserved, after.reserved);
        assert_eq!(before.in_use, after.in_use);
        assert_eq!(before.allocations, after.allocations);
    }
}
