//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

/// What a family's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only ever grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl Kind {
    /// The format's word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric and all of its series, which are made as they are written down.
pub(super) struct Family<'a> {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub samples: Box<dyn Iterator<Item = Sample<'a>> + 'a>,
}

/// A series, and its figure. (A histogram counts as one.)
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub labels: Labels<'a>,
    pub value: Value,
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// What was counted in buckets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Histogram {
    /// Upper bounds as they are written, and how many lie at or below each.
    pub buckets: Vec<(&'static str, u64)>,
    pub count: u64,
    pub sum: f64,
}

/// Labels. Those of a backend are the same in a dozen families, and are written down once ([`labels`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels<'a> {
    /// As in the text: `frontend="web",group="v1"`.
    pub shared: &'a str,
    pub own: Option<(&'static str, &'a str)>,
}

/// Labels as they are written.
pub(super) fn labels(labels: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(64);
    for (number, (name, value)) in labels.iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        escape(&mut text, value);
        text.push('"');
    }
    text
}

impl<'a> Labels<'a> {
    /// And another one.
    pub(super) const fn and(self, name: &'static str, value: &'a str) -> Self {
        debug_assert!(self.own.is_none(), "one label of a series is its own");
        Self { own: Some((name, value)), ..self }
    }

    /// The labels' names, in order.
    #[cfg(test)]
    pub(super) fn names(self) -> Vec<&'a str> {
        let shared = self.shared.split("\",").filter_map(|label| Some(label.split_once('=')?.0));
        shared.chain(self.own.map(|(name, _)| name)).collect()
    }

    fn write(self, text: &mut String, le: Option<&str>) {
        let mut before = '{';
        if !self.shared.is_empty() {
            text.push(before);
            text.push_str(self.shared);
            before = ',';
        }
        for (name, value) in self.own.into_iter().chain(le.map(|le| ("le", le))) {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            escape(text, value);
            text.push('"');
            before = ',';
        }
        if before == ',' {
            text.push('}');
        }
    }
}

/// Media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes everything, and hands it over in pieces of about `PIECE` bytes, each of whole lines; ends early when nobody takes them any
/// more.
pub(super) fn write<'a>(
    families: impl IntoIterator<Item = Family<'a>>,
    mut hand_over: impl FnMut(String) -> bool,
) {
    let piece = || String::with_capacity(PIECE + PIECE / 8);
    let mut text = piece();
    for family in families {
        // Writing into a string cannot fail.
        _ = writeln!(text, "# HELP {} {}", family.name, family.help);
        _ = writeln!(text, "# TYPE {} {}", family.name, family.kind.name());
        for sample in family.samples {
            line(&mut text, family.name, &sample);
            if text.len() >= PIECE && !hand_over(std::mem::replace(&mut text, piece())) {
                return;
            }
        }
    }
    hand_over(text);
}

/// As much as a few writes to a socket take.
const PIECE: usize = 256 << 10;

/// The lines of a series.
fn line(text: &mut String, name: &str, Sample { labels, value }: &Sample<'_>) {
    let mut line = |suffix: &str, le: Option<&str>, value: f64| {
        text.push_str(name);
        text.push_str(suffix);
        labels.write(text, le);
        text.push(' ');
        number(text, value);
        text.push('\n');
    };
    match value {
        Value::Number(value) => line("", None, *value),
        Value::Histogram(histogram) => {
            for (bound, count) in &histogram.buckets {
                line("_bucket", Some(bound), *count as f64);
            }
            line("_bucket", Some("+Inf"), histogram.count as f64);
            line("_sum", None, histogram.sum);
            line("_count", None, histogram.count as f64);
        }
    }
}

/// Without exponent, and a whole number without a point: exact up to 2^53.
fn number(text: &mut String, value: f64) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value == 0.0 {
        // Most of all figures.
        text.push('0');
    } else if value.fract() == 0.0 && value.abs() < EXACT {
        // Several times faster.
        text.push_str(itoa::Buffer::new().format(value as i64));
    } else {
        // Writing into a string cannot fail.
        _ = write!(text, "{value}");
    }
}

