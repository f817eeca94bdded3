//! The training step of a small Llama in burn: forward, backward, clipping and AdamW.

use crate::model::{ADAM_EPS, BETAS, DECAY, Llama, NORM_EPS, Numbers, RATE, report_steps};
use crate::{PEER, attend, mask};
use burn::optim::{AdamW, AdamWConfig, AdamWState, Optimizer};
use burn::tensor::activation::silu;
use burn::tensor::module::{embedding, linear};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};

/// A parameter with its moments.
struct Param<const D: usize> {
    value: Tensor<D>,
    state: Option<AdamWState<D>>,
}

impl<const D: usize> Param<D> {
    fn new(values: Vec<f32>, shape: [usize; D], device: &Device) -> Param<D> {
        let value = Tensor::from_data(TensorData::new(values, shape), device);
        Param { value: value.autodiff().require_grad(), state: None }
    }

    fn get(&self) -> Tensor<D> {
        self.value.clone()
    }

    fn squares(&self, grads: &Gradients) -> Tensor<1> {
        self.value.grad(grads).expect("every parameter has a gradient").square().sum()
    }

    fn update(&mut self, optimizer: &AdamW, grads: &mut Gradients, share: f32) {
        let grad = self.value.grad_remove(grads).expect("every parameter has a gradient") * share;
        let (value, state) =
            optimizer.step(RATE, self.value.clone().inner(), grad, self.state.take());
        self.value = value.autodiff().require_grad();
        self.state = state;
    }
}

struct Block {
    matrices: [Param<2>; 7],
    norms: [Param<1>; 2],
}

struct State {
    embedding: Param<2>,
    blocks: Vec<Block>,
    norm: Param<1>,
    rope: [Tensor<4>; 2],
    mask: Tensor<4>,
}

pub fn run() {
    let device = &Device::default();
    let (model, mut numbers) = (Llama::asked(), Numbers::default());
    let d = model.hidden;
    let ones = || Param::new(vec![1.0; d], [d], device);
    let mut uniform = |[m, n]: [usize; 2]| numbers.uniform(m * n, 0.02);
    let embedding = Param::new(uniform([model.vocab, d]), [model.vocab, d], device);
    // burn has matrices as [in, out].
    let mut matrix = |[m, n]: [usize; 2]| {
        let values = uniform([m, n]);
        let turned = (0..m * n).map(|at| values[at % m * n + at / m]).collect();
        Param::new(turned, [n, m], device)
    };
    let blocks = (0..model.layers)
        .map(|_| Block { matrices: model.matrices().map(&mut matrix), norms: [ones(), ones()] })
        .collect();
    let rope = model.rope().map(|values| {
        let data = TensorData::new(values, [1, 1, model.width, d / model.heads]);
        Tensor::from_data(data, device).autodiff()
    });
    let mask = mask(model.width, device).autodiff();
    let mut state = State { embedding, blocks, norm: ones(), rope, mask };
    let tokens = numbers.tokens(&model).map(|tokens| {
        let tokens: Vec<i64> = tokens.into_iter().map(i64::from).collect();
        let data = TensorData::new(tokens, [model.batch, model.width]);
        Tensor::<2, Int>::from_data(data, device).autodiff()
    });

    let optimizer = AdamWConfig::new()
        .with_beta_1(BETAS[0] as f32)
        .with_beta_2(BETAS[1] as f32)
        .with_epsilon(ADAM_EPS as f32)
        .with_weight_decay(DECAY as f32)
        .build();
    report_steps(PEER, &model, || {
        let loss = state.step(&model, tokens.clone(), &optimizer);
        device.sync().expect("nothing failed");
        loss
    });
}

impl State {
    fn step(&mut self, model: &Llama, tokens: [Tensor<2, Int>; 2], optimizer: &AdamW) -> f32 {
        let loss = self.loss(model, tokens);
        let mut grads = loss.backward();
        let matrices = self.blocks.iter().flat_map(|b| &b.matrices).chain([&self.embedding]);
        let norms = self.blocks.iter().flat_map(|b| &b.norms).chain([&self.norm]);
        let squares = matrices.map(|p| p.squares(&grads)).chain(norms.map(|p| p.squares(&grads)));
        let squares: f32 = Tensor::cat(squares.collect(), 0).sum().into_scalar();
        let share = (1.0 / (squares.sqrt() + 1e-6)).min(1.0);
        self.embedding.update(optimizer, &mut grads, share);
        self.norm.update(optimizer, &mut grads, share);
        for block in &mut self.blocks {
            block.matrices.iter_mut().for_each(|p| p.update(optimizer, &mut grads, share));
            block.norms.iter_mut().for_each(|p| p.update(optimizer, &mut grads, share));
        }
        loss.into_scalar()
    }

    /// Only one number of a row of log-probabilities counts, so no others are computed.
    fn loss(&self, model: &Llama, [ids, targets]: [Tensor<2, Int>; 2]) -> Tensor<1> {
        let mut x = embedding(self.embedding.get(), ids);
        for block in &self.blocks {
            x = self.block(model, block, x);
        }
        let rows = model.batch * model.width;
        let x = norm(x, &self.norm).reshape([rows, model.hidden]);
        let logits = linear(x, self.embedding.get().transpose(), None);
        let most = logits.clone().detach().max_dim(1);
        let sums = (logits.clone() - most.clone()).exp().sum_dim(1);
        (sums.log() + most - logits.gather(1, targets.reshape([rows, 1]))).mean()
    }

    fn block(&self, model: &Llama, block: &Block, x: Tensor<3>) -> Tensor<3> {
        let [q, k, v, o, gate, up, down] = &block.matrices;
        let by = |x: &Tensor<3>, w: &Param<2>| linear(x.clone(), w.get(), None);
        let [batch, width, hidden] = x.dims();
        let by_head = |x: Tensor<3>| {
            x.reshape([batch, width, model.heads, hidden / model.heads]).swap_dims(1, 2)
        };
        let h = norm(x.clone(), &block.norms[0]);
        let (q, k) = (self.rotate(by_head(by(&h, q))), self.rotate(by_head(by(&h, k))));
        let a = attend(q, k, by_head(by(&h, v)), self.mask.clone());
        let x = x + by(&a.swap_dims(1, 2).reshape([batch, width, hidden]), o);
        let h = norm(x.clone(), &block.norms[1]);
        x + by(&(silu(by(&h, gate)) * by(&h, up)), down)
    }

    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [cos, sin] = self.rope.clone();
        let half = x.dims()[3] / 2;
        let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        x * cos + Tensor::cat(vec![-high, low], 3) * sin
    }
}

fn norm(x: Tensor<3>, weight: &Param<1>) -> Tensor<3> {
    let rates = (x.clone().square().mean_dim(2) + NORM_EPS).sqrt().recip();
    x * rates * weight.get().unsqueeze()
}
