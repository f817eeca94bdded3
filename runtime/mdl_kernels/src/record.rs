//! Runs of launches that a GPU repeats without its host: recorded once, then replayed.
//!
//! A launch costs the host tens of microseconds, and a step has hundreds; a replay costs one.

use crate::device::{Class, Device};
use cubecl::client::Graph;
use std::fmt;
use std::sync::Mutex;

/// A sequence of launches that is the same each time, on the same memory.
#[derive(Default)]
pub struct Repeated(Mutex<State>);

#[derive(Default)]
enum State {
    /// Kernels are compiled when they are first launched, which cannot be recorded.
    #[default]
    Fresh,
    Compiled,
    Recorded(Graph),
    /// This device does not record.
    Issued,
}

impl fmt::Debug for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repeated").finish_non_exhaustive()
    }
}

impl Repeated {
    /// Runs the launches that `issue` makes: the same ones each time, and nothing else.
    pub fn run(&self, device: &Device, issue: impl Fn()) {
        let mut state = self.0.lock().expect("invariant: nobody panics while holding it");
        let next = match &*state {
            State::Fresh if device.class() == Class::Cuda => Some(State::Compiled),
            State::Fresh => Some(State::Issued),
            State::Compiled => Some(record(device, &issue).map_or(State::Issued, State::Recorded)),
            State::Recorded(_) | State::Issued => None,
        };
        if let Some(next) = next {
            *state = next;
        }
        match &*state {
            // SAFETY: whoever issues the launches keeps their memory as long as this.
            State::Recorded(graph) => {
                unsafe { graph.replay() }.expect("invariant: what was recorded can be replayed");
            }
            _ => issue(),
        }
        device.flush();
    }
}

/// None where the device refuses; then nothing has run either.
fn record(device: &Device, issue: &impl Fn()) -> Option<Graph> {
    device.sync();
    let client = device.client();
    client.graph_prepare().ok()?;
    client.start_capture().ok()?;
    device.while_recording(issue);
    client.stop_capture().ok()
}