fn escape(text: &mut String, value: &str) {
    let special = |byte: u8| matches!(byte, b'\\' | b'"' | b'\n');
    if !value.bytes().any(special) {
        return text.push_str(value);
    }
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(families: Vec<Family<'_>>) -> String {
        let mut text = String::new();
        write(families, |piece| {
            text += &piece;
            true
        });
        text
    }

    fn family<'a>(
        name: &'static str,
        kind: Kind,
        help: &'static str,
        samples: Vec<Sample<'a>>,
    ) -> Family<'a> {
        Family { name, kind, help, samples: Box::new(samples.into_iter()) }
    }

    #[test]
    fn a_family_is_written_as_the_format_says() {
        let of = |backend: &str| labels(&[("frontend", "web"), ("backend", backend)]);
        let (plain, odd, group) = (of("10.0.0.1:80"), of("a\"b\\c\nd"), labels(&[("group", "v1")]));
        let shared = |shared| Labels { shared, own: None };
        let sample = |labels, value| Sample { labels, value: Value::Number(value) };
        let counter = family(
            "lb_packets_total",
            Kind::Counter,
            "Packets.",
            vec![
                sample(shared(&plain), 9_007_199_254_740_991.0),
                sample(shared(&odd).and("direction", "re\"ply"), 0.0),
            ],
        );
        let gauge = family("lb_split_ratio", Kind::Gauge, "Share.", vec![sample(Labels::default(), 0.125)]);
        let histogram = Histogram { buckets: vec![("0.001", 3), ("2", 4)], count: 5, sum: 7.5 };
        let histogram = family(
            "lb_handshake_duration_seconds",
            Kind::Histogram,
            "Time.",
            vec![Sample { labels: shared(&group), value: Value::Histogram(histogram) }],
        );
        assert_eq!(
            text(vec![counter, gauge, histogram]),
            "# HELP lb_packets_total Packets.\n\
             # TYPE lb_packets_total counter\n\
             lb_packets_total{frontend=\"web\",backend=\"10.0.0.1:80\"} 9007199254740991\n\
             lb_packets_total{frontend=\"web\",backend=\"a\\\"b\\\\c\\nd\",direction=\"re\\\"ply\"} 0\n\
             # HELP lb_split_ratio Share.\n\
             # TYPE lb_split_ratio gauge\n\
             lb_split_ratio 0.125\n\
             # HELP lb_handshake_duration_seconds Time.\n\
             # TYPE lb_handshake_duration_seconds histogram\n\
             lb_handshake_duration_seconds_bucket{group=\"v1\",le=\"0.001\"} 3\n\
             lb_handshake_duration_seconds_bucket{group=\"v1\",le=\"2\"} 4\n\
             lb_handshake_duration_seconds_bucket{group=\"v1\",le=\"+Inf\"} 5\n\
             lb_handshake_duration_seconds_sum{group=\"v1\"} 7.5\n\
             lb_handshake_duration_seconds_count{group=\"v1\"} 5\n"
        );
    }

    #[test]
    fn what_is_long_comes_in_pieces_of_whole_lines() {
        let many = || {
            let sample =
                |_| Sample { labels: Labels::default().and("name", "value"), value: Value::Number(1.5) };
            let samples = Box::new((0..50_000).map(sample));
            [Family { name: "lb_much", kind: Kind::Gauge, help: "Much.", samples }]
        };
        let mut pieces = Vec::new();
        write(many(), |piece| {
            pieces.push(piece);
            true
        });
        assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.ends_with('\n')));
        assert!(pieces.iter().all(|piece| piece.len() < PIECE + 100));
        assert_eq!(pieces.iter().flat_map(|piece| piece.lines()).count(), 50_002);
        let mut taken = 0;
        write(many(), |_| {
            taken += 1;
            false
        });
        assert_eq!(taken, 1, "nobody takes more");
    }
}
