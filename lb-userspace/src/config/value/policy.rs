//! The values of policy: who may take new flows, and how much of them.

use std::fmt;

use serde::Serializer;
use serde_json::{Value as Json, json};

use super::numbers::Percent;
use super::shares::number;
use crate::config::read::{Node, Scalar, Shape, escaped};
use crate::config::{Code, Invalid};

/// How many backends of a pool must be healthy: so many, or a percentage of those that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// So many, at least 1.
    Count(u32),
    /// Percent of them, at least 1.
    Percent(Percent),
}

impl Least {
    /// More than fit into the kernel's tables are never there.
    const MOST: u32 = 65_535;

    /// How many of `all` backends that is, rounded up; at least 1.
    #[must_use]
    pub fn of(self, all: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => {
                let share = u64::from(all) * u64::from(percent.get());
                u32::try_from(share.div_ceil(100)).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

impl Scalar for Least {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let expected = "a number of backends such as 2, or a percentage such as \"50%\"";
        match &node.shape {
            Shape::Whole(_) => node.whole(1, Self::MOST.into()).map(|count| Self::Count(count as u32)),
            Shape::Text(text) => {
                let percent = text.strip_suffix('%').and_then(|digits| digits.trim_end().parse().ok());
                match percent.and_then(Percent::new).filter(|percent| percent.get() > 0) {
                    Some(percent) => Ok(Self::Percent(percent)),
                    None => Err(Invalid::new(
                        Code::OutOfRange,
                        format!("{} is no share of a pool", escaped(text)),
                        "expected a percentage from \"1%\" to \"100%\", or a number without quotes",
                    )),
                }
            }
            _ => Err(node.wrong(expected)),
        }
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Self::Count(count) => to.serialize_u32(*count),
            Self::Percent(_) => to.collect_str(value),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [
            { "type": "integer", "minimum": 1, "maximum": Self::MOST },
            { "type": "string", "pattern": r"^([1-9][0-9]?|100)\s*%$" },
        ] })
    }
}

impl fmt::Display for Least {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(out),
            Self::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

/// How steeply a slow start begins, in thousandths: 1 is a straight line, more is faster at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aggression(u32);

impl Aggression {
    /// A straight line.
    pub(in crate::config) const LINEAR: Self = Self(1_000);
    const LEAST: f64 = 0.1;
    const MOST: f64 = 10.0;

    /// As a number from 0.1 to 10.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }
}

impl Scalar for Aggression {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let hint = "1 is a straight line, 2 a fast beginning, 0.5 a slow one";
        thousandths(node, Self::LEAST, Self::MOST, hint).map(Self)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.get())
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": Self::LEAST, "maximum": Self::MOST })
    }
}

/// How many standard deviations, in thousandths; 0 is none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deviations(u32);

impl Deviations {
    /// Of a normal distribution 2.9 % lie further below.
    pub(in crate::config) const USUAL: Self = Self(1_900);
    const MOST: f64 = 10.0;

    /// As a number from 0 to 10.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }
}

impl Scalar for Deviations {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        thousandths(node, 0.0, Self::MOST, "1.9 is usual; 0 compares nobody with his peers").map(Self)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.get())
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": 0, "maximum": Self::MOST })
    }
}

/// A number within bounds, which are right as well.
fn thousandths(node: &Node, least: f64, most: f64, hint: &str) -> Result<u32, Invalid> {
    let expected = format!("a number from {least} to {most}");
    let number = number(node, &expected)?;
    if (least..=most).contains(&number) {
        return Ok((number * 1_000.0).round() as u32);
    }
    let size = if number > most { "large" } else { "small" };
    let found =
        Invalid::new(Code::OutOfRange, format!("the number is too {size}"), format!("expected {expected}"));
    Err(found.help(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_pool_is_rounded_up_and_never_nobody() {
        let half = Least::Percent(Percent::HALF);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|all| half.of(all)), [1, 1, 1, 2, 2, 3]);
        assert_eq!([0, 7].map(|all| Least::Count(3).of(all)), [3, 3]);
    }
}
