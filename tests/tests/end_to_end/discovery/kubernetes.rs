//! EndpointSlices, as an API server tells of them.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::scene::{PORT, Plan, SERVICE, Scene};
use lb_tests::traffic::{Pool, PoolSpec, Sources};
use lb_tests::{Family, claim, private_dir};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::api_server::{ApiServer, Authority, Gone, NAMESPACE};
use super::{
    PATIENCE, address, address_in, config, finding, serve, serve_at, wait_for, wait_for_finding,
    wait_for_rows,
};

pub fn claims() -> Vec<Trial> {
    vec![
        claim(
            "backends come and go with the endpoints of a Kubernetes service, of both families",
            come_and_go,
        ),
        claim("no change of an endpoint is missed, however a watch ends", interrupted),
        claim("a token that is not valid any more is read anew, and nothing goes meanwhile", renewed),
        claim(
            "an API server whose certificate is not the cluster's is told nothing and not believed",
            forged,
        ),
    ]
}

const TOKEN: &str = "the-first.token.of-the-lab";
/// The service of IPv6.
const SIX: &str = "web6";

/// What the kubelet keeps for a service account: files that are links into a directory, which is exchanged as a whole.
struct Account {
    home: PathBuf,
    renewed: u32,
}

impl Account {
    fn new(token: &str, authority: &str) -> Result<Self> {
        let mut account = Self { home: private_dir("account")?, renewed: 0 };
        for file in ["token", "ca.crt"] {
            symlink(format!("..data/{file}"), account.home.join(file))?;
        }
        account.renew(token, authority)?;
        Ok(account)
    }

    fn renew(&mut self, token: &str, authority: &str) -> Result<()> {
        self.renewed += 1;
        let version = format!("..{}", self.renewed);
        let [directory, data, next] = [&*version, "..data", "..data_tmp"].map(|name| self.home.join(name));
        fs::create_dir(&directory)?;
        fs::write(directory.join("token"), token)?;
        fs::write(directory.join("ca.crt"), authority)?;
        let before = fs::read_link(&data);
        symlink(version, &next)?;
        fs::rename(&next, &data)?;
        if let Ok(before) = before {
            fs::remove_dir_all(self.home.join(before))?;
        }
        Ok(())
    }

    /// For a pool's discovery.
    fn lines(&self) -> String {
        let home = self.home.display();
        format!(
            "type = \"kubernetes\"\nurl = \"https://127.0.0.1:6443\"\nnamespace = \"{NAMESPACE}\"\nname = \"web\"\nport_name = \"http\"\n\
             token_file = \"{home}/token\"\nca_file = \"{home}/ca.crt\""
        )
    }
}

fn api_server(scene: &Scene, authority: &Authority) -> Result<ApiServer> {
    let at = ([127, 0, 0, 1], 6443).into();
    ApiServer::start(scene.lab.balancer(), at, authority.identity("127.0.0.1")?, TOKEN)
}

/// A scene whose first server is configured. The second one is an endpoint in the slice `web-1`, the third one in `web-2`.
fn scene() -> Result<(Scene, ApiServer, Authority, Account)> {
    let mut scene = Scene::start(Plan { stable: 3, canary: 0, ..Plan::default() })?;
    let authority = Authority::new()?;
    let server = api_server(&scene, &authority)?;
    let account = Account::new(TOKEN, authority.pem())?;
    for i in [1, 2] {
        say(&server, &scene, i, State::Ready);
    }
    apply(&mut scene, &account, "")?;
    wait_for(&scene, &[0, 1, 2])?;
    wait_for_request(&server, 0, "watch ")?;
    Ok((scene, server, authority, account))
}

fn apply(scene: &mut Scene, account: &Account, more: &str) -> Result<()> {
    let config = config(scene, &account.lines())? + more;
    scene.agent.write_config(&config)?;
    let path = scene.agent.places().config.to_string_lossy().into_owned();
    scene.lbctl(&["apply", "-f", &path]).map(drop)
}

