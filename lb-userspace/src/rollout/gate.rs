//! Gates that a machine answers: a command, a web server, a file.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hyper::{StatusCode, Uri};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::engine::Answer;
use super::plan::Gate;
use crate::web::Get;

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
        Gate::Command(words) => Question::Command(words.clone()),
        Gate::Http(url) => Question::Http(url.clone()),
        Gate::File(path) => Question::File(path.clone()),
    };
    let subject =
        [("LB_SERVICE", service.to_owned()), ("LB_POOL", pool.to_owned()), ("LB_SHARE", share.to_string())];
    let (mut sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        loop {
            let answer = tokio::select! {
                () = sender.closed() => return,
                answer = timeout(PATIENCE, question.once(&subject)) => answer.unwrap_or(Answer::None),
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
    Command(Vec<String>),
    Http(String),
    File(String),
}

impl Question {
    async fn once(&self, subject: &[(&str, String)]) -> Answer {
        match self {
            Self::Command(words) => command(words, subject).await,
            Self::Http(url) => http(url).await,
            Self::File(path) if Path::new(path).exists() => Answer::Yes,
            Self::File(_) => Answer::None,
        }
    }
}

async fn command(words: &[String], subject: &[(&str, String)]) -> Answer {
    let Some((program, arguments)) = words.split_first() else {
        return Answer::No("its command is empty".to_owned());
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command.envs(subject.iter().map(|(name, value)| (name, value)));
    match command.status().await {
        Ok(status) if status.success() => Answer::Yes,
        Ok(status) if status.code() == Some(NOT_YET) => Answer::None,
        Ok(status) => Answer::No(format!("{program}: {status}")),
        Err(error) => Answer::No(format!("{program} does not start: {error}")),
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

/// A URL as it may be told: its query may hold a secret, and so may what stands before its host.
fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
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

    #[test]
    fn a_url_is_told_without_its_secrets() {
        for (url, told) in [
            ("https://gate.example/go?token=hunter2", "https://gate.example/go"),
            ("https://ops:hunter2@gate.example:8443/go#x", "https://gate.example:8443/go"),
            ("http://[2001:db8::1]:80?hunter2", "http://[2001:db8::1]:80"),
            ("http://gate.example/a@b", "http://gate.example/a@b"),
        ] {
            assert_eq!(shown(url), told);
        }
    }

    #[tokio::test]
    async fn an_operator_is_not_a_machine() {
        assert!(ask(&Gate::Approve, "web", "v2", 10.0).is_none());
    }
}
