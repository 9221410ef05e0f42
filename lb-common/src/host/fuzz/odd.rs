//! A second opinion on fragments and ICMP errors: what must not change, as sums, and what may, as bytes.

use super::inspect::sum;

/// A fragment, or an error that quotes a packet.
#[derive(Debug)]
pub struct Odd {
    pub v6: bool,
    pub l3: usize,
    pub end: usize,
    pub hops: u8,
    pub traffic_class: u8,
    /// Sums that every rewriting keeps: one's complement, so that 0 and 0xffff are one.
    sums: Vec<u16>,
    /// Bytes that a rewriting may change.
    may_change: Vec<std::ops::Range<usize>>,
}

impl Odd {
    /// Reads a fragment of TCP or UDP, or an ICMP error about either; `None` if it is something else.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let at = |i: usize| frame.get(i).copied();
        let word = |i: usize| Some(u16::from_be_bytes([at(i)?, at(i + 1)?]));
        let mut l3 = 14;
        for _ in 0..2 {
            if matches!(word(l3 - 2)?, 0x8100 | 0x88a8) {
                l3 += 4;
            }
        }
        let v6 = at(l3)? >> 4 == 6;
        let (mut next, end, mut protocol, hops, traffic_class, addresses) = if v6 {
            let class = at(l3)? << 4 | at(l3 + 1)? >> 4;
            (l3 + 40, l3 + 40 + usize::from(word(l3 + 4)?), at(l3 + 6)?, at(l3 + 7)?, class, l3 + 8..l3 + 40)
        } else {
            let header = usize::from(at(l3)? & 15) * 4;
            (
                l3 + header,
                l3 + usize::from(word(l3 + 2)?),
                at(l3 + 9)?,
                at(l3 + 8)?,
                at(l3 + 1)?,
                l3 + 12..l3 + 20,
            )
        };
        let pseudo = |protocol: u8| sum(protocol.into(), &frame[addresses.clone()]);
        let mut odd = Self { v6, l3, end, hops, traffic_class, sums: Vec::new(), may_change: Vec::new() };
        odd.may_change.push(l3 + if v6 { 7 } else { 8 }..l3 + if v6 { 8 } else { 9 });
        odd.may_change.push(addresses.clone());
        if !v6 {
            odd.may_change.push(l3 + 10..l3 + 12);
        }
        if matches!((v6, protocol), (false, 1) | (true, 58)) {
            odd.may_change.push(next + 2..next + 4);
            let covered = frame.get(next..end)?;
            odd.sums.push(sum(if v6 { pseudo(58).into() } else { 0 }, covered));
            odd.quote(frame, next + 8)?;
            return Some(odd);
        }
        let mut offset = if v6 { 0 } else { word(l3 + 6)? & 0x1fff };
        while v6 && protocol != 44 {
            protocol = at(next)?;
            next += 8 + usize::from(at(next + 1)?) * 8;
        }
        if v6 {
            (protocol, offset) = (at(next)?, word(next + 2)? & 0xfff8);
            next += 8;
        }
        if offset == 0 {
            odd.transport(frame, next, protocol, addresses);
        }
        Some(odd)
    }

    /// The packet that an error quotes.
    fn quote(&mut self, frame: &[u8], l3: usize) -> Option<()> {
        let at = |i: usize| frame.get(i).copied();
        let (mut l4, mut protocol, addresses) = if self.v6 {
            (l3 + 40, at(l3 + 6)?, l3 + 8..l3 + 40)
        } else {
            let header = usize::from(at(l3)? & 15) * 4;
            self.may_change.push(l3 + 10..l3 + 12);
            self.sums.push(sum(0, frame.get(l3..l3 + header)?));
            (l3 + header, at(l3 + 9)?, l3 + 12..l3 + 20)
        };
        while self.v6 && !matches!(protocol, 6 | 17) {
            let unit = if protocol == 51 { 4 } else { 8 };
            protocol = at(l4)?;
            l4 += 8 + usize::from(at(l4 + 1)?) * unit;
        }
        self.may_change.push(addresses.clone());
        self.transport(frame, l4, protocol, addresses);
        Some(())
    }

    /// Ports, and the checksum if it is there: of what there is of the segment.
    fn transport(&mut self, frame: &[u8], l4: usize, protocol: u8, addresses: std::ops::Range<usize>) {
        self.may_change.push(l4..l4 + 4);
        let checksum = l4 + if protocol == 6 { 16 } else { 6 };
        let there = self.end.min(frame.len());
        if checksum + 2 > there || (protocol == 17 && frame[checksum..checksum + 2] == [0, 0]) {
            return;
        }
        self.may_change.push(checksum..checksum + 2);
        self.sums.push(sum(sum(protocol.into(), &frame[addresses]).into(), &frame[l4..there]));
    }

    /// Checks a frame that was translated: one hop less, the same sums, and no other bytes.
    pub fn translated(&self, before: &[u8], after: &[u8]) {
        let now = Self::read(after).expect("what it was before");
        assert_eq!(before.len(), after.len());
        assert_eq!(now.hops, self.hops - 1);
        let one_zero = |sums: &[u16]| sums.iter().map(|sum| sum % 0xffff).collect::<Vec<_>>();
        assert_eq!(one_zero(&now.sums), one_zero(&self.sums), "a checksum: {self:?}");
        let mut masked = [before.to_vec(), after.to_vec()];
        for frame in &mut masked {
            frame[..12].fill(0);
            for range in &self.may_change {
                frame[range.clone()].fill(0);
            }
        }
        assert_eq!(masked[0], masked[1], "more than addresses, ports, hops and checksums has changed");
    }
}
