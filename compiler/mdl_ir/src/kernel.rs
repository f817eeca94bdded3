//! What a kernel computes, as plain data: the boundary between the compiler and `mdl_kernels`.
//!
//! A spec names sizes and strides (in elements) and never a device. Buffers are passed beside it,
//! in the order that each spec states: inputs, outputs, workspace. All arithmetic is f32:
//! `Elem::I32` and `Elem::Bf16` are converted when loaded, and what goes to bf16 is rounded once,
//! when it is stored, to the nearest, ties to even.

use serde::{Deserialize, Serialize};

pub mod collective;
pub mod cost;
pub mod gpu;
pub mod grouped;

use collective::CollectiveSpec;
use grouped::{GroupedContractSpec, GroupedOuterSpec};

/// What a device gives to one launch; kernels need workspace accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// One cube, whose units are so many threads of a CPU.
    Threads(u32),
    /// As many cubes as the work has: a GPU.
    Gpu,
}

impl Default for Target {
    fn default() -> Target {
        Target::Threads(1)
    }
}

impl From<u32> for Target {
    fn from(threads: u32) -> Target {
        Target::Threads(threads)
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum KernelSpec {
    Region(RegionSpec),
    Contract(ContractSpec),
    /// A contraction without an epilogue, added to what its output holds.
    ContractAdd(ContractSpec),
    Attention(AttentionSpec),
    AttentionGrad(AttentionSpec),
    LinearCrossEntropy(LinearCrossEntropySpec),
    Gather(GatherSpec),
    ScatterAdd(ScatterAddSpec),
    GroupedContract(GroupedContractSpec),
    GroupedOuter(GroupedOuterSpec),
    CacheWrite(CacheWriteSpec),
    SumOfSquares(SumOfSquaresSpec),
    /// Goes on with a sum of squares: `out` is f32 [2], the sum so far and what rounding lost of
    /// it. A sum over parts is that over the whole, to the bit, where parts are multiples of
    /// `SUM_CHUNK` but for the last one.
    MoreSquares(SumOfSquaresSpec),
    AdamW(AdamWSpec),
    /// The bytes of the first argument, copied to the second one in another space.
    Transfer,
    /// What ranks do together; no kernel, since it is between devices.
    Collective(CollectiveSpec),
}

impl KernelSpec {
    /// Does this belong to the queue that moves bytes, beside that of the kernels?
    pub fn moves(&self) -> bool {
        matches!(self, KernelSpec::Transfer | KernelSpec::Collective(_))
    }
}

/// How a number lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Elem {
    F32,
    I32,
    Bf16,
}

impl Elem {
    pub fn bytes(self) -> u64 {
        match self {
            Elem::F32 | Elem::I32 => 4,
            Elem::Bf16 => 2,
        }
    }
}

/// How an iteration space reads or writes a buffer: element `offset + Σ index[i] · strides[i]`.
/// A stride of 0 broadcasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub elem: Elem,
    pub offset: u32,
    pub strides: Vec<u32>,
}

/// A register machine's instruction: `dst = op(a, b, c)`. Booleans are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instr {
    pub op: InstrOp,
    pub dst: u16,
    pub a: u16,
    pub b: u16,
    pub c: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum InstrOp {
    Const(f32),
    /// Input number, at the current index.
    Load(u16),
    /// The current index along this dim of the iteration space, as a number.
    Index(u16),
    /// Value of a row register (see `Phase`).
    Row(u16),
    /// Writes register `a` to this output at the current index.
    Store(u16),
    /// Row register `dst` = reduction of register `a` over the walked axis.
    Sum,
    Max,
    Neg,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Sigmoid,
    Sin,
    Cos,
    Tanh,
    Abs,
    /// The nearest bf16, ties to even.
    Round,
    Not,
    Add,
    Sub,
    Mul,
    Div,
    Min,
    MaxOf,
    Lt,
    Le,
    Eq,
    And,
    Or,
    /// a != 0 ? b : c
    Select,
}

