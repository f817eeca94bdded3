//! Attention and its gradient against f64 loops.

use crate::device::Class;
use crate::embedding::testing::{Buffers, ELEMS, relative_error};
use mdl_ir::kernel::{AttentionSpec, Elem, KernelSpec, MaskSpec};

/// Scores are sums of at most 64 products of size 1 and so carry about 8 roundings of 2⁻²⁴;
/// exponentials are good to 1.5e-7, and both average out over the keys.
const FORWARD_TOLERANCE: f64 = 1e-6;

/// What tensor cores add. They take bf16 weights for bf16 values, each rounded by up to 2⁻⁹ of
/// itself. In f32 they cut off where they add, by up to 2⁻²³ of the sum in each of three products
/// of eight steps: over the head for a score, and for a result over the keys that pass by at a
/// time, 64 at most. What the tiles of keys give is added by units, which round.
pub(crate) fn narrowing(class: Class, spec: &AttentionSpec) -> f64 {
    let steps = spec.head.div_ceil(8) + spec.s.max(spec.t).min(64).div_ceil(8);
    match (class, spec.elem) {
        (Class::Cuda, Elem::Bf16) => 2f64.powi(-9),
        (Class::Cuda, _) => 3.0 * f64::from(steps) * 2f64.powi(-23),
        _ => 0.0,
    }
}

pub(crate) fn case(
    t: u32,
    s: u32,
    kv_heads: u32,
    group: u32,
    head: u32,
    mask: MaskSpec,
) -> AttentionSpec {
    let scale = 1.0 / (head as f32).sqrt();
    AttentionSpec { elem: Elem::F32, batch: 2, t, s, kv_heads, group, head, scale, mask }
}

pub(crate) fn causal() -> MaskSpec {
    MaskSpec { causal: true, ..MaskSpec::default() }
}

/// Every shape in every element type.
pub(crate) fn cases() -> Vec<AttentionSpec> {
    let with = |spec: AttentionSpec| ELEMS.map(|elem| AttentionSpec { elem, ..spec.clone() });
    shapes().into_iter().flat_map(with).collect()
}

/// Shapes that reach every branch: ragged blocks of queries and keys, every mask, groups.
fn shapes() -> Vec<AttentionSpec> {
    let window = MaskSpec { window: Some(9), ..causal() };
    let documents = MaskSpec { documents: true, ..causal() };
    vec![
        case(5, 5, 1, 1, 8, causal()),
        case(33, 33, 2, 3, 12, causal()),
        case(16, 50, 1, 2, 16, MaskSpec::default()),
        case(70, 70, 1, 1, 20, causal()),
        case(130, 130, 2, 1, 48, causal()),
        case(97, 201, 1, 2, 64, MaskSpec::default()),
        case(100, 100, 1, 1, 7, window),
        case(150, 150, 1, 2, 32, MaskSpec { window: Some(64), ..causal() }),
        case(40, 300, 1, 1, 16, MaskSpec { window: Some(20), ..MaskSpec::default() }),
        case(90, 90, 2, 2, 32, documents),
        case(80, 80, 1, 1, 128, MaskSpec { window: Some(30), ..documents }),
        // Whole tiles of one document, and of others that nobody sees.
        case(400, 400, 1, 2, 16, documents),
        case(6, 40, 2, 1, 16, MaskSpec { start: true, ..causal() }),
        case(40, 90, 1, 1, 16, MaskSpec { start: true, window: Some(17), ..causal() }),
        case(1, 60, 2, 3, 48, MaskSpec { start: true, ..causal() }),
        case(1, 1100, 1, 2, 20, MaskSpec { start: true, ..causal() }),
        case(1, 700, 2, 1, 64, MaskSpec { start: true, window: Some(600), ..causal() }),
        case(1, 30, 1, 1, 7, MaskSpec { documents: true, ..MaskSpec::default() }),
    ]
}

/// The position of query 0 in a test: the cache is nearly full.
pub(crate) fn start_of(spec: &AttentionSpec) -> usize {
    if spec.mask.start { (spec.s - spec.t - 3) as usize } else { 0 }
}

