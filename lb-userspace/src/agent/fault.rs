//! Faults that are injected. The kernel's table is all there is of them: it outlives the agent, and so does their end.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use lb_common::abi::{Address, FAULTS, Fault, Split};

use super::{Agent, Request};
use crate::api::{
    AddFault, Api, ApiError, BackendPath, ClearFaults, ErrorCode, FaultAction, FaultStatus, Faults,
};
use crate::clock;
use crate::compile::key_of;
use crate::config::ServiceName;
use crate::publish::split;

/// What is injected for longer than a day is no rehearsal.
const LONGEST: f64 = 86_400.0;

impl Agent {
    /// Injects one.
    pub(super) fn add_fault(
        &mut self,
        service: &str,
        body: &AddFault,
        request: &Request,
    ) -> Result<Faults, ApiError> {
        let (name, _) = self.intent(service)?;
        let index = self.index(service)?;
        let invalid = |message: String| ApiError::new(ErrorCode::InvalidValue, message).about(service);
        if !(body.seconds > 0.0 && body.seconds <= LONGEST) {
            return Err(
                invalid(format!("{} seconds", body.seconds)).remedy("a fault lasts for a day at most")
            );
        }
        if body.share == crate::api::Share::ZERO {
            return Err(invalid("0 % is no fault".to_owned()));
        }
        let pool = match &body.pool {
            None => 0,
            Some(pool) => self.pool_index(&name, index, pool)?,
        };
        let backend = match &body.backend {
            None => 0,
            Some(backend) => self.backend_index(&name, index, backend)?,
        };
        let slot = self.faults().iter().position(|fault| !is_there(fault)).ok_or_else(|| {
            ApiError::new(ErrorCode::InvalidValue, format!("there are {FAULTS} faults already"))
                .remedy("take one away first (`lbctl fault clear`)")
        })?;
        let (network, mask) = body.clients.map_or((Address::default(), Address::default()), network);
        let fault = Fault {
            // Last: until then it is none.
            until: 0,
            salt: clock::nanoseconds(),
            network,
            mask,
            service: index,
            share: split::share(body.share.percent()),
            pool,
            backend,
            action: match body.action {
                FaultAction::Reset => Fault::RESET,
                FaultAction::Drop => Fault::DROP,
            },
        };
        let until = clock::nanoseconds() + (body.seconds * 1e9) as u64;
        self.store_fault(slot, &fault);
        self.end_of(slot).store(until, Ordering::Release);
        self.faulted.insert(name.clone());
        self.converge([name.clone()]);
        let status = self.fault_status(slot, &Fault { until, ..fault });
        self.note("fault_added", Some(&name), request, format!("a fault is injected: {}", in_words(&status)));
        Ok(self.fault_list())
    }

    /// Takes one away, or all.
    pub(super) fn clear_faults(&mut self, body: &ClearFaults, request: &Request) -> Result<Faults, ApiError> {
        let there: Vec<usize> = (0..FAULTS).filter(|&slot| is_there(&self.faults()[slot])).collect();
        let wanted: Vec<usize> = match body.id {
            None => there,
            Some(id) => there.into_iter().filter(|&slot| slot as u32 + 1 == id).collect(),
        };
        if let (Some(id), true) = (body.id, wanted.is_empty()) {
            return Err(ApiError::new(ErrorCode::InvalidValue, format!("there is no fault {id}"))
                .remedy("`lbctl fault list` shows those that there are"));
        }
        for slot in wanted {
            let status = self.fault_status(slot, &self.faults()[slot]);
            self.end_of(slot).store(0, Ordering::Release);
            let name = self.names().into_iter().find(|name| name.as_str() == status.service);
            self.note(
                "fault_cleared",
                name.as_ref(),
                request,
                format!("a fault was taken away: {}", in_words(&status)),
            );
        }
        self.forget_faults();
        Ok(self.fault_list())
    }

    /// All that there are.
    pub(super) fn fault_list(&self) -> Faults {
        let faults = self.faults();
        let there = faults.iter().enumerate().filter(|(_, fault)| is_there(fault));
        Faults { api: Api::V1, faults: there.map(|(slot, fault)| self.fault_status(slot, fault)).collect() }
    }

    /// Takes note of faults that an earlier agent has left in the kernel.
    pub(super) fn adopt_faults(&mut self) {
        let there: Vec<u32> =
            self.faults().iter().filter(|fault| is_there(fault)).map(|fault| fault.service).collect();
        let mut names = self.names();
        names.retain(|name| self.index(name.as_str()).is_ok_and(|index| there.contains(&index)));
        self.faulted.extend(names);
    }

    /// Lets the services go on by the bare rule whose faults are over.
    pub(super) fn forget_faults(&mut self) {
        if self.faulted.is_empty() {
            return;
        }
        let faults = self.faults();
        let there = |name: &ServiceName| {
            let index = self.index(name.as_str());
            index.is_ok_and(|index| faults.iter().any(|fault| is_there(fault) && fault.service == index))
        };
        let over: Vec<ServiceName> = self.faulted.iter().filter(|name| !there(name)).cloned().collect();
        for name in &over {
            self.faulted.remove(name);
            let request = Request { author: crate::state::Author::agent("fault"), reason: None };
            self.note(
                "fault_over",
                Some(name),
                &request,
                format!("no fault is injected into {name} any more"),
            );
        }
        self.converge(over);
    }

