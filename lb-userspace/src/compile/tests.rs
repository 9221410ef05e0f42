//! Policy, from a configuration and what is known of its backends to slots.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::config;
use crate::state::{Author, Deadline, Override, Overrides};

/// Backends that are down or unknown; everybody else is up. All can be reached but those without a `next_hop`.
struct Fleet {
    health: HashMap<SocketAddr, Health>,
    lost: Vec<SocketAddr>,
    advice: HashMap<SocketAddr, Advice>,
    ejected: Vec<SocketAddr>,
    gates: HashMap<SocketAddr, Gate>,
    pool_gates: HashMap<String, Gate>,
    steered: HashMap<SocketAddr, u16>,
    now: Now,
}

impl Fleet {
    fn healthy() -> Self {
        let now = Now { instant: Instant::now(), wall: Timestamp::now() };
        Self {
            health: HashMap::new(),
            lost: Vec::new(),
            advice: HashMap::new(),
            ejected: Vec::new(),
            gates: HashMap::new(),
            pool_gates: HashMap::new(),
            steered: HashMap::new(),
            now,
        }
    }

    fn set(&mut self, backends: &[&str], health: Health) {
        self.health.extend(backends.iter().map(|backend| (at(backend), health)));
    }

    fn say(&mut self, backend: &str, line: &str) {
        let advice = self.advice.entry(at(backend)).or_default();
        *advice = advice.after(line.parse().expect("the tests' words are known"));
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall = self.now.wall.checked_add(time).expect("a time in this century");
    }
}

impl World for Fleet {
    fn health(&self, _: &Service, backend: SocketAddr) -> Health {
        self.health.get(&backend).copied().unwrap_or(Health::Up)
    }

    fn next_hop(&self, backend: SocketAddr) -> NextHop {
        if self.lost.contains(&backend) { NextHop::default() } else { NextHop::of([2, 0, 0, 0, 0, 1], 0) }
    }

    fn now(&self) -> Now {
        self.now
    }

    fn is_ejected(&self, _: &Service, backend: SocketAddr) -> bool {
        self.ejected.contains(&backend)
    }

    fn gate(&self, _: &Service, backend: SocketAddr) -> Gate {
        self.gates.get(&backend).copied().unwrap_or_default()
    }

    fn pool_gate(&self, _: &Service, pool: &PoolName) -> Gate {
        self.pool_gates.get(pool.as_str()).copied().unwrap_or_default()
    }

    fn steer(&self, _: &Service, backend: SocketAddr) -> u16 {
        self.steered.get(&backend).copied().unwrap_or(NEUTRAL)
    }

    fn advice(&self, _: &Service, backend: SocketAddr) -> Advice {
        self.advice.get(&backend).copied().unwrap_or_default()
    }
}

/// Backend `a1` is the first one of pool `a`.
fn at(name: &str) -> SocketAddr {
    let pool = u8::from(name.starts_with('b'));
    let number = name[1..].parse().expect("a number");
    ([10, 0, pool, number], 80).into()
}

/// A service of these pools, each with keys of its own and of its backends: `name|keys|backend keys, …`.
fn service(keys: &str, pools: &[(&str, &str, &[&str])]) -> Service {
    let mut text = format!(
        "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n{keys}\n"
    );
    for (name, keys, backends) in pools {
        text += &format!("[[service.pool]]\nname = \"{name}\"\n{keys}\n");
        for (i, keys) in (1..).zip(*backends) {
            text +=
                &format!("[[service.pool.backend]]\naddress = \"{}\"\n{keys}\n", at(&format!("{name}{i}")));
        }
    }
    config::parse(&text, "test").unwrap_or_else(|found| panic!("{found}")).config.services.remove(0)
}

const SLOTS: f64 = 16_381.0;

/// A service under observation.
struct Bench {
    service: Service,
    intent: Intent,
    compiler: Compiler,
    fleet: Fleet,
}

impl Bench {
    fn new(keys: &str, pools: &[(&str, &str, &[&str])]) -> Self {
        let service = service(keys, pools);
        let intent = Intent::of(&service).expect("a pool");
        Self { service, intent, compiler: Compiler::default(), fleet: Fleet::healthy() }
    }