/// A fused region of elementwise work and reductions over the iteration space `dims`, outermost
/// first.
///
/// `Walk::Rows`: the last dim is walked with vectors; every index of the other dims is a row. Each
/// phase walks the row once. `Sum` and `Max` reduce along it into row registers, which later phases
/// read with `Row`.
///
/// `Walk::Columns { reduced }`: the `reduced` dims before the last are reduced; what is left of
/// them is outer. There is one phase; `cols` runs at every index, `Sum`/`Max` accumulate per column
/// over the reduced dims into row registers, and then `row` of a second phase runs once per outer
/// index and column (its `Store`s write there).
///
/// Buffers: inputs, outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionSpec {
    pub dims: Vec<u32>,
    pub walk: Walk,
    pub inputs: Vec<View>,
    pub outputs: Vec<View>,
    pub phases: Vec<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Walk {
    Rows,
    Columns { reduced: u32 },
}

/// `row` runs once per row before the walk, and all its registers are row registers (they persist
/// through all phases; `Load` and `Store` there use column 0); `cols` runs at each index of the
/// row, on registers of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub row: Vec<Instr>,
    pub cols: Vec<Instr>,
}

/// One dim of a contraction's axis group with its strides in both tensors that carry it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dim {
    pub size: u32,
    /// Stride in the first tensor that carries the group: `a` for batch, m and k; `b` for n.
    pub stride: u32,
    /// Stride in the second: `b` for batch and k; unused for m and n.
    pub stride_b: u32,
}

/// c[batch, m, n] = epilogue(Σ_k a[batch, m, k] · b[batch, k, n]); c is dense in the order batch,
/// m, n. A prologue stands between one of the operands and its product. The epilogue maps register
/// 0 (the sum) and its `Load`s of `epilogue_inputs` (views over flattened batch·m, n) to `Store`s,
/// one per output; without an epilogue there is one output, the sum. Outputs are dense [batch·m,
/// n].
///
/// With `rotary`, n is heads of so many columns, an even number, and the epilogue runs once for
/// each element of the first half of a head and its counterpart in the second: their sums are
/// registers 0 and 1. `Load(2·i + h)` reads input i beside half h, `Store(2·i + h)` writes that
/// half of output i, and the views of the inputs have a stride for each dim of m, one from head to
/// head, and one from element to element. There is then no batch, no prologue on b, and more than
/// `ContractBlocks::SKINNY_ROWS` rows.
///
/// An epilogue's input may be the memory of an output, read where it is then stored: that is how a
/// product is added to bf16. `ContractAdd` adds to f32 alone.
///
/// Buffers: a, b, prologue inputs, epilogue inputs, outputs, workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContractSpec {
    pub a: Elem,
    pub b: Elem,
    pub outputs: Vec<Elem>,
    pub batch: Vec<Dim>,
    pub m: Vec<Dim>,
    pub n: Vec<Dim>,
    pub k: Vec<Dim>,
    pub prologue: Option<Prologue>,
    pub rotary: Option<u32>,
    pub epilogue_inputs: Vec<View>,
    pub epilogue: Vec<Instr>,
}

/// What happens to an element of an operand before it is multiplied: from register 0, the loaded
/// element, to register `result`. `Load`s read `inputs`, views over two dims, the rows of the
/// operand (the flattened m of `a`, or n of `b`) and the flattened k; there is no batch. Where both
/// operands are bf16, so is the result: its last instruction rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prologue {
    pub operand: Operand,
    pub inputs: Vec<View>,
    pub program: Vec<Instr>,
    pub result: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operand {
    A,
    B,
}

impl ContractSpec {
    pub fn prologue_inputs(&self) -> &[View] {
        self.prologue.as_ref().map_or(&[], |prologue| &prologue.inputs)
    }

    /// The dims of n in an order in which runs of `run` columns of the first and of the second half
    /// of a head take turns, so that both sums of a pair are in one tile.
    pub fn columns_in_runs(&self, run: u32) -> Vec<Dim> {
        let Some(head) = self.rotary else { return self.n.clone() };
        let (last, outer) = self.n.split_last().expect("invariant: pairs are of a head");
        assert!(last.size == head && (head / 2).is_multiple_of(run), "runs fill a half");
        let dim = |size, steps| Dim { size, stride: last.stride * steps, stride_b: 0 };
        let head = [dim(head / 2 / run, run), dim(2, head / 2), dim(run, 1)];
        [outer, &head].concat()
    }

