//! Numbers for people.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::api::ServiceStatus;

/// `9999`, `12.3k`, `4.57M`.
pub(super) fn count(n: u64) -> String {
    if n < 10_000 {
        return n.to_string();
    }
    scaled(n, 1_000, &["", "k", "M", "G", "T", "P", "E"])
}

/// `512 B`, `1.25 KiB`, `17.0 GiB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, 1_024, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

/// Three digits that count.
fn scaled(n: u64, step: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut at = 0;
    // What would be rounded to the next unit's 1 is shown as that.
    while at + 1 < units.len() && value >= step as f64 - 0.5 {
        value /= step as f64;
        at += 1;
    }
    let unit = units[at];
    match value {
        _ if at == 0 => format!("{n}{unit}"),
        value if value < 9.995 => format!("{value:.2}{unit}"),
        value if value < 99.95 => format!("{value:.1}{unit}"),
        value => format!("{value:.0}{unit}"),
    }
}

/// `10 %`, `33.3 %`, `0.05 %`: at most two decimals, more below a hundredth.
pub(super) fn percent(percent: f64) -> String {
    let places = match percent.abs() {
        size if size > 0.0 && size < 0.01 => 6,
        _ => 2,
    };
    let text = format!("{percent:.places$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

/// One number in percent of another; nothing of nothing is nothing, and a trace of it is below a hundredth.
pub(super) fn ratio(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
    if share > 0.0 && share < 0.01 { "<0.01 %".to_owned() } else { percent(share) }
}

/// `850 ns`, `41 µs`, `1.2 ms`, `2.5 s`.
pub(super) fn short_time(time: Duration) -> String {
    let ns = time.as_nanos();
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", two_digits(ns as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", two_digits(ns as f64 / 1e6)),
        _ => format!("{} s", two_digits(ns as f64 / 1e9)),
    }
}

fn two_digits(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// `45s`, `12m`, `3h12m`, `4d3h`, `90d`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let pair = |big: u64, unit: char, small: u64, rest: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{rest}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..7_200 => format!("{minutes}m"),
        7_200..172_800 => pair(hours, 'h', minutes % 60, 'm'),
        172_800..864_000 => pair(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

/// A time (RFC 3339) to the second.
pub(super) fn second(time: &str) -> String {
    time.parse::<jiff::Timestamp>().map_or_else(|_| time.to_owned(), |time| format!("{time:.0}"))
}

/// `203.0.113.10:443/tcp`; every port is `*`.
pub(super) fn vip(service: &ServiceStatus) -> String {
    let protocol = service.protocol;
    match (service.vip, service.port) {
        (IpAddr::V4(vip), 0) => format!("{vip}:*/{protocol}"),
        (IpAddr::V6(vip), 0) => format!("[{vip}]:*/{protocol}"),
        (vip, port) => format!("{}/{protocol}", SocketAddr::new(vip, port)),
    }
}

pub(super) use crate::plural::{counted, either};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bytes_have_three_digits_that_count() {
        for (n, shown) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (12_345, "12.3k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (4_567_890, "4.57M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(n), shown);
        }
        for (n, shown) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.00 KiB"),
            (1_280, "1.25 KiB"),
            (18_253_611_008, "17.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), shown);
        }
    }

    #[test]
    fn percentages_are_as_short_as_they_can_be() {
        for (share, shown) in [
            (0.0, "0 %"),
            (10.0, "10 %"),
            (33.333_333, "33.33 %"),
            (0.05, "0.05 %"),
            (0.000_5, "0.0005 %"),
            (100.0, "100 %"),
        ] {
            assert_eq!(percent(share), shown);
        }
        assert_eq!(ratio(1, 4), "25 %");
        assert_eq!(ratio(0, 0), "0 %");
        assert_eq!(ratio(1, 1_000_000), "<0.01 %");
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        for (ns, shown) in [
            (850, "850 ns"),
            (1_234, "1.2 µs"),
            (41_200, "41 µs"),
            (1_230_000, "1.2 ms"),
            (2_500_000_000, "2.5 s"),
        ] {
            assert_eq!(short_time(Duration::from_nanos(ns)), shown);
        }
        for (seconds, shown) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (135, "2m15s"),
            (720, "12m"),
            (11_520, "3h12m"),
            (7_200, "2h"),
            (356_400, "4d3h"),
            (8_000_000, "92d"),
        ] {
            assert_eq!(age(seconds), shown);
        }
    }
}