    fn compile(&mut self) -> Compiled {
        self.compiler.compile(&self.service, &self.intent, &[7; 16], &self.fleet)
    }

    /// Percent of the slots of a pool's table that lead to each backend, by name; those without slots are left out.
    fn percent(&mut self, canary: bool) -> BTreeMap<String, f64> {
        let plan = self.compile().plan;
        let pool = if canary { plan.canary.expect("a canary") } else { plan.stable };
        let mut slots = BTreeMap::new();
        for &taker in pool.table.iter() {
            let ip = IpAddr::from(pool.takers[usize::from(taker)].0);
            if ip.is_unspecified() {
                *slots.entry("nobody".to_owned()).or_insert(0.0) += 100.0 / SLOTS;
                continue;
            }
            let IpAddr::V4(ip) = ip else { panic!("{ip}") };
            let [.., of, number] = ip.octets();
            let name = format!("{}{number}", if of == 0 { 'a' } else { 'b' });
            *slots.entry(name).or_insert(0.0) += 100.0 / SLOTS;
        }
        slots
    }

    #[track_caller]
    fn shows(&mut self, canary: bool, expected: &[(&str, f64)]) {
        let slots = self.percent(canary);
        let names: Vec<&str> = slots.keys().map(String::as_str).collect();
        assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{slots:?}");
        for (name, percent) in expected {
            // Within two slots.
            assert!((slots[*name] - percent).abs() < 0.013, "{name} has {} %, not {percent} %", slots[*name]);
        }
    }

    fn why_not(&mut self, name: &str) -> Option<WhyNot> {
        let compiled = self.compile();
        let mut backends = compiled.pools.iter().flat_map(|pool| &pool.backends);
        backends.find(|backend| backend.address == at(name)).expect("a backend").why_not
    }
}

const FIRST: &str = "";
const SECOND: &str = "priority = 1";

#[test]
fn the_next_priority_takes_what_the_healthy_ones_of_the_first_cannot() {
    let mut bench =
        Bench::new("", &[("a", "", &[FIRST, FIRST, "priority = 4", "weight = 300\npriority = 4"])]);
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    assert_eq!(bench.why_not("a3"), Some(WhyNot::Standby));
    bench.fleet.set(&["a1"], Health::Down);
    bench.shows(false, &[("a2", 70.0), ("a3", 7.5), ("a4", 22.5)]);
    bench.fleet.set(&["a2"], Health::Down);
    bench.shows(false, &[("a3", 25.0), ("a4", 75.0)]);
    assert!(!bench.compile().pools[0].panic, "the second priority can take everything");
    bench.fleet.set(&["a1", "a2"], Health::Up);
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
}

#[test]
fn backends_that_are_drained_or_not_checked_yet_spill_nothing() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST, FIRST, FIRST, SECOND])]);
    bench.fleet.set(&["a2"], Health::Unknown);
    let overrides = bench.intent.backends.entry(at("a3")).or_default();
    overrides.state = Some(held(AdminState::Drain));
    bench.shows(false, &[("a1", 100.0)]);
}

fn held<T>(value: T) -> Override<T> {
    Override { value, configured: None, since: String::new(), author: Author::agent("test") }
}

#[test]
fn panic_ignores_health_within_the_priorities_that_have_somebody() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST, FIRST, FIRST, SECOND, SECOND])]);
    bench.fleet.set(&["a1", "a2", "a3", "a4"], Health::Down);
    let view = bench.compile().pools.remove(0);
    assert!(view.panic, "one of five");
    bench.shows(false, &[("a4", 50.0), ("a5", 50.0)]);
    bench.fleet.set(&["a5"], Health::Down);
    bench.shows(false, &[("a1", 20.0), ("a2", 20.0), ("a3", 20.0), ("a4", 20.0), ("a5", 20.0)]);
}