    /// The output is the sum in f32, so partial sums may wait there.
    pub fn is_plain_sum(&self) -> bool {
        self.epilogue.is_empty() && self.outputs == [Elem::F32]
    }
}

/// Which keys a query sees. Positions: query t stands at `start + t`, key s at `s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskSpec {
    /// key position ≤ query position
    pub causal: bool,
    /// query position − key position < window
    pub window: Option<u32>,
    /// document[t] == document[s]; takes the two document buffers
    pub documents: bool,
    /// A scalar i32 buffer gives the position of query 0; otherwise it is 0.
    pub start: bool,
}

/// y[b,t,h,g,:] = Σ_s softmax_s(scale · q[b,t,h,g,:]·k[b,s,h,:]) · v[b,s,h,:] under the mask; a row
/// that sees nothing is zero. All tensors are dense: q, y [b, t, kv_heads, group, head]; k, v [b,
/// s, kv_heads, head]; log-sum-exp [b, t, kv_heads, group] (of scaled scores; −inf where nothing is
/// seen).
///
/// Attention buffers: q, k, v, (documents_t i32 [b, t], documents_s i32 [b, s] if mask.documents),
/// (start i32 [1] if mask.start), y, log-sum-exp, workspace.
/// AttentionGrad buffers: q, k, v, (documents_t, documents_s), (start), y, log-sum-exp, dy, dq, dk,
/// dv, workspace. The log-sum-exp is f32, and all other tensors are `elem`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    pub elem: Elem,
    pub batch: u32,
    pub t: u32,
    pub s: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub head: u32,
    pub scale: f32,
    pub mask: MaskSpec,
}

/// loss = Σ_{targets[i] ≥ 0} (log Σ_v exp(x[i]·w[v]) − x[i]·w[targets[i]]) / max(valid, 1), for x
/// [rows, width] and w [vocab, width]; all logits are never stored. With `weighted`, the loss is
/// that times a number. With `grad`, the same visit writes d loss/dx and d loss/dw; with
/// `accumulate`, the latter is added to what dw holds.
///
/// Rows come in blocks, and all but the first add to dw: where that is bf16, it is rounded once for
/// each block. Where x and w are bf16, so are the gradients of the logits, rounded once when they
/// are complete, so that dx and dw are sums of products of two bf16.
///
/// Buffers: x, w, targets i32 [rows], (weight f32 [1] if weighted), loss f32 [1], (dx [rows,
/// width], dw [vocab, width] if grad), workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearCrossEntropySpec {
    /// x, w and dx.
    pub elem: Elem,
    /// dw, if `grad`.
    pub dw: Elem,
    pub rows: u32,
    pub vocab: u32,
    pub width: u32,
    pub grad: bool,
    pub weighted: bool,
    pub accumulate: bool,
}

/// out[i, :] = table[ids[i], :]. Ids are known to be in range. Buffers: table [vocab, width], ids
/// i32 [rows], out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatherSpec {
    /// The table and out.
    pub elem: Elem,
    pub rows: u32,
    pub vocab: u32,
    pub width: u32,
}

/// out[v, :] = (base[v, :] if accumulate, else 0) + Σ_{i: ids[i] = v} g[i, :], summed in the order
/// of i. With `accumulate`, `out` already holds the base. Sums are f32, and rounded once where out
/// is bf16. Ids are below vocab.
/// Buffers: ids i32 [rows], g [rows, width], out [vocab, width], workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScatterAddSpec {
    /// g.
    pub elem: Elem,
    pub out: Elem,
    pub rows: u32,
    pub vocab: u32,
    pub width: u32,
    pub accumulate: bool,
}

/// cache[b, start + t, :] = x[b, t, :] for every t, in place.
/// Buffers: x [batch, t, width], start i32 [1], cache [batch, capacity, width].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheWriteSpec {
    /// x and the cache.
    pub elem: Elem,
    pub batch: u32,
    pub t: u32,
    pub capacity: u32,
    pub width: u32,
}

