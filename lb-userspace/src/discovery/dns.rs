//! Backends as name servers know them: every answer is one.
//!
//! A name whose servers fail has no answer, which is not an empty one; so does a name of which only one of its kinds of
//! address was answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::{Instant, sleep_until};

use super::Families;
use crate::config::{AdminState, Backend, NameServer, Record, Weight};

/// The last priority that a backend can have.
const LAST: usize = 127;

pub(super) struct Dns {
    asked: crate::config::Dns,
    port: u16,
    families: Families,
    /// When the last answer is not believed any more.
    due: Instant,
}

/// Records of one name and kind; none of them, if there is no such name or it has none of that kind.
struct Records {
    data: Vec<RData>,
    /// How long they hold; unknown where there are none and nobody said so.
    ttl: Option<Duration>,
}

impl Dns {
    pub fn new(asked: crate::config::Dns, port: u16, families: Families) -> Self {
        Self { asked, port, families, due: Instant::now() }
    }

    pub async fn ask(&mut self) -> Result<Vec<Backend>, String> {
        let answer = self.resolve().await;
        let ttl = answer.as_ref().map_or(None, |(_, ttl)| *ttl).unwrap_or_default();
        self.due = Instant::now() + ttl.max(self.asked.min_ttl).min(self.asked.max_ttl);
        answer.map(|(backends, _)| backends)
    }

    pub async fn until_news(&self) {
        sleep_until(self.due).await;
    }

    async fn resolve(&self) -> Result<(Vec<Backend>, Option<Duration>), String> {
        // Anew each time: resolv.conf may have changed.
        let resolver = self.resolver().map_err(|error| format!("the resolver cannot be set up: {error}"))?;
        let name = self.asked.name.as_str();
        let name = Name::from_utf8(name).map_err(|error| format!("{name}: {error}"))?;
        match self.asked.record {
            Record::Srv => self.services(&resolver, &name).await,
            Record::Address | Record::A | Record::Aaaa => {
                let (addresses, ttl) = self.addresses(&resolver, &name).await?;
                let backends =
                    addresses.into_iter().map(|ip| backend((ip, self.port).into(), Weight::DEFAULT, 0));
                Ok((backends.collect(), ttl))
            }
        }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let mut builder = if self.asked.servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = self.asked.servers.iter().copied().map(server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        };
        let options = builder.options_mut();
        options.timeout = self.asked.timeout;
        // How long an answer holds is decided here.
        options.cache_size = 0;
        builder.build()
    }

    /// The addresses of a name, sorted, and how long they hold.
    async fn addresses(
        &self,
        resolver: &TokioResolver,
        name: &Name,
    ) -> Result<(BTreeSet<IpAddr>, Option<Duration>), String> {
        let (v4, v6) = match self.asked.record {
            Record::A => (true, false),
            Record::Aaaa => (false, true),
            Record::Address | Record::Srv => (self.families.v4, self.families.v6),
        };
        let (mut addresses, mut ttl) = (BTreeSet::new(), None);
        for (kind, _) in [(RecordType::A, v4), (RecordType::AAAA, v6)].into_iter().filter(|(_, asked)| *asked)
        {
            let records = records(resolver, name, kind).await?;
            // What has no address of one kind does not shorten the life of the others.
            if !records.data.is_empty() || addresses.is_empty() {
                ttl = shorter(ttl, records.ttl);
            }
            addresses.extend(records.data.iter().filter_map(|data| match data {
                RData::A(a) => Some(IpAddr::from(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0)),
                _ => None,
            }));
        }
        Ok((addresses, ttl))
    }

    /// The services that a name stands for (RFC 2782).
    async fn services(
        &self,
        resolver: &TokioResolver,
        name: &Name,
    ) -> Result<(Vec<Backend>, Option<Duration>), String> {
        let Records { data, mut ttl } = records(resolver, name, RecordType::SRV).await?;
        let mut services = Vec::new();
        for data in data {
            // A target of `.` says that there is no such service.
            if let RData::SRV(srv) = data
                && !srv.target.is_root()
            {
                let (addresses, of_target) = self.addresses(resolver, &srv.target).await?;
                ttl = shorter(ttl, of_target);
                services.push((srv, addresses));
            }
        }
        // In a service of every port the client's port is kept.
        let port = |srv: &SRV| if self.port == 0 { 0 } else { srv.port };
        Ok((ranked(&services, port), ttl))
    }
}