#[test]
fn panic_does_not_send_flows_where_they_cannot_go() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST, FIRST, FIRST])]);
    bench.fleet.set(&["a1", "a2"], Health::Down);
    bench.fleet.lost.push(at("a1"));
    assert!(bench.compile().pools[0].panic);
    bench.shows(false, &[("a2", 50.0), ("a3", 50.0)]);
    assert_eq!(bench.why_not("a1"), Some(WhyNot::Unreachable));
}

#[test]
fn a_pool_below_min_healthy_takes_nothing_until_it_has_recovered() {
    let keys = "min_healthy = 2\nmin_healthy_recover = 3";
    let mut bench = Bench::new("", &[("a", keys, &[FIRST, FIRST, FIRST])]);
    bench.fleet.set(&["a1"], Health::Down);
    bench.shows(false, &[("a2", 50.0), ("a3", 50.0)]);
    bench.fleet.set(&["a2"], Health::Down);
    let compiled = bench.compile();
    assert!(compiled.plan.stable.table.is_empty() && compiled.pools[0].failed && !compiled.pools[0].panic);
    assert!(compiled.plan.stable.members[2].usable, "established flows stay");
    assert_eq!(bench.why_not("a3"), Some(WhyNot::PoolFailed));
    bench.fleet.set(&["a2"], Health::Up);
    assert!(bench.compile().pools[0].failed, "two are enough to stay, not to come back");
    bench.fleet.set(&["a1"], Health::Up);
    bench.shows(false, &[("a1", 33.333), ("a2", 33.333), ("a3", 33.333)]);
}

