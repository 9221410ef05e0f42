//! Asks Prometheus (its HTTP API, `/api/v1/query`), again and again, for as long as somebody listens.

use std::time::Duration;

use hyper::Uri;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout};

use super::metric::{Measurement, Reading};
use super::plan::Metric;
use crate::web::Get;

/// An answer to a sane query is one line; this is a page.
const MAX_ANSWER: usize = 1 << 20;

/// The pools that a rollout is about, by name.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The service.
    pub service: String,
    /// The canary.
    pub canary: String,
    /// The stable pool.
    pub stable: String,
}

/// Somebody who asks; ends when dropped.
#[derive(Debug)]
pub struct Asking {
    measured: mpsc::Receiver<Measurement>,
    _task: JoinSet<()>,
}

impl Asking {
    /// Asks for a metric from now on, the first time after its interval. Has to be called within a Tokio runtime.
    #[must_use]
    pub fn begin(metric: &Metric, subject: &Subject) -> Self {
        let (sender, measured) = mpsc::channel(16);
        let (metric, subject) = (metric.clone(), subject.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut ticks = interval_at(tokio::time::Instant::now() + metric.interval, metric.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let measurement = measure(&metric, &subject).await;
                if sender.send(measurement).await.is_err() {
                    return;
                }
            }
        });
        Self { measured, _task: task }
    }

    /// What was measured since the last call, in order.
    pub fn news(&mut self) -> impl Iterator<Item = Measurement> {
        std::iter::from_fn(|| self.measured.try_recv().ok())
    }
}

/// One measurement. Both pools are asked about at the same time, so that they are compared at the same time.
pub async fn measure(metric: &Metric, subject: &Subject) -> Measurement {
    let ask = |pool: &str| {
        let query = metric.about(&subject.service, pool);
        async move { ask(&metric.server, &query, metric.timeout).await }
    };
    if !metric.bounds.are_relative() {
        return Measurement { canary: ask(&subject.canary).await, stable: None };
    }
    let (canary, stable) = tokio::join!(ask(&subject.canary), ask(&subject.stable));
    Measurement { canary, stable: Some(stable) }
}

async fn ask(server: &str, query: &str, patience: Duration) -> Reading {
    let answer = timeout(patience, get(server, query, patience)).await;
    answer.unwrap_or_else(|_| {
        Err(format!("{server}: no answer within {}", humantime::format_duration(patience)))
    })
}

async fn get(server: &str, query: &str, patience: Duration) -> Reading {
    let url = format!(
        "{}/api/v1/query?query={}&timeout={}ms",
        server.trim_end_matches('/'),
        utf8_percent_encode(query, NON_ALPHANUMERIC),
        patience.as_millis()
    );
    let uri: Uri = url.parse().map_err(|error| format!("{server}: {error}"))?;
    let get = Get { uri: &uri, agent: "lb-rollout", ca_file: None, headers: Vec::new(), limit: MAX_ANSWER };
    let got = get.ask().await.map_err(|why| format!("{server}: {why}"))?;
    // Prometheus explains itself in the body of its errors, too.
    match serde_json::from_slice::<Answer>(&got.body) {
        Ok(answer) => answer.figure().map_err(|why| format!("{server}: {why}")),
        Err(_) if !got.status.is_success() => Err(format!("{server}: {}", got.status)),
        Err(error) => Err(format!("{server}: not Prometheus's answer: {error}")),
    }
}