/// Documents in runs of about a third; the last queries belong to one that no key has.
pub(crate) fn document_t(spec: &AttentionSpec, t: usize) -> i32 {
    if t + 2 > spec.t as usize { 99 } else { (t * 3 / spec.t as usize) as i32 }
}

pub(crate) fn document_s(spec: &AttentionSpec, s: usize) -> i32 {
    (s * 3 / spec.s as usize) as i32
}

pub(crate) fn sees(spec: &AttentionSpec, start: usize, t: usize, s: usize) -> bool {
    let position = start + t;
    let mask = spec.mask;
    let causal = !mask.causal || s <= position;
    let window = mask.window.is_none_or(|window| position < s + window as usize);
    causal && window && (!mask.documents || document_t(spec, t) == document_s(spec, s))
}

/// q, k, v and the mask's buffers.
pub(crate) fn inputs(buffers: &mut Buffers, spec: &AttentionSpec) -> Vec<usize> {
    let queries = (spec.batch * spec.t * spec.kv_heads * spec.group * spec.head) as usize;
    let keys = (spec.batch * spec.s * spec.kv_heads * spec.head) as usize;
    let mut args = [queries, keys, keys].map(|len| buffers.random(spec.elem, len)).to_vec();
    if spec.mask.documents {
        let (batch, t, s) = (spec.batch as usize, spec.t as usize, spec.s as usize);
        args.push(buffers.ints((0..batch * t).map(|i| document_t(spec, i % t))));
        args.push(buffers.ints((0..batch * s).map(|i| document_s(spec, i % s))));
    }
    if spec.mask.start {
        args.push(buffers.ints([start_of(spec) as i32].into_iter()));
    }
    args
}

/// One query row of the reference: its offsets, and the probability of every key.
pub(crate) struct Row {
    pub q: usize,
    pub keys: Vec<usize>,
    pub p: Vec<f64>,
    pub lse: f64,
}

pub(crate) fn rows(spec: &AttentionSpec, q: &[f64], k: &[f64]) -> Vec<Row> {
    rows_from(spec, start_of(spec), q, k)
}

fn rows_from(spec: &AttentionSpec, start: usize, q: &[f64], k: &[f64]) -> Vec<Row> {
    (0..row_count(spec)).map(|row| row_of(spec, start, (q, k), row)).collect()
}

pub(crate) fn row_count(spec: &AttentionSpec) -> usize {
    (spec.batch * spec.t * spec.kv_heads * spec.group) as usize
}

/// Rows are in the order of memory: batch, t, head.
pub(crate) fn row_of(
    spec: &AttentionSpec,
    start: usize,
    (q, k): (&[f64], &[f64]),
    row: usize,
) -> Row {
    let head = spec.head as usize;
    let (heads, group) = ((spec.kv_heads * spec.group) as usize, spec.group as usize);
    let (t_count, s_count) = (spec.t as usize, spec.s as usize);
    let (b, t, h) = (row / heads / t_count, row / heads % t_count, row % heads / group);
    let key = |s: usize| ((b * s_count + s) * spec.kv_heads as usize + h) * head;
    let keys: Vec<usize> = (0..s_count).map(key).collect();
    let score = |s: usize| {
        let pairs = q[row * head..][..head].iter().zip(&k[keys[s]..][..head]);
        let dot: f64 = pairs.map(|(a, b)| a * b).sum();
        if sees(spec, start, t, s) { dot * f64::from(spec.scale) } else { f64::NEG_INFINITY }
    };
    let scores: Vec<f64> = (0..s_count).map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
    let lse = if largest.is_finite() { largest + sum.ln() } else { f64::NEG_INFINITY };
    let p = scores.iter().map(|x| if x.is_finite() { (x - lse).exp() } else { 0.0 });
    Row { q: row * head, keys, p: p.collect(), lse }
}

/// Results and log-sum-exp of these rows, and zeros for the others.
pub(crate) fn reference(spec: &AttentionSpec, rows: &[Row], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let head = spec.head as usize;
    let (mut y, mut lse) = (vec![0.0; row_count(spec) * head], vec![0.0; row_count(spec)]);
    for row in rows {
        lse[row.q / head] = row.lse;
        for (p, key) in row.p.iter().zip(&row.keys) {
            for d in 0..head {
                y[row.q + d] += p * v[key + d];
            }
        }
    }
    (y, lse)
}