#[test]
fn a_pool_does_not_fall_before_it_stood() {
    let keys = "min_healthy = \"50%\"\nmin_healthy_recover = \"75%\"";
    let mut bench = Bench::new("", &[("a", keys, &[FIRST; 10])]);
    let names: Vec<String> = (1..=10).map(|i| format!("a{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    bench.fleet.set(&names, Health::Unknown);
    let mut stands = Vec::new();
    for (&name, up) in names.iter().zip([true, false, false, false, false, true, true, true, true, true]) {
        bench.fleet.set(&[name], if up { Health::Up } else { Health::Down });
        stands.push(!bench.compile().pools[0].failed);
    }
    assert_eq!(
        stands,
        [false, false, false, false, false, false, false, false, true, true],
        "with five of ten"
    );
    bench.fleet.set(&["a1", "a6"], Health::Down);
    assert!(bench.compile().pools[0].failed);
    bench.fleet.set(&["a1", "a6", "a2"], Health::Up);
    assert!(bench.compile().pools[0].failed, "now it takes more to come back");
    bench.fleet.set(&["a3"], Health::Up);
    assert!(!bench.compile().pools[0].failed);
}

#[test]
fn a_pool_that_stands_does_not_wait_for_those_that_are_not_checked_yet() {
    let mut bench = Bench::new("", &[("a", "min_healthy = \"100%\"", &[FIRST, FIRST])]);
    bench.compile();
    bench.fleet.set(&["a2"], Health::Unknown);
    bench.shows(false, &[("a1", 100.0)]);
}

const BOTH: [(&str, &str, &[&str]); 2] =
    [("a", "", &[FIRST, FIRST]), ("b", "min_healthy = \"100%\"", &[FIRST, FIRST])];

#[test]
fn a_canary_that_fails_spills_to_the_stable_pool() {
    let mut bench = Bench::new("", &BOTH);
    bench.intent.split = 10.0;
    bench.shows(true, &[("b1", 50.0), ("b2", 50.0)]);
    bench.fleet.set(&["b1"], Health::Down);
    bench.shows(true, &[("a1", 50.0), ("a2", 50.0)]);
    assert!(bench.compile().canary_spills);
}

#[test]
fn the_stable_pool_spills_to_the_canary_only_if_asked_and_while_that_has_a_share() {
    let down = |bench: &mut Bench| bench.fleet.set(&["a1", "a2"], Health::Down);
    let mut bench = Bench::new("panic_threshold = 0", &BOTH);
    bench.intent.split = 10.0;
    down(&mut bench);
    bench.shows(false, &[]);

    let mut bench = Bench::new("spill_to_canary = true", &BOTH);
    bench.intent.split = 10.0;
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    down(&mut bench);
    bench.shows(false, &[("b1", 50.0), ("b2", 50.0)]);
    let compiled = bench.compile();
    assert!(compiled.stable_spills && !compiled.canary_spills && !compiled.pools[0].panic);
    bench.intent.split = 0.0;
    let rolled_back = bench.compile();
    assert!(
        !rolled_back.stable_spills && rolled_back.pools[0].panic,
        "rolled back: nothing enters the canary"
    );
    bench.intent.split = 10.0;
    bench.fleet.set(&["b1"], Health::Down);
    let both = bench.compile();
    assert!(
        !both.stable_spills && both.canary_spills && both.pools[0].panic,
        "nobody is left but those in panic"
    );
}

#[test]
fn a_backend_that_comes_up_beside_others_gets_its_slots_little_by_little() {
    let mut bench = Bench::new("[service.slow_start]\nwindow = \"60s\"", &[("a", "", &[FIRST, FIRST])]);
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    bench.fleet.set(&["a2"], Health::Down);
    bench.shows(false, &[("a1", 100.0)]);
    bench.fleet.set(&["a2"], Health::Up);
    bench.shows(false, &[("a1", 100.0 / 1.1), ("a2", 10.0 / 1.1)]);
    let (mut share, mut steps) = (10.0 / 1.1, 0);
    while let Some(next) = bench.compile().next {
        bench.fleet.pass(next - bench.fleet.now.instant);
        let now = bench.percent(false)["a2"];
        // Slots that must move, and not those that Maglev moves beside them.
        assert!(now >= share - 0.013 && now <= share + 1.0 + 0.013, "{share} % -> {now} %");
        (share, steps) = (now, steps + 1);
    }
    assert!((40..150).contains(&steps), "{steps} steps");
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
}

#[test]
fn a_pool_is_ready_when_all_of_it_take_clients_that_should() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST]), ("b", "", &[FIRST, FIRST, "priority = 1"])]);
    let not_ready = |bench: &mut Bench, all| bench.compile().pools[1].not_ready(all);
    assert_eq!(not_ready(&mut bench, true), None, "who stands by is not missed");
    bench.fleet.set(&["b2"], Health::Down);
    let why = not_ready(&mut bench, true).unwrap_or_default();
    assert_eq!(
        why, "2 of 3 backends take new connections: its health checks fail",
        "the spare one does instead"
    );
    assert_eq!(not_ready(&mut bench, false), None, "somebody takes them");
    bench.fleet.set(&["b2"], Health::Up);
    bench.fleet.say("b2", "drain");
    assert_eq!(not_ready(&mut bench, true), None, "who drains by himself is not missed");
    bench.fleet.set(&["b1", "b2", "b3"], Health::Down);
    assert!(not_ready(&mut bench, false).is_some());
}

#[test]
fn a_pool_is_ready_when_it_is_warm() {
    let mut bench = Bench::new(
        "[service.slow_start]\nwindow = \"60s\"",
        &[("a", "", &[FIRST]), ("b", "", &[FIRST, FIRST])],
    );
    assert_eq!(bench.compile().pools[1].not_ready(true), None);
    bench.fleet.set(&["b2"], Health::Down);
    bench.compile();
    bench.fleet.set(&["b2"], Health::Up);
    let pool = bench.compile().pools.remove(1);
    assert_eq!(pool.not_ready(true).as_deref(), Some("1 of 2 backends is still starting slowly"));
    assert_eq!(pool.not_ready(false), None, "that is no reason to go back");
    bench.fleet.pass(Duration::from_secs(61));
    assert_eq!(bench.compile().pools[1].not_ready(true), None);
}

#[test]
fn between_two_steps_nothing_moves() {
    let mut bench = Bench::new("[service.slow_start]\nwindow = \"60s\"", &[("a", "", &[FIRST, FIRST])]);
    bench.fleet.set(&["a2"], Health::Down);
    bench.compile();
    bench.fleet.set(&["a2"], Health::Up);
    let first = bench.compile();
    bench.fleet.pass(Duration::from_millis(200));
    let second = bench.compile();
    assert!(Arc::ptr_eq(&first.plan.stable.table, &second.plan.stable.table));
}

