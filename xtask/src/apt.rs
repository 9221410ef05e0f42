//! Debian packages: which ones, why, and how they are installed without starting services.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio, id},
};

use anyhow::{Context as _, Result, bail};

use crate::host;

/// A Debian package that something here needs.
pub struct Package {
    /// Debian's name.
    pub name: &'static str,
    /// A program on `PATH`, or a file by its full path, that says it is there, from Debian or not.
    proof: &'static str,
    /// What for.
    pub why: &'static str,
    /// A service that Debian would start and enable.
    service: Option<&'static str>,
}

impl Package {
    /// Whether what it brings is there.
    pub fn is_there(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            host::has_program(self.proof)
        }
    }
}

/// To build bpf-linker.
pub const LINKER: [Package; 1] =
    [package("llvm-22-dev", "/usr/lib/llvm-22/lib/libLLVM.so", "bpf-linker links LLVM's library")];

/// To build the kernel programs where rustup has no compiler for them.
pub const RUST: [Package; 2] = [
    package("rustc-web", "/usr/bin/rustc", "rustc with LLVM 22"),
    package(
        "rust-web-src",
        "/usr/lib/rustlib/src/rust/library/core/src/lib.rs",
        "core's source, which is built for BPF",
    ),
];

/// For tests and benchmarks.
pub const TESTS: [Package; 13] = [
    package("iproute2", "ip", "network namespaces, links, addresses"),
    package("ethtool", "ethtool", "checksum offload off on veth, so that XDP sees whole packets"),
    package("bpftool", "bpftool", "instruction counts of loaded programs"),
    package("nftables", "nft", "the kernel's DNAT, to compare with; lost and delayed packets"),
    service("haproxy", "haproxy", "a proxy to compare with"),
    service("nginx", "nginx", "backends that serve HTTP"),
    package("curl", "curl", "HTTP requests one by one, and the agent's socket"),
    package("wrk", "wrk", "HTTP load"),
    package("iperf3", "iperf3", "TCP and UDP streams"),
    package("tcpdump", "tcpdump", "what was on the wire when a test fails"),
    service(
        "prometheus",
        "promtool",
        "figures that rollouts ask for; metrics, alert rules and dashboard are tested with it",
    ),
    package("chromium", "chromium", "the status page is looked at in a real browser"),
    package("g++", "c++", "libFuzzer's runtime"),
];

/// For other kernels (`cargo xtask vm`), beside what unpacks packages.
pub const MACHINES: [Package; 4] = [
    package("qemu-system-x86", "qemu-system-x86_64", "runs other kernels"),
    package("busybox-static", "busybox", "their user space"),
    package("binutils", "strip", "makes test programs smaller"),
    package("xz-utils", "xz", "unpacks modules"),
];

/// For programs that need no library of the system (`cargo xtask package --musl`).
pub const STATIC: [Package; 1] =
    [package("musl-tools", "musl-gcc", "builds the C parts of the allocator and of TLS")];

/// Where apt gets them, as a line of its sources.
const SECURITY: &str = "deb http://deb.debian.org/debian-security bookworm-security main";

const fn package(name: &'static str, proof: &'static str, why: &'static str) -> Package {
    Package { name, proof, why, service: None }
}

const fn service(name: &'static str, proof: &'static str, why: &'static str) -> Package {
    Package { name, proof, why, service: Some(name) }
}

