//! What must hold for outliers and breakers.

use crate::config::keys::ServiceDraft;
use crate::config::passive::{BreakerDraft, OutlierDraft};
use crate::config::read::{Findings, Place, Table};
use crate::config::report::{Code, Diagnostic};
use crate::config::value::{Mode, Protocol};

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    if let Some((Some(outlier), at)) = service.outlier.get() {
        tcp_only(service, at, findings);
        times(outlier, findings);
        one_way(service, outlier, findings);
        nobody(service, outlier, findings);
    }
    if let Some((Some(breaker), at)) = service.breaker.get() {
        tcp_only(service, at, findings);
        marks(breaker, findings);
    }
    if let Some((Some(_), at)) = service.limits.get() {
        tcp_only(service, at, findings);
        no_session(service, at, findings);
    }
    if let Some((Some(_), at)) = service.retry.get() {
        tcp_only(service, at, findings);
        both_ways(service, at, findings);
        no_session(service, at, findings);
    }
    if let Some((Some(_), at)) = service.steering.get() {
        tcp_only(service, at, findings);
        if let Some((mode, mode_at)) = service.mode.get()
            && mode.is_dsr()
        {
            let found = Diagnostic::new(Code::RetryOneWay, format!("mode `{mode}` cannot steer by time"))
                .at(at, "nobody sees when a backend answers")
                .at(mode_at, "backends answer past the balancer");
            findings.add(found.help("leave it out, or use mode `nat`"));
        }
    }
}

/// Who is sent elsewhere must not hear of the first backend any more.
fn both_ways(service: &ServiceDraft, at: &Place, findings: &mut Findings) {
    if let Some((mode, mode_at)) = service.mode.get()
        && mode.is_dsr()
    {
        let found =
            Diagnostic::new(Code::RetryOneWay, format!("mode `{mode}` cannot try a connection again"))
                .at(at, "a late answer of the first backend would meet that of the second")
                .at(mode_at, "backends answer past the balancer");
        findings.add(found.help("leave it out, or use mode `nat`"));
    }
}

/// In `full-nat` a connection stays where its session is.
fn no_session(service: &ServiceDraft, at: &Place, findings: &mut Findings) {
    if let Some((mode @ Mode::FullNat, mode_at)) = service.mode.get() {
        let found =
            Diagnostic::new(Code::NotInFullNat, format!("mode `{mode}` cannot send a connection elsewhere"))
                .at(at, "has no effect on sessions")
                .at(mode_at, "every connection has a session");
        findings.add(found.help("leave it out, or use mode `nat`"));
    }
}

fn tcp_only(service: &ServiceDraft, at: &Place, findings: &mut Findings) {
    if let Some((Protocol::Udp, protocol)) = service.protocol.get() {
        let found = Diagnostic::new(Code::PassiveUdp, "UDP has no handshakes that could be judged")
            .at(at, "nothing to look at")
            .at(protocol, "the service is UDP");
        findings.add(found.help("leave it out; `[service.health]` asks the backends themselves"));
    }
}

fn times(outlier: &OutlierDraft, findings: &mut Findings) {
    let (Some((&base, base_at)), Some((&most, most_at))) =
        (outlier.base_ejection.get(), outlier.max_ejection.get())
    else {
        return;
    };
    if base <= most {
        return;
    }
    let format = humantime::format_duration;
    let mut found = Diagnostic::new(Code::OutlierTimes, "the first ejection is longer than the longest");
    if outlier.base_ejection.written {
        found = found.at(base_at, format!("expected at most {}", format(most)));
    }
    found = if outlier.max_ejection.written {
        found.at(most_at, format!("expected at least {}", format(base)))
    } else {
        found.help(format!("`max_ejection` is {} unless it is set", format(most)))
    };
    findings.add(found);
}

/// In the `dsr` modes nobody sees a success.
fn one_way(service: &ServiceDraft, outlier: &OutlierDraft, findings: &mut Findings) {
    if let Some((mode, mode_at)) = service.mode.get()
        && mode.is_dsr()
        && outlier.consecutive_failures.written
        && outlier.consecutive_failures.value.is_some_and(|failures| failures > 0)
    {
        let found = Diagnostic::new(Code::NoEffect, "`consecutive_failures` has no effect in the dsr modes")
            .at(&outlier.consecutive_failures.at, "no answer is seen that could end a row")
            .at(mode_at, "backends answer past the balancer");
        findings.add(found.help("`failure_percent` works: it is inferred from SYNs that clients repeat"));
    }
}

/// A share that is less than one backend.
fn nobody(service: &ServiceDraft, outlier: &OutlierDraft, findings: &mut Findings) {
    let Some((percent, at)) = outlier.max_ejected_percent.get() else { return };
    if outlier.enforce.value.is_some_and(|enforce| enforce.get() == 0) {
        return;
    }
    for pool in service.pools() {
        let count = pool.backends().len();
        if pool.backends.value.is_none() || pool.discovery.written || count == 0 {
            continue;
        }
        if count * usize::from(percent.get()) < 100 {
            let found = Diagnostic::new(
                Code::OutlierIdle,
                format!(
                    "{percent} percent of {count} {} is nobody",
                    if count == 1 { "backend" } else { "backends" }
                ),
            )
            .at(pool.at(), "none of these is ever ejected");
            let found = if outlier.max_ejected_percent.written {
                found.at(at, "less than one of them")
            } else {
                found
            };
            findings.add(found.help(format!(
                "max_ejected_percent = {} lets one go; enforce = 0 says that nobody should",
                100usize.div_ceil(count)
            )));
        }
    }
}

fn marks(breaker: &BreakerDraft, findings: &mut Findings) {
    let (Some((high, high_at)), Some((low, low_at))) = (breaker.high.get(), breaker.low.get()) else {
        return;
    };
    if low < high {
        return;
    }
    let mut found = Diagnostic::new(Code::BreakerMarks, "the lower mark is not below the upper one");
    if breaker.high.written {
        found = found.at(high_at, format!("expected more than {low}"));
    }
    found = if breaker.low.written {
        found.at(low_at, format!("expected less than {high}"))
    } else {
        found.help(format!("`low` is {low} unless it is set"))
    };
    findings.add(found);
}
