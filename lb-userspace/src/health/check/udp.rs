//! `udp`: a datagram, and what its answer has to be.

/// A datagram and what is expected in answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpCheck {
    /// What is sent.
    pub send: Box<[u8]>,
    /// What the answer has to contain; `None`: any answer will do.
    pub expect: Option<Box<[u8]>>,
}