/// The longest sequence that is promised, and some of its rows: those beside the edges of tiles.
pub(crate) fn long() -> (AttentionSpec, [usize; 8]) {
    (AttentionSpec { batch: 1, ..case(8192, 8192, 1, 1, 48, causal()) }, LONG_ROWS)
}

const LONG_ROWS: [usize; 8] = [0, 47, 64, 1000, 4095, 4096, 8190, 8191];

#[test]
fn forward_matches_the_formula() {
    for spec in cases() {
        let mut buffers = Buffers::new();
        let mut args = inputs(&mut buffers, &spec);
        let y = buffers.zeros(spec.elem, buffers.f32(args[0]).len());
        let lse = buffers.zeros(Elem::F32, buffers.f32(args[0]).len() / spec.head as usize);
        args.extend([y, lse]);
        let rows = rows(&spec, &buffers.f64(args[0]), &buffers.f64(args[1]));
        let (expected, sums) = reference(&spec, &rows, &buffers.f64(args[2]));
        let kernel = KernelSpec::Attention(spec.clone());
        for (class, results) in buffers.run_on_devices(&kernel, &args) {
            let error = relative_error(spec.elem, &results[y], &expected);
            let tolerance = FORWARD_TOLERANCE + narrowing(class, &spec);
            assert!(error < tolerance, "{class:?}, {spec:?}: {error}");
            for (got, expected) in results[lse].iter().zip(&sums) {
                let same = f64::from(*got) == *expected;
                let close = (f64::from(*got) - expected).abs() < 4e-6;
                assert!(same || close, "{class:?}, {spec:?}: log-sum-exp {got} for {expected}");
            }
        }
    }
}

/// Of each partial sum over the keys of one row at most 2⁻²⁴ is lost; over 8192 of them, as large
/// as the result in the end, that is a random walk of √8192 such steps.
const LONG_TOLERANCE: f64 = 90.5 / (1u64 << 24) as f64;

/// On CPUs: on a GPU in software it takes minutes.
#[test]
fn forward_matches_the_formula_in_a_long_sequence() {
    let (spec, picked) = long();
    let mut buffers = Buffers::new();
    let mut args = inputs(&mut buffers, &spec);
    let [q, k, v] = [0, 1, 2].map(|i| buffers.f64(args[i]));
    let y = buffers.zeros(spec.elem, q.len());
    args.extend([y, buffers.zeros(Elem::F32, row_count(&spec))]);
    let rows = picked.map(|row| row_of(&spec, 0, (&q, &k), row));
    let (expected, _) = reference(&spec, &rows, &v);
    let results = buffers.run_on_units(&KernelSpec::Attention(spec.clone()), &args);
    let head = spec.head as usize;
    for row in &rows {
        let own = row.q..row.q + head;
        let error = relative_error(spec.elem, &results[y][own.clone()], &expected[own]);
        assert!(error < LONG_TOLERANCE, "row {}: {error}", row.q / head);
    }
}

