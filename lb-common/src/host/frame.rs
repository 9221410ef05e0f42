use crate::pipeline::Packet;
use crate::wire::Wire;

/// What lies in a frame's head- and tailroom: nothing that anybody may rely on.
const POISON: u8 = 0xa5;

/// A frame with room before and after it, as a driver hands it over.
#[derive(Clone, Debug)]
pub struct Frame {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where what can be viewed ends: the rest is in other buffers.
    linear_end: usize,
    ifindex: u32,
}

impl Frame {
    /// Headroom in bytes that a driver leaves for XDP (`XDP_PACKET_HEADROOM`).
    pub const HEADROOM: usize = 256;

    /// A frame of these bytes that came in by `ifindex`.
    #[must_use]
    pub fn new(bytes: &[u8], ifindex: u32) -> Self {
        Self::with_headroom(bytes, ifindex, Self::HEADROOM)
    }

    /// The same with `headroom` bytes before it.
    #[must_use]
    pub fn with_headroom(bytes: &[u8], ifindex: u32, headroom: usize) -> Self {
        let mut buffer = vec![POISON; headroom];
        buffer.extend_from_slice(bytes);
        let end = buffer.len();
        Self { buffer, start: headroom, end, linear_end: usize::MAX, ifindex }
    }

    /// A frame of which only `linear` bytes lie in the first of its buffers.
    #[must_use]
    pub fn in_buffers(bytes: &[u8], ifindex: u32, linear: usize) -> Self {
        Self { linear_end: Self::HEADROOM + linear, ..Self::new(bytes, ifindex) }
    }

    /// The frame as it is now.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn viewable(&self) -> &[u8] {
        &self.buffer[self.start..self.end.min(self.linear_end)]
    }
}

impl Packet for Frame {
    fn view<T: Wire>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(T::SIZE)?;
        self.viewable().get(offset..end).map(bytemuck::from_bytes)
    }

    fn view_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        let end = offset.checked_add(T::SIZE)?;
        let viewable = self.start..self.end.min(self.linear_end);
        self.buffer[viewable].get_mut(offset..end).map(bytemuck::from_bytes_mut)
    }

    fn reaches(&self, length: usize) -> bool {
        length <= self.bytes().len()
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn grow_head(&mut self, bytes: usize) -> Option<()> {
        self.start = self.start.checked_sub(bytes)?;
        self.buffer[self.start..self.start + bytes].fill(POISON);
        Some(())
    }

    fn shrink_head(&mut self, bytes: usize) -> Option<()> {
        let start = self.start + bytes;
        if start > self.end {
            return None;
        }
        self.start = start;
        Some(())
    }

    fn truncate(&mut self, length: usize) -> Option<()> {
        let end = self.start + length;
        if end > self.end {
            return None;
        }
        self.end = end;
        Some(())
    }
}