/// What Kubernetes says of an endpoint.
#[derive(Clone, Copy, Debug)]
enum State {
    Ready,
    /// Its probe fails.
    Unready,
    /// It was told to end, and still answers.
    Leaving,
    /// It was told to end, and does not answer any more.
    Left,
}

fn endpoint(address: SocketAddr, state: State) -> Value {
    let (ready, serving, terminating) = match state {
        State::Ready => (true, true, false),
        State::Unready => (false, false, false),
        State::Leaving => (false, true, true),
        State::Left => (false, false, true),
    };
    json!({
        "addresses": [address.ip()],
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
        "nodeName": "node-1",
        "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": format!("web-{}", address.ip()) },
    })
}

fn slice(scene: &Scene, family: Family, endpoints: &[(usize, State)]) -> Value {
    let endpoints = endpoints.iter().map(|&(i, state)| endpoint(address_in(scene, i, family), state));
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    json!({
        "addressType": kind,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [
            { "name": "metrics", "protocol": "TCP", "port": 9090 },
            { "name": "http", "protocol": "TCP", "port": 8080 },
        ],
    })
}

/// Has the slice of a server say this.
fn say(server: &ApiServer, scene: &Scene, i: usize, state: State) {
    server.apply(&format!("web-{i}"), "web", slice(scene, Family::V4, &[(i, state)]));
}

/// Waits until the configured server and these two are there, and take new flows or do not.
fn wait_for_states(scene: &Scene, first: bool, second: bool) -> Result<()> {
    let expected = [(0, true), (1, first), (2, second)].map(|(i, takes)| (address(scene, i), takes));
    wait_for_rows(scene, SERVICE, &expected).map(drop)
}

