//! How long a change takes from the request to the last slot.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::NextHop;
use lb_common::hash::{Keys, Purpose, Seed};
use lb_common::maglev::{self, Candidate};
use lb_tests::Family;
use lb_userspace::api::{BackendPath, Client, SetWeight};
use lb_userspace::compile::{Compiler, Health, World, key_of};
use lb_userspace::config::{self, Service, Weight};
use lb_userspace::dataplane::{self, Capacities, Options};
use lb_userspace::publish::Publisher;
use lb_userspace::state::Intent;
use serde::Serialize;

use crate::Effort;
use crate::bed::{self, Bed, PORT, Spec};
use crate::report::{Section, Table, as_nanoseconds, least, time};

/// What a change of one weight takes, for pools and tables of some sizes.
#[derive(Debug, Serialize)]
pub struct Publishes {
    rounds: u32,
    changes: Vec<Change>,
}

/// The least time of each part.
#[derive(Debug, Serialize)]
struct Change {
    backends: u16,
    slots: u32,
    /// Slots that changed, at most.
    changed_slots: u32,
    /// The Maglev table alone.
    #[serde(rename = "build_nanoseconds", serialize_with = "as_nanoseconds")]
    build: Duration,
    /// From the desired state to what the maps should hold, the table included.
    #[serde(rename = "compile_nanoseconds", serialize_with = "as_nanoseconds")]
    compile: Duration,
    /// From there to the last store.
    #[serde(rename = "publish_nanoseconds", serialize_with = "as_nanoseconds")]
    publish: Duration,
    /// From the request on the socket to its answer, which comes after the last store.
    #[serde(rename = "request_nanoseconds", serialize_with = "as_nanoseconds")]
    request: Duration,
    /// `lbctl set weight` from its start to its end.
    #[serde(rename = "lbctl_nanoseconds", serialize_with = "as_nanoseconds")]
    lbctl: Duration,
}

const CASES: [(&str, u16, u32); 4] =
    [("small", 10, 16_381), ("wide", 10, 65_537), ("full", 1000, 16_381), ("large", 1000, 65_537)];

/// Measures by the library on maps of its own, and by an agent.
///
/// # Errors
/// If anything of it fails.
pub fn measure(effort: Effort) -> Result<Publishes> {
    let rounds = effort.rounds * 5;
    let specs: Vec<Spec> = (0..)
        .zip(CASES)
        .map(|(vip, (name, backends, slots))| Spec {
            slots,
            pools: vec![bed::equal(0..backends)],
            ..Spec::new(name, vip)
        })
        .collect();
    let direct: Vec<Direct> = specs.iter().map(|spec| direct(spec, rounds)).collect::<Result<_>>()?;
    let bed = Bed::start(specs.clone(), "")?;
    let mut changes = Vec::new();
    for (spec, direct) in specs.iter().zip(direct) {
        changes.push(Change {
            backends: spec.pools[0].len() as u16,
            slots: spec.slots,
            changed_slots: direct.changed,
            build: fastest(&direct.build)?,
            compile: fastest(&direct.compile)?,
            publish: fastest(&direct.publish)?,
            request: fastest(&requests(&bed, spec, rounds)?)?,
            lbctl: fastest(&commands(&bed, spec, rounds)?)?,
        });
    }
    Ok(Publishes { rounds, changes })
}

fn fastest(times: &[Duration]) -> Result<Duration> {
    least(times).context("nothing was measured")
}

#[derive(Default)]
struct Direct {
    changed: u32,
    build: Vec<Duration>,
    compile: Vec<Duration>,
    publish: Vec<Duration>,
}

/// A backend after the other halves its weight, and gets it back.
fn weights(backends: usize, rounds: u32) -> impl Iterator<Item = (usize, u16)> {
    (0..rounds as usize).map(move |round| ((round / 2) % backends, if round % 2 == 0 { 50 } else { 100 }))
}

/// All backends are up, and reached by the same interface.
struct Plain(NextHop);

impl World for Plain {
    fn health(&self, _: &Service, _: SocketAddr) -> Health {
        Health::Unchecked
    }

    fn next_hop(&self, _: SocketAddr) -> NextHop {
        self.0
    }
}

