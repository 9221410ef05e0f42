//! What the clients and the wires have seen, in figures.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Show, pause};
use crate::{
    clients::{CLIENTS, Request},
    figures::{Share, Short, count},
    stage::{CANARY, Done, SERVICE},
};

/// What the store of a rollback may take.
pub const MOST_FOR_A_STORE: Duration = Duration::from_millis(1);

impl Show<'_> {
    /// Sets the canary's share, waits until every client has asked since, and says how many went
    /// where. The answer has the home of each.
    pub(super) fn set_split(&mut self, percent: u32) -> Result<HashMap<u32, usize>> {
        let text = percent.to_string();
        self.screen.want(percent.into());
        let done = self.stage.lbctl(&["set", "split", SERVICE, &text])?;
        let homes = self.homes_after(done.returned);
        let canary = homes.values().filter(|home| **home == CANARY).count();
        let share = of(canary, homes.len());
        let interval = share.interval();
        let verdict = match interval.holds(percent.into()) {
            true => "inside the 95 % interval",
            false => "outside the 95 % interval, as one time in 20",
        };
        // The interval misses the truth in one of twenty runs; four deviations in one of 16 000.
        let kept = share.sigmas_from(percent.into()) <= 4.0;
        let observed =
            format!("{:.2} ± {:.2} % of {} clients", share.percent(), interval.half(), count(share.whole));
        self.result(&format!("observed {observed}; {percent} % is {verdict}"), kept);
        self.report.promise(format!("share of v42 at {percent} %"), observed, kept);
        Ok(homes)
    }

    /// How many connections were seen at a server after a moment, but for those that had begun before.
    pub(super) fn arrived_after(&self, server: usize, moment: Instant) -> u64 {
        let requests = self.clients.ended_after(moment);
        let under_way = requests.iter().filter(|request| request.began <= moment);
        let under_way: HashMap<_, _> = under_way.map(|request| (request.client, request.ended)).collect();
        let syns = self.stage.wire(server).since(moment);
        let new = syns.iter().filter(|syn| {
            let client = self.clients.number_of(syn.source);
            client.and_then(|client| under_way.get(&client)).is_none_or(|ended| *ended < syn.at)
        });
        new.count() as u64
    }

    /// The requests that failed since a server did, of those that began up to a moment. As many of
    /// them as can have been its own are explained by that.
    pub(super) fn lost_to(&mut self, server: usize, since: Instant, until: Instant) -> Vec<Request> {
        let mut lost = failed(&self.clients.ended_after(since));
        lost.retain(|request| request.began <= until);
        let under_way = lost.iter().filter(|request| request.began <= since).count();
        let sent_there = self.stage.wire(server).since(since).len();
        self.explained += lost.len().min(under_way + sent_there) as u64;
        lost
    }

    pub(super) fn held_on(&self, server: usize) -> u64 {
        let held = self.clients.held();
        held.iter().filter(|held| held.server == Some(server) && held.broken.is_none()).count() as u64
    }

    /// Who answered each client first since a moment, once all have asked or time is up.
    fn homes_after(&self, moment: Instant) -> HashMap<u32, usize> {
        const PATIENCE: Duration = Duration::from_secs(16);
        loop {
            pause(0.25);
            let mut homes = HashMap::new();
            for request in self.clients.begun_after(moment) {
                if let Ok(server) = request.answer {
                    homes.entry(request.client).or_insert(server);
                }
            }
            if homes.len() == CLIENTS as usize || moment.elapsed() > PATIENCE {
                return homes;
            }
        }
    }
}

/// How long a rollback took.
pub struct Times {
    /// One word of the kernel's tables: from then on packets obey.
    pub store: Duration,
    /// From the arrival of the request at the agent to the end of the store; the journal comes after it.
    pub agent: Duration,
    /// From Enter to the prompt.
    pub lbctl: Duration,
}

impl Times {
    /// As `lbctl -o json rollback` says, and as it was seen from outside.
    ///
    /// # Errors
    /// If it does not say.
    pub fn of(rollback: &Done) -> Result<Self> {
        let json = rollback.json()?;
        let field = |name: &str| {
            let seconds = json[name].as_f64().with_context(|| format!("no {name} in {json:#}"))?;
            anyhow::Ok(Duration::from_secs_f64(seconds))
        };
        Ok(Self { store: field("store_seconds")?, agent: field("total_seconds")?, lbctl: rollback.took() })
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [store, agent, lbctl] = [self.store, self.agent, self.lbctl].map(Short);
        write!(f, "store {store}, {agent} from request to store, lbctl back after {lbctl}")
    }
}

/// So many of so many.
pub fn of(part: usize, whole: usize) -> Share {
    Share { part: part as u64, whole: whole as u64 }
}

/// Those that got no answer.
pub fn failed(requests: &[Request]) -> Vec<Request> {
    requests.iter().filter(|request| request.answer.is_err()).copied().collect()
}
