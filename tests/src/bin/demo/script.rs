//! The show, act by act.

mod measure;

use std::{
    collections::HashSet,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_tests::traffic::Behaviour;

use self::measure::{MOST_FOR_A_STORE, Times, failed, of};
use crate::{
    clients::{CLIENTS, Clients, kinds_of_failure},
    figures::{Share, Short, count, counted},
    report::Report,
    screen::Screen,
    stage::{CANARY, CHECK_INTERVAL, CHECK_TIMEOUT, SERVERS, SERVICE, STABLE, Stage, UNHEALTHY},
    text::{self, BAD, GOOD, Line},
};

/// Plays all of it. True if every promise was kept.
///
/// # Errors
/// If something could not even be tried.
pub fn play(plain: bool) -> Result<bool> {
    let screen = Screen::open(plain);
    let result = all_acts(&screen);
    screen.close();
    result
}

fn all_acts(screen: &Screen) -> Result<bool> {
    screen.say(Line::new().strong("lb").plain(": one address, two versions of a shop's checkout behind it"));
    let stage = Stage::build(screen.clone())?;
    picture(screen, &stage)?;
    let clients = Arc::new(stage.clients()?);
    screen.watch(Arc::clone(&clients));
    let mut show = Show {
        screen,
        stage,
        clients,
        report: Report::default(),
        explained: 0,
        bereaved: 0,
        early_members: HashSet::new(),
    };
    show.everybody_on_v41()?;
    show.ten_percent()?;
    show.fifty_percent()?;
    show.a_server_dies()?;
    show.the_canary_goes_bad()?;
    show.the_agent_dies()?;
    show.a_rollout_watches_itself()?;
    show.the_end()
}

/// The one server of v41 that dies.
const VICTIM: usize = 1;

struct Show<'a> {
    screen: &'a Screen,
    stage: Stage,
    clients: Arc<Clients>,
    report: Report,
    /// Requests that failed for a reason that belongs to the show.
    explained: u64,
    /// Long-lived connections that died with their server.
    bereaved: u64,
    /// The clients of the canary at its first step.
    early_members: HashSet<u32>,
}

