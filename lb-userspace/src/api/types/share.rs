//! The canary's share of the clients.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share in percent, from 0 to 100 with at most six decimals.
///
/// On the wire a number; read from a number or from text (`12.5`, `"12.5"`, `"12.5 %"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// The kernel's program counts in 2^32nds: more than forty of them are one of these.
    millionths_of_a_percent: u32,
}

/// Why something is not a [`Share`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not digits with at most one point.
    #[error("not a percentage; expected a number from 0 to 100 such as `10` or `0.5`")]
    NotANumber,
    /// Above 100 or negative.
    #[error("outside the range from 0 to 100 percent")]
    OutOfRange,
    /// Finer than a share can be.
    #[error("at most six decimals are kept")]
    TooFine,
}

impl Share {
    /// No client.
    pub const ZERO: Self = Self { millionths_of_a_percent: 0 };
    /// Every client.
    pub const ALL: Self = Self { millionths_of_a_percent: Self::MOST };
    const MOST: u32 = 100 * Self::SCALE;
    const SCALE: u32 = 1_000_000;
    const DECIMALS: usize = 6;

    /// So many whole percent, 100 at most.
    #[must_use]
    pub const fn whole(percent: u8) -> Self {
        let percent = if percent > 100 { 100 } else { percent };
        Self { millionths_of_a_percent: percent as u32 * Self::SCALE }
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.millionths_of_a_percent) / f64::from(Self::SCALE)
    }

    /// From percent.
    ///
    /// # Errors
    /// If it is no number, not from 0 to 100, or has more than six decimals.
    pub fn from_percent(percent: f64) -> Result<Self, ShareError> {
        if !percent.is_finite() {
            return Err(ShareError::NotANumber);
        }
        if !(0.0..=100.0).contains(&percent) {
            return Err(ShareError::OutOfRange);
        }
        let scaled = percent * f64::from(Self::SCALE);
        let whole = scaled.round();
        // What a decimal number of six places loses as a binary one is far below a thousandth of the last place.
        if (scaled - whole).abs() > 1e-3 {
            return Err(ShareError::TooFine);
        }
        Ok(Self { millionths_of_a_percent: whole as u32 })
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let text = text.trim();
        let text = text.strip_suffix('%').unwrap_or(text).trim_end();
        if let Some(rest) = text.strip_prefix('-') {
            return Err(rest.parse::<Self>().err().unwrap_or(ShareError::OutOfRange));
        }
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
            return Err(ShareError::NotANumber);
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > Self::DECIMALS {
            return Err(ShareError::TooFine);
        }
        let whole = match whole.trim_start_matches('0') {
            "" => 0,
            digits => digits.parse::<u32>().map_err(|_| ShareError::OutOfRange)?,
        };
        let fraction = decimals
            .bytes()
            .chain(std::iter::repeat(b'0'))
            .take(Self::DECIMALS)
            .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
        let scaled = whole
            .checked_mul(Self::SCALE)
            .and_then(|scaled| scaled.checked_add(fraction))
            .filter(|&scaled| scaled <= Self::MOST)
            .ok_or(ShareError::OutOfRange)?;
        Ok(Self { millionths_of_a_percent: scaled })
    }
}

/// Without the sign, and without zeros at the end: `12.5`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) =
            (self.millionths_of_a_percent / Self::SCALE, self.millionths_of_a_percent % Self::SCALE);
        if fraction == 0 {
            return f.pad(&whole.to_string());
        }
        f.pad(format!("{whole}.{fraction:06}").trim_end_matches('0'))
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A share in percent, with at most six decimals; requests may say it as text.",
            "anyOf": [
                { "type": "number", "minimum": 0, "maximum": 100 },
                { "type": "string", "examples": ["12.5", "12.5 %"] }
            ]
        })
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.percent())
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NumberOrText)
    }
}

struct NumberOrText;

impl Visitor<'_> for NumberOrText {
    type Value = Share;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a percentage, as a number or as text")
    }

    fn visit_f64<E: de::Error>(self, percent: f64) -> Result<Share, E> {
        Share::from_percent(percent).map_err(|error| E::custom(format_args!("{percent}: {error}")))
    }

    fn visit_u64<E: de::Error>(self, percent: u64) -> Result<Share, E> {
        // Whatever loses a digit here is far above 100.
        self.visit_f64(percent as f64)
    }

    fn visit_i64<E: de::Error>(self, percent: i64) -> Result<Share, E> {
        self.visit_f64(percent as f64)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
        text.parse().map_err(|error| E::custom(format_args!("{text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_kept_exactly() {
        for (text, shown) in [
            ("0", "0"),
            ("100", "100"),
            ("100.000", "100"),
            ("0.5", "0.5"),
            (".5", "0.5"),
            ("007", "7"),
            ("12.345678", "12.345678"),
            ("0.000001", "0.000001"),
            ("33.3 %", "33.3"),
            ("10%", "10"),
        ] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for (text, error) in [
            ("", ShareError::NotANumber),
            (".", ShareError::NotANumber),
            ("ten", ShareError::NotANumber),
            ("1e1", ShareError::NotANumber),
            ("1.2.3", ShareError::NotANumber),
            ("-x", ShareError::NotANumber),
            ("--5", ShareError::OutOfRange),
            ("-1", ShareError::OutOfRange),
            ("100.000001", ShareError::OutOfRange),
            ("99999999999999999999", ShareError::OutOfRange),
            ("0.0000001", ShareError::TooFine),
        ] {
            assert_eq!(text.parse::<Share>(), Err(error), "{text}");
        }
        assert_eq!(Share::from_percent(f64::NAN), Err(ShareError::NotANumber));
        assert_eq!(Share::from_percent(-0.1), Err(ShareError::OutOfRange));
        assert_eq!(Share::from_percent(1.0 / 3.0), Err(ShareError::TooFine));
    }

    #[test]
    fn every_share_comes_back_from_a_number_and_a_text() {
        for millionths_of_a_percent in (0..=Share::MOST).step_by(9_973).chain([1, Share::MOST]) {
            let share = Share { millionths_of_a_percent };
            assert_eq!(Share::from_percent(share.percent()), Ok(share));
            assert_eq!(share.to_string().parse(), Ok(share));
            let json = serde_json::to_string(&share).unwrap();
            assert_eq!(serde_json::from_str::<Share>(&json).unwrap(), share);
        }
    }

    #[test]
    fn requests_may_say_it_as_a_number_or_as_text() {
        for json in ["12.5", "\"12.5\"", "\"12.5 %\""] {
            assert_eq!(serde_json::from_str::<Share>(json).unwrap().to_string(), "12.5");
        }
        assert_eq!(serde_json::from_str::<Share>("100").unwrap(), Share::ALL);
        let error = serde_json::from_str::<Share>("101").unwrap_err().to_string();
        assert!(error.starts_with("101: outside the range"), "{error}");
        assert!(serde_json::from_str::<Share>("true").is_err());
    }
}
