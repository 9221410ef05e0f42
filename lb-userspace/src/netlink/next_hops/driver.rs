//! The sockets and the clock for a [`Table`].

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteFlags, RouteMessage},
};
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{sleep, sleep_until},
};

use super::{NextHopEvent, lock, table::Table};
use crate::netlink::{
    link,
    monitor::{Group, Monitor, Notice},
    neighbour::{self, Key, Neighbour, Resolution},
    request::Requests,
    route::{self, Prefix},
};

/// Changes of routes and links come in bursts. They are looked at together.
const QUIET: Duration = Duration::from_millis(10);
/// Looking takes at most one part in so many of the time, however much the routes are in motion.
const SHARE: u32 = 5;
/// Everything is read again this often: the kernel tells neither of path MTUs that it learns nor of all routes that
/// go with an address.
const AGAIN: Duration = Duration::from_secs(60);
/// After an error.
const RETRY: Duration = Duration::from_secs(1);
/// Requests between which other tasks get their turn: about half a millisecond's worth.
const CHUNK: usize = 64;

pub(super) struct Driver {
    table: Arc<Mutex<Table>>,
    targets: watch::Receiver<BTreeSet<IpAddr>>,
    events: mpsc::Sender<NextHopEvent>,
    monitor: Monitor,
    requests: Requests,
    to_read: ToRead,
    /// What came due is not looked at before.
    not_before: Instant,
    again: Instant,
    /// Neighbours that an agent before us left managed were released.
    swept: bool,
    warned_full: Option<Instant>,
}

/// What has to be read from the kernel, and since when.
#[derive(Default)]
struct ToRead {
    since: Option<Instant>,
    links: bool,
    neighbours: bool,
    all_routes: bool,
    routes: BTreeSet<IpAddr>,
}

/// Why the driver woke up.
enum Woken {
    Notices(io::Result<Vec<Notice>>),
    Targets,
    Time,
    Over,
}

