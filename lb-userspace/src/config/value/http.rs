//! What an HTTP check asks for, and what it expects.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::textual;
use crate::config::read::escaped;
use crate::config::{Code, Invalid};

/// The target of a request in origin form (RFC 9112, 3.2.1): `/healthz`, `/ready?deep=1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpPath(Box<str>);

impl HttpPath {
    /// As it stands in the request line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HttpPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for HttpPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refused = |why: String| {
            Invalid::new(Code::BadHttpPath, format!("{} cannot be asked for", escaped(text)), why)
        };
        if !text.starts_with('/') {
            let found = refused("a path begins with `/`".to_owned());
            return Err(match text.split_once("://").map(|(_, rest)| rest.split_once('/')) {
                Some(Some((host, path))) => found.help(format!(
                    "say host = \"{}\" and path = \"/{}\"",
                    host.escape_debug(),
                    path.escape_debug()
                )),
                Some(None) => found,
                None => found.help(format!("did you mean {}?", escaped(&format!("/{text}")))),
            });
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            return Err(refused(format!("{} has to be percent-encoded", escaped(&c.to_string()))));
        }
        Ok(Self(text.into()))
    }
}

textual!(HttpPath, "a path such as \"/healthz\"", { "type": "string", "pattern": "^/[!-\"$-~]*$" });

/// What stands in the `Host` header (RFC 9110, 7.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpHost(Box<str>);

impl HttpHost {
    /// As it stands in the header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HttpHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for HttpHost {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-_:[]~%".contains(c);
        if !text.is_empty() && text.len() <= 255 && text.chars().all(fits) {
            return Ok(Self(text.into()));
        }
        let what = format!("{} cannot stand in a Host header", escaped(text));
        Err(Invalid::new(
            Code::BadHttpHost,
            what,
            "expected a name such as `shop.example` or `shop.example:8080`",
        ))
    }
}

textual!(HttpHost, "a host name", {
    "type": "string",
    "pattern": r"^[A-Za-z0-9._:\[\]~%-]+$",
    "maxLength": 255,
});

/// The status codes that mean health: codes and ranges, sorted, with no overlap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    /// 200 to 299.
    pub fn success() -> Self {
        Self(vec![200..=299])
    }

    /// Whether a code is among them.
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|range| range.contains(&code))
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (from, to) if from == to => write!(out, "{comma}{from}")?,
                (from, to) => write!(out, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for StatusRanges {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut ranges = text.split(',').map(|part| range(part.trim())).collect::<Result<Vec<_>, _>>()?;
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for next in ranges {
            match merged.last_mut() {
                Some(last) if *next.start() <= last.end() + 1 => {
                    *last = *last.start()..=*last.end().max(next.end());
                }
                _ => merged.push(next),
            }
        }
        Ok(Self(merged))
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, Invalid> {
    let refused = |why: &str| {
        let what = format!("{} is not a range of status codes", escaped(text));
        Err(Invalid::new(Code::BadStatus, what, why))
    };
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (Ok(from), Ok(to)) = (from.trim().parse::<u16>(), to.trim().parse::<u16>()) else {
        return refused("expected codes and ranges such as `200-299, 401`");
    };
    if from > to {
        return refused("it ends before it begins");
    }
    if from < 100 || to > 599 {
        return refused("status codes lie between 100 and 599");
    }
    Ok(from..=to)
}

textual!(StatusRanges, "status codes such as \"200-299\"", {
    "type": "string",
    "pattern": r"^\s*\d{3}(\s*-\s*\d{3})?(\s*,\s*\d{3}(\s*-\s*\d{3})?)*\s*$",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ranges_are_put_in_order_and_joined() {
        for (written, canonical) in
            [("200", "200"), ("200-299", "200-299"), ("401 , 200-299,250-301,302", "200-302, 401")]
        {
            assert_eq!(written.parse::<StatusRanges>().unwrap().to_string(), canonical);
        }
        for bad in ["", "2xx", "299-200", "99", "200-600", "200,", "200-299-300"] {
            assert_eq!(bad.parse::<StatusRanges>().unwrap_err().code, Code::BadStatus, "{bad}");
        }
        let ranges: StatusRanges = "200-204, 301".parse().unwrap();
        assert!(ranges.contains(200) && ranges.contains(301) && !ranges.contains(205));
    }

    #[test]
    fn paths_are_in_origin_form() {
        for good in ["/", "/healthz", "/a?b=c&d=%20"] {
            assert_eq!(good.parse::<HttpPath>().unwrap().as_str(), good);
        }
        for bad in ["", "healthz", "/a b", "/ü", "/a#b", "/a\r\nX: y", "http://host/x"] {
            assert_eq!(bad.parse::<HttpPath>().unwrap_err().code, Code::BadHttpPath, "{bad}");
        }
    }

    #[test]
    fn hosts_cannot_carry_another_header() {
        assert!("shop.example:8080".parse::<HttpHost>().is_ok());
        assert!("[2001:db8::1]:80".parse::<HttpHost>().is_ok());
        for bad in ["", "a b", "a\r\nX: y", "http://a"] {
            assert_eq!(bad.parse::<HttpHost>().unwrap_err().code, Code::BadHttpHost, "{bad:?}");
        }
    }
}