#[test]
fn a_drain_with_a_deadline_ends_then_and_the_next_change_of_time_is_known() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST, FIRST, FIRST])]);
    let at_deadline = bench.fleet.now.wall.checked_add(Duration::from_secs(600)).expect("a time");
    for (name, reset) in [("a1", true), ("a2", false)] {
        let deadline = Some(Deadline { at: at_deadline, reset });
        let drain = Overrides { state: Some(held(AdminState::Drain)), deadline, ..Overrides::default() };
        bench.intent.backends.insert(at(name), drain);
    }
    let compiled = bench.compile();
    assert_eq!(compiled.next, Some(bench.fleet.now.instant + Duration::from_secs(600)));
    let usable =
        |compiled: &Compiled| compiled.plan.stable.members.iter().map(|m| m.usable).collect::<Vec<_>>();
    assert_eq!(usable(&compiled), [true, true, true]);
    bench.fleet.pass(Duration::from_secs(600));
    let over = bench.compile();
    assert_eq!((usable(&over), over.next), (vec![false, true, true], None));
}

#[test]
fn a_service_that_was_forgotten_begins_anew() {
    let keys = "min_healthy = 2\nmin_healthy_recover = 3";
    let mut bench = Bench::new("", &[("a", keys, &[FIRST, FIRST, FIRST])]);
    bench.compile();
    bench.fleet.set(&["a1", "a2"], Health::Down);
    bench.compile();
    bench.fleet.set(&["a1"], Health::Up);
    assert!(bench.compile().pools[0].failed);
    bench.compiler.keep(&HashSet::new());
    assert!(!bench.compile().pools[0].failed);
}

#[test]
fn a_backends_own_words_scale_its_weight_and_take_it_out() {
    let mut bench = Bench::new("", &[("a", "", &["weight = 100", "weight = 50", "weight = 0"])]);
    bench.shows(false, &[("a1", 200.0 / 3.0), ("a2", 100.0 / 3.0)]);
    bench.fleet.say("a1", "up 50%");
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    bench.fleet.say("a3", "200%");
    assert_eq!(bench.why_not("a3"), Some(WhyNot::Weight), "no share of nothing is something");

    for (line, why_not) in [
        ("drain", Some(WhyNot::AgentDrain)),
        ("maint", Some(WhyNot::AgentMaint)),
        ("ready 0%", Some(WhyNot::AgentWeight)),
        ("100%", None),
    ] {
        bench.fleet.say("a1", line);
        assert_eq!(bench.why_not("a1"), why_not, "{line}");
        let (compiled, kept) = (bench.compile(), at("a1").ip().into());
        let member = compiled.plan.stable.members.iter().find(|member| member.address == kept);
        assert!(member.is_some_and(|member| member.usable), "it keeps the flows that it has: {line}");
    }
}

#[test]
fn backends_that_do_not_want_flows_are_no_reason_to_panic() {
    let mut bench = Bench::new("panic_threshold = 50", &[("a", "", &[FIRST; 4])]);
    bench.fleet.set(&["a1", "a2"], Health::Down);
    bench.fleet.say("a3", "drain");
    assert!(bench.compile().pools[0].panic, "one of three that want flows is well");
    bench.fleet.say("a1", "drain");
    assert!(!bench.compile().pools[0].panic, "one of two is enough");
    assert_eq!(bench.why_not("a2"), Some(WhyNot::Down));
}

#[test]
fn a_backend_that_somebody_has_said_is_down_takes_nothing_also_in_panic() {
    let mut bench = Bench::new("", &[("a", "", &[FIRST; 3])]);
    let down = |bench: &mut Bench, name: &str| {
        bench.intent.backends.entry(at(name)).or_default().health = Some(held(false));
    };
    down(&mut bench, "a1");
    assert!(!bench.compile().pools[0].panic, "it is no sign that checks are wrong");
    bench.fleet.set(&["a2", "a3"], Health::Down);
    assert!(bench.compile().pools[0].panic);
    bench.shows(false, &[("a2", 50.0), ("a3", 50.0)]);
    for name in ["a2", "a3"] {
        down(&mut bench, name);
    }
    assert!(!bench.compile().pools[0].takes_new(), "all of them, by hand");
}

