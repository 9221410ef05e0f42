//! The host itself.

use super::{Facts, Verdict, amiss_or, backends, counted, error, warning};
use crate::api::Severity;

pub(super) fn configuration(facts: &Facts) -> Verdict {
    let path = facts.config_path.display();
    match &facts.config {
        Ok(config) => Verdict::Fine(format!("{path}: {}", counted(config.services.len(), "service"))),
        Err(why) => {
            let first = why.lines().next().unwrap_or_default();
            Verdict::Amiss(vec![error(path.to_string(), first, format!("lbctl validate {path}"))])
        }
    }
}

pub(super) fn kernel(facts: &Facts) -> Verdict {
    let mut found = Vec::new();
    if let Some(why) = &facts.kernel.too_old {
        found.push(error(
            "kernel",
            why,
            "boot Linux 6.1 or newer (Debian 12 has it: `apt-get install linux-image-amd64`)",
        ));
    }
    if !facts.kernel.btf {
        found.push(error(
            "kernel",
            "/sys/kernel/btf/vmlinux is missing: the kernel does not show its own types",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, or `mount -t sysfs sysfs /sys` where /sys is hidden",
        ));
    }
    amiss_or(found, || "new enough, and shows its types".to_owned())
}

pub(super) fn privileges(facts: &Facts) -> Verdict {
    let missing = facts.missing_capabilities.join(", ");
    match (missing.as_str(), facts.agent.pid) {
        ("", Some(pid)) => Verdict::Fine(format!("lbd (process {pid}) has what it needs")),
        ("", None) => Verdict::Fine("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN".to_owned()),
        (missing, Some(pid)) => Verdict::Amiss(vec![error(
            "lbd",
            format!("lbd (process {pid}) lacks {missing}"),
            "run it by its unit file: systemctl restart lbd",
        )]),
        (missing, None) => Verdict::Amiss(vec![error(
            "this process",
            format!(
                "{missing} missing: lbd could not be started from here, and some of what follows cannot be looked at"
            ),
            "sudo lbctl doctor; and run lbd as root or by its unit file",
        )]),
    }
}

pub(super) fn bpffs(facts: &Facts) -> Verdict {
    let directory = facts.pins.directory.display();
    match (facts.pins.on_bpffs, facts.pins.program) {
        (true, Some(_)) => Verdict::Fine(format!("{directory}, with a data path pinned")),
        (true, None) => Verdict::Fine(format!("{directory}, nothing pinned")),
        (false, _) => Verdict::Amiss(vec![error(
            directory.to_string(),
            format!(
                "{directory} is not on a BPF file system (`ip netns exec` hides it: use `nsenter --net=`)"
            ),
            "mount -t bpf bpf /sys/fs/bpf",
        )]),
    }
}

pub(super) fn jit(facts: &Facts) -> Verdict {
    let agent_says = facts.agent.status.as_ref().ok();
    let interpreted =
        agent_says.is_some_and(|status| status.findings.iter().any(|found| found.code == "LB1012"));
    match facts.jit {
        Some(0) => {}
        _ if interpreted => {}
        Some(_) => return Verdict::Fine("on".to_owned()),
        None if agent_says.is_some() => return Verdict::Fine("the program is compiled".to_owned()),
        None => {
            return Verdict::Skipped(
                "only the first network namespace shows net.core.bpf_jit_enable".to_owned(),
            );
        }
    }
    Verdict::Amiss(vec![warning(
        "kernel",
        "net.core.bpf_jit_enable is 0: programs are interpreted",
        "sysctl -w net.core.bpf_jit_enable=1 && systemctl restart lbd",
    )])
}

pub(super) fn agent(facts: &Facts) -> Verdict {
    let socket = facts.agent.socket.display();
    let status = match &facts.agent.status {
        Ok(status) => status,
        Err(why) if facts.pins.program.is_some() => {
            return Verdict::Amiss(vec![error(
                socket.to_string(),
                format!("the data path is there, but no agent: {why}"),
                "systemctl start lbd",
            )]);
        }
        Err(why) => {
            return Verdict::Amiss(vec![warning(
                socket.to_string(),
                format!("no agent, and nothing pinned: no packet is balanced ({why})"),
                "systemctl start lbd (or `lbd` in the foreground; LB_SOCKET if it is elsewhere)",
            )]);
        }
    };
    // Generic mode has a rule of its own.
    let worth_it =
        status.findings.iter().filter(|found| found.severity != Severity::Info && found.code != "LB1007");
    let found = worth_it.map(|found| super::Found {
        severity: found.severity,
        subject: found.subject.clone(),
        message: format!("{}: {}", found.code, found.message),
        remedy: found.remedy.clone(),
    });
    amiss_or(found.collect(), || {
        format!("lbd {}, {}", status.version, counted(status.services.len(), "service"))
    })
}

pub(super) fn clock(facts: &Facts) -> Verdict {
    match facts.clock_synchronised {
        None => Verdict::Skipped("the kernel does not say".to_owned()),
        Some(true) => Verdict::Fine("synchronised".to_owned()),
        Some(false) => Verdict::Amiss(vec![warning(
            "kernel",
            "the clock is not synchronised",
            "timedatectl set-ntp true",
        )]),
    }
}

/// Besides probes: listeners, clients that follow, maps, netlink.
const OTHER_FILES: u64 = 512;

pub(super) fn files(facts: &Facts) -> Verdict {
    let Some(limit) = facts.open_files else {
        return Verdict::Skipped("the limit cannot be read".to_owned());
    };
    let backends = facts.config.as_ref().map_or(0, |config| backends(config).count()) as u64;
    let needed = backends * 2 + OTHER_FILES;
    if limit >= needed {
        return Verdict::Fine(format!("{limit} may be open, {needed} are enough"));
    }
    Verdict::Amiss(vec![error(
        "lbd",
        format!("{limit} files may be open; {} may need {needed}", counted(backends as usize, "backend")),
        "systemctl edit lbd (two lines: [Service] and LimitNOFILE=262144) && systemctl restart lbd; in a shell: ulimit -Hn 262144",
    )])
}
