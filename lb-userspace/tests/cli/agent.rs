//! An agent that is made up: two services, and a note of each change that it was asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lb_userspace::api::*;
use lb_userspace::config::{AdminState, Config, Mode, Protocol};
use lb_userspace::rollout::engine::{Order, Phase};
use tokio::sync::{broadcast, mpsc};

pub const REVISION: u64 = 17;

pub struct Agent {
    /// Every change that was asked for: who, what.
    pub calls: Mutex<Vec<(Actor, String)>>,
    /// Whether something does not work.
    pub degraded: AtomicBool,
    /// How many slots have not settled.
    pub unsettled: AtomicU64,
    /// Whether it is still starting.
    pub starting: AtomicBool,
    /// Whether it never answers a change.
    pub hanging: AtomicBool,
    /// How many flows the first backend has.
    pub flows: AtomicU64,
    /// Pages of services that were asked for.
    pub pages: AtomicU64,
    /// Whether the next page is refused, since the configuration has changed.
    pub changed: AtomicBool,
    /// A rollout that is under way, look by look; the last one stays.
    pub rollouts: Mutex<VecDeque<RolloutStatus>>,
    events: Mutex<Vec<Event>>,
    live: broadcast::Sender<Event>,
}

impl Agent {
    pub fn new() -> Self {
        let agent = Self {
            calls: Mutex::default(),
            degraded: AtomicBool::new(true),
            unsettled: AtomicU64::new(120),
            starting: AtomicBool::new(false),
            hanging: AtomicBool::new(false),
            flows: AtomicU64::new(3),
            pages: AtomicU64::new(0),
            changed: AtomicBool::new(false),
            rollouts: Mutex::default(),
            events: Mutex::default(),
            live: broadcast::Sender::new(16),
        };
        agent.happens(Event {
            code: "split".to_owned(),
            service: Some("checkout".to_owned()),
            message: "split of checkout: 0 % -> 10 %".to_owned(),
            actor: Some("root".to_owned()),
            revision: Some(REVISION),
            ..event(Severity::Info)
        });
        agent.happens(Event {
            code: "backend_down".to_owned(),
            service: Some("checkout".to_owned()),
            pool: Some("v41".to_owned()),
            backend: Some("10.0.1.12:8443".to_owned()),
            message: "3 checks in a row failed: connection refused".to_owned(),
            ..event(Severity::Warning)
        });
        agent
    }

    /// Takes down an event, and tells those who follow.
    pub fn happens(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        let seq = events.len() as u64 + 1;
        let event = Event { seq, time: format!("2026-11-21T04:00:{:02}.123456Z", seq % 60), ..event };
        events.push(event.clone());
        _ = self.live.send(event);
    }

