//! Packets as they go through.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use super::words::words;
use crate::config::Protocol;

/// Body of `POST /v1/trace`: which packets, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// One end of the packet as it arrives; with `prefix`, a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How many bits of `address` count; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<u8>,
    /// One end's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// After how many seconds it ends by itself: 600 at most.
    #[serde(default = "half_a_minute")]
    pub seconds: u64,
    /// Whether the packets themselves are wanted, as far as they fit (1 984 bytes), in hexadecimal.
    #[serde(default)]
    pub bytes: bool,
}

const fn half_a_minute() -> u64 {
    30
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            address: None,
            prefix: None,
            port: None,
            protocol: None,
            seconds: half_a_minute(),
            bytes: false,
        }
    }
}

words! {
    /// A point of a packet's road.
    TracePoint {
        /// It has arrived.
        Arrives = "arrives",
        /// It goes on to another stage of the program.
        GoesOn = "goes-on",
        /// Its road ends.
        Ends = "ends",
    }
}

/// A line of the answer to `POST /v1/trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traced {
    /// Version of the API.
    #[serde(default)]
    pub api: Api,
    /// When (RFC 3339).
    pub time: String,
    /// The CPU that has the packet in hand.
    pub cpu: u16,
    /// Which packet of that CPU.
    pub packet: u64,
    /// What is told of it.
    pub point: TracePoint,
    /// The interface that it came in by, or leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Length of the frame at this point.
    pub length: u32,
    /// Sender, with the port where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Receiver, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What it is, such as `tcp syn`; in a tunnel what is outside.
    pub kind: String,
    /// Where it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// What becomes of it: `transmit`, `pass` or `drop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Why, as its counter is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// To or from whom, as `SERVICE/POOL/BACKEND`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Whether a flow begins with it.
    #[serde(default)]
    pub begins: bool,
    /// Points that were lost so far, because nobody read them in time.
    #[serde(default)]
    pub lost: u64,
    /// The frame, in hexadecimal, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}
