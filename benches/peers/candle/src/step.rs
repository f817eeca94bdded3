//! The training step of a small Llama in candle: forward, backward, clipping and AdamW.

use crate::model::{ADAM_EPS, BETAS, DECAY, Llama, NORM_EPS, Numbers, RATE, report_steps};
use crate::{PEER, attend, mask};
use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

/// Parameters in the order of llama_step.py, where norms start at one.
struct Block {
    matrices: [Var; 7],
    norms: [Var; 2],
}

struct State {
    embedding: Var,
    blocks: Vec<Block>,
    norm: Var,
    rope: [Tensor; 2],
    mask: Tensor,
}

pub fn run() -> Result<()> {
    let cpu = &Device::Cpu;
    let (model, mut numbers) = (Llama::asked(), Numbers::default());
    let mut matrix = |[m, n]: [usize; 2]| {
        Var::from_vec(numbers.uniform(m * n, 0.02), (m, n), cpu).expect("there is memory")
    };
    let ones = || Var::ones(model.hidden, candle_core::DType::F32, cpu);
    let embedding = matrix([model.vocab, model.hidden]);
    let mut blocks = Vec::new();
    for _ in 0..model.layers {
        let matrices = model.matrices().map(&mut matrix);
        blocks.push(Block { matrices, norms: [ones()?, ones()?] });
    }
    let channels = model.hidden / model.heads;
    let [cos, sin] = model.rope();
    let table = |values| Tensor::from_vec(values, (model.width, channels), cpu);
    let rope = [table(cos)?, table(sin)?];
    let state = State { embedding, blocks, norm: ones()?, rope, mask: mask(model.width)? };
    let [ids, targets] = numbers.tokens(&model);
    let count = ids.len();
    let (ids, targets) =
        (Tensor::from_vec(ids, count, cpu)?, Tensor::from_vec(targets, (count, 1), cpu)?);

    let settings = ParamsAdamW {
        lr: RATE,
        beta1: BETAS[0],
        beta2: BETAS[1],
        eps: ADAM_EPS,
        weight_decay: DECAY,
    };
    let vars = state.vars();
    let mut optimizer = AdamW::new(vars.clone(), settings)?;
    report_steps(PEER, &model, || {
        let mut step = || state.step(&model, &ids, &targets, &vars, &mut optimizer);
        step().expect("shapes agree")
    });
    Ok(())
}

impl State {
    fn vars(&self) -> Vec<Var> {
        let of_block = |b: &Block| b.matrices.iter().chain(&b.norms).cloned().collect::<Vec<_>>();
        let blocks = self.blocks.iter().flat_map(of_block);
        [self.embedding.clone(), self.norm.clone()].into_iter().chain(blocks).collect()
    }

    fn step(
        &self,
        model: &Llama,
        ids: &Tensor,
        targets: &Tensor,
        vars: &[Var],
        optimizer: &mut AdamW,
    ) -> Result<f32> {
        let loss = self.loss(model, ids, targets)?;
        let mut grads = loss.backward()?;
        let mut squares = 0.0;
        for var in vars {
            let grad = grads.get(var).expect("every parameter has a gradient");
            squares += grad.sqr()?.sum_all()?.to_scalar::<f32>()? as f64;
        }
        let share = (1.0 / (squares.sqrt() + 1e-6)).min(1.0);
        for var in vars {
            let clipped = (grads.get(var).expect("every parameter has a gradient") * share)?;
            grads.insert(var, clipped);
        }
        optimizer.step(&grads)?;
        loss.to_scalar()
    }

    /// Only one number of a row of log-probabilities counts, so no others are computed.
    fn loss(&self, model: &Llama, ids: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.index_select(ids, 0)?;
        for block in &self.blocks {
            x = self.block(model, block, &x)?;
        }
        let logits = norm(&x, &self.norm)?.matmul(&self.embedding.t()?)?;
        let most = logits.max_keepdim(1)?.detach();
        let sums = logits.broadcast_sub(&most)?.exp()?.sum_keepdim(1)?;
        (sums.log()? + most)?.sub(&logits.gather(targets, 1)?)?.mean_all()
    }

    fn block(&self, model: &Llama, block: &Block, x: &Tensor) -> Result<Tensor> {
        let [q, k, v, o, gate, up, down] = &block.matrices;
        let by = |x: &Tensor, w: &Var| x.matmul(&w.t()?);
        let (batch, width, heads) = (model.batch, model.width, model.heads);
        let by_head = |x: Tensor| {
            x.reshape((batch, width, heads, model.hidden / heads))?.transpose(1, 2)?.contiguous()
        };
        let h = norm(x, &block.norms[0])?;
        let q = self.rotate(&by_head(by(&h, q)?)?)?;
        let k = self.rotate(&by_head(by(&h, k)?)?)?;
        let a = attend(&q, &k, &by_head(by(&h, v)?)?, &self.mask)?;
        let x = (x + by(&a.transpose(1, 2)?.reshape((batch * width, ()))?, o)?)?;
        let h = norm(&x, &block.norms[1])?;
        &x + by(&(by(&h, gate)?.silu()? * by(&h, up)?)?, down)?
    }

    /// The fused rotation has no gradients.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let [cos, sin] = &self.rope;
        let half = x.dim(D::Minus1)? / 2;
        let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = Tensor::cat(&[high.neg()?, low], D::Minus1)?;
        x.broadcast_mul(cos)? + turned.broadcast_mul(sin)?
    }
}

/// The fused norm has no gradients.
fn norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.mean_keepdim(D::Minus1)?;
    let rates = (squares + NORM_EPS)?.sqrt()?.recip()?;
    x.broadcast_mul(&rates)?.broadcast_mul(weight)
}