    async fn asked(&self, call: &Call, what: String) -> Answer<()> {
        if self.hanging.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
        }
        self.ready()?;
        self.calls.lock().unwrap().push((call.actor, what));
        Ok(())
    }

    fn ready(&self) -> Answer<()> {
        match self.starting.load(Ordering::Relaxed) {
            true => Err(ApiError::new(ErrorCode::Starting, "the agent is adopting its maps")
                .remedy("wait for it: `lbctl status --wait`")),
            false => Ok(()),
        }
    }

    fn find(&self, name: &str) -> Answer<ServiceStatus> {
        let all = self.all();
        let found = all.iter().find(|service| service.name == name).cloned();
        found.ok_or_else(|| ApiError::no_service(name, all.iter().map(|service| service.name.as_str())))
    }

    fn find_backend(&self, path: &BackendPath) -> Answer<BackendStatus> {
        let service = self.find(&path.service)?;
        let pools = service.pools.iter().map(|pool| pool.name.as_str());
        let pool = service.pools.iter().find(|pool| pool.name == path.pool);
        let pool = pool.ok_or_else(|| ApiError::no_pool(&path.service, &path.pool, pools))?;
        let names = pool.backends.iter().map(|backend| backend.name.as_str());
        let owner = format!("{}/{}", path.service, path.pool);
        let found = pool.backends.iter().find(|backend| backend.name == path.backend).cloned();
        found.ok_or_else(|| ApiError::no_backend(&owner, &path.backend, names))
    }

    fn all(&self) -> Vec<ServiceStatus> {
        vec![self.checkout(), dns()]
    }

    /// One service a page, so that whoever wants all of them has to go on.
    fn page(&self, query: &ServiceQuery) -> Answer<Services> {
        query.limit()?;
        self.pages.fetch_add(1, Ordering::Relaxed);
        if let Some(name) = &query.service {
            return Ok(Services { services: vec![self.find(name)?], ..Services::default() });
        }
        let all = self.all();
        let first = match &query.after {
            None => 0,
            // As if the configuration had changed in between.
            Some(_) if self.changed.swap(false, Ordering::Relaxed) => {
                return Err(ApiError::new(ErrorCode::RevisionConflict, "it is gone"));
            }
            Some(after) => 1 + all.iter().position(|service| service.name == *after).expect("a service"),
        };
        let next = (first + 1 < all.len()).then(|| all[first].name.clone());
        Ok(Services { services: all[first..].iter().take(1).cloned().collect(), next, ..Services::default() })
    }

    fn checkout(&self) -> ServiceStatus {
        let unsettled = self.unsettled.load(Ordering::Relaxed);
        let flows = self.flows.load(Ordering::Relaxed);
        let first = backend("10.0.1.11:8443", 1, 8_190);
        let down = BackendStatus {
            weight: 50,
            health: HealthStatus {
                status: HealthState::Down,
                reason: Some("connection refused".to_owned()),
                since_seconds: 754,
                last_duration_seconds: Some(0.000_2),
            },
            takes_new: false,
            why_not: Some("its health checks fail".to_owned()),
            slots: 0,
            ..backend("10.0.1.12:8443", 2, 0)
        };
        let canary = BackendStatus {
            state: AdminState::Drain,
            takes_new: false,
            ..backend("10.0.2.11:8443", 3, 16_381)
        };
        ServiceStatus {
            name: "checkout".to_owned(),
            vip: "203.0.113.10".parse().unwrap(),
            port: 443,
            protocol: Protocol::Tcp,
            mode: Mode::Nat,
            revision: REVISION,
            stable: "v41".to_owned(),
            canary: Some("v42".to_owned()),
            split: SplitStatus {
                percent: 10.0,
                new_ratio: 0.1,
                home_ratio: 0.0,
                tracked_ratio: 0.1,
                settled: unsettled == 0,
            },
            pools: vec![
                pool(
                    "v41",
                    PoolRole::Stable,
                    90.0,
                    vec![BackendStatus { tracked_flows: flows, ..first }, down],
                ),
                pool("v42", PoolRole::Canary, 10.0, vec![canary]),
            ],
            overrides: vec![Override {
                path: "pool.v41.backend.10.0.1.12:8443.weight".to_owned(),
                configured: "100".to_owned(),
                now: "50".to_owned(),
                since: "2026-11-21T03:58:00.5Z".to_owned(),
                actor: "alice".to_owned(),
            }],
            protection: Some(ProtectionStatus {
                denied_networks: 2,
                source_max_new_per_second: Some(50),
                ..ProtectionStatus::default()
            }),
        }
    }
}

fn dns() -> ServiceStatus {
    ServiceStatus {
        name: "dns".to_owned(),
        vip: "2001:db8:10::53".parse().unwrap(),
        port: 53,
        protocol: Protocol::Udp,
        mode: Mode::DsrIpip,
        revision: 4,
        stable: "main".to_owned(),
        canary: None,
        split: SplitStatus { settled: true, ..SplitStatus::default() },
        pools: vec![PoolStatus {
            panic: true,
            ..pool(
                "main",
                PoolRole::Stable,
                100.0,
                vec![BackendStatus {
                    next_hop: NextHop::Unreachable { unreachable: "no neighbour answers on eth0".to_owned() },
                    ..backend("[2001:db8:3::13]:53", 4, 16_381)
                }],
            )
        }],
        overrides: Vec::new(),
        protection: None,
    }
}

