//! A real Prometheus, which scrapes an agent beside it.

use std::{
    fs,
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{Namespace, Process, private_dir};

/// Where it listens: the place that rollouts ask unless told otherwise.
const PORT: u16 = 9090;

/// The process; dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
}

impl Prometheus {
    /// Starts it in the agent's namespace, and waits until it answers. It scrapes `target` five times a second.
    ///
    /// # Errors
    /// If it is not installed, or does not come up.
    pub fn start(namespace: &Namespace, target: &str) -> Result<Self> {
        let home = private_dir("prometheus")?;
        let config = home.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
                 scrape_configs: [{{job_name: lb, static_configs: [{{targets: ['{target}']}}]}}]\n"
            ),
        )?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let mut prometheus = Self { process: namespace.spawn(command)? };
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
}
