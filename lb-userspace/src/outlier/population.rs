//! Outliers of one pool, and how long they are kept out.
//!
//! The detectors are Envoy's ("Outlier detection" in its documentation); stable and canary pool are a population each. What
//! is different: the number of ejected backends is checked *before* one more is ejected, so that it never exceeds
//! `max_ejected_percent` (envoy#27066); where not all who should be can be ejected, the worst go first; and times double
//! instead of growing by `base_ejection`.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::Counts;
use super::counts::Sample;
use crate::config::Outlier;

/// What found an outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detector {
    /// So many failures, and no success between them.
    Consecutive,
    /// Too large a part of an interval's connections failed.
    FailureRatio,
    /// Its success rate is far below those of its peers.
    SuccessRate,
}

impl Detector {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Consecutive, Self::FailureRatio, Self::SuccessRate];

    /// Its name in metrics and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::FailureRatio => "failure_ratio",
            Self::SuccessRate => "success_rate",
        }
    }
}

/// A backend as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which one.
    pub address: SocketAddr,
    /// Whether it takes new connections, or would if it were not ejected.
    pub serves: bool,
    /// What the kernel has counted.
    pub counts: Counts,
}

/// A backend that is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Until when, in monotonic time.
    pub until: Duration,
    /// How often it was ejected lately, this time included.
    pub times: u32,
}

/// Why a backend is an outlier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// By what.
    pub detector: Detector,
    /// How bad it is: the part of the connections that failed, or failures in a row.
    value: f64,
    /// What would have been good enough.
    limit: f64,
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, limit, .. } = self;
        match self.detector {
            Detector::Consecutive => write!(out, "{value} failures in a row"),
            Detector::FailureRatio => {
                write!(out, "{:.1} % of its connections failed (limit {:.0} %)", value * 100.0, limit * 100.0)
            }
            Detector::SuccessRate => write!(
                out,
                "{:.1} % of its connections succeeded, less than {:.1} % (the pool's mean less its deviations)",
                (1.0 - value) * 100.0,
                (1.0 - limit) * 100.0
            ),
        }
    }
}

/// What happens to a backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding {
    /// It is ejected.
    Ejected(Found, Ejection),
    /// It would be, but for `enforce`.
    Spared(Found),
    /// It would be, but for `max_ejected_percent`.
    Withheld(Found),
    /// Its time is over.
    Returned,
}

/// The backends of a pool.
#[derive(Clone, Debug, Default)]
pub struct Population {
    members: HashMap<SocketAddr, Member>,
    /// When the interval began.
    began: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// What was counted when the interval began, or when it came back.
    before: Counts,
    /// What stood in its row then: those failures are paid for.
    row: u64,
    /// Until when it is ejected.
    out: Option<Duration>,
    /// How often it was ejected lately.
    times: u32,
    /// Since when it has been good, as far as `times` is concerned.
    good_since: Duration,
    /// Nothing is said of it before.
    quiet_until: Duration,
}

impl Population {
    /// Takes over an ejection of an earlier agent.
    pub fn adopt(&mut self, address: SocketAddr, ejection: Ejection) {
        let member = self.members.entry(address).or_default();
        (member.out, member.times) = (Some(ejection.until), ejection.times);
    }

    /// The ejection of a backend.
    #[must_use]
    pub fn ejection(&self, address: SocketAddr) -> Option<Ejection> {
        let member = self.members.get(&address)?;
        Some(Ejection { until: member.out?, times: member.times })
    }

    /// Lets everybody in again.
    pub fn clear(&mut self) -> Vec<SocketAddr> {
        let out = self.members.drain().filter(|(_, member)| member.out.is_some());
        out.map(|(address, _)| address).collect()
    }

    /// Looks at all backends of the pool at `now`. `roll` draws a number below 100.
    pub fn look(
        &mut self,
        rules: &Outlier,
        now: Duration,
        pool: &[Seen],
        mut roll: impl FnMut() -> u8,
    ) -> Vec<(SocketAddr, Finding)> {
        let mut findings = Vec::new();
        self.follow(rules, now, pool, &mut findings);
        let began = *self.began.get_or_insert(now);
        let over = now.saturating_sub(began) >= rules.interval;
        for (address, found) in self.suspects(rules, now, pool, over) {
            let may_eject = self.may_eject(rules, pool);
            let Some(member) = self.members.get_mut(&address) else { continue };
            let finding = if roll() >= rules.enforce.get() {
                member.quiet_until = now + rules.base_ejection;
                Finding::Spared(found)
            } else if !may_eject {
                member.quiet_until = now + rules.interval;
                Finding::Withheld(found)
            } else {
                member.times = member.times.saturating_add(1);
                let until = now + sentence(rules, member.times);
                member.out = Some(until);
                Finding::Ejected(found, Ejection { until, times: member.times })
            };
            findings.push((address, finding));
        }
        if over {
            self.began = Some(now);
            for seen in pool {
                if let Some(member) = self.members.get_mut(&seen.address) {
                    member.before = seen.counts;
                }
            }
        }
        findings
    }