/// What Prometheus answers.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Success {
        data: Data,
    },
    Error {
        #[serde(rename = "errorType", default)]
        kind: String,
        #[serde(default)]
        error: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Scalar(Point),
    Vector(Vec<Series>),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Series {
    value: Point,
}

/// A time, and a figure as text: JSON has no NaN.
#[derive(Deserialize)]
struct Point(#[expect(dead_code, reason = "now, always")] f64, String);

impl Answer {
    fn figure(self) -> Reading {
        let point = match self {
            Self::Error { kind, error } => return Err(format!("{kind}: {error}")),
            Self::Success { data: Data::Scalar(point) } => point,
            Self::Success { data: Data::Vector(series) } => match <[Series; 1]>::try_from(series) {
                Ok([one]) => one.value,
                Err(none) if none.is_empty() => return Err("no series".to_owned()),
                Err(many) => {
                    return Err(format!("{} series, where one figure is needed: aggregate them", many.len()));
                }
            },
            Self::Success { data: Data::Matrix(_) } => {
                return Err("a range, where one figure is needed".to_owned());
            }
            Self::Success { data: Data::String(_) } => {
                return Err("text, where a figure is needed".to_owned());
            }
        };
        match point.1.parse::<f64>() {
            Ok(figure) if figure.is_nan() => Err("NaN: nothing divided by nothing".to_owned()),
            Ok(figure) => Ok(figure),
            Err(_) => Err(format!("{:?} is no figure", point.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::rollout::plan::{Bounds, OnNoData};

    fn metric(server: &str, bounds: Bounds) -> Metric {
        Metric {
            name: "errors".to_owned(),
            server: server.to_owned(),
            query: r#"sum(rate(errors{app="{{service}}",v="{{pool}}"}[{{window}}]))"#.to_owned(),
            window: Duration::from_secs(60),
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            bounds,
            failure_limit: 1,
            on_no_data: OnNoData::Hold,
            shadow: false,
        }
    }

    fn subject() -> Subject {
        Subject { service: "shop".to_owned(), canary: "v2".to_owned(), stable: "v1".to_owned() }
    }

    /// Serves what `answer` makes of each request, whole; returns where.
    async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.expect("a request");
                let answer = answer(&String::from_utf8_lossy(&request[..n]));
                // A client that has read enough goes.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        server
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn vector(figures: &[&str]) -> String {
        let series = |figure: &&str| format!(r#"{{"metric":{{}},"value":[1435781451.781,"{figure}"]}}"#);
        let series: Vec<String> = figures.iter().map(series).collect();
        let result = series.join(",");
        http(
            "200 OK",
            &format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#),
        )
    }

    async fn reading(answer: String) -> Reading {
        let server = serve(move |_| answer.clone()).await;
        measure(&metric(&server, Bounds::default()), &subject()).await.canary
    }

    #[tokio::test]
    async fn a_figure_is_one_series_or_a_scalar() {
        assert_eq!(reading(vector(&["0.25"])).await, Ok(0.25));
        assert_eq!(reading(vector(&["+Inf"])).await, Ok(f64::INFINITY));
        let scalar =
            r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3e2"]},"warnings":["w"]}"#;
        assert_eq!(reading(http("200 OK", scalar)).await, Ok(300.0));
    }

    #[tokio::test]
    async fn whatever_else_comes_is_no_data_and_says_why() {
        let range = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        let wrong = r#"{"status":"error","errorType":"bad_data","error":"parse error: unclosed left brace"}"#;
        for (answer, expected) in [
            (vector(&[]), "no series"),
            (vector(&["NaN"]), "NaN"),
            (vector(&["much"]), "is no figure"),
            (vector(&["1", "2"]), "2 series, where one figure is needed"),
            (http("200 OK", range), "a range, where"),
            (http("400 Bad Request", wrong), "bad_data: parse error: unclosed left brace"),
            (http("503 Service Unavailable", "starting up"), "503 Service Unavailable"),
            (http("302 Found", ""), "302 Found"),
            (http("200 OK", "<html>"), "not Prometheus's answer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned(), "http://127.0.0.1"),
        ] {
            let why = reading(answer).await.expect_err(expected);
            assert!(why.contains(expected), "{why}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_away_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let read = || async { measure(&metric(&server, Bounds::default()), &subject()).await.canary };
        assert!(read().await.expect_err("silence").ends_with("no answer within 500ms"));
        drop(listener);
        assert!(read().await.expect_err("nobody").contains("cannot connect"));
    }

    #[tokio::test]
    async fn both_pools_are_asked_about_where_they_are_compared_and_again_and_again() {
        let server = serve(|request| {
            assert!(
                request
                    .starts_with("GET /prometheus/api/v1/query?query=sum%28rate%28errors%7Bapp%3D%22shop%22")
            );
            assert!(request.contains("%5B60s%5D"), "{request}");
            vector(&[if request.contains("%22v2%22") { "2" } else { "1" }])
        })
        .await;
        let bounds = Bounds { max_ratio: Some(1.5), ..Bounds::default() };
        let mut asking = Asking::begin(&metric(&format!("{server}/prometheus/"), bounds), &subject());
        let expected = Measurement { canary: Ok(2.0), stable: Some(Ok(1.0)) };
        let mut seen = 0;
        while seen < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            for measured in asking.news() {
                assert_eq!(measured, expected);
                seen += 1;
            }
        }
    }
}
