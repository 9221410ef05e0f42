//! Convergence of the kernel's addresses on the VIPs that are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};

use super::{Vip, VipError, VipState, address, announce::Announcer};
use crate::netlink::{
    Link, link,
    monitor::{Group, Monitor},
    request::Requests,
};

/// Changes come in bursts, which are looked at once.
const QUIET: Duration = Duration::from_millis(5);
/// In case that a notification never came.
const AGAIN: Duration = Duration::from_secs(60);
/// After an error of a whole reading.
const RETRY: Duration = Duration::from_secs(1);
/// A VIP that could not be added, or was removed at once, is tried again after this time, then after twice that …
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// … up to this.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);
/// One that stayed so long is at peace: if somebody removes it now, it is added at once.
const PEACE: Duration = Duration::from_secs(60);
/// When a VIP is announced after it was added.
const ANNOUNCE_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2)];

pub(super) struct Driver {
    wanted: watch::Receiver<Option<BTreeSet<Vip>>>,
    states: watch::Sender<BTreeMap<Vip, VipState>>,
    attempts: BTreeMap<Vip, Attempts>,
    /// By time.
    announcements: BTreeSet<(Instant, Vip)>,
    links: BTreeMap<u32, Link>,
    announcer: Announcer,
    monitor: Monitor,
    requests: Requests,
}

/// How often a VIP had to be added.
#[derive(Debug)]
struct Attempts {
    count: u32,
    last: Instant,
    error: Option<VipError>,
}

impl Attempts {
    fn next(&self) -> Instant {
        let doublings = self.count.saturating_sub(1).min(16);
        self.last + FIRST_BACK_OFF.saturating_mul(1 << doublings).min(MAX_BACK_OFF)
    }
}

impl Driver {
    pub(super) fn new(
        wanted: watch::Receiver<Option<BTreeSet<Vip>>>,
        states: watch::Sender<BTreeMap<Vip, VipState>>,
    ) -> io::Result<Self> {
        // Subscribed first: what changes while it is read is told after.
        let monitor = Monitor::new(Group::ADDRESS.into_iter().chain([Group::LINK]))?;
        let mut requests = Requests::new()?;
        Ok(Self {
            wanted,
            states,
            attempts: BTreeMap::new(),
            announcements: BTreeSet::new(),
            links: link::dump(&mut requests)?,
            announcer: Announcer::new(),
            monitor,
            requests,
        })
    }

    /// Ends when nobody sets VIPs any more.
    pub(super) async fn run(mut self) -> Requests {
        loop {
            let retry = match self.converge() {
                Ok(retry) => retry,
                Err(error) => {
                    tracing::warn!(%error, "the VIPs of this host cannot be looked after for a moment");
                    Instant::now() + RETRY
                }
            };
            if !self.wait(retry).await {
                return self.requests;
            }
        }
    }

    /// Until there is something to look at. `false` at the end.
    async fn wait(&mut self, retry: Instant) -> bool {
        loop {
            self.announce_due();
            let announcement = self.announcements.first().map_or(retry, |(at, _)| *at);
            tokio::select! {
                changed = self.wanted.changed() => return changed.is_ok(),
                notices = self.monitor.next() => {
                    let pause = if notices.is_ok() { QUIET } else { RETRY };
                    sleep(pause).await;
                    return true;
                }
                () = sleep_until(retry.into()) => return true,
                () = sleep_until(announcement.into()) => {}
            }
        }
    }