const OPEN: Gate = Gate::Open(Duration::from_secs(1));

#[test]
fn an_ejected_backend_takes_nothing_keeps_what_it_has_and_counts_as_unhealthy() {
    let mut bench = Bench::new("outlier = {}", &[("a", "", &["", "", "", ""])]);
    bench.fleet.ejected = vec![at("a1")];
    bench.shows(false, &[("a2", 33.33), ("a3", 33.33), ("a4", 33.33)]);
    assert_eq!(bench.why_not("a1"), Some(WhyNot::Ejected));
    let compiled = bench.compile();
    assert!(compiled.pools[0].backends[0].usable, "its connections stay");
    assert!(compiled.plan.flags & abi::Service::WATCHED != 0);
    bench.fleet.set(&["a2", "a3"], Health::Down);
    assert!(bench.compile().pools[0].panic, "one of four is healthy");
    bench.shows(false, &[("a1", 25.0), ("a2", 25.0), ("a3", 25.0), ("a4", 25.0)]);
}

#[test]
fn without_its_table_nobody_is_ejected_and_nothing_is_looked_at() {
    let mut bench = Bench::new("", &[("a", "", &["", ""])]);
    bench.fleet.ejected = vec![at("a1")];
    bench.fleet.gates.insert(at("a1"), OPEN);
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    assert_eq!(bench.compile().plan.flags & abi::Service::ATTENDED, 0);
}

#[test]
fn what_a_breaker_keeps_away_others_take_or_nobody() {
    let mut bench = Bench::new("breaker = {}", &[("a", "", &["", ""])]);
    bench.fleet.gates.insert(at("a1"), Gate::Shedding(4));
    bench.shows(false, &[("a1", 33.33), ("a2", 66.67)]);
    bench.fleet.gates.insert(at("a1"), OPEN);
    bench.shows(false, &[("a2", 100.0)]);
    assert_eq!(bench.why_not("a1"), Some(WhyNot::BreakerOpen));

    let mut bench =
        Bench::new("on_empty = \"pass\"\nbreaker = { on_trip = \"drop\" }", &[("a", "", &["", ""])]);
    assert_eq!(bench.compile().plan.on_empty, abi::OnEmpty::Pass);
    bench.fleet.gates.insert(at("a1"), Gate::Shedding(4));
    bench.shows(false, &[("a1", 25.0), ("a2", 50.0), ("nobody", 25.0)]);
    bench.fleet.gates.insert(at("a1"), OPEN);
    bench.shows(false, &[("a2", 50.0), ("nobody", 50.0)]);
    assert_eq!(bench.compile().plan.on_empty, abi::OnEmpty::Drop, "while somebody is kept away");
}

#[test]
fn a_canary_whose_breaker_is_open_spills_into_the_stable_pool_unless_it_is_to_refuse() {
    for (on_trip, spills) in [("spill", true), ("reset", false)] {
        let keys = format!("breaker = {{ scope = \"pool\", on_trip = \"{on_trip}\" }}");
        let mut bench = Bench::new(&keys, &[("a", "", &["", ""]), ("b", "", &["", ""])]);
        bench.fleet.pool_gates.insert("b".to_owned(), OPEN);
        assert_eq!(bench.why_not("b1"), Some(WhyNot::PoolBreakerOpen));
        assert_eq!(bench.compile().canary_spills, spills);
        let expected: &[(&str, f64)] =
            if spills { &[("a1", 50.0), ("a2", 50.0)] } else { &[("nobody", 100.0)] };
        bench.shows(true, expected);
        bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    }
}

