//! Anonymous network namespaces for tests. They vanish with their threads.

use std::{
    io,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Capabilities by their bit (capability.h).
#[derive(Clone, Copy)]
pub(super) enum Capability {
    NetAdmin = 12,
    NetRaw = 13,
}

/// Runs a test on a thread in a network namespace of its own, beside a peer in another one. The thread keeps nothing
/// but CAP_NET_ADMIN and CAP_NET_RAW; commands that it starts have all privileges of root again.
pub(super) fn in_namespace(test: impl AsyncFnOnce(&Peer) + Send + 'static) {
    in_namespace_with(&[Capability::NetAdmin, Capability::NetRaw], test);
}

pub(super) fn in_namespace_with(
    capabilities: &'static [Capability],
    test: impl AsyncFnOnce(&Peer) + Send + 'static,
) {
    // SAFETY: it has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: it makes network namespaces, which needs root");
        return;
    }
    let test = thread::spawn(move || {
        enter_namespace();
        ip("link set lo up");
        let peer = Peer::new();
        keep_only(capabilities);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test(&peer));
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_namespace() {
    // SAFETY: it changes this thread only.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "unshare: {}", io::Error::last_os_error());
}

/// Takes all capabilities but those off this thread (capset(2), version 3: two words of 32 bits).
fn keep_only(capabilities: &[Capability]) {
    const VERSION_3: u32 = 0x2008_0522;
    let bits = capabilities.iter().fold(0_u32, |bits, &capability| bits | 1 << capability as u32);
    let header: [u32; 2] = [VERSION_3, 0];
    // Effective, permitted, inheritable; then the same for capabilities 32 and up.
    let sets: [u32; 6] = [bits, bits, 0, 0, 0, 0];
    // SAFETY: both arrays have the layout and the length that version 3 asks for, and live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(result, 0, "capset: {}", io::Error::last_os_error());
}

/// A thread in another namespace.
pub(super) struct Peer {
    id: libc::pid_t,
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Peer {
    fn new() -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (told, id) = mpsc::channel();
        thread::spawn(move || {
            enter_namespace();
            ip("link set lo up");
            // SAFETY: it has no arguments and cannot fail.
            told.send(unsafe { libc::gettid() }).expect("the test waits for it");
            todo.into_iter().for_each(|job| job());
        });
        Self { id: id.recv().expect("the peer starts"), jobs }
    }

    /// Its thread, by which commands find its namespace.
    pub(super) fn id(&self) -> libc::pid_t {
        self.id
    }

    /// Runs that over there.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).expect("the peer lives");
        result.recv().expect("the peer's job did not panic")
    }

    pub(super) fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments));
    }
}

/// A link between both namespaces: `a` here with 10.0.0.1/24 and fd00::1/64, `b` over there with 10.0.0.2/24 and
/// fd00::2/64.
pub(super) struct Pair {
    /// Of `a`.
    pub ifindex: u32,
}

impl Pair {
    pub(super) fn new(peer: &Peer) -> Self {
        ip(&format!(
            "link add name a address 02:00:00:00:00:0a type veth peer name b address 02:00:00:00:00:0b netns {}",
            peer.id()
        ));
        peer.ip("addr add 10.0.0.2/24 dev b");
        peer.ip("addr add fd00::2/64 dev b nodad");
        peer.ip("link set dev b up");
        ip("addr add 10.0.0.1/24 dev a");
        ip("addr add fd00::1/64 dev a nodad");
        ip("link set dev a up");
        let ifindex = loop {
            let links = super::list_links().expect("they can be listed");
            let link = links.values().find(|link| link.name == "a").expect("it was made");
            // The kernel learns of the carrier a moment later, and forgets neighbours then.
            if link.running {
                break link.index;
            }
            thread::sleep(Duration::from_millis(5));
        };
        Self { ifindex }
    }
}

/// `ip …` in the namespace of this thread.
pub(super) fn ip(arguments: &str) {
    let Output { status, stderr, .. } = run_ip(arguments);
    assert!(status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&stderr));
}

pub(super) fn ip_output(arguments: &str) -> String {
    String::from_utf8_lossy(&run_ip(arguments).stdout).into_owned()
}

fn run_ip(arguments: &str) -> Output {
    let command = Command::new("ip").args(arguments.split_whitespace()).output();
    command.expect("`ip` of the package iproute2 is installed")
}

/// Waits until that holds, for some seconds.
pub(super) async fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it did not come to pass\n{}\n{}",
            ip_output("neigh"),
            ip_output("addr")
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
