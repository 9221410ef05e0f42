//! What is to be checked, and how: parsed once, trusted after.

use std::{
    fmt, net::SocketAddr, num::NonZeroU32, ops::RangeInclusive, str::FromStr, sync::Arc, time::Duration,
};

use hyper::{
    header::HeaderValue,
    http::uri::{Authority, PathAndQuery},
};

use super::judge::Thresholds;

/// The caller's name for a target. An id stands for one address: another address gets another id, so that an event
/// that is under way is never taken for one of the newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

/// Something to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The caller's name for it.
    pub id: TargetId,
    /// Where probes go.
    pub address: SocketAddr,
    /// What is asked, and how often.
    pub check: Check,
    /// `SO_MARK` of the probes' sockets (needs CAP_NET_ADMIN).
    pub mark: Option<u32>,
}

/// What is asked of a target, and how often. Cheap to clone: ten thousand targets share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// How often, how long, how many times.
    pub timing: Timing,
}

/// The types of checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A connection is accepted.
    Tcp,
    /// A GET is answered with one of the expected statuses.
    Http(Arc<HttpCheck>),
}

/// No target is checked more often than this.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How often, how long, how many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    interval: Duration,
    timeout: Duration,
    thresholds: Thresholds,
}

impl Timing {
    /// `interval` from the start of one check to the start of the next, `timeout` for all of one check; results in a
    /// row that bring a target up (`healthy`) and take it down (`unhealthy`).
    ///
    /// # Errors
    /// An interval below [`MIN_INTERVAL`]; a timeout of zero or above the interval (checks of a target do not
    /// overlap, so that it would silently be the interval); a threshold of zero.
    pub fn new(
        interval: Duration,
        timeout: Duration,
        healthy: u32,
        unhealthy: u32,
    ) -> Result<Self, TimingError> {
        if interval < MIN_INTERVAL {
            return Err(TimingError::IntervalTooShort);
        }
        if timeout.is_zero() {
            return Err(TimingError::ZeroTimeout);
        }
        if timeout > interval {
            return Err(TimingError::TimeoutAboveInterval);
        }
        let threshold = |n| NonZeroU32::new(n).ok_or(TimingError::ZeroThreshold);
        let thresholds = Thresholds { healthy: threshold(healthy)?, unhealthy: threshold(unhealthy)? };
        Ok(Self { interval, timeout, thresholds })
    }

    /// From the start of one check to the start of the next, at most.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Results in a row that turn a target over.
    pub const fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// How long one check may take. A timeout as long as the interval is cut by a sixteenth, so that the next check
    /// starts on time.
    pub fn timeout(&self) -> Duration {
        self.timeout.min(self.interval - self.interval / 16)
    }

    /// No later than this after a target stopped answering it is reported down.
    pub fn detection_bound(&self) -> Duration {
        self.interval.saturating_mul(self.thresholds.unhealthy.get()).saturating_add(self.timeout)
    }
}

/// Why a [`Timing`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimingError {
    /// See [`MIN_INTERVAL`].
    IntervalTooShort,
    /// Nothing answers in no time.
    ZeroTimeout,
    /// Checks of one target do not overlap.
    TimeoutAboveInterval,
    /// No result at all cannot decide.
    ZeroThreshold,
}

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IntervalTooShort => "the interval is shorter than 10 ms",
            Self::ZeroTimeout => "the timeout is zero",
            Self::TimeoutAboveInterval => "the timeout is longer than the interval",
            Self::ZeroThreshold => "a threshold is zero; it counts results in a row, so 1 or more",
        })
    }
}

impl std::error::Error for TimingError {}

/// A GET and what is expected of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub(super) path: PathAndQuery,
    pub(super) host: Option<HeaderValue>,
    pub(super) expect: StatusRanges,
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
        Ok(Self { path, host, expect })
    }
}

fn host_header(host: &str) -> Result<HeaderValue, HttpCheckError> {
    let authority = Authority::from_str(host).map_err(|_| HttpCheckError::Host)?;
    // RFC 9110, 7.2: no user information in Host.
    if authority.as_str().contains('@') {
        return Err(HttpCheckError::Host);
    }
    HeaderValue::from_str(host).map_err(|_| HttpCheckError::Host)
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

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_timing_that_cannot_be_kept_is_refused() {
        let refused = |interval, timeout, healthy, unhealthy| {
            Timing::new(interval, timeout, healthy, unhealthy).expect_err("it cannot be kept")
        };
        let short = MIN_INTERVAL - Duration::from_nanos(1);
        assert_eq!(refused(short, short, 1, 1), TimingError::IntervalTooShort);
        assert_eq!(refused(SECOND, Duration::ZERO, 1, 1), TimingError::ZeroTimeout);
        assert_eq!(refused(SECOND, 2 * SECOND, 1, 1), TimingError::TimeoutAboveInterval);
        assert_eq!(refused(SECOND, SECOND, 0, 1), TimingError::ZeroThreshold);
        assert_eq!(refused(SECOND, SECOND, 1, 0), TimingError::ZeroThreshold);
    }

    #[test]
    fn a_check_ends_before_the_next_one_starts() {
        let timing = Timing::new(SECOND, SECOND, 1, 3).expect("a timeout may be the interval");
        assert!(timing.timeout() < timing.interval());
        assert_eq!(timing.detection_bound(), 4 * SECOND);
    }

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
