//! Discovery: who serves, as name servers, files, web servers and Kubernetes say it.
//!
//! Each pool with a `[service.pool.discovery]` has a task that asks its source, sends what it says to the agent, waits
//! until there may be news, and asks again. It sends whole sets, or why there is none: which of them are news, and what an
//! empty one means, is the agent's business. A source is asked at most once a second, so a set that changes faster than that
//! is seen as it is then.

mod dns;
mod file;
mod http;
mod kubernetes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::config::{self, Backend, Discovery, Pool, PoolName, Protocol, Service, ServiceName};

/// From one question to the next, at least.
const PACE: Duration = Duration::from_secs(1);
/// A list may have so many bytes: room for as many backends as there can be.
const MAX_LIST: usize = 8 << 20;

/// A pool that discovers its backends.
pub type Place = (ServiceName, PoolName);

/// Who is asked for the backends of a pool, and all that the answer depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    discovery: Discovery,
    /// The port of backends that come without one; 0 in a service of every port.
    port: u16,
    protocol: Protocol,
    families: Families,
}

/// The address families that backends can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Families {
    v4: bool,
    v6: bool,
    /// The VIP's is IPv4.
    vip_v4: bool,
}

impl Families {
    fn of(service: &Service) -> Self {
        let (vip_v4, any) = (service.vip.is_ipv4(), service.mode.is_dsr());
        Self { v4: any || vip_v4, v6: any || !vip_v4, vip_v4 }
    }

    /// Whether an address is of the VIP's family, which is taken of a backend that has both.
    const fn puts_first(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.vip_v4
    }

    const fn include(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl Wanted {
    /// `None` if the pool discovers nothing.
    #[must_use]
    pub fn of(service: &Service, pool: &Pool) -> Option<Self> {
        let discovery = pool.discovery.clone()?;
        let port = discovery.port.unwrap_or(service.port);
        Some(Self { discovery, port, protocol: service.protocol, families: Families::of(service) })
    }
}

/// What a source has said.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of which pool.
    pub place: Place,
    /// Which task was told.
    task: u64,
    /// All backends that there are, by address; or why nobody knows.
    pub backends: Result<Vec<Backend>, String>,
}

/// The tasks.
pub struct Sources {
    tasks: BTreeMap<Place, Task>,
    next: u64,
    answers: mpsc::Sender<Answer>,
}

/// Ends with this value.
struct Task {
    id: u64,
    wanted: Wanted,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Sources {
    /// Nobody is asked yet. Answers will come through the channel.
    #[must_use]
    pub const fn new(answers: mpsc::Sender<Answer>) -> Self {
        Self { tasks: BTreeMap::new(), next: 0, answers }
    }

    /// Asks for the backends of these pools, and of no others. Those that are asked for already go on as they are.
    pub fn follow(&mut self, wanted: BTreeMap<Place, Wanted>) {
        self.tasks.retain(|place, task| wanted.get(place) == Some(&task.wanted));
        for (place, wanted) in wanted {
            let (next, answers) = (&mut self.next, &self.answers);
            self.tasks.entry(place.clone()).or_insert_with(|| {
                *next += 1;
                let source = Source::of(&wanted);
                let max = wanted.discovery.max;
                let handle = tokio::spawn(ask(source, max, place, *next, answers.clone()));
                Task { id: *next, wanted, handle }
            });
        }
    }

    /// Whether an answer is about what is asked for now.
    #[must_use]
    pub fn is_current(&self, answer: &Answer) -> bool {
        self.tasks.get(&answer.place).is_some_and(|task| task.id == answer.task)
    }
}

/// Asks again and again, until nobody listens.
async fn ask(mut source: Source, max: u32, place: Place, task: u64, answers: mpsc::Sender<Answer>) {
    loop {
        let asked = Instant::now();
        let backends = source.ask().await.and_then(|backends| within(backends, max));
        if answers.send(Answer { place: place.clone(), task, backends }).await.is_err() {
            return;
        }
        source.until_news().await;
        sleep_until(asked + PACE).await;
    }
}

/// Part of a set would be an arbitrary one.
fn within(backends: Vec<Backend>, max: u32) -> Result<Vec<Backend>, String> {
    match backends.len() {
        many if many > max as usize => Err(format!("{many} backends, at most {max} are allowed (`max`)")),
        _ => Ok(backends),
    }
}

enum Source {
    Dns(dns::Dns),
    File(file::File),
    Http(http::Http),
    Kubernetes(kubernetes::Kubernetes),
}

impl Source {
    fn of(wanted: &Wanted) -> Self {
        let Wanted { discovery, port, protocol, families } = wanted;
        match &discovery.source {
            config::Source::Dns(asked) => Self::Dns(dns::Dns::new(asked.clone(), *port, *families)),
            config::Source::File(path) => Self::File(file::File::new(path.as_path().to_owned(), *port)),
            config::Source::Http(asked) => Self::Http(http::Http::new(asked.clone(), *port)),
            config::Source::Kubernetes(asked) => {
                Self::Kubernetes(kubernetes::Kubernetes::new(asked.clone(), *port, *protocol, *families))
            }
        }
    }

