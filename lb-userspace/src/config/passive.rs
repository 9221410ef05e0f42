//! Passive health: the tables of outliers and breakers.

use std::time::Duration;

use super::read::{Maybe, table, words};
use super::value::{Count, Deviations, Percent, Protocol, Time};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

table! {
    /// When a backend is ejected for what becomes of its connections: those that are refused, not answered in time, or reset
    /// before a byte came back. Each pool is judged by itself.
    Outlier from OutlierDraft "[service.outlier]" {
        /// Failures without a success between them that eject at once; 0 is never. Not in the dsr modes, where no success is seen.
        consecutive_failures: u32 as Count<0, 1_000_000> = 5,
        /// How often ratios are judged: each over the connections of one interval.
        interval: Duration as Time<100, HOUR> = Duration::from_secs(10),
        /// Connections in an interval below which no ratio is judged.
        min_volume: u32 as Count<1, 1_000_000> = 50,
        /// Percent of an interval's connections that fail, from which on a backend is ejected; 0 is never.
        failure_percent: Percent as Percent = Percent::HALF,
        /// Standard deviations below the pool's mean success rate at which a backend is ejected; 0 is never.
        deviations: Deviations as Deviations = Deviations::USUAL,
        /// Backends that need enough connections before they are compared with each other.
        min_backends: u32 as Count<2, 65_535> = 5,
        /// How long the first ejection lasts. Each relapse doubles it; as much time without one takes a doubling back.
        base_ejection: Duration as Time<100, { 24 * HOUR }> = Duration::from_secs(30),
        /// The longest ejection.
        max_ejection: Duration as Time<100, { 24 * HOUR }> = Duration::from_secs(300),
        /// Percent of a pool's serving backends that may be ejected at a time. Never exceeded.
        max_ejected_percent: Percent as Percent = Percent::HALF,
        /// Percent of the outliers that are ejected; the others are only talked about. 0 is a dry run.
        enforce: Percent as Percent = Percent::ALL,
    }
}

table! {
    /// When backends get fewer new connections for what becomes of them, or none: by the part that fails, where the newer ones
    /// weigh more.
    Breaker from BreakerDraft "[service.breaker]" {
        /// What it watches over.
        scope: BreakerScope as BreakerScope = BreakerScope::Backend,
        /// Percent of failures from which on it is open.
        high: Percent as Percent = Percent::HALF,
        /// Percent of failures above which it sheds a part of the new connections.
        low: Percent as Percent = Percent::TENTH,
        /// After how long a connection weighs half.
        half_life: Duration as Time<100, HOUR> = Duration::from_secs(10),
        /// Weight of the connections below which nothing is concluded.
        min_volume: u32 as Count<1, 1_000_000> = 10,
        /// How long it is open before it lets some try.
        open: Duration as Time<100, HOUR> = Duration::from_secs(30),
        /// Connections that have to end well before it is closed again.
        trials: u32 as Count<1, 1_000> = 3,
        /// What becomes of new connections that it keeps away.
        on_trip: OnTrip as OnTrip = OnTrip::Spill,
    }
}

table! {
    /// Connections that nobody accepts are tried again elsewhere: those that are refused, or not answered when their client
    /// asks again.
    Retry from RetryDraft "[service.retry]" {
        /// Percent of the new connections that may be tried again.
        budget: Percent as Percent = Percent::FIFTH,
        /// Retries that may be saved up, for when there are few connections.
        burst: u32 as Count<1, 100_000> = 10,
    }
}

table! {
    /// How many connections backends and pools may have.
    Limits from LimitsDraft "[service.limits]" {
        /// Connections that each backend may have. Without it, as many as come.
        max_connections: Option<u32> as Maybe<Count<1, 100_000_000>> = None,
        /// New connections that each backend may get in a second, a tenth of them at once.
        max_new_per_second: Option<u32> as Maybe<Count<1, 10_000_000>> = None,
        /// Connections that each pool may have.
        pool_max_connections: Option<u32> as Maybe<Count<1, 100_000_000>> = None,
        /// New connections that each pool may get in a second, a tenth of them at once.
        pool_max_new_per_second: Option<u32> as Maybe<Count<1, 10_000_000>> = None,
        /// What becomes of new connections beyond. What a pool may not have, nobody else takes: it gets what `on_empty` says.
        on_limit: OnTrip as OnTrip = OnTrip::Spill,
    }
}

table! {
    /// Backends that answer sooner than their peers get more new connections.
    Steering from SteeringDraft "[service.steering]" {
        /// What is timed, from a client's SYN on.
        by: SteerBy as SteerBy = SteerBy::FirstByte,
        /// Percent of its weight that a slow backend keeps at least.
        least_percent: u32 as Count<10, 100> = 50,
        /// Percent of its weight that a fast backend gets at most.
        most_percent: u32 as Count<100, 1_000> = 200,
        /// After how long a connection weighs half.
        half_life: Duration as Time<SECOND, HOUR> = Duration::from_secs(30),
        /// How often weights may change.
        interval: Duration as Time<SECOND, HOUR> = Duration::from_secs(5),
        /// Weight of a backend's connections below which it is not steered.
        min_volume: u32 as Count<1, 1_000_000> = 20,
    }
}

words! {
    /// What is timed of a connection.
    SteerBy, "what can be timed" {
        /// Until the SYN is answered: the backend's kernel, and the way there.
        Handshake = "handshake",
        /// Until the first byte comes: the application, where it speaks first or answers a request.
        FirstByte = "first-byte",
    }
}

words! {
    /// What a breaker watches over.
    BreakerScope, "the scope of a breaker" {
        /// Each backend.
        Backend = "backend",
        /// Each pool as a whole.
        Pool = "pool",
        /// Both.
        Both = "both",
    }
}

impl BreakerScope {
    /// Whether each backend has one.
    #[must_use]
    pub const fn has_backends(self) -> bool {
        matches!(self, Self::Backend | Self::Both)
    }

    /// Whether each pool has one.
    #[must_use]
    pub const fn has_pools(self) -> bool {
        matches!(self, Self::Pool | Self::Both)
    }
}

words! {
    /// What becomes of new connections that somebody may not have.
    OnTrip, "an answer to a tripped breaker" {
        /// Others take them: the backends of its pool, or for a whole canary the stable pool. Where nobody is left, `on_empty`.
        Spill = "spill",
        /// A RST.
        Reset = "reset",
        /// Nothing.
        Drop = "drop",
    }
}

impl super::Service {
    /// Whether the kernel has to look at what becomes of its connections.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.protocol == Protocol::Tcp
            && (self.outlier.is_some() || self.breaker.is_some() || self.steering.is_some())
    }
}