fn direct(spec: &Spec, rounds: u32) -> Result<Direct> {
    const SEED: Seed = [7; 16];
    let loaded = dataplane::load(&Options {
        pin_dir: Path::new("/sys/fs/bpf").join(spec.name),
        interfaces: Vec::new(),
        mode: None,
        capacities: Capacities {
            flows: 1024,
            udp_flows: 1024,
            half_open: 1024,
            sessions: 1024,
            slots: spec.slots,
            backends: 4096,
            services: 16,
            prefixes: 1024,
            sources: 1024,
        },
        log_level: 0,
    })?;
    let mut publisher = Publisher::adopt(Arc::new(loaded.maps), 0)?;
    let device = publisher.device(1, [2, 0, 0, 0, 0, 1], 1500, true)?;
    let world = Plain(NextHop::of([2, 0, 0, 0, 0, 2], device));
    let mut service = service(spec)?;
    let intent = Intent::of(&service).context("a service has a pool")?;
    let mut compiler = Compiler::default();
    let first = compiler.compile(&service, &intent, &SEED, &world);
    publisher.publish(&first.plan, &SEED, 0)?;

    let mut seen = Direct::default();
    for (tick, (place, weight)) in (1..).zip(weights(spec.pools[0].len(), rounds)) {
        service.pools[0].backends[place].weight = Weight(weight);
        let candidates = candidates(&service, &SEED);
        let start = Instant::now();
        let table = maglev::table(&candidates, spec.slots);
        seen.build.push(start.elapsed());

        let start = Instant::now();
        let compiled = compiler.compile(&service, &intent, &SEED, &world);
        seen.compile.push(start.elapsed());
        ensure!(*compiled.plan.stable.table == *table, "the compiler builds another table");

        let start = Instant::now();
        let published = publisher.publish(&compiled.plan, &SEED, tick)?;
        seen.publish.push(start.elapsed());
        ensure!(published.slots > 0, "no slot changed");
        seen.changed = seen.changed.max(published.slots);
    }
    Ok(seen)
}

fn service(spec: &Spec) -> Result<Service> {
    let mut text = format!(
        "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"{}\"\nvip = \"192.0.2.1\"\nport = {PORT}\n\
         mode = \"{}\"\ntable_size = {}\n[[service.pool]]\nname = \"stable\"\n",
        spec.name, spec.mode, spec.slots
    );
    for (number, weight) in &spec.pools[0] {
        let address = SocketAddr::new(bed::backend(*number, Family::V4), PORT);
        text += &format!("[[service.pool.backend]]\naddress = \"{address}\"\nweight = {weight}\n");
    }
    let mut loaded = config::parse(&text, "bench")?;
    Ok(loaded.config.services.remove(0))
}

fn candidates(service: &Service, seed: &Seed) -> Vec<Candidate> {
    let keys = Keys::derive(seed, &key_of(service), Purpose::Table);
    let of = |backend: &config::Backend| Candidate {
        hash: keys.backend(backend.address.ip().into(), backend.address.port()),
        weight: backend.weight.get().into(),
    };
    service.pools[0].backends.iter().map(of).collect()
}

/// Requests to the agent, as `lbctl` makes them.
fn requests(bed: &Bed, spec: &Spec, rounds: u32) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(&bed.agent.places().socket);
    let mut times = Vec::new();
    for (place, weight) in weights(spec.pools[0].len(), rounds) {
        let address = SocketAddr::new(bed::backend(spec.pools[0][place].0, spec.family), PORT);
        let path = BackendPath {
            service: spec.name.to_owned(),
            pool: "stable".to_owned(),
            backend: BackendPath::name_of(address),
        };
        let request = SetWeight { weight: Weight(weight), reason: None };
        let start = Instant::now();
        let applied = runtime.block_on(client.set_weight(&path, &request))?;
        times.push(start.elapsed());
        ensure!(applied.changed, "{} to {weight}: nothing changed", path.backend);
    }
    Ok(times)
}

fn commands(bed: &Bed, spec: &Spec, rounds: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for (place, weight) in weights(spec.pools[0].len(), rounds) {
        let path = Bed::path(spec, "stable", spec.pools[0][place].0);
        let start = Instant::now();
        bed.lbctl(&["set", "weight", &path, &weight.to_string()])?;
        times.push(start.elapsed());
    }
    Ok(times)
}

impl Section for Publishes {
    const TITLE: &'static str = "Time to publish a changed weight";

    fn text(&self) -> String {
        let mut table = Table::new([
            "backends, slots",
            "slots changed",
            "Maglev",
            "compile",
            "publish",
            "both",
            "request",
            "lbctl",
        ]);
        for change in &self.changes {
            table.row(vec![
                format!("{}, {}", change.backends, change.slots),
                format!("<= {}", change.changed_slots),
                time(change.build),
                time(change.compile),
                time(change.publish),
                time(change.compile + change.publish),
                time(change.request),
                time(change.lbctl),
            ]);
        }
        format!(
            "{table}\nThe least of {} changes. \"Maglev\" is a part of \"compile\"; \"request\" is the agent's socket from request to\n\
             answer, after the last store (journal on tmpfs); \"lbctl\" the whole command.\n",
            self.rounds
        )
    }
}