/// Waits until the server was asked for something that begins like this, and returns all that it was asked for since `before`.
fn wait_for_request(server: &ApiServer, before: usize, wanted: &str) -> Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = server.asked().split_off(before);
        if asked.iter().any(|asked| asked.starts_with(wanted)) {
            return Ok(asked);
        }
        ensure!(Instant::now() < deadline, "nobody asked for {wanted}: {asked:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn come_and_go() -> Result<()> {
    const CONNECTIONS: u32 = 300;
    let mut scene = Scene::start(Plan { stable: 3, canary: 0, lines: true, ..Plan::default() })?;
    let authority = Authority::new()?;
    let server = api_server(&scene, &authority)?;
    let account = Account::new(TOKEN, authority.pem())?;
    let [v4, v6] = [Family::V4, Family::V6];
    let [ready, unready] = [State::Ready, State::Unready];
    // The second server is in two slices, as while it moves from one to the other.
    server.apply("web-a", "web", slice(&scene, v4, &[(0, ready), (1, ready)]));
    server.apply("web-b", "web", slice(&scene, v4, &[(1, unready), (2, ready)]));
    server.apply("web-six", "web", slice(&scene, v6, &[(0, ready), (1, ready), (2, unready)]));
    let mut other = slice(&scene, v4, &[(0, ready)]);
    other["endpoints"][0]["addresses"][0] = "10.1.1.99".into();
    server.apply("mail-a", "mail", other);
    let six = format!(
        "[[service]]\nname = \"{SIX}\"\nvip = \"{}\"\nport = {PORT}\nmode = \"nat\"\n[service.health]\ntype = \"none\"\n\
         [[service.pool]]\nname = \"stable\"\n[service.pool.discovery]\n{}\n",
        scene.lab.vip(0, v6),
        account.lines(),
    );
    apply(&mut scene, &account, &six)?;
    let rows = wait_for(&scene, &[0, 1, 2])?;
    let source = |i: usize| {
        let name = address(&scene, i).to_string();
        rows.iter().find(|row| row["name"] == *name).map(|row| row["source"].clone()).unwrap_or_default()
    };
    ensure!(source(0) == Value::Null && source(1) == "kubernetes:shop/web", "{rows:#?}");
    let wait_for_six = |states: [bool; 3]| {
        let each = states.iter().enumerate().map(|(i, &takes)| (address_in(&scene, i, v6), takes));
        wait_for_rows(&scene, SIX, &each.collect::<Vec<_>>())
    };
    wait_for_six([true, true, false])?;
    let target_of_six = (scene.lab.vip(0, v6), PORT).into();
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0), ("stable2", 1.0)])?;
    serve_at(&scene, target_of_six, &[("stable0", 1.0), ("stable1", 1.0)])?;

    // One that ends finishes what it has, and gets nothing new.
    let clients = || PoolSpec::new(scene.target(), CONNECTIONS).from(Sources::crowd(CONNECTIONS));
    let pool = Pool::open(scene.lab.client(0), clients())?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(CONNECTIONS) && before.alive_on("stable2") > 50, "{before:?}");
    server.apply("web-b", "web", slice(&scene, v4, &[(2, State::Leaving)]));
    server.apply("web-six", "web", slice(&scene, v6, &[(0, ready), (1, ready), (2, ready)]));
    wait_for_states(&scene, true, false)?;
    wait_for_six([true, true, true])?;
    let newer = Pool::open(scene.lab.client(0), clients())?.check()?;
    ensure!(newer.alive() == u64::from(CONNECTIONS) && newer.alive_on("stable2") == 0, "{newer:?}");
    server.apply("web-b", "web", slice(&scene, v4, &[(2, State::Left)]));
    wait_for(&scene, &[0, 1])?;
    for _ in 0..3 {
        let after = pool.check()?;
        ensure!(after.broken.is_empty() && after.alive == before.alive, "{before:?}, then {after:?}");
    }
    serve_at(&scene, target_of_six, &[("stable0", 1.0), ("stable1", 1.0), ("stable2", 1.0)])?;

    server.apply("web-c", "web", slice(&scene, v4, &[(2, ready)]));
    wait_for(&scene, &[0, 1, 2])?;
    // While nobody else is ready, whoever still serves does.
    server.apply("web-six", "web", slice(&scene, v6, &[(0, State::Leaving), (1, unready), (2, State::Left)]));
    wait_for_rows(&scene, SIX, &[(address_in(&scene, 0, v6), true), (address_in(&scene, 1, v6), false)])?;
    serve_at(&scene, target_of_six, &[("stable0", 1.0)])?;
    server.delete("web-a");
    wait_for(&scene, &[0, 2])?;
    serve(&scene, &[("stable0", 1.0), ("stable2", 1.0)])?;
    // Each of both has read its list once, and watched from then on.
    let asked = server.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.starts_with(what)).count();
    ensure!((count("list"), count("page"), asked.len()) == (2, 2, 4 + count("watch ")), "{asked:?}");
    ensure!(finding(&scene)?.is_none());
    Ok(())
}

fn interrupted() -> Result<()> {
    let (scene, server, ..) = scene()?;
    // As every few minutes. What happened to others is not asked for again.
    let before = server.asked().len();
    let version = server.bookmark();
    server.end_watches();
    let asked = wait_for_request(&server, before, &format!("watch {version}"))?;
    ensure!(asked.iter().all(|asked| asked.starts_with("watch ")), "{asked:?}");

    server.tear_next();
    say(&server, &scene, 2, State::Unready);
    wait_for_states(&scene, true, false)?;
    server.cut();
    say(&server, &scene, 2, State::Ready);
    say(&server, &scene, 1, State::Unready);
    wait_for_states(&scene, false, true)?;
    let asked = server.asked();
    ensure!(asked.iter().filter(|asked| *asked == "list").count() == 1, "{asked:?}");

    for gone in [Gone::Event, Gone::Status] {
        let before = server.asked().len();
        server.delete_unheard("web-1", gone);
        wait_for(&scene, &[0, 2]).with_context(|| format!("{gone:?}"))?;
        wait_for_request(&server, before, "list")?;
        say(&server, &scene, 1, State::Ready);
        wait_for(&scene, &[0, 1, 2])?;
    }
    let events = scene.lbctl(&["-o", "json", "get", "events", SERVICE])?;
    ensure!(!events.contains("discovery_failed"), "none of that is a failure: {events}");

    // Nobody knows what a server in trouble has not told.
    let before = server.asked().len();
    server.fail_watches(Some("etcdserver: leader changed"));
    wait_for_finding(&scene, Some("etcdserver: leader changed"))?;
    let asked = wait_for_request(&server, before, "list")?;
    ensure!(asked[0] == "list", "{asked:?}");
    wait_for(&scene, &[0, 1, 2])?;
    server.fail_watches(None);
    wait_for_finding(&scene, None)?;
    say(&server, &scene, 2, State::Left);
    wait_for(&scene, &[0, 1])?;

    drop(server);
    wait_for_finding(&scene, Some("cannot connect"))?;
    wait_for_finding(&scene, Some("the one backend that it named last stays"))?;
    wait_for(&scene, &[0, 1])?;
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0)])
}

