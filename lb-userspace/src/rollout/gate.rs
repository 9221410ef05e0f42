//! Gates that a machine answers: a command, a web server, a file.

use std::path::Path;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::engine::Answer;
use super::plan::Gate;
use crate::health::{Command, Output};
use crate::web::{Get, shown};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_secs(2);
/// What a web server says beside its status is not looked at, but has to end.
const MAX_BODY: usize = 1 << 20;
/// "Not yet": `EX_TEMPFAIL` of `sysexits.h`.
const NOT_YET: i32 = 75;

/// Asks until there is an answer, which comes through the channel; nobody is asked any more once its other end is gone. `None`
/// where an operator has to say it.
#[must_use]
pub fn ask(gate: &Gate, service: &str, pool: &str, share: f64) -> Option<oneshot::Receiver<Answer>> {
    let question = match gate {
        Gate::Approve => return None,
        Gate::Command(words) => {
            let mut words = words.iter().cloned();
            Question::Command(Command {
                // Without one it does not start, which the gate says; the configuration refuses that.
                program: words.next().unwrap_or_default().into(),
                arguments: words.collect(),
                environment: vec![
                    ("LB_SERVICE", service.to_owned()),
                    ("LB_POOL", pool.to_owned()),
                    ("LB_SHARE", share.to_string()),
                ],
            })
        }
        Gate::Http(url) => Question::Http(url.clone()),
        Gate::File(path) => Question::File(path.clone()),
    };
    let (mut sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        loop {
            let answer = tokio::select! {
                () = sender.closed() => return,
                answer = timeout(PATIENCE, question.once()) => answer.unwrap_or(Answer::None),
            };
            if answer != Answer::None {
                // Nobody waits any more: the rollout went on without.
                let _ = sender.send(answer);
                return;
            }
            sleep(PAUSE).await;
        }
    });
    Some(receiver)
}

enum Question {
    Command(Command),
    Http(String),
    File(String),
}

impl Question {
    async fn once(&self) -> Answer {
        match self {
            Self::Command(line) => command(line).await,
            Self::Http(url) => http(url).await,
            Self::File(path) if Path::new(path).exists() => Answer::Yes,
            Self::File(_) => Answer::None,
        }
    }
}

async fn command(command: &Command) -> Answer {
    let program = command.program.display();
    let mut running = match command.start(Output::Discarded) {
        Ok(running) => running,
        Err(error) => return Answer::No(format!("{program} does not start: {error}")),
    };
    match running.wait().await {
        Ok(status) if status.success() => Answer::Yes,
        Ok(status) if status.code() == Some(NOT_YET) => Answer::None,
        Ok(status) => Answer::No(format!("{program}: {status}")),
        Err(error) => Answer::No(format!("{program} cannot be waited for: {error}")),
    }
}

async fn http(url: &str) -> Answer {
    match status(url).await {
        Ok(StatusCode::OK) => Answer::Yes,
        Ok(StatusCode::ACCEPTED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            Answer::None
        }
        Ok(status) => Answer::No(format!("{}: {status}", shown(url))),
        // Somebody who is away may come back; the gate's own timeout decides how long that is waited for.
        Err(error) => {
            tracing::warn!("the gate {} does not answer: {error}", shown(url));
            Answer::None
        }
    }
}

async fn status(url: &str) -> Result<StatusCode, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    let get = Get { uri: &uri, agent: "lb-rollout", ca_file: None, headers: Vec::new(), limit: MAX_BODY };
    Ok(get.ask().await?.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(gate: Gate) -> Answer {
        let receiver = ask(&gate, "web", "v2", 10.0).expect("a machine");
        timeout(Duration::from_secs(10), receiver).await.expect("in time").expect("an answer")
    }

    fn shell(script: &str) -> Gate {
        Gate::Command(vec!["/bin/sh".into(), "-c".into(), script.into()])
    }

    #[tokio::test]
    async fn a_command_says_yes_no_and_knows_what_it_is_about() {
        assert_eq!(answer(shell("test $LB_SERVICE/$LB_POOL/$LB_SHARE = web/v2/10")).await, Answer::Yes);
        assert_eq!(answer(shell("exit 3")).await, Answer::No("/bin/sh: exit status: 3".into()));
        let Answer::No(why) = answer(Gate::Command(vec!["/nowhere".into()])).await else {
            panic!("it is not there")
        };
        assert!(why.starts_with("/nowhere does not start"), "{why}");
    }

    #[tokio::test]
    async fn not_yet_is_asked_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("asked");
        let script = format!("test -e {0} || {{ touch {0}; exit 75; }}", mark.display());
        assert_eq!(answer(shell(&script)).await, Answer::Yes);
        assert!(mark.exists());
    }

    #[tokio::test]
    async fn a_file_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("go");
        let receiver = ask(&Gate::File(file.display().to_string()), "web", "v2", 10.0).expect("a machine");
        sleep(Duration::from_millis(50)).await;
        std::fs::write(&file, "").expect("written");
        let answer = timeout(Duration::from_secs(10), receiver).await.expect("in time").expect("an answer");
        assert_eq!(answer, Answer::Yes);
    }

    #[tokio::test]
    async fn a_web_server_says_yes_or_no() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/go?really", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            for status in ["503 Later", "200 OK", "403 Forbidden"] {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = vec![0; 1024];
                let n = stream.read(&mut request).await.expect("a request");
                assert!(request[..n].starts_with(b"GET /go?really HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("sent");
            }
        });
        assert_eq!(answer(Gate::Http(url.clone())).await, Answer::Yes);
        let told = url.trim_end_matches("?really");
        assert_eq!(answer(Gate::Http(url.clone())).await, Answer::No(format!("{told}: 403 Forbidden")));
    }

    #[tokio::test]
    async fn a_command_sees_nothing_of_the_agents_own_environment() {
        // Cargo sets it for every test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert_eq!(answer(shell("test -z \"$CARGO_MANIFEST_DIR\" && test -n \"$PATH\"")).await, Answer::Yes);
        let by_name = Gate::Command(vec!["sh".into(), "-c".into(), "exit 0".into()]);
        assert_eq!(answer(by_name).await, Answer::Yes, "PATH finds it");
    }

    #[tokio::test]
    async fn whoever_is_not_waited_for_is_killed_with_all_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {0}.new && mv {0}.new {0}; wait", mark.display());
        let receiver = ask(&shell(&script), "web", "v2", 10.0).expect("a machine");
        let wait_until = async |what: &dyn Fn() -> bool| {
            let patience = timeout(Duration::from_secs(10), async {
                while !what() {
                    sleep(Duration::from_millis(10)).await;
                }
            });
            patience.await.expect("in time");
        };
        wait_until(&|| mark.exists()).await;
        let child = std::fs::read_to_string(&mark).expect("a pid");
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", child.trim()));
        drop(receiver);
        // Gone, or a zombie that nobody has collected yet.
        wait_until(&|| std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))).await;
    }

    #[tokio::test]
    async fn an_operator_is_not_a_machine() {
        assert!(ask(&Gate::Approve, "web", "v2", 10.0).is_none());
    }
}
