//! Numbers.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::config::read::{Node, Scalar};
use crate::config::{Code, Invalid};

/// How many of something, within bounds.
pub(in crate::config) struct Count<const LEAST: u32, const MOST: u32>;

impl<const LEAST: u32, const MOST: u32> Scalar for Count<LEAST, MOST> {
    type Value = u32;

    fn parse(node: &Node) -> Result<u32, Invalid> {
        within(node, LEAST, MOST)
    }

    fn write<S: Serializer>(value: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(*value)
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }
}

/// A port, from `LEAST` on.
pub(in crate::config) struct Port<const LEAST: u16>;

impl<const LEAST: u16> Scalar for Port<LEAST> {
    type Value = u16;

    fn parse(node: &Node) -> Result<u16, Invalid> {
        within(node, LEAST, u16::MAX)
    }

    fn write<S: Serializer>(value: &u16, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(*value)
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": LEAST, "maximum": u16::MAX })
    }
}

/// The version of the configuration language. There is one so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Schema;

impl Schema {
    /// Its number.
    pub const VERSION: u32 = 1;
}

impl Scalar for Schema {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        match node.whole(0, u64::from(u32::MAX))? {
            1 => Ok(Self),
            other => Err(Invalid::new(
                Code::Schema,
                format!("schema version {other} is not known"),
                "this program reads version 1",
            )),
        }
    }

    fn write<S: Serializer>(_: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(Self::VERSION)
    }

    fn schema() -> Json {
        json!({ "const": Self::VERSION })
    }
}

/// A backend's share, relative to the others of its pool. 0 takes no new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Weight(pub u16);

impl Weight {
    /// What a backend has that says nothing: room to give others less or more.
    pub const DEFAULT: Self = Self(100);

    /// As a number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Whether it takes no new flows.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Scalar for Weight {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        within(node, 0, u16::MAX).map(Self)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(value.0)
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX })
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Whole percent, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// From 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// None.
    pub const NEVER: Self = Self(0);
    /// What a pool gets that says nothing: half of it must be healthy.
    pub(in crate::config) const HALF: Self = Self(50);
    /// Where a breaker begins to shed.
    pub(in crate::config) const TENTH: Self = Self(10);
    /// What may be tried again.
    pub(in crate::config) const FIFTH: Self = Self(20);
    /// All of it.
    pub(in crate::config) const ALL: Self = Self(100);
}

impl Scalar for Percent {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        within(node, 0, 100u8).map(Self)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(value.0)
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": 100 })
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let percent = u8::deserialize(from)?;
        Self::new(percent)
            .ok_or_else(|| serde::de::Error::custom(format!("{percent} percent, at most 100 are allowed")))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// How many slots a pool's table has: a prime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableSize(u32);

impl TableSize {
    /// Good for up to 160 backends.
    pub const DEFAULT: Self = Self(16_381);
    /// The largest there is, a prime: good for 1 300 backends.
    pub const MAX: u32 = 131_071;

    /// `None` if it is not a prime up to [`MAX`](Self::MAX).
    pub fn new(size: u32) -> Option<Self> {
        (size <= Self::MAX && is_prime(size)).then_some(Self(size))
    }

    /// In slots.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Scalar for TableSize {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let size = within(node, 2, Self::MAX)?;
        Self::new(size).ok_or_else(|| {
            let below = (2..size).rev().find(|&n| is_prime(n)).unwrap_or(2);
            let above = (size..=Self::MAX).find(|&n| is_prime(n)).unwrap_or(Self::MAX);
            Invalid::new(Code::NotPrime, format!("{size} is not prime"), "the size of a table is a prime")
                .help(format!("the nearest primes are {below} and {above}"))
        })
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(value.0)
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 2, "maximum": Self::MAX })
    }
}

impl fmt::Display for TableSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn within<N: Into<u64> + TryFrom<u64>>(node: &Node, least: N, most: N) -> Result<N, Invalid> {
    let (least, most) = (least.into(), most.into());
    let n = node.whole(least, most)?;
    N::try_from(n)
        .map_err(|_| Invalid::new(Code::OutOfRange, "the number is too large", format!("at most {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_sizes_are_primes() {
        for prime in [2, 3, 1021, 16_381, 65_537, 131_071] {
            assert_eq!(TableSize::new(prime).map(TableSize::get), Some(prime));
        }
        for other in [0, 1, 4, 1020, 16_384, 65_536, 131_101] {
            assert_eq!(TableSize::new(other), None);
        }
    }

    #[test]
    fn percent_ends_at_a_hundred() {
        assert_eq!(serde_json::from_str::<Percent>("100").unwrap().get(), 100);
        assert!(serde_json::from_str::<Percent>("101").is_err());
    }
}
