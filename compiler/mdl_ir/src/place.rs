//! Where in the source a node comes from. The graph carries it and never looks at it.

/// Bytes `start..end` of a file that the front end numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}
