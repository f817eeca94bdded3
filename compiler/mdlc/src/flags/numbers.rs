//! Numbers of a run that mean something: what is not a number, or infinite, would end in a loss
//! that is none.

/// Zero or more.
pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text).filter(|x| *x >= 0.0).ok_or("a number from 0 on, such as 0.1 or 3e-4".to_string())
}

/// A share that is kept: from 0 to less than 1.
pub fn share(text: &str) -> Result<f64, String> {
    let number = number(text).filter(|x| (0.0..1.0).contains(x));
    number.ok_or("a number from 0 to less than 1, such as 0.95".to_string())
}

/// A part of a whole: from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    let number = number(text).filter(|x| (0.0..=1.0).contains(x));
    number.ok_or("a number from 0 to 1, such as 0.01".to_string())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|x: &f64| x.is_finite())
}
