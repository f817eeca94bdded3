//! The table.
#[derive(Debug)]
pub struct Code { pub id: &'static str }
pub fn find(_id: &str) -> Option<&'static Code> { Some(&Code { id: "" }) }