#[test]
fn a_breaker_outside_of_its_services_scope_keeps_nobody_out() {
    for scope in ["backend", "pool"] {
        let keys = format!("breaker = {{ scope = \"{scope}\" }}");
        let mut bench = Bench::new(&keys, &[("a", "", &["", ""])]);
        match scope {
            "backend" => drop(bench.fleet.pool_gates.insert("a".to_owned(), OPEN)),
            _ => drop(bench.fleet.gates.insert(at("a1"), OPEN)),
        }
        bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    }
}

#[test]
fn what_breakers_keep_away_from_heavy_backends_is_kept_away_in_full() {
    let heavy = "weight = 65535";
    let mut bench =
        Bench::new("breaker = { on_trip = \"drop\" }", &[("a", "", &[heavy, heavy, heavy, "weight = 1"])]);
    bench.fleet.gates.extend([(at("a1"), OPEN), (at("a2"), OPEN)]);
    bench.fleet.set(&["a4"], Health::Down);
    bench.shows(false, &[("a3", 33.33), ("nobody", 66.67)]);
}

#[test]
fn backends_that_go_down_at_once_are_each_seen_to_go_down_once() {
    let mut bench = Bench::new("", &[("a", "", &["", "", "", "", "", ""]), ("b", "", &["", "weight = 0"])]);
    let forced = |up: bool| Overrides { health: Some(held(up)), ..Overrides::default() };
    bench.intent.backends.insert(at("a4"), forced(true));
    let whole = bench.compile();
    // The neighbour of one was missed first; one is set by hand, and one serves nobody anyway.
    bench.fleet.lost.push(at("a2"));
    let lost = bench.compile();
    assert!(lost.gone_down_since(&whole).is_empty(), "its checks have yet to fail");
    bench.fleet.set(&["a1", "a2", "b1", "b2"], Health::Down);
    bench.intent.backends.insert(at("a3"), forced(false));
    let down = bench.compile();
    assert_eq!(down.gone_down_since(&lost), [("a", at("a1")), ("a", at("a2")), ("b", at("b1"))]);
    assert!(bench.compile().gone_down_since(&down).is_empty());

    bench.intent.backends.remove(&at("a3"));
    bench.fleet.set(&["a3", "a4", "a5"], Health::Down);
    let panic = bench.compile();
    assert!(panic.pools[0].panic);
    bench.fleet.set(&["a3", "a5", "b1"], Health::Up);
    let over = bench.compile();
    assert!(!over.pools[0].panic && over.gone_down_since(&panic).is_empty(), "the outage is the same");
    bench.intent.backends.clear();
    let freed = bench.compile();
    assert_eq!(freed.pools[0].backends[3].why_not, Some(WhyNot::Down));
    assert!(freed.gone_down_since(&over).is_empty(), "somebody knew of that one");
}

#[test]
fn who_answers_sooner_has_more_of_the_slots() {
    let mut bench = Bench::new("steering = {}", &[("a", "", &["", ""])]);
    bench.shows(false, &[("a1", 50.0), ("a2", 50.0)]);
    bench.fleet.steered = [(at("a1"), 200), (at("a2"), 50)].into();
    bench.shows(false, &[("a1", 80.0), ("a2", 20.0)]);
}

#[test]
fn protection_becomes_rates_and_networks() {
    let keys = "protection = { deny = [\"10.9.0.0/16\"], max_new_per_second = 100, source_max_packets_per_second = 1000, \
                source_packet_burst = 10, source_prefix_v4 = 24 }";
    let mut bench = Bench::new(keys, &[("a", "", &[""])]);
    let protection = bench.compile().plan.protection;
    assert_eq!(protection.deny, ["10.9.0.0/16".parse().unwrap()]);
    assert_eq!(protection.rates.connections, Rate::per_second(100, 100), "a second's at once");
    assert_eq!(protection.rates.source_packets, Rate::per_second(1000, 10));
    assert_eq!(protection.rates.packets, Rate::default(), "as many as come");
    assert_eq!(protection.rates.source_mask.words(), [u32::MAX, u32::MAX, u32::MAX, 0xffff_ff00]);
    assert!(protection.guards());
    let mut bench = Bench::new("protection = {}", &[("a", "", &[""])]);
    assert!(!bench.compile().plan.protection.guards(), "an empty table asks for nothing");
}
