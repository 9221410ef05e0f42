//! Prometheus' text format, version 0.0.4.

use std::borrow::Cow;
use std::fmt::Write;
use std::rc::Rc;

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

/// A metric and all of its series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub samples: Vec<Sample>,
}

/// A series, and its figure. (A histogram counts as one.)
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub labels: Labels,
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
    /// Upper bounds, and how many lie at or below each.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

/// Labels. Those of a backend are the same in a dozen families, and are written down once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    /// As in the text: `frontend="web",group="v1"`.
    shared: Option<Rc<str>>,
    own: Option<(&'static str, Cow<'static, str>)>,
}

impl Labels {
    /// These.
    pub(super) fn of(labels: &[(&str, &str)]) -> Self {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        Self { shared: (!labels.is_empty()).then(|| labels.join(",").into()), own: None }
    }

    /// And another one.
    pub(super) fn and(&self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!(self.own.is_none(), "one label of a series is its own");
        Self { shared: self.shared.clone(), own: Some((name, value.into())) }
    }

    /// The labels' names, in order.
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<&str> {
        let shared = self.shared.as_deref().into_iter().flat_map(|labels| labels.split("\","));
        let names = shared.filter_map(|label| Some(label.split_once('=')?.0));
        names.chain(self.own.as_ref().map(|(name, _)| *name)).collect()
    }

    fn write(&self, text: &mut String, le: Option<&str>) {
        let mut before = '{';
        if let Some(shared) = &self.shared {
            text.push(before);
            text.push_str(shared);
            before = ',';
        }
        let own = self.own.as_ref().map(|(name, value)| (*name, value.as_ref()));
        for (name, value) in own.into_iter().chain(le.map(|le| ("le", le))) {
            text.push(before);
            text.push_str(name);
            text.push_str("=\"");
            text.push_str(&escaped(value));
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

pub(super) fn of(families: &[Family]) -> String {
    let mut text =
        String::with_capacity(128 * families.iter().map(|family| family.samples.len()).sum::<usize>());
    for family in families {
        write(&mut text, family);
    }
    text
}

fn write(text: &mut String, family: &Family) {
    // Writing into a string cannot fail.
    _ = writeln!(text, "# HELP {} {}", family.name, family.help);
    _ = writeln!(text, "# TYPE {} {}", family.name, family.kind.name());
    let line = |text: &mut String, suffix: &str, labels: &Labels, le: Option<&str>, value: f64| {
        text.push_str(family.name);
        text.push_str(suffix);
        labels.write(text, le);
        text.push(' ');
        number(text, value);
        text.push('\n');
    };
    for Sample { labels, value } in &family.samples {
        match value {
            Value::Number(value) => line(text, "", labels, None, *value),
            Value::Histogram(histogram) => {
                for (bound, count) in &histogram.buckets {
                    line(text, "_bucket", labels, Some(&bound.to_string()), *count as f64);
                }
                line(text, "_bucket", labels, Some("+Inf"), histogram.count as f64);
                line(text, "_sum", labels, None, histogram.sum);
                line(text, "_count", labels, None, histogram.count as f64);
            }
        }
    }
}

/// Without exponent, and a whole number without a point: exact up to 2^53.
fn number(text: &mut String, value: f64) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    _ = if value.fract() == 0.0 && value.abs() < EXACT {
        // Several times faster.
        write!(text, "{}", value as i64)
    } else {
        write!(text, "{value}")
    };
}

fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_the_format_says() {
        let labels = |backend: &str| Labels::of(&[("frontend", "web"), ("backend", backend)]);
        let sample = |labels, value| Sample { labels, value: Value::Number(value) };
        let counter = Family {
            name: "lb_packets_total",
            kind: Kind::Counter,
            help: "Packets.",
            samples: vec![
                sample(labels("10.0.0.1:80"), 9_007_199_254_740_991.0),
                sample(labels("a\"b\\c\nd").and("direction", "reply"), 0.0),
            ],
        };
        let gauge = Family {
            name: "lb_split_ratio",
            kind: Kind::Gauge,
            help: "Share.",
            samples: vec![sample(Labels::default(), 0.125)],
        };
        let histogram = Histogram { buckets: vec![(0.001, 3), (2.0, 4)], count: 5, sum: 7.5 };
        let histogram = Family {
            name: "lb_handshake_duration_seconds",
            kind: Kind::Histogram,
            help: "Time.",
            samples: vec![Sample {
                labels: Labels::of(&[("group", "v1")]),
                value: Value::Histogram(histogram),
            }],
        };
        assert_eq!(
            of(&[counter, gauge, histogram]),
            "# HELP lb_packets_total Packets.\n\
             # TYPE lb_packets_total counter\n\
             lb_packets_total{frontend=\"web\",backend=\"10.0.0.1:80\"} 9007199254740991\n\
             lb_packets_total{frontend=\"web\",backend=\"a\\\"b\\\\c\\nd\",direction=\"reply\"} 0\n\
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
}
