//! Numbers of bytes as flags give them.

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