/// The backends that services and their addresses make. Priorities are kept in their order; where no record of a priority has a
/// weight, all weigh the same, and else one without a weight gets as little as there is.
fn ranked(services: &[(SRV, BTreeSet<IpAddr>)], port: impl Fn(&SRV) -> u16) -> Vec<Backend> {
    let mut heaviest: BTreeMap<u16, u16> = BTreeMap::new();
    for (srv, _) in services {
        let most = heaviest.entry(srv.priority).or_default();
        *most = srv.weight.max(*most);
    }
    let ranks: BTreeMap<u16, u32> =
        heaviest.keys().enumerate().map(|(rank, &priority)| (priority, rank.min(LAST) as u32)).collect();
    let mut backends: BTreeMap<SocketAddr, Backend> = BTreeMap::new();
    for (srv, addresses) in services {
        let weight = match heaviest.get(&srv.priority) {
            Some(0) | None => Weight::DEFAULT,
            Some(_) => Weight(srv.weight.max(1)),
        };
        let rank = ranks.get(&srv.priority).copied().unwrap_or_default();
        for &ip in addresses {
            let address = (ip, port(srv)).into();
            // Two names for one backend: it serves as the better one of them.
            let next = backend(address, weight, rank);
            let known = backends.entry(address).or_insert_with(|| next.clone());
            if (next.priority, std::cmp::Reverse(next.weight))
                < (known.priority, std::cmp::Reverse(known.weight))
            {
                *known = next;
            }
        }
    }
    backends.into_values().collect()
}

fn backend(address: SocketAddr, weight: Weight, priority: u32) -> Backend {
    Backend {
        address,
        weight,
        state: AdminState::Ready,
        priority,
        health_port: None,
        agent_port: None,
        server_ids: None,
    }
}

fn server(server: NameServer) -> NameServerConfig {
    let address = server.address();
    let mut config = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut config.connections {
        connection.port = address.port();
    }
    config
}

async fn records(resolver: &TokioResolver, name: &Name, kind: RecordType) -> Result<Records, String> {
    match resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => {
            let seconds = lookup.answers().iter().map(|record| record.ttl).min();
            let ttl = seconds.map(|seconds| Duration::from_secs(seconds.into()));
            Ok(Records { data: lookup.answers().iter().map(|record| record.data.clone()).collect(), ttl })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))
            if matches!(nothing.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
        {
            let ttl = nothing.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
            Ok(Records { data: Vec::new(), ttl })
        }
        Err(error) => Err(format!("{kind} of {name}: {error}")),
    }
}

fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn srv(priority: u16, weight: u16, addresses: &[&str]) -> (SRV, BTreeSet<IpAddr>) {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        (SRV::new(priority, weight, 8080, Name::root()), addresses)
    }

    fn shown(services: &[(SRV, BTreeSet<IpAddr>)]) -> Vec<(String, u16, u32)> {
        let of = |backend: Backend| (backend.address.to_string(), backend.weight.get(), backend.priority);
        ranked(services, |srv| srv.port).into_iter().map(of).collect()
    }

    #[test]
    fn srv_records_keep_their_order_and_their_weights() {
        let services = [
            srv(20, 0, &["10.0.0.4"]),
            srv(10, 60, &["10.0.0.1", "2001:db8::1"]),
            srv(10, 0, &["10.0.0.2"]),
            srv(20, 0, &["10.0.0.3"]),
        ];
        assert_eq!(
            shown(&services),
            [
                ("10.0.0.1:8080".to_owned(), 60, 0),
                ("10.0.0.2:8080".to_owned(), 1, 0),
                ("10.0.0.3:8080".to_owned(), 100, 1),
                ("10.0.0.4:8080".to_owned(), 100, 1),
                ("[2001:db8::1]:8080".to_owned(), 60, 0),
            ]
        );
    }

    #[test]
    fn a_backend_with_two_names_is_one_backend() {
        let services = [srv(2, 9, &["10.0.0.1"]), srv(1, 3, &["10.0.0.1"]), srv(1, 5, &["10.0.0.1"])];
        assert_eq!(shown(&services), [("10.0.0.1:8080".to_owned(), 5, 0)]);
    }

    #[test]
    fn priorities_beyond_the_last_one_share_it() {
        let services: Vec<_> = (0..130).map(|i| srv(i * 10, 1, &[&format!("10.0.0.{i}")])).collect();
        let priorities: BTreeSet<u32> = shown(&services).into_iter().map(|(.., priority)| priority).collect();
        assert_eq!(priorities, (0..=127).collect());
    }
}