/// out = Σ g². The order of the sum depends on `len` alone. Buffers: g [len], out f32 [1],
/// workspace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SumOfSquaresSpec {
    /// g.
    pub elem: Elem,
    pub len: u64,
}

/// In place: g' = g·scale; m = beta1·m + (1−beta1)·g'; v = beta2·v + (1−beta2)·g'²;
/// p −= lr·(decay·p + (m/correct1)/(sqrt(v/correct2) + eps)).
///
/// With `master` the formula works on a copy of p in f32, and p becomes the nearest to it. With
/// `stochastic` (p, m and v are bf16, and there is no master) the three results are rounded by
/// `rounding::stochastic_round` with streams 0, 1 and 2.
///
/// Buffers: g [len], scale, lr, correct1, correct2 (f32 [1] each), (seed i32 [1] if stochastic), p,
/// m, v [len], (master f32 [len] if master).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWSpec {
    pub params: Elem,
    pub grads: Elem,
    /// m and v.
    pub moments: Elem,
    pub master: bool,
    pub stochastic: bool,
    pub len: u64,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub decay: f32,
}

/// Elements of one partial sum of `SumOfSquares`. Changing it changes the bits of every gradient
/// norm.
pub const SUM_CHUNK: u64 = 16384;

/// What a contraction's workspace has room for: fixed by the spec and the number of units alone, so
/// that the memory plan knows it. A CPU works in blocks of its own within that, and a GPU in its
/// tiles. No block of k depends on the units, and with it no order of summation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContractBlocks {
    /// Steps of k of a packed block.
    pub depth: u64,
    /// Columns of the packed block of b, a multiple of every tile's width.
    pub columns: u64,
    /// Rows of each unit's packed block of a, a multiple of every tile's height.
    pub rows: u64,
    /// So few rows that b is better read in place once than packed; then all of a is packed by each
    /// unit.
    pub skinny: bool,
    /// Each unit takes batches of its own instead of a share of every batch.
    pub split_batch: bool,
    /// Partial sums are kept in the workspace, because k takes several blocks and an epilogue
    /// follows or the output could not hold them in f32.
    pub partial: bool,
}

impl ContractBlocks {
    pub const DEPTH: u64 = 512;
    pub const COLUMNS: u64 = 3072;
    const ROWS: u64 = 96;
    /// Common multiples of the widths and heights that tiles have.
    pub const TILE_COLUMNS: u64 = 192;
    pub const TILE_ROWS: u64 = 48;
    /// Up to so many rows a contraction is skinny.
    pub const SKINNY_ROWS: u64 = 8;
    /// Elements at the start of the workspace for the counters by which units take work.
    pub const COUNTERS: u64 = 64;

    pub fn of(spec: &ContractSpec, units: u32) -> ContractBlocks {
        let size = |dims: &[Dim]| dims.iter().map(|dim| u64::from(dim.size)).product::<u64>();
        let (batch, m, n, k) = (size(&spec.batch), size(&spec.m), size(&spec.n), size(&spec.k));
        let blocks = k.div_ceil(Self::DEPTH).max(1);
        let prepares_b = spec.prologue.as_ref().is_some_and(|p| p.operand == Operand::B);
        ContractBlocks {
            // Blocks of nearly the same depth, in whole vectors.
            depth: k.div_ceil(blocks).next_multiple_of(16).min(Self::DEPTH),
            columns: n.next_multiple_of(Self::TILE_COLUMNS).min(Self::COLUMNS),
            rows: m.next_multiple_of(Self::TILE_ROWS).min(Self::ROWS),
            skinny: m <= Self::SKINNY_ROWS && batch == 1 && !prepares_b,
            split_batch: batch >= u64::from(units) * 2,
            partial: blocks > 1 && !spec.is_plain_sum(),
        }
    }

    /// Elements of the packed block of b.
    pub fn packed_b(&self) -> u64 {
        self.columns * self.depth
    }

    /// Elements of a unit's packed block of a; rows are kept apart by one vector.
    pub fn packed_a(&self, spec: &ContractSpec) -> u64 {
        let k: u64 = spec.k.iter().map(|dim| u64::from(dim.size)).product();
        let all = if self.skinny { Self::SKINNY_ROWS * (k + 16) } else { 0 };
        all.max(self.rows * (self.depth + 16))
    }

