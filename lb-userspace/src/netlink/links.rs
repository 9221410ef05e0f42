//! The interfaces, followed.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Link, NetlinkError,
    link::dump,
    monitor::{Group, Monitor},
    request::Requests,
};

/// Changes come in bursts, which are read once.
const QUIET: Duration = Duration::from_millis(5);
/// After an error, and in case that a notification never came.
const AGAIN: Duration = Duration::from_secs(30);

/// All interfaces by index, once.
///
/// # Errors
/// No answer from the kernel.
pub fn list_links() -> Result<BTreeMap<u32, Link>, NetlinkError> {
    Requests::new().and_then(|mut requests| dump(&mut requests)).map_err(NetlinkError::new("list interfaces"))
}

/// All interfaces by index, followed for as long as this lives.
#[derive(Debug)]
pub struct Links {
    now: watch::Receiver<Arc<BTreeMap<u32, Link>>>,
    driver: AbortHandle,
}

impl Links {
    /// Reads them, and follows them in a task of the runtime that it is called in.
    ///
    /// # Errors
    /// No subscription, or no answer from the kernel.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn follow() -> Result<Self, NetlinkError> {
        Self::start().map_err(NetlinkError::new("follow interfaces"))
    }

    fn start() -> io::Result<Self> {
        // Subscribed first: what changes while it is read is told after.
        let monitor = Monitor::new([Group::LINK])?;
        let mut requests = Requests::new()?;
        let (sender, now) = watch::channel(Arc::new(dump(&mut requests)?));
        let driver = tokio::spawn(drive(monitor, requests, sender)).abort_handle();
        Ok(Self { now, driver })
    }

    /// As they are now.
    pub fn snapshot(&self) -> Arc<BTreeMap<u32, Link>> {
        Arc::clone(&self.now.borrow())
    }

    /// A receiver that wakes when something about an interface changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<BTreeMap<u32, Link>>> {
        self.now.clone()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn drive(
    mut monitor: Monitor,
    mut requests: Requests,
    sender: watch::Sender<Arc<BTreeMap<u32, Link>>>,
) {
    let mut again = Instant::now() + AGAIN;
    loop {
        tokio::select! {
            notices = monitor.next() => if let Err(error) = notices {
                tracing::warn!(%error, "interfaces are not followed for a while");
                sleep(Duration::from_secs(1)).await;
            },
            () = sleep_until(again) => {}
        }
        sleep(QUIET).await;
        again = Instant::now() + AGAIN;
        match dump(&mut requests) {
            Ok(links) => {
                sender.send_if_modified(|known| {
                    let changed = **known != links;
                    if changed {
                        *known = Arc::new(links);
                    }
                    changed
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the interfaces cannot be read");
                again = Instant::now() + Duration::from_secs(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::testing::{in_namespace, ip};

    async fn changed(
        links: &mut watch::Receiver<Arc<BTreeMap<u32, Link>>>,
        wanted: impl Fn(&[&Link]) -> bool,
    ) {
        let wait = links.wait_for(|links| wanted(&links.values().collect::<Vec<_>>()));
        let seen = tokio::time::timeout(Duration::from_secs(5), wait).await;
        seen.expect("it is told within seconds").expect("they are followed");
    }

    #[test]
    fn interfaces_are_followed_from_birth_to_death() {
        in_namespace(async |peer| {
            ip(&format!(
                "link add name a address 02:00:00:00:00:0a type veth peer name b netns {}",
                peer.id()
            ));
            let links = Links::follow().expect("they can be followed");
            let mut receiver = links.subscribe();
            let first = links.snapshot();
            let a = first.values().find(|link| link.name == "a").expect("it was made");
            assert_eq!((a.mac, a.mtu, a.up, a.running), (Some([2, 0, 0, 0, 0, 0xa]), 1500, false, false));
            assert_eq!((a.resolves, a.kind.as_deref()), (true, Some("veth")));
            let lo = &first[&1];
            assert_eq!((lo.name.as_str(), lo.mac, lo.resolves), ("lo", None, false));

            let index = a.index;
            ip("link set dev a up");
            changed(&mut receiver, |links| links.iter().any(|l| l.index == index && l.up && !l.running))
                .await;
            peer.ip("link set dev b up");
            changed(&mut receiver, |links| links.iter().any(|l| l.index == index && l.running)).await;
            ip("link set dev a mtu 1400");
            changed(&mut receiver, |links| links.iter().any(|l| l.index == index && l.mtu == 1400)).await;
            ip("link set dev a name c");
            changed(&mut receiver, |links| links.iter().any(|l| l.index == index && l.name == "c")).await;
            ip("link del dev c");
            changed(&mut receiver, |links| links.iter().all(|l| l.index != index)).await;
            assert_eq!(list_links().expect("they can be listed"), *links.snapshot());
        });
    }
}
