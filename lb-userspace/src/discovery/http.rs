//! Backends as a web server lists them: one GET after the other (HTTP/1.1, RFC 9110), each on a connection of its own. What
//! has an `ETag` is only sent again when it has changed. Redirects are not followed.

use hyper::StatusCode;
use hyper::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use tokio::time::{Instant, sleep_until, timeout};

use super::MAX_LIST;
use crate::config::{self, Backend, read_backends};
use crate::web::Get;

pub(super) struct Http {
    asked: config::Http,
    port: u16,
    /// The last good list, and what its server calls it.
    last: Option<(HeaderValue, Vec<Backend>)>,
    due: Instant,
}

/// What a server may answer.
enum Said {
    List { text: String, tag: Option<HeaderValue> },
    Unchanged,
}

impl Http {
    pub fn new(asked: config::Http, port: u16) -> Self {
        Self { asked, port, last: None, due: Instant::now() }
    }

    pub async fn ask(&mut self) -> Result<Vec<Backend>, String> {
        self.due = Instant::now() + self.asked.interval;
        let shown = self.asked.url.without_query();
        let said = timeout(self.asked.timeout, self.get()).await;
        let said = said.unwrap_or_else(|_| {
            Err(format!("no answer within {}", humantime::format_duration(self.asked.timeout)))
        });
        match (said.map_err(|why| format!("{shown}: {why}"))?, &self.last) {
            (Said::Unchanged, Some((_, backends))) => Ok(backends.clone()),
            (Said::Unchanged, None) => Err(format!("{shown}: 304 without a list before it")),
            (Said::List { text, tag }, _) => {
                let backends = read_backends(&text, &shown, self.port)?;
                self.last = tag.map(|tag| (tag, backends.clone()));
                Ok(backends)
            }
        }
    }

    pub async fn until_news(&self) {
        sleep_until(self.due).await;
    }

    async fn get(&self) -> Result<Said, String> {
        let tag = self.last.iter().map(|(tag, _)| (IF_NONE_MATCH, tag.clone())).collect();
        let get = Get {
            uri: self.asked.url.uri(),
            agent: "lb-discovery",
            ca_file: self.asked.ca_file.as_ref().map(|file| file.as_path()),
            headers: tag,
            limit: MAX_LIST,
        };
        let got = get.ask().await?;
        match got.status {
            StatusCode::OK => {
                let tag = got.headers.get(ETAG).cloned();
                let text = String::from_utf8(got.body.into()).map_err(|_| "what it sent is no text")?;
                Ok(Said::List { text, tag })
            }
            StatusCode::NOT_MODIFIED => Ok(Said::Unchanged),
            status => Err(status.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Serves these answers, one a connection; returns the address and the requests as they come.
    async fn serve(answers: Vec<String>) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1/web?secret=1", listener.local_addr().expect("an address"));
        let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.expect("a request");
                sender.send(String::from_utf8_lossy(&request[..n]).into_owned()).expect("somebody reads");
                // A client that has read enough goes.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, requests)
    }

    fn http(url: &str) -> Http {
        let second = std::time::Duration::from_secs(1);
        let asked = config::Http {
            url: url.parse().expect("a URL"),
            ca_file: None,
            interval: second,
            timeout: second,
        };
        Http::new(asked, 8080)
    }

    fn ok(headers: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn addresses(http: &mut Http) -> Result<Vec<String>, String> {
        Ok(http.ask().await?.iter().map(|backend| backend.address.to_string()).collect())
    }

    #[tokio::test]
    async fn a_list_that_has_not_changed_is_not_sent_again() {
        let list = r#"{"backends": [{"address": "10.0.0.1"}]}"#;
        let answers = vec![
            ok("ETag: \"7\"\r\n", list),
            "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
            ok("ETag: \"8\"\r\n", r#"{"backends": [{"address": 1}]}"#),
            ok("", r#"{"backends": []}"#),
        ];
        let (url, mut requests) = serve(answers).await;
        let mut http = http(&url);
        let one = Ok(vec!["10.0.0.1:8080".to_owned()]);
        assert_eq!(addresses(&mut http).await, one);
        let asked = requests.recv().await.expect("a request");
        assert!(
            asked.starts_with("GET /v1/web?secret=1 HTTP/1.1\r\n") && !asked.contains("if-none-match"),
            "{asked}"
        );
        assert_eq!(addresses(&mut http).await, one);
        assert!(requests.recv().await.expect("a request").contains("if-none-match: \"7\"\r\n"));
        let told = addresses(&mut http).await.expect_err("a mistake");
        assert!(told.contains("backends[0].address: ") && !told.contains("secret"), "{told}");
        requests.recv().await.expect("a request");
        assert_eq!(addresses(&mut http).await, Ok(vec![]));
        assert!(
            requests.recv().await.expect("a request").contains("if-none-match: \"7\"\r\n"),
            "8 was no list"
        );
    }

    #[tokio::test]
    async fn what_is_no_list_is_refused() {
        let huge = "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n".to_owned() + &" ".repeat(9_000_000);
        let answers = vec![
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned(),
            "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n".to_owned(),
            huge,
        ];
        let (url, _requests) = serve(answers).await;
        let mut http = http(&url);
        for expected in ["503 Service Unavailable", "304 without", "302 Found", "length limit exceeded"] {
            let told = addresses(&mut http).await.expect_err(expected);
            assert!(told.contains(expected), "{told}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_away_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let told = addresses(&mut http(&url)).await.expect_err("silence");
        assert!(told.ends_with("no answer within 1s"), "{told}");
        drop(listener);
        let told = addresses(&mut http(&url)).await.expect_err("nobody");
        assert!(told.contains("cannot connect: "), "{told}");
    }
}