    /// Knows those who are there and nobody else, and lets in whose time is over.
    fn follow(
        &mut self,
        rules: &Outlier,
        now: Duration,
        pool: &[Seen],
        findings: &mut Vec<(SocketAddr, Finding)>,
    ) {
        let mut before = std::mem::take(&mut self.members);
        for seen in pool {
            let fresh = || Member {
                before: seen.counts,
                row: seen.counts.in_a_row,
                good_since: now,
                ..Member::default()
            };
            let mut member = before.remove(&seen.address).unwrap_or_else(fresh);
            // A success has ended the row.
            member.row = member.row.min(seen.counts.in_a_row);
            if member.out.is_some_and(|until| until <= now) {
                member.out = None;
                (member.before, member.row) = (seen.counts, seen.counts.in_a_row);
                (member.good_since, member.quiet_until) = (now, now);
                findings.push((seen.address, Finding::Returned));
            } else if member.out.is_none()
                && member.times > 0
                && now.saturating_sub(member.good_since) >= rules.base_ejection
            {
                member.times -= 1;
                member.good_since = now;
            }
            self.members.insert(seen.address, member);
        }
    }

    /// Those who should be ejected, the worst first.
    fn suspects(
        &self,
        rules: &Outlier,
        now: Duration,
        pool: &[Seen],
        over: bool,
    ) -> Vec<(SocketAddr, Found)> {
        let free = pool.iter().filter(|seen| seen.serves).filter_map(|seen| {
            let member = self.members.get(&seen.address)?;
            let judged = member.out.is_none() && member.quiet_until <= now;
            judged.then(|| (seen, member, seen.counts.since(&member.before)))
        });
        let free: Vec<(&Seen, &Member, Sample)> = free.collect();
        let floor =
            if over { lowest_success(rules, free.iter().map(|(_, _, sample)| *sample)) } else { None };
        let mut suspects: Vec<(SocketAddr, Found, f64)> = Vec::new();
        for (seen, member, sample) in free {
            let row = seen.counts.in_a_row.saturating_sub(member.row);
            let (bad, limit) = (sample.failure_ratio(), f64::from(rules.failure_percent.get()) / 100.0);
            let enough = over && sample.all() >= rules.min_volume.into();
            let found = if rules.consecutive_failures > 0 && row >= rules.consecutive_failures.into() {
                Found {
                    detector: Detector::Consecutive,
                    value: row as f64,
                    limit: rules.consecutive_failures.into(),
                }
            } else if enough && limit > 0.0 && bad >= limit {
                Found { detector: Detector::FailureRatio, value: bad, limit }
            } else if enough && floor.is_some_and(|floor| 1.0 - bad < floor) {
                let limit = 1.0 - floor.unwrap_or_default();
                Found { detector: Detector::SuccessRate, value: bad, limit }
            } else {
                continue;
            };
            suspects.push((seen.address, found, bad));
        }
        suspects.sort_by(|(a, _, worse), (b, _, bad)| bad.total_cmp(worse).then(a.cmp(b)));
        suspects.into_iter().map(|(address, found, _)| (address, found)).collect()
    }

    /// Whether one more may be ejected.
    fn may_eject(&self, rules: &Outlier, pool: &[Seen]) -> bool {
        let out = |seen: &&Seen| self.ejection(seen.address).is_some();
        let ejected = pool.iter().filter(out).count();
        let all = pool.iter().filter(|seen| seen.serves || out(seen)).count();
        (ejected + 1) * 100 <= all * usize::from(rules.max_ejected_percent.get())
    }
}

/// How long a backend is kept out when it is ejected for the `times`th time.
fn sentence(rules: &Outlier, times: u32) -> Duration {
    let factor = 1u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    rules.base_ejection.saturating_mul(factor).min(rules.max_ejection.max(rules.base_ejection))
}

/// The success rate below which a backend is an outlier: the mean of all with enough connections, less so many standard
/// deviations. `None` where too few have enough.
fn lowest_success(rules: &Outlier, samples: impl Iterator<Item = Sample>) -> Option<f64> {
    let deviations = rules.deviations.get();
    let rates: Vec<f64> = samples
        .filter(|sample| sample.all() >= rules.min_volume.into())
        .map(|sample| 1.0 - sample.failure_ratio())
        .collect();
    if deviations == 0.0 || rates.len() < rules.min_backends as usize {
        return None;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    Some(mean - deviations * variance.sqrt())
}

#[cfg(test)]
mod tests;