/// The packages of a list that are not there.
pub fn missing(packages: &'static [Package]) -> Vec<&'static Package> {
    packages.iter().filter(|package| !package.is_there()).collect()
}

/// Installs what is missing of a list. Removes no package, and leaves no new service running or enabled.
///
/// # Errors
/// Without root or apt, with the command that an administrator can run; or what apt said.
pub fn install(packages: &'static [Package]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if !host::has_program("apt-get") {
        bail!(
            "there is no apt-get here: install by hand what these Debian packages have: {}",
            names.join(" ")
        );
    }
    if !host::is_root() {
        bail!("packages are installed by root: run as root\n  {by_hand}\nand then `cargo xtask setup` again");
    }
    let _no_services = NoServices::enact()?;
    // A repository that is out of reach need not be the one that we need: the install will tell.
    if let Err(error) = host::run(apt_get().args(["update", "-qq"])) {
        println!("      {error}; going on with the lists that are here");
    }
    let install = host::run(
        apt_get().args(["install", "-qq", "--yes", "--no-install-recommends", "--no-remove"]).args(&names),
    );
    if let Err(error) = install {
        bail!("{error}: {}", remedy(&unknown(&names), &by_hand));
    }
    for service in missing.iter().filter_map(|package| package.service) {
        disable(service);
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
        .stdin(Stdio::null());
    apt
}

/// What to do when apt installs nothing. An installer of Debian's lists its security updates, where LLVM 22 is; debootstrap does not.
fn remedy(unknown: &[&str], by_hand: &str) -> String {
    if unknown.is_empty() {
        return format!("see what apt says above, or run\n  {by_hand}");
    }
    format!(
        "apt does not know {}. Where it got its lists above, they lack Debian 12's security updates: add\n  {SECURITY}\n\
         to /etc/apt/sources.list, and run `cargo xtask setup` again; where it did not, it needs a network",
        unknown.join(" ")
    )
}

/// The packages that none of apt's lists has.
fn unknown<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let Ok(policy) = Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C").output() else {
        return Vec::new();
    };
    let policy = String::from_utf8_lossy(&policy.stdout);
    names.iter().copied().filter(|name| !has_candidate(&policy, name)).collect()
}

/// Whether `apt-cache policy` says of a package which version would be installed.
fn has_candidate(policy: &str, name: &str) -> bool {
    let mut lines = policy.lines().skip_while(|line| line.strip_suffix(':') != Some(name)).skip(1);
    let candidate = lines.find_map(|line| line.strip_prefix("  Candidate: "));
    candidate.is_some_and(|version| version != "(none)")
}

/// A new service is enabled by its package, whatever [`NoServices`] says: it would run after the next boot. This
/// knows of systemd and of the older scripts.
fn disable(service: &str) {
    if let Err(error) = host::run(Command::new("update-rc.d").args([service, "disable"])) {
        println!("      {error}; the service {service} may start at the next boot");
    }
}

/// Packages start no service while this lives: Debian asks `policy-rc.d` before it starts one (invoke-rc.d(8)).
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn enact() -> Result<Self> {
        let is_ours = fs::read_to_string(Self::POLICY).is_ok_and(|text| text.contains("cargo xtask"));
        if Path::new(Self::POLICY).exists() && !is_ours {
            return Ok(Self { is_ours });
        }
        // Void once we are gone: an interrupted setup leaves a file, but no effect.
        let text = format!(
            "#!/bin/sh\n# Left by an interrupted `cargo xtask setup`; delete it.\n[ -d /proc/{} ] && exit 101\nexit 0\n",
            id()
        );
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(Self::POLICY)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| {
                format!("cannot write {}, which keeps new services from starting", Self::POLICY)
            })?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_file(Self::POLICY)
        {
            eprintln!("cannot remove {}: {error}; delete it", Self::POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
gone:
  Installed: (none)
  Candidate: (none)
  Version table:
gcc:
  Installed: 4:12.2.0-3
  Candidate: 4:12.2.0-3
  Version table:
 *** 4:12.2.0-3 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
";

    #[test]
    fn a_package_that_apt_does_not_know_is_told_from_one_that_it_has() {
        assert!(has_candidate(POLICY, "gcc"));
        assert!(!has_candidate(POLICY, "gone"), "the candidate of the next package is not its own");
        assert!(!has_candidate(POLICY, "llvm-22-dev"));
        assert!(!has_candidate("", "gcc"));
    }

    #[test]
    fn sources_without_security_updates_get_the_line_that_they_lack() {
        let remedy = remedy(&["llvm-22-dev"], "apt-get install llvm-22-dev");
        assert!(remedy.starts_with("apt does not know llvm-22-dev"), "{remedy}");
        assert!(
            remedy.contains("deb http://deb.debian.org/debian-security bookworm-security main"),
            "{remedy}"
        );
    }
}
