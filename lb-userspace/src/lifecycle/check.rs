//! `lbd --check`: whether the agent could start here. Changes nothing.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::agent::Places;
use crate::config::{self, Config, Service, Via};
use crate::dataplane;
use crate::metrics::Where;
use crate::netlink::list_links;
use crate::packet_socket::PacketSocket;
use crate::state::Journal;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// What was found; an error says what to do about it.
    pub outcome: Result<String, String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(found) => write!(f, "ok      {}: {found}", self.what),
            Err(trouble) => write!(f, "failed  {}: {trouble}", self.what),
        }
    }
}

/// Looks at configuration, privileges, kernel, BPF file system, interfaces, directories and the address of metrics.
#[must_use]
pub fn check(places: &Places, metrics: Where) -> Vec<Finding> {
    let (configuration, config) = configuration(&places.config);
    let finding = |what, outcome| Finding { what, outcome };
    let mut findings = vec![
        finding("configuration", configuration),
        finding("privileges", privileges(&fs::read_to_string("/proc/self/status").unwrap_or_default())),
        finding("kernel", kernel()),
        finding("BPF file system", bpffs(&places.pin_dir)),
        finding("state directory", writable(&places.state_dir)),
        finding("socket directory", writable(places.socket.parent().unwrap_or(Path::new(".")))),
    ];
    match (Journal::is_free(&places.state_dir), metrics) {
        // It is no fault of the place's: this is asked before an upgrade, too.
        (Err(_), _) => findings
            .push(finding("agent", Ok("another lbd is at work here, and has to end first".to_owned()))),
        (Ok(()), Where::At(address)) => findings.push(finding("metrics", free(address))),
        (Ok(()), Where::Off) => {}
    }
    if let Some(config) = config {
        findings.push(finding("interfaces", interfaces(&config)));
        if config.services.iter().any(probes_vips) {
            findings.push(finding("probes of VIPs", probes()));
        }
    }
    findings
}

fn configuration(path: &Path) -> (Result<String, String>, Option<Config>) {
    match config::load(path) {
        Ok(loaded) if loaded.warnings.is_empty() => (
            Ok(match loaded.config.services.len() {
                1 => format!("{}: 1 service", path.display()),
                count => format!("{}: {count} services", path.display()),
            }),
            Some(loaded.config),
        ),
        Ok(loaded) => {
            (Ok(format!("{}, with warnings\n{}", path.display(), loaded.warnings)), Some(loaded.config))
        }
        Err(error) => (Err(error.to_string()), None),
    }
}

/// As `linux/capability.h` numbers them.
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// `status` is the text of proc_pid_status(5).
fn privileges(status: &str) -> Result<String, String> {
    let Some(missing) = missing_capabilities(status, false) else {
        return Err("/proc does not say which there are".to_owned());
    };
    match missing.as_slice() {
        [] => Ok("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN".to_owned()),
        missing => Err(format!("{} missing; run lbd as root or by its unit file", missing.join(" and "))),
    }
}

/// What probes along the data path need beside that (`via = "vip"`).
const FOR_PROBES: (&str, u32) = ("CAP_NET_RAW", 13);

/// The capabilities that lbd needs and a process does not have; `None` if `status` (proc_pid_status(5)) does not say.
pub(crate) fn missing_capabilities(status: &str, probes_vips: bool) -> Option<Vec<&'static str>> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let needed = NEEDED.iter().chain(probes_vips.then_some(&FOR_PROBES));
    Some(needed.filter(|(_, bit)| effective & 1 << bit == 0).map(|(name, _)| *name).collect())
}

fn kernel() -> Result<String, String> {
    dataplane::check_kernel().map_err(|error| error.to_string())?;
    if !dataplane::has_btf() {
        return Err("it shows no types of its own (/sys/kernel/btf/vmlinux), which its verifier needs; use one that was \
                    built with CONFIG_DEBUG_INFO_BTF"
            .to_owned());
    }
    Ok("new enough, and shows its types".to_owned())
}

fn bpffs(pin_dir: &Path) -> Result<String, String> {
    match pin_dir.ancestors().find(|path| path.exists()) {
        Some(there) if dataplane::is_bpffs(there) => writable(pin_dir),
        _ => Err(dataplane::LoadError::NoBpffs { path: pin_dir.to_owned() }.to_string()),
    }
}

/// Whether files can be made in a directory, or the directory can be.
fn writable(directory: &Path) -> Result<String, String> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let allowed = CString::new(there.as_os_str().as_bytes()).is_ok_and(|path| {
        // SAFETY: a string that ends.
        unsafe {
            libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) == 0
        }
    });
    match (allowed, there == directory) {
        (true, true) => Ok(directory.display().to_string()),
        (true, false) => Ok(format!("{} can be made", directory.display())),
        (false, _) => {
            Err(format!("{} cannot be written to; give it to lbd's user, or choose another", there.display()))
        }
    }
}

/// Whether the backends of a service are asked for its VIP.
pub(crate) fn probes_vips(service: &Service) -> bool {
    service.health.check.as_ref().is_some_and(|check| check.probe.via == Via::Vip)
}

/// Whether metrics can be served at an address.
fn free(address: SocketAddr) -> Result<String, String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(format!("{address} is free")),
        Err(error) => Err(format!(
            "cannot be served on {address}: {error}; choose another address, or `off` (--metrics or LB_METRICS)"
        )),
    }
}

fn probes() -> Result<String, String> {
    match PacketSocket::sending() {
        Ok(_) => Ok("there are packet sockets".to_owned()),
        Err(error) => Err(format!(
            "no packet socket, which `via = \"vip\"` needs: {error}; give lbd CAP_NET_RAW, and in the unit file AF_PACKET \
             under RestrictAddressFamilies"
        )),
    }
}

fn interfaces(config: &Config) -> Result<String, String> {
    let links = list_links().map_err(|error| error.to_string())?;
    let wanted: Vec<&str> = config.dataplane.interfaces.iter().map(|name| name.as_str()).collect();
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !links.values().any(|link| link.name == **name)).copied().collect();
    if missing.is_empty() {
        return Ok(wanted.join(", "));
    }
    let present: Vec<&str> = links.values().map(|link| link.name.as_str()).collect();
    Err(format!("there is no interface {}; there are {}", missing.join(", "), present.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_read_from_the_effective_set() {
        let status = |bits: &str| format!("Name:\tlbd\nCapPrm:\t000001ffffffffff\nCapEff:\t{bits}\n");
        assert!(privileges(&status("000001ffffffffff")).is_ok());
        assert!(privileges(&status("000000c000001000")).is_ok());
        let missing = |bits: &str| privileges(&status(bits)).unwrap_err();
        assert!(missing("0000004000001000").starts_with("CAP_BPF missing"));
        assert!(missing("0000000000000000").starts_with("CAP_NET_ADMIN and CAP_PERFMON and CAP_BPF missing"));
        assert!(privileges("").is_err());
        let with_probes = |bits: &str| missing_capabilities(&status(bits), true).unwrap();
        assert_eq!(with_probes("000000c000001000"), ["CAP_NET_RAW"]);
        assert!(with_probes("000000c000003000").is_empty());
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_the_one_above() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("a/b");
        assert_eq!(writable(directory.path()), Ok(directory.path().display().to_string()));
        assert_eq!(writable(&below), Ok(format!("{} can be made", below.display())));
        assert!(!below.exists(), "nothing was changed");
        assert!(
            writable(Path::new("/proc/self/here"))
                .unwrap_err()
                .starts_with("/proc/self cannot be written to")
        );
    }
}
