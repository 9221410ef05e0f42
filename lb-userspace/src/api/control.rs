//! What the agent does for its API.

use std::time::Instant;

use tokio::sync::{broadcast, mpsc};

use super::{
    Actor, AddFault, ApiError, Applied, Apply, BackendPath, ClearFaults, Detached, Diff, DiffQuery, Event,
    Explain, Explanation, Faults, FlowQuery, Flows, History, OrderRollout, Rollback, RolledBack,
    RolloutStatus, ServiceQuery, Services, SetHealth, SetSplit, SetState, SetWeight, StartRollout, Status,
    Trace, Traced, Undo,
};
use crate::config::Config;
use crate::rollout::engine::Order;

/// What every operation gives.
pub type Answer<T> = Result<T, ApiError>;

/// Who asks for a change, and when the request arrived.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who, as the kernel says.
    pub actor: Actor,
    /// When the head of the request had been read.
    pub arrived: Instant,
}

/// The agent, as its API sees it.
///
/// Requests are well formed when they get here: bodies are typed, a configuration is parsed. What an operation cannot do
/// it says with an [`ApiError`], which has a constructor for each name that may be mistyped. Operations run concurrently;
/// a client that goes away drops the future of its request at the next point where it waits.
pub trait Control: Send + Sync + 'static {
    /// The whole at a glance, with a page of the services.
    fn status(&self, query: ServiceQuery) -> impl Future<Output = Answer<Status>> + Send;

    /// A page of the services.
    fn services(&self, query: ServiceQuery) -> impl Future<Output = Answer<Services>> + Send;

    /// Some tracked flows.
    fn flows(&self, query: FlowQuery) -> impl Future<Output = Answer<Flows>> + Send;

    /// What happened after the event with this number, as far as it is remembered, and what happens next: without a gap
    /// between the two, and without an event that is in both.
    fn events(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>);

    /// A service's revisions, the newest first.
    fn history(&self, service: String) -> impl Future<Output = Answer<History>> + Send;

    /// What differs between two of a service's revisions.
    fn diff(&self, service: String, query: DiffQuery) -> impl Future<Output = Answer<Diff>> + Send;

    /// Makes a service what it was at an earlier revision.
    fn undo(
        &self,
        call: Call,
        service: String,
        request: Undo,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Converges on a configuration. `config` is `request.text`, parsed.
    fn apply(
        &self,
        call: Call,
        config: Config,
        request: Apply,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Gives the canary another share of the clients.
    fn set_split(
        &self,
        call: Call,
        service: String,
        request: SetSplit,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Gives a backend another weight.
    fn set_weight(
        &self,
        call: Call,
        backend: BackendPath,
        request: SetWeight,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Gives a backend another administrative state.
    fn set_state(
        &self,
        call: Call,
        backend: BackendPath,
        request: SetState,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Overrides a backend's health checks, or stops doing so.
    fn set_health(
        &self,
        call: Call,
        backend: BackendPath,
        request: SetHealth,
    ) -> impl Future<Output = Answer<Applied>> + Send;

    /// Takes every new flow off the canary, at once.
    fn rollback(
        &self,
        call: Call,
        service: String,
        request: Rollback,
    ) -> impl Future<Output = Answer<RolledBack>> + Send;

    /// Begins to roll a pool out.
    fn start_rollout(
        &self,
        call: Call,
        service: String,
        request: StartRollout,
    ) -> impl Future<Output = Answer<RolloutStatus>> + Send;

    /// Where the rollout of a service stands, or how the last one ended.
    fn rollout(&self, service: String) -> impl Future<Output = Answer<RolloutStatus>> + Send;

    /// Has a say in the rollout that is under way.
    fn order_rollout(
        &self,
        call: Call,
        service: String,
        order: Order,
        request: OrderRollout,
    ) -> impl Future<Output = Answer<RolloutStatus>> + Send;

    /// Tells of packets as they go through, until the time is over or nobody listens.
    fn trace(
        &self,
        call: Call,
        request: Trace,
    ) -> impl Future<Output = Answer<mpsc::Receiver<Traced>>> + Send;

    /// The faults that are injected.
    fn faults(&self) -> impl Future<Output = Answer<Faults>> + Send;

    /// Injects one.
    fn add_fault(
        &self,
        call: Call,
        service: String,
        request: AddFault,
    ) -> impl Future<Output = Answer<Faults>> + Send;

    /// Takes one away, or all.
    fn clear_faults(&self, call: Call, request: ClearFaults) -> impl Future<Output = Answer<Faults>> + Send;

    /// Says where a flow goes, and why.
    fn explain(&self, request: Explain) -> impl Future<Output = Answer<Explanation>> + Send;

    /// Takes programs, maps and addresses off the host. The agent ends once it has answered.
    fn detach(&self, call: Call) -> impl Future<Output = Answer<Detached>> + Send;
}
