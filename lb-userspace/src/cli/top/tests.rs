//! What is drawn, and what keys do, without a terminal.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::app::{App, Level, Next};
use super::view;
use crate::api::{Api, Event, Quantiles, Severity, Status, SteeringStatus};

/// What the agent that tests of the command line make up says.
fn status() -> Status {
    let transcript = include_str!("../../../tests/cli/expected/status_json.txt");
    let begin = transcript.find('{').unwrap();
    let mut documents = serde_json::Deserializer::from_str(&transcript[begin..]).into_iter();
    documents.next().unwrap().unwrap()
}

/// A second with ten connections to each backend, and ten times as many packets, but for one that gets 30.
fn app() -> App {
    let (mut app, start) = (App::new(None), Instant::now());
    let mut status = status();
    app.take(status.clone(), start);
    for pool in status.services.iter_mut().flat_map(|service| &mut service.pools) {
        for backend in &mut pool.backends {
            let new = if backend.name.contains(".12:") { 30 } else { 10 };
            for traffic in [&mut backend.traffic, &mut pool.traffic] {
                traffic.connections += new;
                traffic.packets += 10 * new;
            }
        }
    }
    app.take(status, start + Duration::from_secs(1));
    app
}

fn drawn(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(app, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect::<Vec<_>>().join("\n")
}

fn press(app: &mut App, keys: &str) -> Next {
    let mut next = Next::Go;
    for key in keys.split(' ') {
        let code = match key {
            "enter" => KeyCode::Enter,
            "esc" => KeyCode::Esc,
            "up" => KeyCode::Up,
            "down" => KeyCode::Down,
            "space" => KeyCode::Char(' '),
            letter => KeyCode::Char(letter.chars().next().unwrap()),
        };
        next = app.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    next
}

#[test]
fn services_are_shown_with_their_rates_at_80_columns() {
    let screen = drawn(&app(), 80, 24);
    let line = screen.lines().find(|line| line.starts_with("checkout")).unwrap();
    for word in ["203.0.113.10:443/tcp", "10 %", "50", "500"] {
        assert!(line.contains(word), "{word} is not in\n{screen}");
    }
    assert!(screen.contains("DEGRADED") && screen.contains("revision 17"), "{screen}");
    assert!(screen.contains("60 conn/s"), "the sum of both services\n{screen}");
    assert!(screen.contains("LB1003 checkout/v41: 1 of 2 backends is down"), "{screen}");
    let keys = screen.lines().last().unwrap();
    assert!(keys.starts_with("q quit") && keys.ends_with("e events"), "the keys in whole\n{screen}");
}

#[test]
fn more_columns_show_more() {
    assert!(!drawn(&app(), 80, 24).contains("STABLE > CANARY"));
    let wide = drawn(&app(), 160, 50);
    assert!(wide.contains("STABLE > CANARY") && wide.contains("v41 > v42") && wide.contains("nat"), "{wide}");
}

#[test]
fn latencies_are_shown_where_they_are_measured() {
    let mut app = app();
    press(&mut app, "enter");
    assert!(drawn(&app, 80, 24).contains("P99"), "{}", drawn(&app, 80, 24));
    let mut status = status();
    let pools = &mut status.services[0].pools;
    pools[1].handshake = Some(Quantiles { p50: 0.000_41, p95: 0.001, p99: 0.012, of: 50 });
    pools[1].backends[0].steering =
        Some(SteeringStatus { latency_seconds: Some(0.0025), weight_percent: 90 });
    app.take(status, Instant::now() + Duration::from_secs(9));
    let screen = drawn(&app, 80, 24);
    let line = |name: &str| screen.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let ends =
        |name: &str| line(name).split_whitespace().rev().take(4).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ends("v42"), ["ms", "12", "µs", "410"], "{screen}");
    assert_eq!(&ends("v41")[..2], ["-", "-"], "{screen}");
    press(&mut app, "j enter");
    let wide = drawn(&app, 160, 24);
    assert!(wide.contains("LATENCY") && wide.contains("2.5 ms"), "{wide}");
}

#[test]
fn it_goes_in_by_enter_and_out_by_escape() {
    let mut app = app();
    press(&mut app, "enter");
    assert_eq!(app.level, Level::Pools { service: "checkout".to_owned() });
    let screen = drawn(&app, 80, 24);
    let stable = screen.lines().find(|line| line.starts_with("v41")).unwrap();
    for word in ["stable", "90 %", "80 %", "40"] {
        assert!(stable.contains(word), "{word} is not in\n{screen}");
    }
    press(&mut app, "j enter");
    assert_eq!(app.level, Level::Backends { service: "checkout".to_owned(), pool: "v42".to_owned() });
    let screen = drawn(&app, 80, 24);
    assert!(screen.contains("services > checkout > v42") && screen.contains("10.0.2.11:8443"), "{screen}");
    assert!(screen.contains("drain"), "{screen}");
    press(&mut app, "esc");
    assert_eq!(app.at(), 1, "back at the pool that was left");
    press(&mut app, "esc esc esc");
    assert_eq!(app.level, Level::Services);
}

#[test]
fn rows_are_sorted_by_what_goes_through_them() {
    let mut app = app();
    press(&mut app, "enter enter");
    let names = |app: &App| app.rows().iter().map(|row| row.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&app), ["10.0.1.11:8443", "10.0.1.12:8443"]);
    press(&mut app, "s");
    assert_eq!(names(&app), ["10.0.1.12:8443", "10.0.1.11:8443"], "connections");
    press(&mut app, "S");
    assert_eq!(names(&app), ["10.0.1.11:8443", "10.0.1.12:8443"], "reversed");
    assert!(drawn(&app, 80, 24).contains("by connections, reversed"));
}

