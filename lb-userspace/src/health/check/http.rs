//! `http` and `https`: a GET, and what its answer has to be.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use hyper::{
    header::HeaderValue,
    http::uri::{Authority, PathAndQuery},
};

use super::Tls;

/// A GET and what is expected of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub(in crate::health) path: PathAndQuery,
    pub(in crate::health) host: Option<HeaderValue>,
    pub(in crate::health) expect: StatusRanges,
    pub(in crate::health) expect_body: Option<Box<str>>,
    pub(in crate::health) tls: Option<Tls>,
}

impl HttpCheck {
    /// `path` with its query, as it stands in the request line; `host` for the Host header (default: the target's
    /// address and port).
    ///
    /// # Errors
    /// A path or a host that cannot stand in a request.
    pub fn new(path: &str, host: Option<&str>, expect: StatusRanges) -> Result<Self, HttpCheckError> {
        let absolute = path.starts_with('/').then_some(path).ok_or(HttpCheckError::Path)?;
        let path = PathAndQuery::from_str(absolute).map_err(|_| HttpCheckError::Path)?;
        let host = host.map(host_header).transpose()?;
        Ok(Self { path, host, expect, expect_body: None, tls: None })
    }

    /// The first 64 KiB of the body have to contain `text` too.
    #[must_use]
    pub fn expecting_body(self, text: &str) -> Self {
        Self { expect_body: Some(text.into()), ..self }
    }

    /// Within TLS.
    #[must_use]
    pub fn within(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }
}

fn host_header(host: &str) -> Result<HeaderValue, HttpCheckError> {
    authority(host)?;
    HeaderValue::from_str(host).map_err(|_| HttpCheckError::Host)
}

/// RFC 9110, 7.2: no user information.
pub(super) fn authority(host: &str) -> Result<Authority, HttpCheckError> {
    let authority = Authority::from_str(host).map_err(|_| HttpCheckError::Host)?;
    if authority.as_str().contains('@') { Err(HttpCheckError::Host) } else { Ok(authority) }
}

/// Why an [`HttpCheck`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpCheckError {
    /// Not a path.
    Path,
    /// Not a host.
    Host,
}

impl fmt::Display for HttpCheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Path => "not a path: it starts with `/` and has no spaces or fragment",
            Self::Host => "not a host: a name or an address, with a port if need be",
        })
    }
}

impl std::error::Error for HttpCheckError {}

/// The statuses that count as healthy, written `200-299,301`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRanges(Box<[RangeInclusive<u16>]>);

impl StatusRanges {
    /// If that status counts as healthy.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for StatusRanges {
    /// `200-299`
    fn default() -> Self {
        Self(Box::new([200..=299]))
    }
}

impl FromStr for StatusRanges {
    type Err = StatusRangesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(|range| parse_range(range.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>, StatusRangesError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| {
        let text = text.trim();
        text.parse()
            .ok()
            .filter(|status| (100..=599).contains(status))
            .ok_or_else(|| StatusRangesError::NotAStatus(text.to_owned()))
    };
    let (first, last) = (status(first)?, status(last)?);
    if first > last {
        return Err(StatusRangesError::Backwards(first, last));
    }
    Ok(first..=last)
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Why a text is not [`StatusRanges`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusRangesError {
    /// Neither a status nor a range of statuses.
    NotAStatus(String),
    /// A range whose end is before its start.
    Backwards(u16, u16),
}

impl fmt::Display for StatusRangesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAStatus(text) => {
                write!(f, "`{text}` is not a status from 100 to 599; write `200` or `200-299,301`")
            }
            Self::Backwards(first, last) => {
                write!(f, "{first}-{last} is empty: write {last}-{first}")
            }
        }
    }
}

impl std::error::Error for StatusRangesError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ranges_are_read_and_written() {
        let ranges: StatusRanges = "200-299, 301,404-404".parse().expect("well formed");
        assert_eq!(ranges.to_string(), "200-299,301,404");
        for (status, expected) in [(199, false), (200, true), (299, true), (300, false), (301, true)] {
            assert_eq!(ranges.contains(status), expected, "{status}");
        }
        for wrong in ["", "2xx", "200-", "200,,201", "99", "600", "200-299-301", "-200"] {
            assert!(
                matches!(wrong.parse::<StatusRanges>(), Err(StatusRangesError::NotAStatus(_))),
                "{wrong:?}"
            );
        }
        assert_eq!("299-200".parse::<StatusRanges>(), Err(StatusRangesError::Backwards(299, 200)));
    }

    #[test]
    fn what_cannot_stand_in_a_request_is_refused() {
        let new = |path, host| HttpCheck::new(path, host, StatusRanges::default());
        new("/", None).expect("a path");
        new("/healthz?full=1", Some("shop.example:8080")).expect("a path and a host");
        new("/", Some("[2001:db8::1]:80")).expect("an address");
        for path in ["", "healthz", "http://x/", "/a b", "/a\r\nX: y"] {
            assert_eq!(new(path, None), Err(HttpCheckError::Path), "{path:?}");
        }
        for host in ["", "a b", "a\r\nX: y", "user@host", "a/b"] {
            assert_eq!(new("/", Some(host)), Err(HttpCheckError::Host), "{host:?}");
        }
    }
}