    async fn ask(&mut self) -> Result<Vec<Backend>, String> {
        match self {
            Self::Dns(dns) => dns.ask().await,
            Self::File(file) => file.ask().await,
            Self::Http(http) => http.ask().await,
            Self::Kubernetes(kubernetes) => kubernetes.ask().await,
        }
    }

    /// Waits until it is worth asking again.
    async fn until_news(&mut self) {
        match self {
            Self::Dns(dns) => dns.until_news().await,
            Self::File(file) => file.until_news().await,
            Self::Http(http) => http.until_news().await,
            Self::Kubernetes(kubernetes) => kubernetes.until_news().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn service(path: &str, max: u32) -> Service {
        let text = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
             [[service.pool]]\nname = \"a\"\n[service.pool.discovery]\ntype = \"file\"\npath = \"{path}\"\nmax = {max}\n"
        );
        config::parse(&text, "test").expect("a good configuration").config.services.remove(0)
    }

    fn wanted(service: &Service) -> BTreeMap<Place, Wanted> {
        let place = |pool: &Pool| (service.name.clone(), pool.name.clone());
        service.pools.iter().filter_map(|pool| Some((place(pool), Wanted::of(service, pool)?))).collect()
    }

    async fn next(answers: &mut mpsc::Receiver<Answer>) -> Answer {
        timeout(Duration::from_secs(10), answers.recv()).await.expect("in time").expect("an answer")
    }

    fn addresses(answer: &Answer) -> Result<Vec<String>, String> {
        answer.backends.clone().map(|all| all.iter().map(|backend| backend.address.to_string()).collect())
    }

    fn list(addresses: &[&str]) -> String {
        addresses.iter().map(|address| format!("[[backends]]\naddress = \"{address}\"\n")).collect()
    }

    #[tokio::test]
    async fn a_file_is_followed_at_most_once_a_second() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("backends.toml");
        std::fs::write(&path, list(&["10.0.0.1"])).expect("written");
        let service = service(&path.display().to_string(), 2);
        let (sender, mut answers) = mpsc::channel(16);
        let mut sources = Sources::new(sender);
        sources.follow(wanted(&service));
        let first = next(&mut answers).await;
        let began = Instant::now();
        assert_eq!(addresses(&first), Ok(vec!["10.0.0.1:80".to_owned()]));
        assert!(sources.is_current(&first));

        // As careful programs do it: under another name, then renamed. The last one of many is what counts.
        let aside = directory.path().join("next");
        for last in 2..50 {
            std::fs::write(&aside, list(&[&format!("10.0.0.{last}")])).expect("written");
            std::fs::rename(&aside, &path).expect("renamed");
        }
        let second = next(&mut answers).await;
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        assert_eq!(addresses(&second), Ok(vec!["10.0.0.49:80".to_owned()]));

        std::fs::write(&path, list(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])).expect("written");
        assert_eq!(
            addresses(&next(&mut answers).await),
            Err("3 backends, at most 2 are allowed (`max`)".to_owned())
        );

        sources.follow(wanted(&service));
        assert!(sources.is_current(&second), "what is asked for already goes on");
        sources.follow(BTreeMap::new());
        assert!(!sources.is_current(&second));
    }
}