#[test]
fn a_filter_is_written_kept_and_taken_away() {
    let mut app = app();
    press(&mut app, "/ d n");
    assert!(drawn(&app, 80, 24).contains("/dn_"));
    assert_eq!(app.rows().len(), 1);
    assert_eq!(press(&mut app, "q"), Next::Go, "a letter like any other");
    assert!(drawn(&app, 80, 24).contains("nothing has a name like this"));
    press(&mut app, "esc");
    assert_eq!((app.rows().len(), app.filtering), (2, false));
    press(&mut app, "/ d enter");
    assert_eq!(app.rows()[0].name(), "dns");
    press(&mut app, "esc");
    assert_eq!(app.rows().len(), 2);
}

#[test]
fn the_marked_row_stays_the_marked_one_when_rows_come_and_go() {
    let mut app = app();
    press(&mut app, "j");
    assert_eq!(app.rows()[app.at()].name(), "dns");
    let mut status = status();
    status.services.remove(0);
    app.take(status, Instant::now());
    assert_eq!((app.at(), app.rows()[app.at()].name()), (0, "dns"));
}

#[test]
fn q_and_control_c_end_it_and_space_holds_it() {
    let mut app = app();
    press(&mut app, "space");
    assert!(app.is_paused() && drawn(&app, 80, 24).contains("PAUSED"));
    press(&mut app, "space ?");
    assert!(!app.is_paused() && drawn(&app, 80, 24).contains("ctrl-c"), "help");
    assert_eq!(press(&mut app, "q"), Next::Go, "takes the help away");
    assert_eq!(press(&mut app, "q"), Next::End);
    app.filtering = true;
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::End);
}

#[test]
fn events_are_shown_the_newest_last_and_can_be_scrolled() {
    let mut app = app();
    let event = |seq: u64| Event {
        api: Api::V1,
        seq,
        time: format!("2026-11-21T04:00:{seq:02}Z"),
        code: "split".to_owned(),
        severity: Severity::Info,
        service: None,
        pool: None,
        backend: None,
        message: format!("the change number {seq}"),
        actor: None,
        revision: None,
        service_revision: None,
    };
    app.happened((1..=40).map(event).collect());
    assert_eq!(app.last_event(), Some(40));
    assert!(drawn(&app, 80, 24).contains("04:00:40 split the change number 40"));
    press(&mut app, "e");
    let screen = drawn(&app, 80, 24);
    assert!(
        screen.contains("number 40") && screen.contains("number 25") && !screen.contains("number 3\n"),
        "{screen}"
    );
    press(&mut app, "up up");
    assert!(!drawn(&app, 80, 24).contains("number 39"));
}

#[test]
fn an_agent_that_is_away_leaves_its_last_words_and_says_so() {
    let mut app = app();
    app.is_away("cannot reach the agent".to_owned());
    let screen = drawn(&app, 80, 24);
    assert!(screen.contains("AGENT AWAY") && screen.contains("checkout"), "{screen}");
}

#[test]
fn a_terminal_of_any_size_is_drawn_on() {
    let mut app = app();
    for (width, height) in [(1, 1), (20, 5), (79, 13), (300, 100)] {
        for keys in ["?", "esc", "e", "esc", "enter", "enter", "esc", "esc"] {
            press(&mut app, keys);
            drawn(&app, width, height);
        }
    }
}
