//! Tests as claims, with the logs of everything they started when they fail.

use std::{
    any::Any,
    cell::RefCell,
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::enter::enter;

/// A test named by what it claims. It fails if `body` returns an error or panics; the message then
/// ends with the logs of the processes that it started.
pub fn claim(name: &str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        LOGS.with_borrow_mut(Vec::clear);
        let why = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => panic_message(panic.as_ref()),
        };
        Err(Failed::from(why + &collected_logs()))
    })
}

/// Enters the lab and runs `claims` as the command line asks (the options of `cargo test`).
pub fn run(claims: Vec<Trial>) -> ExitCode {
    // A worker has no command line of ours.
    crate::traffic::worker::divert();
    let arguments = Arguments::from_args();
    if !arguments.list
        && let Err(error) = enter()
    {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, claims).exit_code()
}

/// Shows `log` if the claim that runs on this thread fails.
pub(crate) fn watch_log(log: &Path) {
    LOGS.with_borrow_mut(|logs| logs.push(log.to_owned()));
}

thread_local! {
    static LOGS: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// Of each log, the end is what tells.
const SHOWN_BYTES: usize = 8192;

fn collected_logs() -> String {
    LOGS.with_borrow(|logs| {
        let mut text = String::new();
        for path in logs {
            let content = fs::read(path).unwrap_or_default();
            if content.is_empty() {
                continue;
            }
            let shown = &content[content.len().saturating_sub(SHOWN_BYTES)..];
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(text, "\n--- {name}\n{}", String::from_utf8_lossy(shown));
        }
        text
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked".to_owned())
}
