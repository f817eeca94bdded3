//! Repeated regions as loops: carries in slots, stacked values by slices.

use crate::executable::Space;
use crate::layout::{Loc, Turn, slice_bytes, slice_stride, slice_type};
use crate::lower::{Done, Item, Loop, Lowering, Places, stacked_loc};
use mdl_ir::graph::{Body, Node, ValueId};
use mdl_ir::op::{Memory, Op};
use mdl_ir::tensor_type::Type;
use std::collections::HashMap;

impl Lowering {
    pub(crate) fn repeat(
        &mut self,
        outer: &Body,
        node: &Node,
        i: usize,
        places: &mut Places,
        wanted: &Places,
        buffers: &HashMap<(usize, usize), usize>,
    ) -> Done<()> {
        let Op::Repeat { count, reverse, carries, consts, body, .. } = &node.op else {
            return Err("a repeated region".into());
        };
        if self.current.is_some() {
            return Err("a repeated region inside a repeated region is not scheduled yet".into());
        }
        let last = *count as i64 - 1;
        let (start, step) = if *reverse { (last, -1) } else { (0, 1) };
        let mut inside: Places = HashMap::new();
        let mut asked: Places = HashMap::new();
        for j in 0..*carries {
            let ty = outer.ty(node.args[j]);
            let buffer = buffers[&(i, j)];
            let first = Loc::dense(buffer, ty);
            if places[&node.args[j]] != first {
                let from = places[&node.args[j]].clone();
                self.copy(&outer.name(node.args[j]), ty, &from, &first)?;
            }
            let kept = history(body, j, *carries, *reverse);
            let slots = if kept { 0 } else { 2 };
            let turn = Turn { stride: slice_stride(ty), start: 0, step: 1, slots };
            let place = |start: i64| Loc { turn: Some(Turn { start, ..turn }), ..first.clone() };
            inside.insert(body.inputs[j], place(0));
            asked.insert(body.outputs[j], place(1));
            let slot = if kept { *count } else { count % 2 };
            let done = Loc { offset: slot * turn.stride, ..first.clone() };
            places.insert(node.results[j], done);
        }
        for (input, arg) in body.inputs.iter().zip(&node.args).skip(*carries) {
            let n = body.inputs.iter().position(|x| x == input).unwrap_or(0);
            let loc = places[arg].clone();
            let loc = if n < carries + consts { loc } else { slice_of(&loc, start, step) };
            inside.insert(*input, loc);
        }
        for (k, out) in body.outputs.iter().enumerate().skip(*carries) {
            let result = node.results[k];
            let ty = outer.ty(result).clone();
            let stacked =
                self.stacked(body, *out, &ty, wanted.get(&result), places, node, buffers, i)?;
            if !asked.contains_key(out) && !inside.contains_key(out) {
                asked.insert(*out, slice_of(&stacked, start, step));
            }
            places.insert(result, stacked);
        }
        self.stage(body, &inside, &mut asked);
        self.run_loop(*count, body, inside, asked, places, node, (start, step))
    }

    /// Where a stacked result lies: the carry's history, the host's memory, the cache that is
    /// updated in place, what is wanted, or a buffer of its own.
    #[allow(clippy::too_many_arguments)]
    fn stacked(
        &mut self,
        body: &Body,
        out: ValueId,
        ty: &Type,
        wanted: Option<&Loc>,
        places: &Places,
        node: &Node,
        buffers: &HashMap<(usize, usize), usize>,
        i: usize,
    ) -> Done<Loc> {
        let Op::Repeat { carries, reverse, .. } = &node.op else {
            return Err("a region".into());
        };
        if let Some(j) = body.inputs.iter().take(*carries).position(|x| *x == out)
            && !*reverse
        {
            return Ok(stacked_loc(buffers[&(i, j)], ty));
        }
        let producer = body.nodes.iter().find(|n| n.results.contains(&out));
        if producer.is_some_and(|n| n.op == Op::Transfer { to: Memory::Host }) {
            // The state has its place there; what waits for a gradient gets one.
            let there = wanted.filter(|loc| self.buffers[loc.buffer].space == Space::Host);
            return Ok(there.cloned().unwrap_or_else(|| self.host(&body.name(out), ty)));
        }
        if let Some(Node { op: Op::CacheWrite { .. }, args, .. }) = producer
            && let Some(n) = body.inputs.iter().position(|x| *x == args[1])
        {
            return Ok(places[&node.args[n]].clone());
        }
        if let Some(loc) = wanted {
            return Ok(loc.clone());
        }
        let bytes = slice_bytes(ty.axes[0].size, &slice_type(ty));
        // What is kept of a layer comes from a line of the layer, not from the one that repeats it.
        let made_at = producer.map_or(node.span, |p| p.span);
        let outside = std::mem::replace(&mut self.here, made_at);
        let buffer = self.buffer(&body.name(out), bytes, None);
        self.here = outside;
        Ok(stacked_loc(buffer, ty))
    }

    #[allow(clippy::too_many_arguments)]
    fn run_loop(
        &mut self,
        count: u64,
        body: &Body,
        inside: Places,
        asked: Places,
        places: &Places,
        node: &Node,
        (start, step): (i64, i64),
    ) -> Done<()> {
        let begin = self.open_loop();
        let mut inside = inside;
        self.body(body, &mut inside, asked.clone())?;
        // Stacked outputs that are also something else in the body are copied to their slices.
        let carries = match &node.op {
            Op::Repeat { carries, .. } => *carries,
            _ => 0,
        };
        for (k, out) in body.outputs.iter().enumerate().skip(carries) {
            let to = slice_of(&places[&node.results[k]], start, step);
            let from = inside[out].clone();
            if !same_slots(&from, &to) {
                self.copy(&body.name(*out), body.ty(*out), &from, &to)?;
            }
        }
        self.close_loop(count, begin)
    }

    /// Begins a loop, and says at which launch.
    pub(crate) fn open_loop(&mut self) -> usize {
        self.loops += 1;
        let number = self.loops;
        self.current = Some(Loop { number, body: Vec::new(), touched: Vec::new() });
        self.clock
    }

    /// Ends the loop that began at this launch: what it touches from outside is in use throughout.
    pub(crate) fn close_loop(&mut self, count: u64, begin: usize) -> Done<()> {
        let done = self.current.take().ok_or("a loop is open")?;
        let end = self.clock.saturating_sub(1).max(begin);
        for b in done.touched {
            let buffer = &mut self.buffers[b];
            buffer.first = buffer.first.min(begin);
            buffer.last = buffer.last.max(end);
        }
        self.items.push(Item::Loop { count, body: done.body });
        Ok(())
    }
}

/// Does the region also emit the carry it was given, in the order of iterations?
pub(crate) fn history(body: &Body, carry: usize, carries: usize, reverse: bool) -> bool {
    !reverse && body.outputs[carries..].contains(&body.inputs[carry])
}

/// The same slot in every iteration?
fn same_slots(a: &Loc, b: &Loc) -> bool {
    a == b
        || match (a.turn, b.turn) {
            (Some(x), Some(y)) => {
                let plain = |t: Turn| (t.stride, t.start, t.step);
                a.buffer == b.buffer && a.offset == b.offset && plain(x) == plain(y)
            }
            _ => false,
        }
}

/// The slice of a stacked value that an iteration sees.
fn slice_of(stacked: &Loc, start: i64, step: i64) -> Loc {
    Loc {
        buffer: stacked.buffer,
        offset: stacked.offset,
        strides: stacked.strides[1..].to_vec(),
        turn: Some(Turn { stride: stacked.strides[0], start, step, slots: 0 }),
    }
}
