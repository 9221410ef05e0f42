//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;
use std::ops::ControlFlow;

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
    pub series: Vec<Series<'a>>,
}

/// Series of a family. Labels stand there as they are written ([`label`]): there are hundreds of thousands of lines, and most of
/// what a line says is said in others, too.
pub(super) enum Series<'a> {
    /// A single one: its labels, which may be none, and its figure.
    One(String, f64),
    /// One for each of many subjects: a label that they all have, which may be none, and the subjects' labels with their figures.
    Each(String, Box<dyn Iterator<Item = (&'a str, f64)> + 'a>),
    /// The same with histograms, which have these bounds.
    Histograms(&'a [String], Box<dyn Iterator<Item = (&'a str, Histogram)> + 'a>),
}

/// What was counted in buckets.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Histogram {
    /// How many lie at or below each bound.
    pub below: Vec<u64>,
    pub count: u64,
    pub sum: f64,
}

/// A label as it is written, behind those that are written already.
pub(super) fn label(before: &str, name: &str, value: &str) -> String {
    let mut text = String::with_capacity(before.len() + name.len() + value.len() + 4);
    if !before.is_empty() {
        text.push_str(before);
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    escape(&mut text, value);
    text.push('"');
    text
}

/// Media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes everything, and hands it over in pieces of about `PIECE` bytes, each of whole lines, for an empty piece each
/// ([`piece`]); ends early when nobody takes them any more.
pub(super) fn write<'a>(
    families: impl IntoIterator<Item = Family<'a>>,
    hand_over: impl FnMut(String) -> Option<String>,
) {
    let mut pieces = Pieces { text: piece(), hand_over };
    if families.into_iter().try_for_each(|family| pieces.family(family)).is_continue() {
        (pieces.hand_over)(pieces.text);
    }
}

/// As much as a few writes to a socket take.
const PIECE: usize = 64 << 10;

/// Room for a piece.
pub(super) fn piece() -> String {
    String::with_capacity(PIECE + PIECE / 8)
}

/// The text as far as it is written, and who takes it; `Break`: nobody does any more.
struct Pieces<F> {
    text: String,
    hand_over: F,
}

impl<F: FnMut(String) -> Option<String>> Pieces<F> {
    fn family(&mut self, Family { name, kind, help, series }: Family<'_>) -> ControlFlow<()> {
        // Writing into a string cannot fail.
        _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        series.into_iter().try_for_each(|series| self.series(name, series))
    }

    fn series(&mut self, name: &str, series: Series<'_>) -> ControlFlow<()> {
        match series {
            Series::One(labels, value) if labels.is_empty() => self.line([name, " ", ""], value),
            Series::One(labels, value) => self.line([&format!("{name}{{"), &labels, "} "], value),
            Series::Each(own, mut each) => {
                let (head, tail) = (format!("{name}{{"), tail(&own));
                each.try_for_each(|(labels, value)| self.line([&head, labels, &tail], value))
            }
            Series::Histograms(bounds, mut each) => {
                let [bucket, sum, count] = ["bucket", "sum", "count"].map(|what| format!("{name}_{what}{{"));
                let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
                let tails: Vec<String> = bounds.map(|bound| tail(&label("", "le", bound))).collect();
                each.try_for_each(|(labels, it)| {
                    for (tail, below) in tails.iter().zip(it.below.iter().chain([&it.count])) {
                        self.line([&bucket, labels, tail], *below as f64)?;
                    }
                    self.line([&sum, labels, "} "], it.sum)?;
                    self.line([&count, labels, "} "], it.count as f64)
                })
            }
        }
    }

    fn line(&mut self, words: [&str; 3], value: f64) -> ControlFlow<()> {
        words.into_iter().for_each(|word| self.text.push_str(word));
        number(&mut self.text, value);
        self.text.push('\n');
        if self.text.len() < PIECE {
            return ControlFlow::Continue(());
        }
        match (self.hand_over)(std::mem::take(&mut self.text)) {
            Some(empty) => {
                self.text = empty;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }
}

/// What stands between a subject's labels and the figure.
fn tail(own: &str) -> String {
    if own.is_empty() { "} ".to_owned() } else { format!(",{own}}} ") }
}

/// Without exponent, and a whole number without a point: exact up to 2^53.
fn number(text: &mut String, value: f64) {
    let whole = value as i64;
    if whole == 0 && value == 0.0 {
        // Most of all figures.
        text.push('0');
    } else if whole as f64 == value {
        // Several times faster.
        text.push_str(itoa::Buffer::new().format(whole));
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
            Some(String::new())
        });
        text
    }

    fn each<'a, T: 'a>(each: Vec<(&'a str, T)>) -> Box<dyn Iterator<Item = (&'a str, T)> + 'a> {
        Box::new(each.into_iter())
    }

    #[test]
    fn a_family_is_written_as_the_format_says() {
        let of = |backend: &str| label(&label("", "frontend", "web"), "backend", backend);
        let (plain, odd, group) = (of("10.0.0.1:80"), of("a\"b\\c\nd"), label("", "group", "v1"));
        let bounds = ["0.001".to_owned(), "2".to_owned()];
        let counter = Family {
            name: "lb_packets_total",
            kind: Kind::Counter,
            help: "Packets.",
            series: vec![
                Series::Each(String::new(), each(vec![(&plain, 9_007_199_254_740_991.0)])),
                Series::Each(label("", "direction", "re\"ply"), each(vec![(&odd, 0.0), (&plain, -1.0)])),
                Series::One(label("", "direction", "none"), 1e21),
            ],
        };
        let gauge = Family {
            name: "lb_split_ratio",
            kind: Kind::Gauge,
            help: "Share.",
            series: vec![Series::One(String::new(), 0.125)],
        };
        let histogram = Histogram { below: vec![3, 4], count: 5, sum: 7.5 };
        let histogram = Family {
            name: "lb_handshake_duration_seconds",
            kind: Kind::Histogram,
            help: "Time.",
            series: vec![Series::Histograms(&bounds, each(vec![(&group, histogram)]))],
        };
        assert_eq!(
            text(vec![counter, gauge, histogram]),
            "# HELP lb_packets_total Packets.\n\
             # TYPE lb_packets_total counter\n\
             lb_packets_total{frontend=\"web\",backend=\"10.0.0.1:80\"} 9007199254740991\n\
             lb_packets_total{frontend=\"web\",backend=\"a\\\"b\\\\c\\nd\",direction=\"re\\\"ply\"} 0\n\
             lb_packets_total{frontend=\"web\",backend=\"10.0.0.1:80\",direction=\"re\\\"ply\"} -1\n\
             lb_packets_total{direction=\"none\"} 1000000000000000000000\n\
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
            let each = Box::new(std::iter::repeat_n(("name=\"value\"", 1.5), 50_000));
            let series = vec![Series::Each(String::new(), each)];
            [Family { name: "lb_much", kind: Kind::Gauge, help: "Much.", series }]
        };
        let mut pieces = Vec::new();
        write(many(), |piece| {
            pieces.push(piece);
            Some(String::new())
        });
        assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.ends_with('\n')));
        assert!(pieces.iter().all(|piece| piece.len() < PIECE + 100));
        assert_eq!(pieces.iter().flat_map(|piece| piece.lines()).count(), 50_002);
        let mut taken = 0;
        write(many(), |_| {
            taken += 1;
            None
        });
        assert_eq!(taken, 1, "nobody takes more");
    }
}
