//! Numbers of bytes as flags give them.

/// Bounds on memory, in bytes: of the device, of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub device: Option<u64>,
    pub host: Option<u64>,
}

/// `8GiB` bounds the device, `device=8GiB,host=64GiB` both, and either may stand alone.
pub fn bounds(text: &str) -> Result<Bounds, String> {
    if !text.contains('=') {
        return Ok(Bounds { device: Some(bytes(text)?), host: None });
    }
    let mut bounds = Bounds { device: None, host: None };
    for part in text.split(',') {
        let bound = match part.split_once('=') {
            Some(("device", n)) => (&mut bounds.device, n),
            Some(("host", n)) => (&mut bounds.host, n),
            _ => return Err(format!("`{part}` is neither device=BYTES nor host=BYTES")),
        };
        if bound.0.replace(bytes(bound.1)?).is_some() {
            return Err(format!("`{part}` comes twice"));
        }
    }
    Ok(bounds)
}

/// `5GB` is 5 · 10^9 bytes, `5GiB` is 5 · 2^30, and a plain number is bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("`{unit}` is none of B, KB, MB, GB, KiB, MiB and GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    number.checked_mul(factor).filter(|n| *n > 0).ok_or("between 1 byte and 2^64".to_string())
}
