//! What an operator wants to be run when a backend goes down.

use std::{
    collections::HashMap,
    process::ExitStatus,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

use super::command::{Command, Output, Running};

/// A command that runs longer is killed, with its process group.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many runs of a service may come at once …
const BURST: u32 = 10;
/// … and one more each time that this has passed.
const REFILL: Duration = Duration::from_secs(6);
/// So much of what a run prints goes to the log, in bytes of each of its two outputs.
const MAX_OUTPUT: u64 = 16 * 1024;

/// Runs commands beside the agent: nobody waits for them, and a service has only so many in a time.
#[derive(Debug, Default)]
pub struct Hooks {
    services: HashMap<String, Bucket>,
}

/// How many runs a service has left.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    /// Up to when runs have come back.
    filled: Instant,
    /// Runs that were left out since the last one that was not.
    skipped: u32,
}

impl Hooks {
    /// Runs `command` for `service`, unless there were too many: then a later run's log says how many were left out.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn run(&mut self, service: &str, command: Command) {
        let now = Instant::now();
        let bucket = self.services.entry(service.to_owned()).or_insert(Bucket::full(now));
        let program = command.program.display().to_string();
        let Some(skipped) = bucket.take(now) else {
            warn!(service, "{program} is not run: there were more than {BURST} at once");
            return;
        };
        if skipped > 0 {
            warn!(service, "{program} was not run {skipped} times before this one");
        }
        let service = service.to_owned();
        tokio::spawn(async move {
            let ended = match command.start(Output::Piped) {
                Ok(running) => follow(running, &service, &program).await,
                Err(error) => return warn!(service, "{program} cannot be run: {error}"),
            };
            match ended {
                Some(Ok(status)) if status.success() => info!(service, "{program} has ended"),
                Some(Ok(status)) => warn!(service, "{program} failed: {status}"),
                Some(Err(error)) => warn!(service, "{program} was lost: {error}"),
                None => warn!(service, "{program} was killed: it ran for longer than {PATIENCE:?}"),
            }
        });
    }

    /// Forgets services that `wanted` does not want.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.services.retain(|service, _| wanted(service));
    }
}

impl Bucket {
    const fn full(now: Instant) -> Self {
        Self { left: BURST, filled: now, skipped: 0 }
    }

    /// Takes one run, and says how many were left out before it; `None` if there is none to take.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let since = now.saturating_duration_since(self.filled);
        let back = u32::try_from(since.as_nanos() / REFILL.as_nanos()).unwrap_or(u32::MAX);
        if self.left.saturating_add(back) >= BURST {
            (self.left, self.filled) = (BURST, now);
        } else {
            (self.left, self.filled) = (self.left + back, self.filled + REFILL * back);
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.skipped = self.skipped.saturating_add(1);
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.skipped))
    }
}

/// To its end, or `None` if it took too long. What it prints goes to the log, line by line.
async fn follow(mut running: Running, service: &str, program: &str) -> Option<std::io::Result<ExitStatus>> {
    let (stdout, stderr) = running.output();
    // Who inherited the outputs may keep them open for ever: they are read no longer than the command runs.
    let mut readers = JoinSet::new();
    readers.spawn(log(stdout, service.to_owned(), program.to_owned()));
    readers.spawn(log(stderr, service.to_owned(), program.to_owned()));
    let ended = timeout(PATIENCE, running.wait()).await.ok();
    drop(running);
    // What was printed is in the pipes already.
    let read = async { while readers.join_next().await.is_some() {} };
    let _ = timeout(Duration::from_millis(100), read).await;
    ended
}

async fn log(output: Option<impl AsyncRead + Unpin>, service: String, program: String) {
    let Some(mut output) = output else { return };
    let mut lines = BufReader::new((&mut output).take(MAX_OUTPUT)).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        info!(service, "{program}: {}", line.trim_end().escape_debug());
    }
    // A command whose output nobody takes would stand still.
    let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        for _ in 0..BURST {
            assert_eq!(bucket.take(start), Some(0));
        }
        assert_eq!((bucket.take(start), bucket.take(start)), (None, None));
        assert_eq!(bucket.take(start + REFILL), Some(2), "two were left out");
        assert_eq!(bucket.take(start + REFILL), None);
        assert_eq!(bucket.take(start + 1000 * REFILL), Some(1));
        assert_eq!(bucket.left, BURST - 1, "no more than a burst comes back");
    }

    proptest! {
        #[test]
        fn no_time_sees_more_runs_than_a_burst_and_what_came_back(
            steps in prop::collection::vec(0..20_000u64, 1..200),
        ) {
            let start = Instant::now();
            let (mut bucket, mut now, mut runs) = (Bucket::full(start), start, vec![]);
            for step in steps {
                now += Duration::from_millis(step);
                if bucket.take(now).is_some() {
                    runs.push(now);
                }
            }
            for (first, &from) in runs.iter().enumerate() {
                for (last, &to) in runs.iter().enumerate().skip(first) {
                    let most = BURST as usize + 1 + ((to - from).as_nanos() / REFILL.as_nanos()) as usize;
                    prop_assert!(last - first < most, "{} runs in {:?}", last - first + 1, to - from);
                }
            }
        }
    }
}
