//! Shares, factors, text, and yes or no.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::api::Share;
use crate::config::read::{Node, Scalar, Shape};
use crate::config::{Code, Invalid};

impl Scalar for Share {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let percent = number(node, "a share in percent such as 10 or 0.5")?;
        Self::from_percent(percent).map_err(|error| {
            Invalid::new(Code::OutOfRange, format!("{percent} is {error}"), "expected 0 to 100 percent")
        })
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": 0, "maximum": 100 })
    }
}

/// A multiple, from 1 to 1000, with at most three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Factor {
    thousandths: u32,
}

impl Factor {
    /// Half as much again.
    pub(in crate::config) const HALF_AGAIN: Self = Self { thousandths: 1_500 };

    /// As a number.
    pub fn get(self) -> f64 {
        f64::from(self.thousandths) / 1e3
    }
}

impl Scalar for Factor {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let expected = "a multiple from 1 to 1000";
        let factor = number(node, expected)?;
        if !(1.0..=1e3).contains(&factor) {
            let message = format!("{factor} is outside the range");
            return Err(Invalid::new(Code::OutOfRange, message, format!("expected {expected}")));
        }
        Ok(Self { thousandths: (factor * 1e3).round() as u32 })
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    fn schema() -> Json {
        json!({ "type": "number", "minimum": 1, "maximum": 1000 })
    }
}

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.get())
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self { thousandths: (f64::deserialize(from)? * 1e3).round() as u32 })
    }
}

/// A number that is one: neither infinite nor NaN, so that each equals itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(f64);

impl Eq for Number {}

impl Number {
    /// As it was written.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Scalar for Number {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        number(node, "a number such as 0.5").map(Self)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.0)
    }

    fn schema() -> Json {
        json!({ "type": "number" })
    }
}

/// A multiple of something: a number above 0.
pub(in crate::config) struct Multiple;

impl Scalar for Multiple {
    type Value = Number;

    fn parse(node: &Node) -> Result<Number, Invalid> {
        let expected = "a multiple such as 1.5";
        let multiple = number(node, expected)?;
        if multiple > 0.0 {
            return Ok(Number(multiple));
        }
        let message = format!("{multiple} is no multiple");
        Err(Invalid::new(Code::OutOfRange, message, "expected more than 0"))
    }

    fn write<S: Serializer>(value: &Number, to: S) -> Result<S::Ok, S::Error> {
        Number::write(value, to)
    }

    fn schema() -> Json {
        json!({ "type": "number", "exclusiveMinimum": 0 })
    }
}

/// True or false.
pub(in crate::config) struct Truth;

impl Scalar for Truth {
    type Value = bool;

    fn parse(node: &Node) -> Result<bool, Invalid> {
        match node.shape {
            Shape::Truth(truth) => Ok(truth),
            _ => Err(node.wrong("true or false")),
        }
    }

    fn write<S: Serializer>(value: &bool, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bool(*value)
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

/// Text of a line or more, not empty.
pub(in crate::config) struct Text;

impl Scalar for Text {
    type Value = String;

    fn parse(node: &Node) -> Result<String, Invalid> {
        let text = node.text("text")?;
        if text.is_empty() || text.contains('\0') {
            return Err(node.wrong("text that is not empty"));
        }
        Ok(text.to_owned())
    }

    fn write<S: Serializer>(value: &String, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(value)
    }

    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

pub(super) fn number(node: &Node, expected: &str) -> Result<f64, Invalid> {
    match node.shape {
        // What loses a digit here is far beyond every bound.
        Shape::Whole(whole) => Ok(whole as f64),
        Shape::Fraction(fraction) if fraction.is_finite() => Ok(fraction),
        _ => Err(node.wrong(expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::Place;

    fn node(shape: Shape<'_>) -> Node<'_> {
        Node { at: Place::default(), shape }
    }

    #[test]
    fn shares_may_have_decimals() {
        let share =
            |shape| <Share as Scalar>::parse(&node(shape)).map(Share::percent).map_err(|bad| bad.code);
        assert_eq!(share(Shape::Whole(10)), Ok(10.0));
        assert_eq!(share(Shape::Fraction(0.5)), Ok(0.5));
        assert_eq!(share(Shape::Whole(101)), Err(Code::OutOfRange));
        assert_eq!(share(Shape::Fraction(-0.5)), Err(Code::OutOfRange));
        assert_eq!(share(Shape::Fraction(f64::NAN)), Err(Code::WrongType));
        assert_eq!(share(Shape::Text("10".into())), Err(Code::WrongType));
    }

    #[test]
    fn factors_have_bounds() {
        let factor = |shape| Factor::parse(&node(shape)).map(Factor::get).map_err(|bad| bad.code);
        assert_eq!(factor(Shape::Fraction(1.25)), Ok(1.25));
        assert_eq!(factor(Shape::Whole(2)), Ok(2.0));
        assert_eq!(factor(Shape::Fraction(0.9)), Err(Code::OutOfRange));
    }

    #[test]
    fn multiples_are_more_than_nothing() {
        let multiple = |shape| Multiple::parse(&node(shape)).map(Number::get).map_err(|bad| bad.code);
        assert_eq!(multiple(Shape::Fraction(0.9)), Ok(0.9));
        assert_eq!(multiple(Shape::Whole(0)), Err(Code::OutOfRange));
        assert_eq!(multiple(Shape::Fraction(f64::INFINITY)), Err(Code::WrongType));
        assert_eq!(Number::parse(&node(Shape::Whole(-3))).map(Number::get), Ok(-3.0));
    }
}
