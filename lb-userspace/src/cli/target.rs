//! How a backend is named on the command line.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::failure::Failure;
use crate::api::{ApiError, BackendPath, BackendRow, Client, ServiceQuery};

/// `SERVICE/POOL/BACKEND`, or a shorthand: `SERVICE/BACKEND`, and a backend without its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    service: String,
    pool: Option<String>,
    backend: Name,
}

/// A backend as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Full(SocketAddr),
    /// Without a port: the whole name where the service has every port, else a shorthand.
    Address(IpAddr),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (service, pool, backend) = match parts[..] {
            [service, backend] => (service, None, backend),
            [service, pool, backend] => (service, Some(pool), backend),
            _ => return Err("expected SERVICE/POOL/BACKEND, such as checkout/v41/10.0.1.11:8443".to_owned()),
        };
        if service.is_empty() || pool.is_some_and(str::is_empty) {
            return Err("a name is empty; expected SERVICE/POOL/BACKEND".to_owned());
        }
        Ok(Self { service: service.to_owned(), pool: pool.map(str::to_owned), backend: backend.parse()? })
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        text.parse().map(Self::Full).map_err(|_| {
            format!("`{text}` is no backend; expected an address and a port, such as 10.0.1.11:8443 or [2001:db8::11]:8443")
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(both) => both.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.service)?;
        self.pool.iter().try_for_each(|pool| write!(f, "{pool}/"))?;
        self.backend.fmt(f)
    }
}

impl Target {
    /// The service that it is of.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The one backend that is meant. The agent is asked only where a shorthand was used.
    pub async fn resolve(&self, client: &Client) -> Result<BackendPath, Failure> {
        if let (Some(pool), Name::Full(backend)) = (&self.pool, &self.backend) {
            return Ok(BackendPath {
                service: self.service.clone(),
                pool: pool.clone(),
                backend: backend.to_string(),
            });
        }
        let query = ServiceQuery { service: Some(self.service.clone()), ..ServiceQuery::default() };
        let known = client.backends(&query).await?.backends;
        self.among(&known)
    }

    fn among(&self, known: &[BackendRow]) -> Result<BackendPath, Failure> {
        let in_pool = |row: &&BackendRow| self.pool.as_ref().is_none_or(|pool| *pool == row.pool);
        let rows: Vec<&BackendRow> = known.iter().filter(in_pool).collect();
        if let (true, Some(pool)) = (rows.is_empty(), &self.pool) {
            let mut pools: Vec<&str> = known.iter().map(|row| row.pool.as_str()).collect();
            pools.dedup();
            return Err(ApiError::no_pool(&self.service, pool, pools).into());
        }
        let meant: Vec<&&BackendRow> =
            rows.iter().filter(|row| self.backend.may_be(&row.backend.name)).collect();
        match meant[..] {
            [one] => Ok(path(one)),
            [] => {
                let owner = match &self.pool {
                    Some(pool) => format!("{}/{pool}", self.service),
                    None => self.service.clone(),
                };
                let names = rows.iter().map(|row| row.backend.name.as_str());
                Err(ApiError::no_backend(&owner, &self.backend.to_string(), names).into())
            }
            _ => {
                let all: Vec<String> = meant.iter().map(|row| format!("`{}`", path(row))).collect();
                let message = format!("`{self}` can be {}", all.join(" or "));
                Err(Failure::of("LB0605", message).remedy("write the one that is meant in full"))
            }
        }
    }
}

impl Name {
    fn may_be(&self, name: &str) -> bool {
        let Ok(known) = name.parse::<Self>() else {
            return false;
        };
        match (self, known) {
            (Self::Address(ours), Self::Full(known)) => *ours == known.ip(),
            (ours, known) => *ours == known,
        }
    }
}

fn path(row: &BackendRow) -> BackendPath {
    BackendPath { service: row.service.clone(), pool: row.pool.clone(), backend: row.backend.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BackendStatus, HealthState, HealthStatus, NextHop, PoolRole, Rate, Traffic};
    use crate::config::AdminState;

    fn row(pool: &str, name: &str) -> BackendRow {
        let backend = BackendStatus {
            name: name.to_owned(),
            id: 1,
            weight: 100,
            configured_weight: 100,
            source: None,
            priority: 0,
            state: AdminState::Ready,
            drain: None,
            slow_start_percent: None,
            ejection: None,
            breaker: None,
            outcomes: None,
            server_ids: Vec::new(),
            steering: None,
            connections: None,
            health: HealthStatus {
                status: HealthState::Up,
                reason: None,
                since_seconds: 0,
                last_duration_seconds: None,
            },
            takes_new: true,
            why_not: None,
            standby: false,
            slots: 0,
            tracked_flows: 0,
            next_hop: NextHop::Unreachable { unreachable: String::new() },
            terminating: false,
            traffic: Traffic::default(),
            rate: Rate::default(),
        };
        BackendRow { service: "s".to_owned(), pool: pool.to_owned(), role: PoolRole::Stable, backend }
    }

    fn known() -> [BackendRow; 4] {
        [
            row("v1", "10.0.0.1:80"),
            row("v1", "10.0.0.1:81"),
            row("v2", "10.0.0.2:80"),
            row("v2", "[2001:db8::1]:80"),
        ]
    }

    fn resolved(text: &str) -> Result<String, String> {
        let target: Target = text.parse()?;
        let found = target.among(&known());
        found.map(|path| path.to_string()).map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn shorthands_find_the_one_that_they_can_mean() {
        for (text, meant) in [
            ("s/v1/10.0.0.1:80", "s/v1/10.0.0.1:80"),
            ("s/10.0.0.1:81", "s/v1/10.0.0.1:81"),
            ("s/10.0.0.2", "s/v2/10.0.0.2:80"),
            ("s/v2/2001:DB8::1", "s/v2/[2001:db8::1]:80"),
            ("s/[2001:db8:0::1]:80", "s/v2/[2001:db8::1]:80"),
            ("s/[2001:db8::1]", "s/v2/[2001:db8::1]:80"),
        ] {
            assert_eq!(resolved(text).as_deref(), Ok(meant), "{text}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_unknown_is_refused() {
        for (text, why) in [
            ("s/10.0.0.1", "`s/10.0.0.1` can be `s/v1/10.0.0.1:80` or `s/v1/10.0.0.1:81`"),
            ("s/v1/10.0.0.2", "`s/v1` has no backend `10.0.0.2`"),
            ("s/10.0.0.2:443", "`s` has no backend `10.0.0.2:443`"),
            ("s/v3/10.0.0.2", "service `s` has no pool `v3`"),
        ] {
            assert_eq!(resolved(text).unwrap_err(), why, "{text}");
        }
        for text in ["s", "s/v1/x/y", "/v1/10.0.0.1:80", "s//10.0.0.1:80", "s/v1/web", "s/v1/10.0.0.1:x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_backend_of_every_port_is_its_address() {
        let target: Target = "s/v1/10.0.0.9".parse().unwrap();
        assert_eq!(target.among(&[row("v1", "10.0.0.9")]).unwrap().backend, "10.0.0.9");
    }
}
