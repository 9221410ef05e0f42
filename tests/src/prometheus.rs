//! A real Prometheus, which scrapes an agent beside it, and is asked for what it has found.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{Namespace, Process, private_dir};

/// Where it listens: the place that rollouts ask unless told otherwise.
const PORT: u16 = 9090;

/// The process; dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    namespace: Namespace,
    process: Process,
}

impl Prometheus {
    /// Starts it in the agent's namespace, and waits until it answers. It scrapes `target` five times a second.
    ///
    /// # Errors
    /// If it is not installed, or does not come up.
    pub fn start(namespace: &Namespace, target: &str) -> Result<Self> {
        Self::start_with(namespace, target, None)
    }

    /// The same, with the rules in this file.
    ///
    /// # Errors
    /// As [`Prometheus::start`].
    pub fn start_with(namespace: &Namespace, target: &str, rules: Option<&Path>) -> Result<Self> {
        let rules = rules.map(|path| format!("rule_files: [{path:?}]\n")).unwrap_or_default();
        let home = private_dir("prometheus")?;
        let config = home.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s}}\n\
                 {rules}scrape_configs: [{{job_name: lb, static_configs: [{{targets: ['{target}']}}]}}]\n"
            ),
        )?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let mut prometheus = Self { namespace: namespace.clone(), process: namespace.spawn(command)? };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !namespace.run(|| TcpStream::connect(("127.0.0.1", PORT)).is_ok()) {
            if let Some(end) = prometheus.process.finished()? {
                bail!("prometheus ended: {end:?}\n{}", prometheus.process.log());
            }
            ensure!(Instant::now() < deadline, "prometheus is not there:\n{}", prometheus.process.log());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(prometheus)
    }

    /// Kills it as a crash would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// The result of an instant query: a vector's elements.
    ///
    /// # Errors
    /// If it is no query.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let answer = self.get("query", &[("query", query)])?;
        let result = &answer["data"]["result"];
        Ok(result.as_array().with_context(|| format!("{query} gives no vector: {answer:#}"))?.clone())
    }

    /// Every rule as Prometheus sees it, alerts and records alike.
    ///
    /// # Errors
    /// If it does not say.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let answer = self.get("rules", &[])?;
        let groups = answer["data"]["groups"].as_array().context("no groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }

    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--get"]);
        for (name, value) in parameters {
            curl.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        curl.arg(format!("http://127.0.0.1:{PORT}/api/v1/{path}"));
        let output = self.namespace.output(curl)?;
        ensure!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(answer["status"] == "success", "{parameters:?}: {answer:#}");
        Ok(answer)
    }
}