impl Driver {
    pub(super) fn new(
        table: Arc<Mutex<Table>>,
        targets: watch::Receiver<BTreeSet<IpAddr>>,
        events: mpsc::Sender<NextHopEvent>,
    ) -> io::Result<Self> {
        // Subscribed first: what changes while it is read is told after.
        let groups = [Group::LINK, Group::NEIGHBOUR].into_iter();
        let monitor =
            Monitor::new(groups.chain(Group::ADDRESS).chain(Group::ROUTE).chain(Group::ROUTE_PARTS))?;
        let mut requests = Requests::new()?;
        let now = Instant::now();
        lock(&table).set_links(link::dump(&mut requests)?, now);
        Ok(Self {
            table,
            targets,
            events,
            monitor,
            requests,
            to_read: ToRead::default(),
            not_before: now,
            again: now + AGAIN,
            swept: false,
            warned_full: None,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Ends when nobody sets targets or receives events any more.
    pub(super) async fn run(mut self) -> Requests {
        loop {
            let has_changes = self.table().has_changes();
            let wake = self.next_wake();
            let Self { table, monitor, events, targets, .. } = &mut self;
            let woken = tokio::select! {
                notices = monitor.next() => Woken::Notices(notices),
                permit = events.reserve(), if has_changes => match permit {
                    Ok(permit) => {
                        if let Some(event) = lock(table).next_change() {
                            permit.send(event);
                        }
                        continue;
                    }
                    Err(_) => Woken::Over,
                },
                changed = targets.changed() => changed.map_or(Woken::Over, |()| Woken::Targets),
                () = sleep_until(wake.into()) => Woken::Time,
            };
            match woken {
                Woken::Notices(Ok(notices)) => notices.into_iter().for_each(|notice| self.note(notice)),
                Woken::Notices(Err(error)) => self.trouble(&error).await,
                Woken::Targets => self.retarget(),
                Woken::Time => {}
                Woken::Over => return self.requests,
            }
            if let Err(error) = self.work().await {
                self.trouble(&error).await;
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let read = self.to_read.since.map(|since| since + QUIET);
        let ask = self.table().next_ask();
        let work = [read, ask].into_iter().flatten().min().map(|at| at.max(self.not_before));
        work.map_or(self.again, |at| at.min(self.again))
    }

    async fn trouble(&mut self, error: &io::Error) {
        tracing::warn!(%error, "routes and neighbours cannot be followed for a moment; everything is read again");
        sleep(RETRY).await;
        self.to_read.everything();
    }

    fn note(&mut self, notice: Notice) {
        let message = match notice {
            Notice::Changed(message) => message,
            Notice::Unspecified => return self.to_read.mark(|to_read| to_read.all_routes = true),
            Notice::Lost => {
                tracing::debug!("notifications were lost; everything is read again");
                return self.to_read.everything();
            }
        };
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => {
                if let Some(neighbour) = neighbour::parse(&message) {
                    self.note_neighbour(neighbour);
                }
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                if let Some(Key { ifindex, address }) = neighbour::parse(&message).map(|n| n.key) {
                    self.table().set_neighbour(Key { ifindex, address }, None, Instant::now());
                }
            }
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                self.note_route(&message);
            }
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => {
                self.to_read.mark(|to_read| to_read.links = true);
            }
            // Addresses, rules: the kernel drops routes with them and does not tell of each.
            _ => self.to_read.mark(|to_read| to_read.all_routes = true),
        }
    }

    fn note_neighbour(&mut self, neighbour: Neighbour) {
        let key = neighbour.key;
        // The kernel also says "failed" of an entry that it is about to delete. A look a moment later tells.
        if neighbour.resolution == Resolution::Failed {
            if lock(&self.table).doubt(key) {
                self.to_read.mark(|_| ());
            }
        } else {
            self.table().set_neighbour(key, Some(neighbour), Instant::now());
        }
    }

    fn note_route(&mut self, message: &RouteMessage) {
        if message.header.flags.contains(RouteFlags::Cloned) {
            return;
        }
        let Some(prefix) = Prefix::of(message) else {
            return;
        };
        let table = lock(&self.table);
        let mut concerned = table.destinations_in(prefix).peekable();
        if concerned.peek().is_some() {
            self.to_read.mark(|to_read| to_read.routes.extend(concerned));
        }
    }

    fn retarget(&mut self) {
        let new = {
            let targets = self.targets.borrow_and_update();
            lock(&self.table).set_targets(&targets)
        };
        self.to_read.mark(|to_read| to_read.routes.extend(new));
        // Nobody waits for a burst to end that we made ourselves.
        self.to_read.since = self.to_read.since.and_then(|since| since.checked_sub(QUIET));
    }

    /// Does what is due.
    async fn work(&mut self) -> io::Result<()> {
        let start = Instant::now();
        if start >= self.again {
            self.to_read.everything();
            self.again = start + AGAIN;
        }
        if start < self.not_before {
            return Ok(());
        }
        if self.to_read.since.is_some_and(|since| start >= since + QUIET) {
            let to_read = std::mem::take(&mut self.to_read);
            self.read(to_read).await?;
        }
        self.ask().await?;
        let end = Instant::now();
        self.not_before = end + (end - start) * (SHARE - 1);
        Ok(())
    }

    async fn read(&mut self, mut to_read: ToRead) -> io::Result<()> {
        if to_read.links {
            let links = link::dump(&mut self.requests)?;
            if self.table().set_links(links, Instant::now()) {
                to_read.all_routes = true;
                to_read.neighbours = true;
            }
        }
        let destinations: Vec<IpAddr> = match to_read.all_routes {
            true => self.table().destinations().collect(),
            false => to_read.routes.into_iter().collect(),
        };
        for chunk in destinations.chunks(CHUNK) {
            for &destination in chunk {
                let route = route::look_up(&mut self.requests, destination)?;
                self.table().set_route(destination, route, Instant::now());
            }
            yield_now().await;
        }
        if to_read.neighbours {
            let neighbours = neighbour::dump(&mut self.requests)?;
            self.table().set_neighbours(neighbours, Instant::now());
        }
        self.look_at_unknown().await?;
        self.release()
    }

    async fn look_at_unknown(&mut self) -> io::Result<()> {
        for n in 1.. {
            let Some(key) = self.table().next_unknown() else {
                break;
            };
            let neighbour = neighbour::get(&mut self.requests, key)?;
            self.table().set_neighbour(key, neighbour, Instant::now());
            if n % CHUNK == 0 {
                yield_now().await;
            }
        }
        Ok(())
    }

    fn release(&mut self) -> io::Result<()> {
        let released = self.table().take_released();
        for key in released {
            neighbour::release(&mut self.requests, key)?;
        }
        // Only with targets: an agent that just started does not know yet what it will use.
        if !self.swept && !self.targets.borrow().is_empty() {
            let table = Arc::clone(&self.table);
            let left_over = neighbour::release_except(&mut self.requests, |key| lock(&table).uses(key))?;
            if left_over > 0 {
                tracing::info!(neighbours = left_over, "released what an agent before left managed");
            }
            self.swept = true;
        }
        Ok(())
    }

    async fn ask(&mut self) -> io::Result<()> {
        for n in 1.. {
            let Some(key) = lock(&self.table).take_ask(Instant::now()) else {
                break;
            };
            match neighbour::keep_resolved(&mut self.requests, key) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                Err(error) => self.warn_not_asked(key, &error),
            }
            if n % CHUNK == 0 {
                yield_now().await;
            }
        }
        Ok(())
    }

    /// It is asked again with back-off. The log gets one line a minute.
    fn warn_not_asked(&mut self, key: Key, error: &io::Error) {
        let now = Instant::now();
        if self.warned_full.is_some_and(|before| now.duration_since(before) < AGAIN) {
            return;
        }
        self.warned_full = Some(now);
        let Key { ifindex, address } = key;
        match error.raw_os_error() {
            Some(libc::ENOBUFS) => tracing::warn!(
                %address, ifindex,
                "the kernel's neighbour table is full; raise net.ipv4.neigh.default.gc_thresh3 (net.ipv6 likewise)"
            ),
            _ => {
                tracing::warn!(%address, ifindex, %error, "the kernel does not resolve a neighbour")
            }
        }
    }
}

impl ToRead {
    fn mark(&mut self, what: impl FnOnce(&mut Self)) {
        what(self);
        self.since.get_or_insert_with(Instant::now);
    }

    fn everything(&mut self) {
        self.mark(|to_read| {
            to_read.links = true;
            to_read.neighbours = true;
            to_read.all_routes = true;
        });
    }
}