    /// Elements of the tile that a unit hands from the accumulators to the epilogue.
    pub fn tile(&self) -> u64 {
        Self::TILE_ROWS * Self::TILE_COLUMNS
    }

    /// Elements of the partial sums of one block of columns.
    pub fn partial_sums(&self, spec: &ContractSpec) -> u64 {
        let m: u64 = spec.m.iter().map(|dim| u64::from(dim.size)).product();
        if self.partial { m * self.columns } else { 0 }
    }
}

fn contract_workspace_bytes(spec: &ContractSpec, units: u32) -> u64 {
    let blocks = ContractBlocks::of(spec, units);
    let shared = blocks.packed_b() + blocks.partial_sums(spec);
    let copies = if blocks.split_batch { u64::from(units) } else { 1 };
    4 * (ContractBlocks::COUNTERS
        + shared * copies
        + (blocks.packed_a(spec) + blocks.tile()) * u64::from(units))
}

/// What attention's workspace has room for, and the parts that a head is divided into; they depend
/// on the spec alone. How many keys a CPU passes at a time depends on its registers too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionBlocks {
    /// Parts of a sequence's keys that decoding visits on their own and combines.
    pub decode_parts: u64,
    /// Parts of a head's queries whose key gradients are added up at the end.
    pub grad_parts: u64,
}

impl AttentionBlocks {
    /// Queries and keys of a block, at most.
    pub const QUERIES: u64 = 64;
    pub const KEYS: u64 = 64;
    /// Queries that a tile of keys meets at once.
    pub const TOGETHER: u64 = 128;
    /// Keys of one part when decoding.
    pub const DECODE_KEYS: u64 = 512;
    /// Work items of a gradient below which a head is split, so that all units find work.
    const GRAD_ITEMS: u64 = 16;
    const GRAD_PARTS: u64 = 4;
    /// Heads are padded to this in gradients of keys.
    const LANES: u64 = 16;

    pub fn of(spec: &AttentionSpec) -> Self {
        let heads = u64::from(spec.batch) * u64::from(spec.kv_heads);
        let blocks = u64::from(spec.group) * u64::from(spec.t).div_ceil(Self::QUERIES);
        let wanted = Self::GRAD_ITEMS.div_ceil(heads.max(1)).min(Self::GRAD_PARTS);
        AttentionBlocks {
            decode_parts: u64::from(spec.s).div_ceil(Self::DECODE_KEYS),
            grad_parts: wanted.min(blocks).max(1),
        }
    }

    fn forward_bytes(&self, spec: &AttentionSpec, units: u32) -> u64 {
        let head = u64::from(spec.head);
        let unit = (2 * head + 4) * Self::TOGETHER + Self::KEYS * Self::QUERIES;
        let rows = u64::from(spec.batch * spec.kv_heads * spec.group);
        let decode = rows * self.decode_parts * (head + 2);
        4 * if spec.t == 1 { decode } else { unit * u64::from(units) }
    }

    fn grad_bytes(&self, spec: &AttentionSpec, units: u32) -> u64 {
        let padded = u64::from(spec.head).next_multiple_of(Self::LANES);
        let tiles = 2 * Self::KEYS * Self::QUERIES;
        let unit = tiles + (3 * u64::from(spec.head) + 2 * padded + 4) * Self::QUERIES;
        let heads = u64::from(spec.batch) * u64::from(spec.kv_heads);
        let sums = 2 * padded * (u64::from(spec.s) + Self::KEYS);
        let items = if self.grad_parts == 1 { u64::from(units) } else { heads * self.grad_parts };
        4 * (unit * u64::from(units) + sums * items)
    }
}

/// How `LinearCrossEntropy` uses its workspace. Rows are visited in blocks whose logits fit
/// `LOGITS` elements; the order of summation over blocks depends on the spec alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearCrossEntropyParts {
    /// Rows whose logits exist at one time.
    pub block_rows: u32,
    /// Byte offsets: one block of logits, the loss of every row, the scale 1/valid, the
    /// contractions' workspace.
    pub logits: u64,
    pub losses: u64,
    pub scale: u64,
    pub scratch: u64,
    pub end: u64,
}

