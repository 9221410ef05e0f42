//! What the service manager is told: sd_notify(3).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use crate::agent::Handle;

/// How often the agent is looked after where nobody says.
const PERIOD: Duration = Duration::from_secs(5);

/// The service manager, if there is one (`NOTIFY_SOCKET`).
#[derive(Debug)]
pub struct Manager {
    /// How often it wants a sign of life.
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that has started this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled() }
    }

    /// The data path is there, and the sockets answer.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready, NotifyState::Status("balancing")]);
    }

    /// The configuration is read again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("the service manager is not told of the reload: {error}"),
        }
    }

    /// It ends; the data path stays.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping, NotifyState::Status("stopped; the data path goes on")]);
    }

    /// Gives signs of life for as long as the agent answers. One that hangs is started anew by the manager; forwarding does
    /// not notice. Returns if the agent has ended.
    pub async fn watch(&self, agent: &Handle) {
        let mut beat = tokio::time::interval(self.watchdog.map_or(PERIOD, |watchdog| watchdog / 3));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            if agent.call(|_| ()).await.is_err() {
                return;
            }
            if self.watchdog.is_some() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("the service manager cannot be told: {error}");
    }
}
