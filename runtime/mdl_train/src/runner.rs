//! One interface over the device and the reference interpreter: inputs in, one run, outputs out.

use crate::machine::Machine;
use mdl_ir::graph::{Graph, InputRole, OutputRole};
use mdl_ir::interp::{Env, run};
use mdl_ir::tensor::Tensor;

#[derive(Debug)]
pub enum Runner {
    Machine(Box<Machine>),
    Interpreter(Box<Interpreter>),
}

/// A graph with its inputs, run in f64.
#[derive(Debug)]
pub struct Interpreter {
    graph: Graph,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Interpreter {
    pub fn new(graph: Graph) -> Self {
        let zeros = |id| Tensor::zeros(graph.body.ty(id).clone());
        let inputs = graph.body.inputs.iter().map(|id| zeros(*id)).collect();
        Interpreter { graph, inputs, outputs: Vec::new() }
    }

    fn run(&mut self) {
        self.outputs = run(&self.graph.body, self.inputs.clone(), &Env::default());
        // What a run makes new is what the next one starts from.
        for (role, out) in self.graph.outputs.iter().zip(&self.outputs) {
            let input = match role {
                OutputRole::Param(p) => InputRole::Param(*p),
                OutputRole::Moment1(p) => InputRole::Moment1(*p),
                OutputRole::Moment2(p) => InputRole::Moment2(*p),
                OutputRole::Master(p) => InputRole::Master(*p),
                OutputRole::Cache(c) => InputRole::Cache(*c),
                OutputRole::Grad(p) => InputRole::Grad(*p),
                OutputRole::Value(_) => continue,
            };
            if let Some(i) = self.graph.inputs.iter().position(|r| *r == input) {
                self.inputs[i] = out.clone();
            }
        }
    }
}

impl Runner {
    pub fn write(&mut self, role: &InputRole, values: &[f32]) {
        match self {
            Runner::Machine(m) => m.write_input(role, values),
            Runner::Interpreter(i) => {
                if let Some(at) = i.graph.inputs.iter().position(|r| r == role) {
                    i.inputs[at].data = values.iter().map(|x| f64::from(*x)).collect();
                }
            }
        }
    }

    /// Writes some of an input's values, from element `start` on.
    pub fn write_range(&mut self, role: &InputRole, start: u64, values: &[f32]) {
        match self {
            Runner::Machine(m) => m.write_range(role, start, values),
            Runner::Interpreter(i) => {
                if let Some(at) = i.graph.inputs.iter().position(|r| r == role) {
                    let to = &mut i.inputs[at].data[start as usize..];
                    to.iter_mut().zip(values).for_each(|(to, x)| *to = f64::from(*x));
                }
            }
        }
    }

    pub fn write_data(&mut self, name: &str, ids: &[i32]) {
        match self {
            Runner::Machine(m) => m.write_data(name, ids),
            Runner::Interpreter(i) => {
                let role = InputRole::Data(name.to_string());
                if let Some(at) = i.graph.inputs.iter().position(|r| *r == role) {
                    i.inputs[at].data = ids.iter().map(|x| f64::from(*x)).collect();
                }
            }
        }
    }

    pub fn run(&mut self) {
        match self {
            Runner::Machine(m) => m.run(),
            Runner::Interpreter(i) => i.run(),
        }
    }

    pub fn read(&self, role: &OutputRole) -> Option<Vec<f64>> {
        match self {
            Runner::Machine(m) => Some(m.read_output(role)?.into_iter().map(f64::from).collect()),
            Runner::Interpreter(i) => {
                let at = i.graph.outputs.iter().position(|r| r == role)?;
                i.outputs.get(at).map(|t| t.data.clone())
            }
        }
    }
}