impl LinearCrossEntropyParts {
    const LOGITS: u32 = 1 << 24;
    const MAX_ROWS: u32 = 2048;

    pub fn of(spec: &LinearCrossEntropySpec, target: impl Into<Target>) -> Self {
        let target = target.into();
        let most = match target {
            Target::Threads(_) => Self::MAX_ROWS,
            Target::Gpu => u32::MAX,
        };
        let fitting = (Self::LOGITS / spec.vocab.max(1)).clamp(16, most);
        let block_rows = (fitting / 16 * 16).min(spec.rows).max(1);
        let align = |bytes: u64| bytes.next_multiple_of(256);
        let losses = align(u64::from(block_rows) * u64::from(spec.vocab) * 4);
        let scale = losses + align(u64::from(spec.rows) * 4);
        let scratch = scale + 256;
        let last = spec.rows.saturating_sub(1) % block_rows + 1;
        let need = [block_rows, last]
            .iter()
            .flat_map(|rows| spec.contractions(*rows))
            .map(|contraction| workspace_bytes(&KernelSpec::Contract(contraction), target))
            .max()
            .unwrap_or(0);
        LinearCrossEntropyParts {
            block_rows,
            logits: 0,
            losses,
            scale,
            scratch,
            end: scratch + align(need),
        }
    }
}

impl LinearCrossEntropySpec {
    /// The contractions of one block of rows: logits = x·wᵀ, dx = dlogits·w, dw += dlogitsᵀ·x. The
    /// gradients of a row of logits begin where the row did, whatever their elements are.
    pub fn contractions(&self, rows: u32) -> [ContractSpec; 3] {
        use Elem::F32;
        let (vocab, width, elem) = (self.vocab, self.width, self.elem);
        let row = vocab * (F32.bytes() / elem.bytes()) as u32;
        let dim = |size, stride, stride_b| Dim { size, stride, stride_b };
        let contraction = |(a, out), [m, n, k]: [Dim; 3]| ContractSpec {
            a,
            b: elem,
            outputs: vec![out],
            batch: vec![],
            m: vec![m],
            n: vec![n],
            k: vec![k],
            prologue: None,
            rotary: None,
            epilogue_inputs: vec![],
            epilogue: vec![],
        };
        [
            contraction((elem, F32), [dim(rows, width, 0), dim(vocab, width, 0), dim(width, 1, 1)]),
            contraction((elem, elem), [dim(rows, row, 0), dim(width, 1, 0), dim(vocab, 1, width)]),
            contraction(
                (elem, self.dw),
                [dim(vocab, 1, 0), dim(width, 1, 0), dim(rows, row, width)],
            ),
        ]
    }
}

/// Workspace bytes of a launch. The memory plan reserves exactly this, so a kernel may rely on it
/// and must not need more.
pub fn workspace_bytes(spec: &KernelSpec, target: impl Into<Target>) -> u64 {
    let units = match target.into() {
        Target::Threads(units) => units,
        Target::Gpu => return gpu::workspace_bytes(spec),
    };
    match spec {
        KernelSpec::Contract(spec) | KernelSpec::ContractAdd(spec) => {
            contract_workspace_bytes(spec, units)
        }
        KernelSpec::LinearCrossEntropy(spec) => LinearCrossEntropyParts::of(spec, units).end,
        KernelSpec::SumOfSquares(spec) | KernelSpec::MoreSquares(spec) => {
            spec.len.div_ceil(SUM_CHUNK) * 4
        }
        KernelSpec::Attention(spec) => AttentionBlocks::of(spec).forward_bytes(spec, units),
        KernelSpec::AttentionGrad(spec) => AttentionBlocks::of(spec).grad_bytes(spec, units),
        // The order of the rows by id, as `GroupedParts` has it.
        KernelSpec::ScatterAdd(spec) if spec.out == Elem::Bf16 => {
            4 * (u64::from(spec.rows) + 2 * u64::from(spec.vocab) + 3)
        }
        KernelSpec::GroupedContract(spec) => spec.workspace_bytes(units),
        KernelSpec::GroupedOuter(spec) => spec.workspace_bytes(units),
        _ => 0,
    }
}
