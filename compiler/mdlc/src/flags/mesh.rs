//! Ranks as a flag gives them.

use mdl_passes::request::Mesh;

/// `8` is one machine with 8 devices, `2x4` are two with 4 each.
pub fn mesh(text: &str) -> Result<Mesh, String> {
    let number = |digits: &str| {
        let wrong = |_| format!("`{text}` is neither a number of ranks nor MACHINESxDEVICES");
        digits.parse::<u64>().map_err(wrong)
    };
    match text.split_once('x') {
        Some((machines, devices)) => Mesh::new(number(machines)?, number(devices)?),
        None => Mesh::new(1, number(text)?),
    }
}
