//! On a terminal: colours where there were none, and `top`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::Lab;

/// A program on a pseudo-terminal, and what stands on its screen.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<vt100::Parser>>,
    slave: OwnedFd,
}

fn local_modes(terminal: &OwnedFd) -> libc::tcflag_t {
    // SAFETY: an all-zero structure of integers is valid, and is filled in.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings), 0);
        settings.c_lflag
    }
}

impl Terminal {
    fn start(mut command: Command, columns: u16, lines: u16) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let mut size = libc::winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptors are ours to fill in, and the size is only read.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &raw mut size,
            )
        };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both are new, and nobody else's.
        let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let end = || slave.try_clone().unwrap();
        command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        // SAFETY: two system calls; nothing is allocated or locked between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(lines, columns, 1_000)));
        let (mut output, shared) = (File::from(master.try_clone().unwrap()), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                shared.lock().unwrap().process(&bytes[..length]);
            }
        });
        Self { child, keys: File::from(master), screen, slave }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until this is on the screen.
    fn shows(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.text().contains(what) {
            assert!(Instant::now() < deadline, "{what} is not on the screen:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The last of its output is on its way.
                std::thread::sleep(Duration::from_millis(100));
                return status;
            }
            assert!(Instant::now() < deadline, "it has not ended:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The usual screen, with its cursor, and with lines and echo: raw mode is over.
    fn is_restored(&self) {
        let screen = self.screen.lock().unwrap();
        assert!(!screen.screen().alternate_screen() && !screen.screen().hide_cursor());
        let modes = local_modes(&self.slave);
        assert!(modes & libc::ICANON != 0 && modes & libc::ECHO != 0, "{modes:x}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only for one that has ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn top_goes_from_services_to_backends_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    let mut terminal = Terminal::start(lab.lbctl(&["top", "-d", "100ms"]), 80, 24);
    terminal.shows("203.0.113.10:443/tcp");
    terminal.shows("backend_down");
    assert!(terminal.screen.lock().unwrap().screen().alternate_screen());
    terminal.press("\r");
    terminal.shows("services > checkout");
    terminal.press("j\r");
    terminal.shows("10.0.2.11:8443");
    terminal.press("\u{1b}[A?");
    terminal.shows("ctrl-c");
    terminal.press("qq");
    assert!(terminal.ended().success());
    terminal.is_restored();
}

#[test]
fn a_signal_ends_top_and_leaves_the_terminal_as_it_was() {
    let lab = Lab::new();
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let mut terminal = Terminal::start(lab.lbctl(&["top"]), 100, 30);
        terminal.shows("checkout");
        // SAFETY: a process of our own, which has not been waited for.
        assert_eq!(unsafe { libc::kill(terminal.child.id().cast_signed(), signal) }, 0);
        assert!(terminal.ended().success());
        terminal.is_restored();
    }
}

#[test]
fn top_stays_when_the_agent_goes_and_goes_on_when_it_is_back() {
    let mut lab = Lab::new();
    let terminal = Terminal::start(lab.lbctl(&["top", "-d", "100ms"]), 120, 30);
    terminal.shows("DEGRADED");
    lab.stop();
    terminal.shows("AGENT AWAY");
    assert!(terminal.text().contains("checkout"), "what was known stays");
    lab.start();
    terminal.shows("DEGRADED");
}

#[test]
fn without_a_terminal_top_says_what_follows_in_a_pipe() {
    let lab = Lab::new();
    let ran = lab.run(&["top"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.err.contains("LB0612") && ran.err.contains("lbctl get backends -w"), "{}", ran.err);
}

#[test]
fn a_terminal_shows_what_a_pipe_does_and_colours() {
    let lab = Lab::new();
    for arguments in
        [&["status"][..], &["get", "services"], &["get", "backends"], &["get", "events"], &["help", "LB0503"]]
    {
        let piped = lab.lbctl(arguments).env("COLUMNS", "80").output().unwrap();
        let piped = String::from_utf8(piped.stdout).unwrap();
        for (no_color, coloured) in [(None, true), (Some("1"), false)] {
            let mut command = lab.lbctl(arguments);
            command.envs(no_color.map(|value| ("NO_COLOR", value)));
            let mut terminal = Terminal::start(command, 80, 200);
            terminal.ended();
            let shown = terminal.text();
            let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
            assert_eq!(lines(shown.trim_end()), lines(piped.trim_end()), "{arguments:?}");
            let screen = terminal.screen.lock().unwrap();
            let cells = (0..200).flat_map(|row| (0..80).map(move |column| (row, column)));
            let any = cells
                .filter_map(|(row, column)| screen.screen().cell(row, column))
                .any(|cell| cell.bold() || cell.fgcolor() != vt100::Color::Default);
            assert_eq!(any, coloured && arguments[0] != "help", "{arguments:?} with NO_COLOR = {no_color:?}");
        }
    }
}
