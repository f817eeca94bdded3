//! From source text to graphs, plans and executables: the pipeline with nothing but data going in
//! and out.

pub mod budget;
pub mod embedded;
pub mod front;
pub mod pipeline;
pub mod proposals;
pub mod savings;
