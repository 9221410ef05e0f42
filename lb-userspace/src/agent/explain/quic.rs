//! Whom a connection id names: the kernel program's own reading, over what its maps hold.

use lb_common::abi::Service;
use lb_common::host::Tables;
use lb_common::quic::{ConfigKey, Query, ServerKey, find, found};

use super::super::Agent;
use super::step;
use crate::api::{ConnectionId, Step};
use crate::craft::SHORT_HEADER_ID;

/// What became of a connection id.
pub(super) struct Named {
    /// For people.
    pub step: Step,
    /// The backend; 0: the ordinary rule decides.
    pub backend: u16,
}

/// An id as it is seen in a short header: with the zeros that are crafted behind it.
pub(super) fn padded(id: &ConnectionId) -> [u8; SHORT_HEADER_ID] {
    let mut padded = [0; SHORT_HEADER_ID];
    padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = *from);
    padded
}

impl Agent {
    /// Reads a connection id, and copies what it is read by into `tables`, where the service is the first.
    pub(super) fn named_by_id(
        &self,
        service: &Service,
        index: u32,
        id: &ConnectionId,
        tables: &mut Tables,
    ) -> Named {
        let said = |text: String, backend| Named { step: step("quic", text, &[]), backend };
        if !service.has(Service::QUIC) {
            return said("the service reads no connection ids".to_owned(), 0);
        }
        let bytes = padded(id);
        let config = u32::from(bytes[0] >> 5);
        let maps = &self.publisher.maps;
        let Ok(Some(reader)) = maps.quic_configs.get(&ConfigKey { service: index, config }) else {
            let text =
                format!("no configuration {config}, which the id {id} says: the ordinary rule decides");
            return said(text, 0);
        };
        let word = |at: usize| {
            u32::from_be_bytes(std::array::from_fn(|i| bytes[1..].get(at + i).copied().unwrap_or(0)))
        };
        let query =
            Query { service: 0, first: bytes[0].into(), length: 0, words: [0, 4, 8, 12, 16].map(word) };
        let server = reader.server_id(&query.words);
        tables.quic_configs.insert(ConfigKey { service: 0, config }, reader);
        if let Ok(Some(target)) = maps.quic_servers.get(&ServerKey { service: index, config, server }) {
            tables.quic_servers.insert(ServerKey { service: 0, config, server }, target);
        }
        let length = reader.server.iter().map(|mask| mask.count_ones() as usize / 8).sum::<usize>();
        let digits: String = server.map(|word| format!("{word:08x}")).concat()[..length * 2].to_owned();
        match find(tables, &query) {
            found::NOBODY => {
                let text = format!(
                    "the id {id} names the server {digits}, which is nobody: the ordinary rule decides"
                );
                said(text, 0)
            }
            backend if backend < found::VOID => {
                let text = format!(
                    "the id {id} names the server {digits}: {}, wherever its client is (unless an Initial or a 0-RTT packet has it)",
                    self.name_of(backend as u16)
                );
                said(text, backend as u16)
            }
            _ => {
                let text = format!(
                    "the id {id} names the server {digits}, whose backend takes nothing by it any more: the ordinary rule decides"
                );
                said(text, 0)
            }
        }
    }
}
