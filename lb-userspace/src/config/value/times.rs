//! Durations.

use std::time::Duration;

use serde::Serializer;
use serde_json::{Value as Json, json};

use crate::config::read::{Node, Scalar, Shape, escaped};
use crate::config::{Code, Invalid};

/// A duration within bounds, in milliseconds.
pub(in crate::config) struct Time<const LEAST: u64, const MOST: u64>;

impl<const LEAST: u64, const MOST: u64> Scalar for Time<LEAST, MOST> {
    type Value = Duration;

    fn parse(node: &Node) -> Result<Duration, Invalid> {
        let text = match (&node.shape, node.text("a duration such as \"5s\"")) {
            (Shape::Whole(n), Err(wrong)) => {
                return Err(wrong.help(format!("did you mean \"{n}s\"?")));
            }
            (_, text) => text?,
        };
        let time = humantime::parse_duration(text).map_err(|_| not_a_duration(text))?;
        let (least, most) = (Duration::from_millis(LEAST), Duration::from_millis(MOST));
        if (least..=most).contains(&time) {
            return Ok(time);
        }
        let (size, format) = (if time < least { "short" } else { "long" }, humantime::format_duration);
        let expected = format!("expected {} to {}", format(least), format(most));
        Err(Invalid::new(Code::DurationRange, format!("{} is too {size}", escaped(text)), expected))
    }

    fn write<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*value))
    }

    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^\s*(\d+\s*[A-Za-z]+\s*)+$" })
    }
}

fn not_a_duration(text: &str) -> Invalid {
    let found = Invalid::new(
        Code::BadDuration,
        format!("{} is not a duration", escaped(text)),
        "expected a number with its unit: `500ms`, `5s`, `15m`, `1h`",
    );
    match text.trim().parse::<u32>() {
        Ok(n) => found.help(format!("did you mean `{n}s`?")),
        Err(_) => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read::Place;

    fn read(text: &str) -> Result<Duration, Code> {
        let node = Node { at: Place::default(), shape: Shape::Text(text.into()) };
        Time::<100, 3_600_000>::parse(&node).map_err(|invalid| invalid.code)
    }

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(read("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(read("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(read("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(read("99ms"), Err(Code::DurationRange));
        assert_eq!(read("61m"), Err(Code::DurationRange));
        for text in ["", "5", "5 parsecs", "-5s", "s", "99999999999999999999h"] {
            assert_eq!(read(text), Err(Code::BadDuration), "{text}");
        }
    }
}