    fn faults(&self) -> [Fault; FAULTS] {
        self.publisher.maps.faults.read(0)
    }

    /// The word that says when a fault is over.
    fn end_of(&self, slot: usize) -> &std::sync::atomic::AtomicU64 {
        self.publisher.maps.faults.word(0, slot * size_of::<Fault>())
    }

    fn store_fault(&self, slot: usize, fault: &Fault) {
        let words: [u64; size_of::<Fault>() / 8] = bytemuck::cast(*fault);
        for (i, word) in words.into_iter().enumerate() {
            self.publisher
                .maps
                .faults
                .word(0, slot * size_of::<Fault>() + i * 8)
                .store(word, Ordering::Release);
        }
    }

    fn pool_index(&self, name: &ServiceName, service: u32, pool: &str) -> Result<u16, ApiError> {
        let configured = self.desired.service(name.as_str());
        let pools =
            || configured.iter().flat_map(|service| service.pools.iter().map(|pool| pool.name.as_str()));
        if !pools().any(|known| known == pool) {
            return Err(ApiError::no_pool(name.as_str(), pool, pools()));
        }
        let in_kernel = self.publisher.maps.services.read(service);
        let known = |index: &u16| *index != 0 && self.publisher.registry.pool_name(*index) == Some(pool);
        [in_kernel.stable_pool, in_kernel.canary_pool].into_iter().find(known).ok_or_else(|| {
            ApiError::new(ErrorCode::InvalidValue, format!("pool {pool} takes no connections"))
                .about(name.as_str())
                .remedy("faults are injected into the stable pool and the canary: `lbctl get services` shows them")
        })
    }

    fn backend_index(&self, name: &ServiceName, index: u32, backend: &str) -> Result<u16, ApiError> {
        let none = || {
            ApiError::new(ErrorCode::NoBackend, format!("no backend {backend}"))
                .about(name.as_str())
                .remedy("`lbctl get backends` lists them")
        };
        let path = BackendPath { service: String::new(), pool: String::new(), backend: backend.to_owned() };
        let address = path.address().ok_or_else(none)?;
        let service = self.desired.service(name.as_str()).ok_or_else(none)?;
        crate::compile::id_of(service, address, index, &self.publisher.registry).ok_or_else(none)
    }

    fn fault_status(&self, slot: usize, fault: &Fault) -> FaultStatus {
        let registry = &self.publisher.registry;
        let services = &self.desired.config.services;
        let service = services.iter().find(|s| registry.service_index(&key_of(s)) == Some(fault.service));
        FaultStatus {
            id: slot as u32 + 1,
            service: service.map_or_else(|| "?".to_owned(), |service| service.name.to_string()),
            action: if fault.action == Fault::RESET { FaultAction::Reset } else { FaultAction::Drop },
            percent: if fault.share == Split::ALL { 100.0 } else { split::percent(fault.share) },
            pool: (fault.pool != 0).then(|| registry.pool_name(fault.pool).unwrap_or("?").to_owned()),
            backend: (fault.backend != 0).then(|| self.name_of(fault.backend)),
            clients: clients(fault),
            left_seconds: fault.until.saturating_sub(clock::nanoseconds()) as f64 / 1e9,
        }
    }
}

fn is_there(fault: &Fault) -> bool {
    fault.until > clock::nanoseconds()
}

/// A network as the kernel program compares it.
fn network(network: IpNet) -> (Address, Address) {
    let beyond = if network.addr().is_ipv4() { 96 } else { 0 };
    let bits = u32::from(network.prefix_len()) + beyond;
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (network.network().into(), bytemuck::cast(mask.to_be_bytes()))
}

fn clients(fault: &Fault) -> Option<String> {
    let mask: [u8; 16] = bytemuck::cast(fault.mask);
    let bits = u128::from_be_bytes(mask).leading_ones() as u8;
    let address: IpAddr = fault.network.into();
    let length = if address.is_ipv4() { bits.saturating_sub(96) } else { bits };
    (bits > 0).then(|| format!("{address}/{length}"))
}

/// As people are told of it.
pub(super) fn in_words(fault: &FaultStatus) -> String {
    let FaultStatus { id, service, action, percent, pool, backend, clients, left_seconds } = fault;
    let mut text = format!("{id}: {action} of {percent} % of new connections to {service}");
    for (part, what) in [("/", pool), (" on ", backend), (" from ", clients)] {
        text += &what.as_ref().map_or(String::new(), |what| format!("{part}{what}"));
    }
    text + &format!(", for {left_seconds:.0} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_survives_the_kernel() {
        for text in ["10.1.0.0/16", "198.51.100.7/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128"] {
            let (network, mask) = network(text.parse().expect("a network"));
            assert_eq!(clients(&Fault { network, mask, ..Fault::default() }).as_deref(), Some(text));
        }
        assert_eq!(clients(&Fault::default()), None);
    }
}