fn renewed() -> Result<()> {
    const NEXT: &str = "the-next.token.of-the-lab";
    let (scene, server, authority, mut account) = scene()?;
    // Who watches goes on watching.
    server.expect_token(NEXT);
    say(&server, &scene, 2, State::Unready);
    wait_for_states(&scene, true, false)?;

    server.end_watches();
    wait_for_finding(&scene, Some("401 Unauthorized: Unauthorized (`token_file` has to name a token"))?;
    wait_for_finding(&scene, Some("the 2 backends that it named last stay"))?;
    say(&server, &scene, 2, State::Ready);
    wait_for_states(&scene, true, false)?;
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0)])?;
    // With the newline that editors leave.
    account.renew(&format!("{NEXT}\n"), authority.pem())?;
    wait_for(&scene, &[0, 1, 2])?;
    wait_for_finding(&scene, None)?;
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0), ("stable2", 1.0)])?;

    fs::remove_file(account.home.join("token"))?;
    server.end_watches();
    wait_for_finding(&scene, Some("the token cannot be read"))?;
    symlink("..data/token", account.home.join("token"))?;
    wait_for_finding(&scene, None)?;

    let journal = fs::read_to_string(scene.agent.places().state.join("journal.jsonl"))?;
    let events = scene.lbctl(&["get", "events", SERVICE])?;
    for text in [journal, events, scene.agent.log()] {
        ensure!(!text.contains(TOKEN) && !text.contains(NEXT), "a token is told: {text}");
    }
    Ok(())
}

fn forged() -> Result<()> {
    let (scene, server, authority, mut account) = scene()?;
    let other = Authority::new()?;
    let asked = server.asked().len();
    server.identify(other.identity("127.0.0.1")?);
    server.cut();
    say(&server, &scene, 2, State::Unready);
    wait_for_finding(&scene, Some("ca.crt has signed its certificate"))?;
    wait_for_finding(&scene, Some("the 2 backends that it named last stay"))?;
    wait_for(&scene, &[0, 1, 2])?;
    serve(&scene, &[("stable0", 1.0), ("stable1", 1.0), ("stable2", 1.0)])?;
    ensure!(server.asked().len() == asked, "it was asked: {:?}", server.asked());
    // The cluster's authority is another one now.
    account.renew(TOKEN, other.pem())?;
    wait_for_states(&scene, true, false)?;
    wait_for_finding(&scene, None)?;

    server.identify(other.identity("10.0.0.5")?);
    server.cut();
    wait_for_finding(&scene, Some("not valid for name \"127.0.0.1\""))?;
    server.identify(other.identity("127.0.0.1")?);
    wait_for_finding(&scene, None)?;

    account.renew(TOKEN, "no certificate")?;
    server.end_watches();
    wait_for_finding(&scene, Some("there is no certificate in it"))?;
    server.identify(authority.identity("127.0.0.1")?);
    account.renew(TOKEN, authority.pem())?;
    wait_for_finding(&scene, None)?;
    say(&server, &scene, 2, State::Ready);
    wait_for(&scene, &[0, 1, 2]).map(drop)
}
