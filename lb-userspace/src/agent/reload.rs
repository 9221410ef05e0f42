//! The configuration file, read again while the agent runs.

use std::path::PathBuf;

use tracing::info;

use super::{Agent, Handle, Request};
use crate::api::ApiError;
use crate::config;
use crate::events::Occurrence;
use crate::state::{Author, fingerprint};

impl Handle {
    /// Reads the configuration file again and converges on it, unless it says what it said before: what was applied since
    /// stands then. A file that cannot be used changes nothing; the log says why, and so does the event `config_rejected`.
    ///
    /// # Errors
    ///
    /// If the agent has ended.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let path = self.call(|agent| agent.places.config.clone()).await?;
        match tokio::task::spawn_blocking(move || read(path)).await? {
            Err(why) => self.rejected(why),
            Ok((config, text)) => {
                if let Err(error) = self.call(move |agent| agent.reload(config, &text)).await? {
                    self.rejected(format!("the configuration file was not applied: {error}"));
                }
            }
        }
        Ok(())
    }

    fn rejected(&self, message: String) {
        let message = format!("{message}\nthe configuration that was in force stays");
        self.log.push(Occurrence { code: "config_rejected", severe: true, message, ..Occurrence::default() });
    }
}

fn read(path: PathBuf) -> Result<(config::Config, String), String> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("the configuration file {name} cannot be read: {error}"))?;
    match config::parse(&text, &name) {
        Ok(loaded) => Ok((loaded.config, text)),
        Err(found) => Err(format!("the configuration file {name} has mistakes\n{found}")),
    }
}

impl Agent {
    fn reload(&mut self, config: config::Config, text: &str) -> Result<(), ApiError> {
        let file = fingerprint(text);
        if self.file.as_ref() == Some(&file) {
            info!("the configuration file says what it said before: what was applied since stands");
            // The files that it names may be others by now.
            self.follow_config();
            return Ok(());
        }
        let author = Author { name: "file".to_owned(), pid: None };
        self.apply(config, Some(file), &Request { author, reason: None })
    }
}
