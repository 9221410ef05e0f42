//! Ranges of ports.

use std::fmt;
use std::str::FromStr;

use super::textual;
use crate::config::{Code, Invalid};

/// Ports from the first to the last, both included; 0 is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Above what needs a privilege, and below what Linux gives to its own connections (`net.ipv4.ip_local_port_range`).
    pub const DEFAULT: Self = Self { first: 1024, last: 32_767 };

    /// The first.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        match (port(parts.0), port(parts.1)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(Invalid::new(
                Code::BadPorts,
                format!("`{text}` is not a range of ports"),
                "expected the first and the last port such as `1024-32767`",
            )),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.first, self.last)
    }
}

textual!(PortRange, "a range of ports", { "type": "string", "pattern": r"^\d{1,5}(-\d{1,5})?$" });