fn pool(name: &str, role: PoolRole, share_percent: f64, backends: Vec<BackendStatus>) -> PoolStatus {
    let traffic = Traffic {
        packets: 1_234_567,
        bytes: 987_654_321,
        connections: 45_678,
        reply_packets: 1_200_000,
        reply_bytes: 0,
    };
    PoolStatus {
        name: name.to_owned(),
        role,
        share_percent,
        panic: false,
        failed: false,
        breaker: None,
        connections: None,
        spills_to: None,
        priorities: Vec::new(),
        backends,
        traffic,
        handshake: None,
    }
}

fn backend(name: &str, id: u16, slots: u32) -> BackendStatus {
    BackendStatus {
        name: name.to_owned(),
        id,
        weight: 100,
        configured_weight: 100,
        source: None,
        priority: 0,
        state: AdminState::Ready,
        drain: None,
        slow_start_percent: None,
        ejection: None,
        breaker: None,
        steering: None,
        connections: None,
        outcomes: None,
        server_ids: Vec::new(),
        health: HealthStatus {
            status: HealthState::Up,
            reason: None,
            since_seconds: 11_520,
            last_duration_seconds: Some(0.001_25),
        },
        takes_new: true,
        why_not: None,
        standby: false,
        slots,
        tracked_flows: 0,
        next_hop: NextHop::Known { interface: "eth0".to_owned(), mac: "02:00:00:00:01:0b".to_owned() },
        terminating: false,
        traffic: Traffic {
            packets: 12_345,
            bytes: 1_234_567,
            connections: 789,
            reply_packets: 12_000,
            reply_bytes: 0,
        },
        rate: Rate { connections_per_second: 0.5, packets_per_second: 1_234.5 },
    }
}

pub fn event(severity: Severity) -> Event {
    Event {
        api: Api::V1,
        seq: 0,
        time: String::new(),
        code: "test".to_owned(),
        severity,
        service: None,
        pool: None,
        backend: None,
        message: "something happened".to_owned(),
        actor: None,
        revision: None,
        service_revision: None,
    }
}