impl Show<'_> {
    fn everybody_on_v41(&mut self) -> Result<()> {
        self.screen.act(1, "Everybody is on v41");
        self.clients.hold(HELD_AT_A_TIME)?;
        pause(2.0);
        self.stage.show(&["get", "backends", SERVICE])?;
        self.say_held();
        pause(1.0);
        Ok(())
    }

    fn ten_percent(&mut self) -> Result<()> {
        self.act(2, "10 % of the clients try v42");
        let homes = self.set_split(10)?;
        self.early_members = homes.iter().filter(|home| *home.1 == CANARY).map(|home| *home.0).collect();
        Ok(())
    }

    fn fifty_percent(&mut self) -> Result<()> {
        self.act(3, "Half of them");
        let homes = self.set_split(50)?;
        let again: Vec<_> = self.early_members.iter().filter_map(|client| homes.get(client)).collect();
        let left = of(again.iter().filter(|home| **home != &CANARY).count(), again.len());
        self.result(&format!("clients of the first 10 % who were sent back to v41: {left}"), left.part == 0);
        self.report.promise("clients who lost v42 as it grew", left.to_string(), left.part == 0);
        self.clients.hold(HELD_AT_A_TIME)?;
        self.say_held();
        Ok(())
    }

    fn a_server_dies(&mut self) -> Result<()> {
        let name = SERVERS[VICTIM];
        self.act(4, &format!("A server dies: {name}"));
        pause(0.5);
        self.bereaved = self.held_on(VICTIM);
        self.say(&format!("kill -9 of what listens at {}", self.stage.address(VICTIM)));
        let killed = Instant::now();
        self.stage.kill_server(VICTIM);
        self.stage.wait_taking(SERVERS.len() - 1, Duration::from_secs(20))?;
        pause(1.5);
        self.stage.show(&["get", "backends", SERVICE])?;

        let last = self.stage.wire(VICTIM).since(killed).last().map_or(killed, |syn| syn.at);
        let out_after = last - killed;
        let bound = CHECK_INTERVAL * UNHEALTHY + CHECK_TIMEOUT;
        let lost = self.lost_to(VICTIM, killed, last);
        self.result(
            &format!(
                "its last new connection came {} after its death (promised: {})",
                Short(out_after),
                Short(bound)
            ),
            out_after <= bound,
        );
        self.say(&format!(
            "until then {} failed{}",
            counted(lost.len() as u64, "request"),
            kinds_of_failure(&lost)
        ));
        let measured = format!("after {}, {} promised", Short(out_after), Short(bound));
        self.report.promise("last new connection to the dead server", measured, out_after <= bound);
        self.report.figure("  requests failed until then", count(lost.len() as u64));
        self.report.figure("  long-lived connections that died with it", count(self.bereaved));

        self.say("somebody starts it again");
        let revived = Instant::now();
        self.stage.revive_server(VICTIM)?;
        self.stage.wait_taking(SERVERS.len(), Duration::from_secs(20))?;
        pause(1.0);
        let back = self.stage.wire(VICTIM).since(revived).first().map(|syn| syn.at - revived);
        let measured = back.map_or("never".to_owned(), |back| format!("after {}", Short(back)));
        self.result(&format!("first new connection {measured}"), back.is_some());
        self.report.promise("  first new connection after its restart", measured, back.is_some());
        Ok(())
    }

    fn the_canary_goes_bad(&mut self) -> Result<()> {
        self.act(5, "v42 goes bad, and its health page stays green");
        let on_canary = self.held_on(CANARY);
        let bad = Instant::now();
        self.stage.behave(CANARY, Behaviour::Reset)?;
        self.say("v42-a now resets every new connection; somebody looks at the graphs ...");
        pause(2.5);
        let rollback = self.stage.lbctl(&["-o", "json", "rollback", SERVICE])?;
        self.screen.want(0.0);
        let returned = rollback.returned;
        let times = Times::of(&rollback)?;
        self.result(&format!("50 % -> 0 %: {times}"), times.store < MOST_FOR_A_STORE);
        pause(6.0);

        let lost = self.lost_to(CANARY, bad, returned);
        self.say(&format!(
            "until it returned {} failed{}",
            counted(lost.len() as u64, "request"),
            kinds_of_failure(&lost)
        ));
        if let Some(last) = self.stage.wire(CANARY).since(rollback.typed).last() {
            let after = Short(last.at - rollback.typed);
            self.say(&format!("v42-a saw its last new connection {after} after Enter was pressed"));
        }
        let after = self.clients.begun_after(returned);
        let lost_after = of(failed(&after).len(), after.len());
        self.result(&format!("after it returned {lost_after} requests failed"), lost_after.part == 0);
        let arrived = self.arrived_after(CANARY, returned);
        self.result(
            &format!("after it returned {} reached v42-a", counted(arrived, "new connection")),
            arrived == 0,
        );
        let still = self.held_on(CANARY);
        self.result(
            &format!(
                "{still} of {on_canary} long-lived connections to v42-a are alive: they may finish there"
            ),
            still == on_canary,
        );

        let report = &mut self.report;
        report.figure("requests failed while v42 was bad", count(lost.len() as u64));
        report.promise("rollback: the store", Short(times.store).to_string(), times.store < MOST_FOR_A_STORE);
        report.figure("  from request to store", Short(times.agent).to_string());
        report.figure("  lbctl, from Enter to prompt", Short(times.lbctl).to_string());
        report.promise("  new connections to v42 after it", count(arrived), arrived == 0);
        report.promise("  requests failed after it", lost_after.to_string(), lost_after.part == 0);
        Ok(())
    }

    fn the_agent_dies(&mut self) -> Result<()> {
        self.act(6, "The agent dies, packets go on");
        self.stage.behave(CANARY, Behaviour::Serve)?;
        self.say("v42-a has been repaired, and gets another try");
        self.screen.want(25.0);
        self.stage.lbctl(&["set", "split", SERVICE, "25"])?;
        pause(2.0);
        let killed = Instant::now();
        self.stage.kill_agent();
        pause(2.0);
        let without = self.clients.begun_after(killed).len() as u64;
        self.say(&format!("{} without an agent so far", counted(without, "request")));
        let rollback = self.stage.lbctl(&["-o", "json", "rollback", SERVICE])?;
        self.screen.want(0.0);
        let times = Times::of(&rollback)?;
        self.result(&format!("without an agent, 25 % -> 0 %: {times}"), times.store < MOST_FOR_A_STORE);
        pause(2.0);
        let arrived = self.arrived_after(CANARY, rollback.returned);
        self.result(
            &format!("after it returned {} reached v42-a", counted(arrived, "new connection")),
            arrived == 0,
        );
        let took = self.stage.restart_agent()?;
        let split = self.stage.split_percent()?;
        self.result(
            &format!(
                "it answers after {}, adopted the kernel's tables, and has v42 at {split} %",
                Short(took)
            ),
            split == 0.0,
        );
        pause(2.0);

        let during = self.clients.begun_after(killed);
        let lost = failed(&during);
        let share = of(lost.len(), during.len());
        self.result(
            &format!("agent kill -9, packets go on: {share} requests failed{}", kinds_of_failure(&lost)),
            lost.is_empty(),
        );
        let report = &mut self.report;
        report.promise("agent killed: requests failed", share.to_string(), lost.is_empty());
        report.promise("  new connections to v42 after a rollback", count(arrived), arrived == 0);
        Ok(())
    }

    fn a_rollout_watches_itself(&mut self) -> Result<()> {
        self.act(7, "A rollout that watches itself");
        self.stage.behave(CANARY, Behaviour::Reset)?;
        self.say("v42-a resets every connection again, and nobody looks at any graph");
        let began = Instant::now();
        let pool = ["rollout", "start", SERVICE, "--to", "v42", "--steps", "10,50", "--hold", "3s"];
        self.stage.lbctl(&pool)?;
        self.screen.want(10.0);
        let back = self.stage.wait_rollout("rolled-back", Duration::from_secs(20))?;
        let ended = Instant::now();
        self.screen.want(0.0);
        pause(0.5);
        let lost = self.lost_to(CANARY, began, ended);
        let took = Short(ended - began);
        self.result(&format!("it went back by itself after {took}: {back}"), true);
        self.say(&format!("{} failed{}", counted(lost.len() as u64, "request"), kinds_of_failure(&lost)));

        self.stage.behave(CANARY, Behaviour::Serve)?;
        self.say("v42-a has been repaired");
        let again = Instant::now();
        self.stage.lbctl(&["rollout", "retry", SERVICE])?;
        self.screen.want(10.0);
        self.stage.wait_rollout("soaking", Duration::from_secs(30))?;
        self.screen.want(100.0);
        self.result(&format!("10 %, 50 %, 100 %: all the way by itself in {}", Short(again.elapsed())), true);
        pause(1.5);
        self.stage.show(&["rollout", "status", SERVICE])?;
        let after = self.clients.begun_after(again);
        let share = of(failed(&after).len(), after.len());
        let report = &mut self.report;
        report.promise("a bad rollout goes back by itself", format!("after {took}"), true);
        report.figure("  clients it hurt", count(lost.len() as u64));
        report.promise("a good one goes on by itself: requests failed", share.to_string(), share.part == 0);
        Ok(())
    }

    fn the_end(mut self) -> Result<bool> {
        // A round of all long-lived connections, so that none is broken unnoticed.
        pause(1.2);
        let held = self.clients.held();
        let broken = held.iter().filter(|held| held.broken.is_some()).count() as u64;
        let share = Share {
            part: broken.saturating_sub(self.bereaved),
            whole: (held.len() as u64).saturating_sub(self.bereaved),
        };
        self.report.promise("long-lived connections broken elsewhere", share.to_string(), share.part == 0);
        let (whole, failures) = self.clients.totals();
        let share = Share { part: failures.saturating_sub(self.explained), whole };
        self.report.promise("requests failed for no reason", share.to_string(), share.part == 0);

        let Self { screen, stage, clients, report, .. } = self;
        screen.close();
        drop(clients);
        screen.say(Line::new());
        screen
            .say(Line::new().strong(format!("What was measured in {:.0} s", screen.elapsed().as_secs_f64())));
        for line in report.lines() {
            screen.say(Line::from("  ").append(line));
        }
        screen.say(Line::new());
        stage.lbctl(&["detach"])?;
        Ok(report.all_kept())
    }

    fn say_held(&self) {
        let on: Vec<_> =
            (0..SERVERS.len()).map(|i| format!("{} on {}", self.held_on(i), SERVERS[i])).collect();
        self.say(&format!("connections held from now on: {}", on.join(", ")));
    }

    fn act(&self, number: usize, title: &str) {
        // Time to read what the last one has shown.
        pause(1.5);
        self.screen.act(number, title);
    }

    fn say(&self, text: &str) {
        self.screen.say(format!("    {text}"));
    }

    fn result(&mut self, text: &str, kept: bool) {
        self.report.observe(kept);
        let mark = if kept { Line::new().styled(GOOD, "  ✓ ") } else { Line::new().styled(BAD, "  ✗ ") };
        self.screen.say(mark.plain(text));
    }
}

/// Long-lived connections opened in an act.
const HELD_AT_A_TIME: usize = 150;

fn picture(screen: &Screen, stage: &Stage) -> Result<()> {
    let clients = [
        format!("{} clients", count(CLIENTS.into())),
        format!("{} ...", stage.client(0)),
        format!("{}", stage.client(CLIENTS - 1)),
    ];
    let balancer =
        [stage.target().to_string(), format!("lbd, XDP ({})", stage.xdp_mode()?), "mode nat".to_owned()];
    let arrows = ["", "--->", ""];
    screen.say(Line::new());
    for i in 0..SERVERS.len() {
        let style = if STABLE.contains(&i) { text::STABLE } else { text::CANARY };
        screen.say(
            Line::new()
                .plain(format!("    {:<16}{:<6}{:<22}{:<6}", clients[i], arrows[i], balancer[i], arrows[i]))
                .styled(style, format!("{}  {}", SERVERS[i], stage.address(i))),
        );
    }
    Ok(())
}

fn pause(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}