    /// Makes it so, as far as it can be now. When to look again.
    fn converge(&mut self) -> io::Result<Instant> {
        let now = Instant::now();
        self.read_links(now)?;
        let Some(wanted) = self.wanted.borrow_and_update().clone() else {
            return Ok(now + AGAIN);
        };
        let present: BTreeMap<Vip, bool> = address::dump(&mut self.requests)?
            .into_iter()
            .map(|present| (present.vip, present.ours))
            .collect();

        for (&vip, _) in present.iter().filter(|(vip, ours)| **ours && !wanted.contains(vip)) {
            address::remove(&mut self.requests, vip)?;
            tracing::info!(address = %vip.address, ifindex = vip.ifindex, "a VIP was removed");
        }
        self.attempts.retain(|vip, _| wanted.contains(vip));
        self.announcements.retain(|(_, vip)| wanted.contains(vip));

        let mut again = now + AGAIN;
        let mut states = BTreeMap::new();
        for vip in wanted {
            let state = match present.get(&vip) {
                Some(true) => VipState::Ours,
                Some(false) => VipState::Foreign,
                None => self.add(vip, now),
            };
            match (state, self.attempts.get(&vip)) {
                (VipState::Failed(_), Some(attempts)) => again = again.min(attempts.next().max(now)),
                (_, Some(attempts)) if now.saturating_duration_since(attempts.last) >= PEACE => {
                    self.attempts.remove(&vip);
                }
                _ => {}
            }
            states.insert(vip, state);
        }
        self.tell(states);
        Ok(again)
    }

    /// Adds what is missing, unless that was tried a moment ago.
    fn add(&mut self, vip: Vip, now: Instant) -> VipState {
        let before = self.attempts.get(&vip);
        if let Some(attempts) = before
            && attempts.next() > now
        {
            return VipState::Failed(attempts.error.unwrap_or(VipError::Removed));
        }
        let count = before.map_or(0, |attempts| attempts.count) + 1;
        let error = address::add(&mut self.requests, vip).err();
        self.attempts.insert(vip, Attempts { count, last: now, error });
        match error {
            Some(error) => VipState::Failed(error),
            None => {
                self.plan_announcements(vip, now);
                VipState::Ours
            }
        }
    }

    fn tell(&self, states: BTreeMap<Vip, VipState>) {
        self.states.send_if_modified(|known| {
            for (vip, state) in states.iter().filter(|(vip, state)| known.get(vip) != Some(state)) {
                let (address, ifindex) = (vip.address, vip.ifindex);
                match state {
                    VipState::Ours => tracing::info!(%address, ifindex, "a VIP is on its interface"),
                    VipState::Foreign => {
                        tracing::info!(%address, ifindex, "a VIP was on its interface already, and will be left there");
                    }
                    VipState::Failed(error) => tracing::warn!(%address, ifindex, %error, "a VIP is not on its interface"),
                }
            }
            let changed = *known != states;
            *known = states;
            changed
        });
    }

    /// What is reachable by an interface that came up is announced there: the cable may lead elsewhere now.
    fn read_links(&mut self, now: Instant) -> io::Result<()> {
        let before = std::mem::replace(&mut self.links, link::dump(&mut self.requests)?);
        let carrier = |links: &BTreeMap<u32, Link>, ifindex: u32| {
            let link = links.get(&ifindex);
            link.filter(|link| link.running).map(|link| link.carrier_ups)
        };
        let came_up = |ifindex: u32| {
            let now = carrier(&self.links, ifindex);
            now.is_some() && now != carrier(&before, ifindex)
        };
        let known = self.states.borrow();
        let vips: Vec<Vip> = known
            .iter()
            .filter(|(vip, state)| !matches!(state, VipState::Failed(_)) && came_up(vip.ifindex))
            .map(|(vip, _)| *vip)
            .collect();
        drop(known);
        vips.into_iter().for_each(|vip| self.plan_announcements(vip, now));
        Ok(())
    }

    fn plan_announcements(&mut self, vip: Vip, now: Instant) {
        self.announcements.retain(|(_, planned)| *planned != vip);
        self.announcements.extend(ANNOUNCE_AFTER.map(|after| (now + after, vip)));
    }

    fn announce_due(&mut self) {
        let now = Instant::now();
        while let Some((at, vip)) = self.announcements.first().copied().filter(|(at, _)| *at <= now) {
            self.announcements.remove(&(at, vip));
            if let Some(Link { mac: Some(mac), running: true, .. }) = self.links.get(&vip.ifindex) {
                self.announcer.announce(vip.ifindex, *mac, vip.address);
            }
        }
    }
}
