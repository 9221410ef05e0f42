//! Neighbours that the kernel program had no hardware address for, as it says so through a ring buffer.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use aya::maps::{Map, MapData, RingBuf};
use lb_common::abi;
use tokio::io::unix::AsyncFd;

/// The ring.
pub struct Wanted {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Wanted {
    /// Opens the ring that is pinned in `directory`.
    ///
    /// # Errors
    ///
    /// If it is not there, or no ring.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("WANTED");
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).context("WANTED is no ring buffer")?;
        // SAFETY: the ring keeps its one descriptor open for as long as it lives.
        Ok(Self { ring: unsafe { AsyncFd::register(ring) }? })
    }

    /// Those that were asked for since the last call, each once: interface and address. Waits for the first one.
    pub async fn next(&mut self) -> BTreeSet<(u32, IpAddr)> {
        loop {
            let mut wanted = BTreeSet::new();
            match self.ring.readable_mut().await {
                Ok(mut guard) => {
                    while let Some(item) = guard.get_inner_mut().next() {
                        if let Ok(item) = bytemuck::try_pod_read_unaligned::<abi::Wanted>(&item) {
                            wanted.insert((item.ifindex, item.address.into()));
                        }
                    }
                    guard.clear_ready();
                }
                Err(error) => gone(&error).await,
            }
            if !wanted.is_empty() {
                return wanted;
            }
        }
    }
}

/// A descriptor that cannot be waited for is a runtime that ends: there is nothing to hear any more.
async fn gone(error: &io::Error) {
    tracing::warn!("cannot listen for wanted neighbours: {error}");
    std::future::pending::<()>().await;
}