/// Tiles of keys that the mask hides from all queries of a tile are not read, or what is no number
/// there would come out: those behind the last query, and those of another document.
#[test]
fn hidden_tiles_are_skipped() {
    // Multiples of every tile of keys and of every block of queries, on all CPUs and GPUs.
    const DOCUMENT: usize = 384;
    const T: u32 = 3 * DOCUMENT as u32;
    let documents = MaskSpec { documents: true, ..causal() };
    let second = DOCUMENT..2 * DOCUMENT;
    for (mask, hidden) in [(causal(), DOCUMENT..T as usize), (documents, 0..DOCUMENT)] {
        let spec = AttentionSpec { batch: 1, ..case(T, T, 1, 1, 16, mask) };
        let seen = if mask.documents { second.clone() } else { 0..DOCUMENT };
        let mut buffers = Buffers::new();
        let mut args = inputs(&mut buffers, &spec);
        let [q, k, v] = [0, 1, 2].map(|i| buffers.f64(args[i]));
        let head = spec.head as usize;
        for i in [1, 2] {
            let mut values = buffers.f32(args[i]).to_vec();
            values[hidden.start * head..hidden.end * head].fill(f32::NAN);
            args[i] = buffers.push(spec.elem, values);
        }
        let y = buffers.zeros(spec.elem, q.len());
        args.extend([y, buffers.zeros(Elem::F32, row_count(&spec))]);
        let rows: Vec<Row> = seen.clone().map(|row| row_of(&spec, 0, (&q, &k), row)).collect();
        let (expected, _) = reference(&spec, &rows, &v);
        let own = seen.start * head..seen.end * head;
        let all = buffers.run_on_devices(&KernelSpec::Attention(spec.clone()), &args);
        // GPUs read tiles of other documents, and hide them.
        let skips = |class: Class| class == Class::Cpu || !mask.documents;
        for (class, results) in all.into_iter().filter(|(class, _)| skips(*class)) {
            let error = relative_error(spec.elem, &results[y][own.clone()], &expected[own.clone()]);
            let tolerance = FORWARD_TOLERANCE + narrowing(class, &spec);
            assert!(error < tolerance, "{class:?}, {mask:?}: {error}");
        }
    }
}

/// Positions that the cache of these tests has room for.
const CACHE: u32 = 150;

/// Such a cache, of which a window of 7 is seen.
fn windowed(t: u32) -> AttentionSpec {
    let mask = MaskSpec { window: Some(7), start: true, ..causal() };
    AttentionSpec { batch: 2, ..case(t, CACHE, 2, 2, 12, mask) }
}

/// Keys that are outside the window are not read: nothing comes of what is not a number there.
/// More queries than one visit whole tiles of keys, of which the first may begin before the window;
/// those keys are read, and hidden.
#[test]
fn a_window_moves_over_a_cache() {
    // Of all CPUs and GPUs.
    const TILES: [usize; 2] = [48, 64];
    for (t, elem) in [1, 2, 5, 20, 33].into_iter().flat_map(|t| ELEMS.map(|elem| (t, elem))) {
        let spec = AttentionSpec { elem, ..windowed(t) };
        for start in [0, 1, 6, 7, 8, 19, 100, (CACHE - t) as usize] {
            let mut buffers = Buffers::new();
            let mut args = inputs(&mut buffers, &spec);
            let [q, k, v] = [0, 1, 2].map(|i| buffers.f64(args[i]));
            let first = (start + 1).saturating_sub(7);
            let begun = TILES.map(|tile| first / tile * tile);
            let first = if t == 1 { first } else { begun[0].min(begun[1]) };
            let width = (spec.kv_heads * spec.head) as usize;
            for i in [1, 2] {
                let mut values = buffers.f32(args[i]).to_vec();
                for (row, key) in values.chunks_mut(width).zip((0..CACHE as usize).cycle()) {
                    if key < first || key >= start + t as usize {
                        row.fill(f32::NAN);
                    }
                }
                args[i] = buffers.push(spec.elem, values);
            }
            args[3] = buffers.ints([start as i32].into_iter());
            let y = buffers.zeros(spec.elem, q.len());
            let lse = buffers.zeros(Elem::F32, q.len() / spec.head as usize);
            args.extend([y, lse]);
            let rows = rows_from(&spec, start, &q, &k);
            let (expected, sums) = reference(&spec, &rows, &v);
            let kernel = KernelSpec::Attention(spec.clone());
            for (class, results) in buffers.run_on_devices(&kernel, &args) {
                let error = relative_error(spec.elem, &results[y], &expected);
                let tolerance = FORWARD_TOLERANCE + narrowing(class, &spec);
                assert!(error < tolerance, "{class:?}, {t} queries from {start}: {error}");
                let error = relative_error(Elem::F32, &results[lse], &sums);
                let tolerance = FORWARD_TOLERANCE;
                assert!(error < tolerance, "{class:?}, {t} queries from {start}: {error} of sums");
            }
        }
    }
}
