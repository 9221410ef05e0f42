//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

/// What a family's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only ever grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A metric and all of its series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub samples: Vec<Sample>,
}

/// Labels, and the figure.
pub(super) type Sample = (Vec<(&'static str, String)>, f64);

/// Media type of the text.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn of(families: &[Family]) -> String {
    let mut text = String::new();
    for family in families {
        // Writing into a string cannot fail.
        _ = write(&mut text, family);
    }
    text
}

fn write(text: &mut String, family: &Family) -> std::fmt::Result {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    writeln!(text, "# HELP {} {}", family.name, family.help)?;
    writeln!(text, "# TYPE {} {kind}", family.name)?;
    for (labels, value) in &family.samples {
        text.push_str(family.name);
        for (i, (label, value)) in labels.iter().enumerate() {
            write!(text, "{}{label}=\"{}\"", if i == 0 { '{' } else { ',' }, escaped(value))?;
        }
        if !labels.is_empty() {
            text.push('}');
        }
        // Without exponent, and a whole number without a point: exact up to 2^53.
        writeln!(text, " {value}")?;
    }
    Ok(())
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_the_format_says() {
        let labels = |backend: &str| vec![("frontend", "web".to_owned()), ("backend", backend.to_owned())];
        let counter = Family {
            name: "lb_packets_total",
            kind: Kind::Counter,
            help: "Packets.",
            samples: vec![(labels("10.0.0.1:80"), 9_007_199_254_740_991.0), (labels("a\"b\\c\nd"), 0.0)],
        };
        let gauge = Family {
            name: "lb_split_ratio",
            kind: Kind::Gauge,
            help: "Share.",
            samples: vec![(Vec::new(), 0.125)],
        };
        assert_eq!(
            of(&[counter, gauge]),
            "# HELP lb_packets_total Packets.\n\
             # TYPE lb_packets_total counter\n\
             lb_packets_total{frontend=\"web\",backend=\"10.0.0.1:80\"} 9007199254740991\n\
             lb_packets_total{frontend=\"web\",backend=\"a\\\"b\\\\c\\nd\"} 0\n\
             # HELP lb_split_ratio Share.\n\
             # TYPE lb_split_ratio gauge\n\
             lb_split_ratio 0.125\n"
        );
    }
}
