//! Tests as claims, with the logs of everything they started when they fail.

use std::{
    any::Any,
    cell::RefCell,
    fmt::Write as _,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::enter::enter;

/// How long a claim may take: several times what the longest one needs on a busy machine. Whatever takes longer waits for
/// something that will not come, and is better named than waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// A test named by what it claims. It fails if `body` returns an error, panics, or does not end; the message then ends
/// with the logs of the processes that it started.
pub fn claim(name: &str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || watched(body))
}

/// The same where there is all that it takes: what `lacking` returns is why it is skipped.
pub fn claim_unless(
    lacking: impl FnOnce() -> Result<Option<String>> + Send + 'static,
    name: &str,
    body: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || match lacking() {
        Ok(None) => watched(body).map(|()| Completion::Completed),
        Ok(Some(why)) => Ok(Completion::ignored_with(why)),
        Err(error) => Err(format!("{error:#}").into()),
    })
}

fn watched(body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<(), Failed> {
    let logs = Logs::default();
    judge(body, &logs, PATIENCE).map_err(|why| Failed::from(why + &logs.collected()))
}

/// Runs `body` on a thread of its own, which is left behind if it takes too long: it ends with the test program.
fn judge(
    body: impl FnOnce() -> Result<()> + Send + 'static,
    logs: &Logs,
    patience: Duration,
) -> Result<(), String> {
    let (sender, outcome) = sync_channel(1);
    let watched = logs.clone();
    let run = move || {
        LOGS.set(watched);
        let outcome = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(panic) => Err(panic_message(panic.as_ref())),
        };
        // Nobody waits any more if it took too long.
        let _ = sender.send(outcome);
    };
    let runner = thread::Builder::new().spawn(run).map_err(|error| format!("no thread for it: {error}"))?;
    match outcome.recv_timeout(patience) {
        Ok(outcome) => {
            // What the body held in its thread goes before the next claim begins.
            let _ = runner.join();
            outcome
        }
        Err(RecvTimeoutError::Timeout) => Err(format!("it still runs after {patience:?}")),
        Err(RecvTimeoutError::Disconnected) => Err("its thread ended without a word".to_owned()),
    }
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
    LOGS.with_borrow(|logs| logs.paths().push(log.to_owned()));
}

thread_local! {
    static LOGS: RefCell<Logs> = RefCell::default();
}

/// Of each log, the end is what tells.
const SHOWN_BYTES: usize = 8192;

/// The logs of what a claim has started so far.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<PathBuf>>>);

impl Logs {
    fn paths(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collected(&self) -> String {
        let mut text = String::new();
        for path in self.paths().iter() {
            let content = fs::read(path).unwrap_or_default();
            if content.is_empty() {
                continue;
            }
            let shown = &content[content.len().saturating_sub(SHOWN_BYTES)..];
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(text, "\n--- {name}\n{}", String::from_utf8_lossy(shown));
        }
        text
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_claim_that_does_not_end_fails_with_the_logs_so_far() {
        let logs = Logs::default();
        let path = std::env::temp_dir().join(format!("lb-claim-{}", std::process::id()));
        fs::write(&path, "as far as it came").unwrap();
        let log = path.clone();
        let hangs = move || {
            watch_log(&log);
            thread::sleep(Duration::from_secs(3600));
            Ok(())
        };
        let patience = Duration::from_millis(200);
        assert_eq!(judge(hangs, &logs, patience), Err("it still runs after 200ms".to_owned()));
        assert!(logs.collected().ends_with("as far as it came"));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn errors_and_panics_are_told_as_they_are() {
        let judged = |body: fn() -> Result<()>| judge(body, &Logs::default(), PATIENCE);
        assert_eq!(judged(|| Ok(())), Ok(()));
        assert_eq!(judged(|| bail!("no route")), Err("no route".to_owned()));
        assert_eq!(judged(|| panic!("one is two")), Err("one is two".to_owned()));
    }
}
