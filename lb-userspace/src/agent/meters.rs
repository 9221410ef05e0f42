//! What was counted of pools and backends.

use lb_common::abi;

use crate::dataplane::bpf::PerCpu;
use crate::dataplane::{Maps, maps};
use crate::publish::Publisher;

/// Counters of pools and backends, read in large pieces where that is cheaper than one by one.
pub(super) struct Meters<'a> {
    maps: &'a Maps,
    pools: Piece,
    backends: Piece,
}

/// The counters from an index on.
#[derive(Default)]
struct Piece {
    first: u32,
    sums: Vec<abi::Traffic>,
}

impl Piece {
    /// Of some indexes; nothing if they lie far apart, or cannot be read.
    fn of(map: &PerCpu<abi::Traffic>, indexes: impl Iterator<Item = u16>) -> Self {
        let mut count = 0;
        let ends = indexes.inspect(|_| count += 1).fold(None, |ends: Option<(u16, u16)>, index| {
            Some(ends.map_or((index, index), |(first, last)| (first.min(index), last.max(index))))
        });
        let Some((first, last)) = ends.map(|(first, last)| (u32::from(first), u32::from(last))) else {
            return Self::default();
        };
        // One of a piece costs a small part of what one costs by itself.
        if last - first > 16 * count {
            return Self::default();
        }
        Self { first, sums: map.sums(first..last + 1).unwrap_or_default() }
    }

    fn get(&self, index: u16) -> Option<abi::Traffic> {
        self.sums.get(u32::from(index).checked_sub(self.first)? as usize).copied()
    }
}

impl<'a> Meters<'a> {
    pub fn of_all(publisher: &'a Publisher) -> Self {
        let (maps, registry) = (&*publisher.maps, &publisher.registry);
        Self {
            maps,
            pools: Piece::of(&maps.pool_traffic, registry.pools()),
            backends: Piece::of(&maps.backend_traffic, registry.backend_ids()),
        }
    }

    /// Of some services, by their addresses.
    pub fn of_some(publisher: &'a Publisher, keys: impl Iterator<Item = abi::VipKey>) -> Self {
        let (maps, registry) = (&*publisher.maps, &publisher.registry);
        let indexes: Vec<u32> = keys.filter_map(|key| registry.service_index(&key)).collect();
        let pools = indexes.iter().flat_map(|&index| registry.pools_of(index));
        let backends = indexes.iter().flat_map(|&index| registry.backends_of(index));
        Self {
            maps,
            pools: Piece::of(&maps.pool_traffic, pools),
            backends: Piece::of(&maps.backend_traffic, backends),
        }
    }

    /// Of a pool; nothing if it cannot be read.
    pub fn pool(&self, index: u16) -> abi::Traffic {
        let read = || maps::traffic(&self.maps.pool_traffic, index.into()).unwrap_or_default();
        self.pools.get(index).unwrap_or_else(read)
    }

    /// Of a backend; nothing if it cannot be read.
    pub fn backend(&self, id: u16) -> abi::Traffic {
        let read = || maps::traffic(&self.maps.backend_traffic, id.into()).unwrap_or_default();
        self.backends.get(id).unwrap_or_else(read)
    }
}
