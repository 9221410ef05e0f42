//! The loaded program on a packet of the flow, beside the rule on the same packet: they must not differ.
//!
//! The program runs on the real maps, so the packet is one that leaves nothing in them but its counters: a RST, which is worth
//! no entry anywhere, or a datagram that is placed by its hash or its connection id alone.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use lb_common::host::{Frame, Tables};
use lb_common::pipeline::process;
use lb_common::verdict::{Action, Verdict};
use lb_common::wire::{IPPROTO_UDP, TCP_ACK, TCP_RST};

use crate::craft::{self, Content};
use crate::dataplane::bpf;

/// What came of it.
pub struct Run {
    /// In words.
    pub text: String,
    /// Whether program and rule agree.
    pub agree: bool,
}

/// Runs `program` on a packet that came in by `ifindex`, and the rule on `tables`.
///
/// # Errors
///
/// Whatever the kernel says to the test run.
pub fn run(
    program: impl AsFd,
    tables: &Tables,
    ifindex: u32,
    from: SocketAddr,
    to: SocketAddr,
    content: Content,
) -> std::io::Result<Run> {
    let own =
        tables.devices.iter().find(|device| device.ifindex == ifindex).map_or([0; 6], |device| device.mac);
    let bytes = craft::frame(own, from, to, content);
    let mut frame = Frame::new(&bytes, ifindex);
    let verdict = process(&mut frame, tables);
    let ruled = Outcome { action: action(&verdict, ifindex), frame: frame.bytes().to_vec() };
    let (action, frame) = bpf::test_run(program.as_fd(), &bytes, ifindex)?;
    let ran = Outcome { action, frame };
    let agree = ran == ruled;
    let what = if matches!(content, Content::Segment { .. }) { "a RST" } else { "a datagram" };
    let text = if agree {
        format!("the loaded program does with {what} of this flow what the rule says: {}", ran.words(&bytes))
    } else {
        format!(
            "the loaded program DIFFERS from the rule: of {what} of this flow it makes: {}; the rule: {}",
            ran.words(&bytes),
            ruled.words(&bytes)
        )
    };
    Ok(Run { text, agree })
}

/// What leaves no trace.
pub const fn content(protocol: u8) -> Content {
    if protocol == IPPROTO_UDP {
        Content::Datagram
    } else {
        Content::Segment { flags: TCP_RST | TCP_ACK, sequence: 1, acknowledgement: 0 }
    }
}

/// What the program returns for a verdict.
fn action(verdict: &Verdict, arrival: u32) -> u32 {
    match verdict.reason.action() {
        Action::Drop => XDP_DROP,
        Action::Pass => XDP_PASS,
        Action::Transmit if verdict.ifindex == arrival => XDP_TX,
        Action::Transmit => XDP_REDIRECT,
    }
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// What becomes of a frame.
#[derive(PartialEq, Eq)]
struct Outcome {
    action: u32,
    frame: Vec<u8>,
}

impl Outcome {
    fn words(&self, before: &[u8]) -> String {
        match self.action {
            XDP_DROP => "dropped".to_owned(),
            XDP_PASS => "passed up".to_owned(),
            XDP_TX | XDP_REDIRECT => {
                let [a, b, c, d, e, f] = self.frame.first_chunk().copied().unwrap_or_default();
                let out = if self.action == XDP_TX { "where it came in" } else { "by another interface" };
                let more = self.frame.len() as i64 - before.len() as i64;
                let tunnel = if more > 0 { format!(", {more} bytes longer") } else { String::new() };
                format!("out {out}, to {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}{tunnel}")
            }
            other => format!("action {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::abi::Mode;
    use lb_common::host::ServiceSpec;
    use lb_common::verdict::Reason;
    use lb_common::wire::IPPROTO_TCP;

    #[test]
    fn the_packet_is_one_that_the_rule_forwards() {
        for (from, to, backend) in [
            ("198.51.100.1:4000", "203.0.113.10:443", "10.0.0.1:443"),
            ("[2001:db8::1]:4000", "[2001:db8::10]:443", "[fd00::1]:443"),
        ] {
            for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
                let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
                let mut tables = Tables::new();
                let spec = ServiceSpec { protocol, ..ServiceSpec::tcp(to.ip(), to.port(), Mode::Nat) };
                let service = tables.add_service(&spec);
                tables.add_pool(service, false, &[(backend.parse().unwrap(), 1)]);
                let bytes = craft::frame([2; 6], from, to, content(protocol));
                let mut frame = Frame::new(&bytes, Tables::IFINDEX);
                assert_eq!(process(&mut frame, &tables).reason, Reason::Forwarded);
            }
        }
    }
}
