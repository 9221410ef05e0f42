//! Frames made by hand: built layer by layer, checked, sent and received raw.
//!
//! Written without the product's own header code, so that each can find the other wrong.

mod build;
mod headers;
mod raw;
mod verify;

pub use build::Frame;
pub use headers::{Extension, Ipv4, Ipv6, Tcp, Udp, flags};
pub use raw::{RawSocket, Received};
pub use verify::{Fault, Layer, Verified, checksum, verify};

/// Bytes in hexadecimal digits, two each.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
