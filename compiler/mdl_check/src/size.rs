//! Symbolic sizes: polynomials in named sizes with rational coefficients, in a normal form, each
//! with its value.
//!
//! Two sizes are equal when their polynomials are: sizes are compared, never solved. The value
//! belongs to the preset (or to made-up numbers where a model is checked without one) and appears
//! in messages and in graphs.

use mdl_symbol::Symbol;
use mdl_syntax::ast::BinaryOp;
use std::fmt;
use std::rc::Rc;

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    num: i128,
    den: i128,
}

impl Ratio {
    pub fn new(num: i128, den: i128) -> Option<Ratio> {
        if den == 0 {
            return None;
        }
        let g = i128::try_from(gcd(num.unsigned_abs(), den.unsigned_abs())).ok()?.max(1);
        let sign = if den < 0 { -1 } else { 1 };
        Some(Ratio { num: (num / g).checked_mul(sign)?, den: (den / g).checked_mul(sign)? })
    }

    pub fn whole(n: i128) -> Ratio {
        Ratio { num: n, den: 1 }
    }

    fn add(self, o: Ratio) -> Option<Ratio> {
        let num = self.num.checked_mul(o.den)?.checked_add(o.num.checked_mul(self.den)?)?;
        Ratio::new(num, self.den.checked_mul(o.den)?)
    }

    fn mul(self, o: Ratio) -> Option<Ratio> {
        Ratio::new(self.num.checked_mul(o.num)?, self.den.checked_mul(o.den)?)
    }