fn change(path: &str, from: Option<&str>, to: Option<&str>) -> Change {
    Change { path: path.to_owned(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
}

fn of(backend: &BackendPath, what: &str) -> String {
    format!("service.{}.pool.{}.backend.{}.{what}", backend.service, backend.pool, backend.backend)
}

fn pools_changed() -> Vec<Change> {
    vec![
        change("pool.v40.backend.10.0.0.11:8443.address", Some("10.0.0.11:8443"), None),
        change("pool.v40.backend.10.0.0.11:8443.weight", Some("100"), None),
        change("pool.v41.backend.10.0.1.11:8443.weight", Some("100"), Some("50")),
        change("pool.v42.backend.10.0.2.11:8443.weight", None, Some("100")),
    ]
}

fn no_revision(service: &str, number: u64) -> ApiError {
    let message = format!("service `{service}` has no revision {number}: the journal has 15 to 17");
    ApiError::new(ErrorCode::NoRevision, message)
        .about(service)
        .remedy(format!("`lbctl history {service}` shows what each of them is"))
}

fn changed(
    path: impl Into<String>,
    from: impl ToString,
    to: impl ToString,
    slots: f64,
    clients: f64,
) -> Applied {
    let path = path.into();
    let named = path.strip_prefix("service.").and_then(|rest| rest.split('.').next());
    let service = named.unwrap_or("checkout").to_owned();
    Applied {
        revision: REVISION + 1,
        changed: from.to_string() != to.to_string(),
        changes: vec![Change { path, from: Some(from.to_string()), to: Some(to.to_string()) }],
        moved: vec![Moved { service, slots_moved_percent: slots, clients_moved_percent: clients }],
        ..Applied::default()
    }
}

impl Control for Agent {
    async fn status(&self, query: ServiceQuery) -> Answer<Status> {
        self.ready()?;
        let page = self.page(&query)?;
        let degraded = self.degraded.load(Ordering::Relaxed);
        let finding = Finding {
            severity: Severity::Error,
            code: "LB1003".to_owned(),
            subject: "checkout/v41".to_owned(),
            message: "1 of 2 backends is down".to_owned(),
            remedy: Some("`lbctl get backends` shows the last check's result".to_owned()),
        };
        let generic = Finding {
            severity: Severity::Warning,
            code: "LB1007".to_owned(),
            subject: "eth1".to_owned(),
            message: "the program runs in generic mode, which is several times slower".to_owned(),
            remedy: Some("its driver has no native XDP: use another interface, or a newer kernel".to_owned()),
        };
        let by_hand = Finding {
            severity: Severity::Info,
            code: "LB1005".to_owned(),
            subject: "checkout/v41/10.0.1.12:8443".to_owned(),
            message: "its weight is 50, not 100 as configured, by alice since 2026-11-21T03:58:00Z"
                .to_owned(),
            remedy: Some("`lbctl set weight checkout/v41/10.0.1.12:8443 100` takes it back".to_owned()),
        };
        Ok(Status {
            api: Api::V1,
            version: "0.1.0".to_owned(),
            layout: 1,
            started_at: "2026-11-21T03:00:00Z".to_owned(),
            uptime_seconds: 11_520,
            revision: REVISION,
            degraded,
            findings: if degraded { vec![finding, generic, by_hand] } else { Vec::new() },
            dataplane: DataplaneStatus {
                program: Some(ProgramStatus { id: 41, verified_instructions: Some(23_456) }),
                interfaces: vec![
                    InterfaceStatus {
                        name: "eth0".to_owned(),
                        ifindex: 2,
                        mode: XdpMode::Native,
                        mac: "02:00:00:00:00:01".to_owned(),
                        mtu: 1_500,
                    },
                    InterfaceStatus {
                        name: "eth1".to_owned(),
                        ifindex: 3,
                        mode: XdpMode::Generic,
                        mac: "02:00:00:00:00:02".to_owned(),
                        mtu: 9_000,
                    },
                ],
                flows: Room { used: 12, capacity: 1_048_576 },
                udp_flows: Room { used: 0, capacity: 262_144 },
                half_open: Room { used: 130_000, capacity: 131_072 },
                sessions: Room { used: 0, capacity: 131_072 },
                slots: SlotRoom {
                    used: 49_143,
                    capacity: 4_194_304,
                    unsettled: self.unsettled.load(Ordering::Relaxed),
                },
                backends: Room { used: 4, capacity: 16_384 },
                drops: BTreeMap::from([
                    ("no_backend".to_owned(), 12_345),
                    ("no_route".to_owned(), 7),
                    ("too_big".to_owned(), 0),
                ]),
            },
            services: page.services,
            next: page.next,
        })
    }

    async fn services(&self, query: ServiceQuery) -> Answer<Services> {
        self.ready()?;
        self.page(&query)
    }

    async fn flows(&self, query: FlowQuery) -> Answer<Flows> {
        if let Some(name) = &query.service {
            self.find(name)?;
        }
        let flow = |port, kind, age_seconds| FlowInfo {
            service: "checkout".to_owned(),
            client: "198.51.100.7".parse().unwrap(),
            port,
            pool: "v42".to_owned(),
            backend: "10.0.2.11:8443".to_owned(),
            kind,
            idle_seconds: 4,
            age_seconds,
        };
        let mut flows =
            vec![flow(40_001, FlowKind::Tracked, Some(135)), flow(40_002, FlowKind::HalfOpen, None)];
        let truncated = flows.len() > query.limit;
        flows.truncate(query.limit);
        Ok(Flows { api: Api::V1, flows, truncated })
    }

    fn events(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let events = self.events.lock().unwrap();
        let past = events.iter().filter(|event| event.seq > after).cloned().collect();
        (past, self.live.subscribe())
    }

    async fn history(&self, service: String) -> Answer<History> {
        self.find(&service)?;
        let hash = "3f5a".repeat(16);
        let revisions = vec![
            Revision {
                revision: 17,
                agent_revision: 40,
                time: "2026-11-21T04:00:01.9Z".to_owned(),
                actor: "root".to_owned(),
                reason: Some("ticket 4711".to_owned()),
                summary: "split of checkout: 0 % -> 10 %".to_owned(),
                hash: hash.clone(),
                changes: vec![change("split", Some("0 %"), Some("10 %"))],
            },
            Revision {
                revision: 16,
                agent_revision: 38,
                time: "2026-11-20T16:00:00Z".to_owned(),
                actor: "alice".to_owned(),
                reason: None,
                summary: "a configuration was applied".to_owned(),
                hash,
                changes: pools_changed(),
            },
        ];
        Ok(History { api: Api::V1, service, revisions })
    }

    async fn diff(&self, service: String, query: DiffQuery) -> Answer<Diff> {
        self.find(&service)?;
        let DiffQuery { from, to } = query;
        if let Some(unknown) = [from, to].into_iter().find(|number| !(15..=17).contains(number)) {
            return Err(no_revision(&service, unknown));
        }
        let changes = if from == to { Vec::new() } else { pools_changed() };
        Ok(Diff { api: Api::V1, service, from, to, changes })
    }

    async fn undo(&self, call: Call, service: String, request: Undo) -> Answer<Applied> {
        self.find(&service)?;
        self.asked(&call, format!("undo {service} {:?} {:?}", request.to, request.reason)).await?;
        let to = request.to.unwrap_or(16);
        if to != 16 {
            return Err(no_revision(&service, to));
        }
        Ok(Applied { service_revision: Some(18), ..changed("split", "10 %", "0 %", 0.0, 10.0) })
    }

    async fn apply(&self, call: Call, config: Config, request: Apply) -> Answer<Applied> {
        let services = config.services.len();
        self.asked(&call, format!("apply {services} {} {:?}", request.dry_run, request.reason)).await?;
        if request.expect_revision.is_some_and(|expected| expected != REVISION) {
            let expected = request.expect_revision.unwrap_or_default();
            return Err(ApiError::new(
                ErrorCode::RevisionConflict,
                format!("the agent is at revision {REVISION}, not {expected}"),
            )
            .remedy("look at what changed with `lbctl history`, and apply again"));
        }
        if request.reason.as_deref() == Some("nothing") {
            return Ok(Applied { revision: REVISION, ..Applied::default() });
        }
        let mut applied =
            changed("service.checkout.pool.v41.backend.10.0.1.11:8443.weight", 100, 50, 24.926, 0.0);
        let new = "service.checkout.pool.v42.backend.10.0.2.12:8443";
        let gone = "service.dns.pool.main.backend.[2001:db8:3::12]:53";
        applied.changes.extend([
            change(&format!("{new}.address"), None, Some("10.0.2.12:8443")),
            change(&format!("{new}.priority"), None, Some("0")),
            change(&format!("{new}.weight"), None, Some("100")),
            change(&format!("{gone}.address"), Some("[2001:db8:3::12]:53"), None),
            change(&format!("{gone}.priority"), Some("0"), None),
            change(&format!("{gone}.weight"), Some("50"), None),
        ]);
        applied.warnings = vec!["the slots are 97 % full".to_owned()];
        applied.dry_run = request.dry_run;
        if request.dry_run {
            applied.revision = REVISION;
        }
        Ok(applied)
    }

    async fn set_split(&self, call: Call, service: String, request: SetSplit) -> Answer<Applied> {
        let found = self.find(&service)?;
        self.asked(&call, format!("split {service} {}", request.percent)).await?;
        if found.canary.is_none() {
            return Err(ApiError::new(
                ErrorCode::NoCanary,
                format!("service `{service}` has one pool only, so there is no canary"),
            )
            .about(service)
            .remedy("add a second [[service.pool]] and apply"));
        }
        let to = format!("{} %", request.percent);
        Ok(changed(
            format!("service.{service}.split"),
            "10 %",
            to,
            0.0,
            (request.percent.percent() - 10.0).abs(),
        ))
    }

    async fn set_weight(&self, call: Call, backend: BackendPath, request: SetWeight) -> Answer<Applied> {
        let found = self.find_backend(&backend)?;
        self.asked(&call, format!("weight {backend} {}", request.weight)).await?;
        Ok(changed(of(&backend, "weight"), found.weight, request.weight, 12.5, 0.0))
    }

    async fn set_state(&self, call: Call, backend: BackendPath, request: SetState) -> Answer<Applied> {
        let found = self.find_backend(&backend)?;
        self.asked(&call, format!("state {backend} {} {:?}", request.state, request.reason)).await?;
        Ok(changed(of(&backend, "state"), found.state, request.state, 12.5, 0.0))
    }

    async fn set_health(&self, call: Call, backend: BackendPath, request: SetHealth) -> Answer<Applied> {
        self.find_backend(&backend)?;
        self.asked(&call, format!("health {backend} {}", request.health)).await?;
        Ok(changed(of(&backend, "health"), "as checked", request.health, 12.5, 0.0))
    }

    async fn rollback(&self, call: Call, service: String, request: Rollback) -> Answer<RolledBack> {
        self.find(&service)?;
        self.asked(&call, format!("rollback {service} {} {:?}", request.flows, request.reason)).await?;
        assert!(call.arrived.elapsed() < Duration::from_secs(1));
        Ok(RolledBack {
            api: Api::V1,
            service,
            split_before_percent: 10.0,
            flows: request.flows,
            established: Some(3),
            store_seconds: 41.234e-6,
            total_seconds: 1.234e-3,
            revision: Some(REVISION + 1),
            service_revision: Some(5),
            by_agent: true,
            warnings: Vec::new(),
        })
    }

    async fn start_rollout(
        &self,
        call: Call,
        service: String,
        request: StartRollout,
    ) -> Answer<RolloutStatus> {
        self.find(&service)?;
        let shares: Vec<String> = request.shares.iter().flatten().map(ToString::to_string).collect();
        self.asked(&call, format!("rollout {service} to {} by {shares:?} {:?}", request.to, request.reason))
            .await?;
        Ok(rollout(&service, Phase::Preparing))
    }

    async fn rollout(&self, service: String) -> Answer<RolloutStatus> {
        self.find(&service)?;
        let mut rollouts = self.rollouts.lock().unwrap();
        let next = if rollouts.len() > 1 { rollouts.pop_front() } else { rollouts.front().cloned() };
        Ok(next.unwrap_or_else(|| rollout(&service, Phase::RolledBack)))
    }

    async fn order_rollout(
        &self,
        call: Call,
        service: String,
        order: Order,
        request: OrderRollout,
    ) -> Answer<RolloutStatus> {
        self.find(&service)?;
        self.asked(&call, format!("rollout {service} {} {:?}", order.as_str(), request.reason)).await?;
        Ok(rollout(&service, Phase::Holding))
    }

    async fn trace(&self, _: Call, request: Trace) -> Answer<mpsc::Receiver<Traced>> {
        if request.port == Some(1) {
            return Err(ApiError::new(ErrorCode::TraceUnderWay, "somebody traces already"));
        }
        let (sender, receiver) = mpsc::channel(8);
        let arrives = Traced {
            api: Api::V1,
            time: "2026-11-21T06:12:00.123456789Z".to_owned(),
            cpu: 1,
            packet: 7,
            point: TracePoint::Arrives,
            interface: Some("eth0".to_owned()),
            length: 74,
            from: Some("198.51.100.7:40000".to_owned()),
            to: Some("203.0.113.10:443".to_owned()),
            kind: "tcp syn".to_owned(),
            stage: None,
            action: None,
            reason: None,
            meaning: None,
            backend: None,
            begins: false,
            lost: 0,
            bytes: request.bytes.then(|| "020000000001020000000002".to_owned()),
        };
        let ends = Traced {
            point: TracePoint::Ends,
            interface: Some("eth1".to_owned()),
            action: Some("transmit".to_owned()),
            reason: Some("forwarded".to_owned()),
            meaning: Some("To a backend.".to_owned()),
            backend: Some("checkout/v42/10.0.2.11:8443".to_owned()),
            begins: true,
            ..arrives.clone()
        };
        for traced in [arrives, ends] {
            sender.send(traced).await.expect("room for both");
        }
        Ok(receiver)
    }

    async fn faults(&self) -> Answer<Faults> {
        Ok(faults())
    }

    async fn add_fault(&self, call: Call, service: String, request: AddFault) -> Answer<Faults> {
        let AddFault { action, share, seconds, pool, backend, clients, reason } = request;
        let where_to = format!("{service} {pool:?} {backend:?} {clients:?}");
        self.asked(&call, format!("fault {action} {share} of {where_to} for {seconds} {reason:?}")).await?;
        Ok(faults())
    }

    async fn clear_faults(&self, call: Call, request: ClearFaults) -> Answer<Faults> {
        self.asked(&call, format!("clear faults {:?} {:?}", request.id, request.reason)).await?;
        Ok(Faults { api: Api::V1, faults: Vec::new() })
    }

    async fn explain(&self, request: Explain) -> Answer<Explanation> {
        let step = |title: &str, text: String, values: &[(&str, &str)]| Step {
            title: title.to_owned(),
            text,
            values: values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        Ok(Explanation {
            api: Api::V1,
            steps: vec![
                step("service", format!("{} {} is service checkout", request.to, request.protocol), &[]),
                step(
                    "split",
                    "the client's hash lies below the split, so that the flow belongs to the canary v42; at 4.21 % it would have joined".to_owned(),
                    &[("h1", "0x0ac71c00"), ("split", "0x19999999")],
                ),
                step("slot", "slot 7311 leads to 10.0.2.11:8443".to_owned(), &[("h2", "0x5bd1e995")]),
            ],
            verdict: "transmit".to_owned(),
            reason: "forwarded".to_owned(),
            service: Some("checkout".to_owned()),
            pool: Some("v42".to_owned()),
            backend: Some("10.0.2.11:8443".to_owned()),
        })
    }

    async fn detach(&self, call: Call) -> Answer<Detached> {
        self.asked(&call, "detach".to_owned()).await?;
        Ok(Detached {
            api: Api::V1,
            removed: vec!["the program on eth0".to_owned(), "/sys/fs/bpf/lb/v1".to_owned()],
            left: Vec::new(),
        })
    }
}

fn faults() -> Faults {
    let fault = FaultStatus {
        id: 1,
        service: "checkout".to_owned(),
        action: FaultAction::Reset,
        percent: 5.0,
        pool: Some("v42".to_owned()),
        backend: None,
        clients: Some("10.1.0.0/16".to_owned()),
        left_seconds: 29.5,
    };
    Faults { api: Api::V1, faults: vec![fault] }
}

pub fn rollout(service: &str, phase: Phase) -> RolloutStatus {
    RolloutStatus {
        api: Api::V1,
        service: service.to_owned(),
        from: "v41".to_owned(),
        to: "v42".to_owned(),
        phase,
        ended_in: None,
        paused: false,
        step: 1,
        plan: lb_userspace::config::Rollout::default().plan(None, None),
        reason: "as in a test".to_owned(),
        began: "2026-01-01T00:00:00Z".to_owned(),
        elapsed_seconds: 1.0,
        left_seconds: None,
        desired_percent: 1.0,
        took_back_seconds: None,
        observed: Observed::default(),
        telemetry: Vec::new(),
        verdict: VerdictWord::NoData,
        verdict_reason: "nobody came".to_owned(),
        metrics: Vec::new(),
        preview: None,
        queries: Vec::new(),
    }
}