    fn div(self, o: Ratio) -> Option<Ratio> {
        Ratio::new(self.num.checked_mul(o.den)?, self.den.checked_mul(o.num)?)
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Exponents by name, in the order of the names; a division by a named size is a negative exponent.
type Monomial = Vec<(Symbol, i32)>;

/// Every axis of every value has one and few of them differ, so copies share it.
#[derive(Clone, Debug)]
pub struct Size(Rc<Polynomial>);

#[derive(Debug, PartialEq)]
struct Polynomial {
    terms: Vec<(Monomial, Ratio)>,
    value: Ratio,
}

impl PartialEq for Size {
    fn eq(&self, other: &Size) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Size {
    pub fn number(n: u64) -> Size {
        let ratio = Ratio::whole(i128::from(n));
        Size::of(vec![(Monomial::new(), ratio)], ratio)
    }

    pub fn named(name: Symbol, value: u64) -> Size {
        let monomial = Monomial::from([(name, 1)]);
        Size::of(vec![(monomial, Ratio::whole(1))], Ratio::whole(i128::from(value)))
    }

    fn of(terms: Vec<(Monomial, Ratio)>, value: Ratio) -> Size {
        Size(Rc::new(Polynomial { terms, value }))
    }

    fn terms(&self) -> &[(Monomial, Ratio)] {
        &self.0.terms
    }

    /// How many terms the polynomial has.
    pub fn terms_count(&self) -> usize {
        self.terms().len()
    }

    /// The whole number, if it is one.
    pub fn value(&self) -> Option<u64> {
        let value = self.0.value;
        (value.den == 1).then(|| u64::try_from(value.num).ok()).flatten()
    }

    /// Is it no whole number?
    pub fn is_fraction(&self) -> bool {
        self.0.value.den != 1
    }

    pub fn as_f64(&self) -> f64 {
        self.0.value.num as f64 / self.0.value.den as f64
    }

    pub fn same(&self, other: &Size) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || self.terms() == other.terms()
    }

    /// Is it a plain number, so that its polynomial says no more than its value?
    pub fn is_number(&self) -> bool {
        self.terms().iter().all(|(m, _)| m.is_empty())
    }

    /// `self op other`; None where a number overflows or the operation has no meaning for sizes.
    pub fn combine(&self, op: BinaryOp, other: &Size) -> Option<Size> {
        let minus = Ratio::whole(-1);
        match op {
            BinaryOp::Add => self.plus(other, Ratio::whole(1)),
            BinaryOp::Sub => self.plus(other, minus),
            BinaryOp::Mul => self.times(other),
            BinaryOp::Div => self.over(other),
            _ => None,
        }
    }

    fn plus(&self, other: &Size, factor: Ratio) -> Option<Size> {
        let mut terms = self.terms().to_vec();
        for (m, c) in other.terms().iter() {
            enter(&mut terms, m.clone(), c.mul(factor)?)?;
        }
        Some(normal(terms, self.0.value.add(other.0.value.mul(factor)?)?))
    }

    fn times(&self, other: &Size) -> Option<Size> {
        let mut terms = Vec::new();
        for (a, x) in self.terms().iter() {
            for (b, y) in other.terms().iter() {
                enter(&mut terms, joined(a, b, 1)?, x.mul(*y)?)?;
            }
        }
        Some(normal(terms, self.0.value.mul(other.0.value)?))
    }

    fn over(&self, other: &Size) -> Option<Size> {
        let value = self.0.value.div(other.0.value)?;
        let [(m, c)] = other.terms() else {
            return None;
        };
        let mut terms = Vec::new();
        for (a, x) in self.terms().iter() {
            enter(&mut terms, joined(a, m, -1)?, x.div(*c)?)?;
        }
        Some(normal(terms, value))
    }
}

/// Terms of a polynomial, and the power of a name in one: more are no size of a model.
const MAX_TERMS: usize = 64;
const MAX_POWER: i32 = 64;

fn joined(a: &Monomial, b: &Monomial, sign: i32) -> Option<Monomial> {
    let mut out = a.clone();
    for (name, power) in b {
        let at = match out.binary_search_by(|(other, _)| other.cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                out.insert(at, (*name, 0));
                at
            }
        };
        out[at].1 += sign * power;
        if out[at].1.abs() > MAX_POWER {
            return None;
        }
    }
    out.retain(|(_, power)| *power != 0);
    (out.len() <= MAX_TERMS).then_some(out)
}

fn enter(terms: &mut Vec<(Monomial, Ratio)>, m: Monomial, c: Ratio) -> Option<()> {
    match terms.iter_mut().find(|(x, _)| *x == m) {
        Some((_, old)) => *old = old.add(c)?,
        None => terms.push((m, c)),
    }
    (terms.len() <= MAX_TERMS).then_some(())
}

fn normal(mut terms: Vec<(Monomial, Ratio)>, value: Ratio) -> Size {
    terms.retain(|(_, c)| c.num != 0);
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    Size::of(terms, value)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (monomial, c)) in self.terms().iter().enumerate() {
            let sign = if c.num < 0 { "-" } else { "+" };
            match (i, c.num < 0) {
                (0, false) => {}
                (0, true) => write!(f, "-")?,
                _ => write!(f, " {sign} ")?,
            }
            let num = c.num.unsigned_abs();
            let mut parts = Vec::new();
            if num != 1 || monomial.is_empty() {
                parts.push(num.to_string());
            }
            for (name, power) in monomial.iter().filter(|(_, p)| *p > 0) {
                parts.extend(std::iter::repeat_n(name.to_string(), *power as usize));
            }
            if parts.is_empty() {
                parts.push("1".into());
            }
            write!(f, "{}", parts.join(" * "))?;
            for (name, power) in monomial.iter().filter(|(_, p)| *p < 0) {
                write!(f, "{}", format!(" / {name}").repeat(power.unsigned_abs() as usize))?;
            }
            if c.den != 1 {
                write!(f, " / {}", c.den)?;
            }
        }
        if self.terms().is_empty() {
            write!(f, "0")?;
        }
        Ok(())
    }
}

impl Size {
    /// The size and its number: `kv_heads * head = 1024`, or only `1024` where that is all there
    /// is.
    pub fn explained(&self) -> String {
        let value = self.as_f64();
        if self.is_number() { format!("{value}") } else { format!("{self} = {value}") }
    }
}
