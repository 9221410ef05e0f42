//! A real browser without a screen: Debian's Chromium, told what to do by its DevTools protocol over two pipes.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Value, json};

use crate::{Namespace, Process, private_dir};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is one.
#[must_use]
pub fn is_installed() -> bool {
    Path::new("/usr/bin/chromium").exists()
}

/// A browser with one page. It ends with this value.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    orders: File,
    answers: File,
    /// What was read and not yet looked at.
    pending: Vec<u8>,
    last: u64,
    session: String,
}

impl Browser {
    /// Starts it in a namespace, on an empty page.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let home = private_dir("browser")?;
        let [orders, answers] = ["orders", "answers"].map(|name| home.join(name));
        for path in [&orders, &answers] {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let mut command = Command::new("sh");
        // Its descriptors 3 and 4 are the protocol's.
        command.arg("-c").arg("exec chromium \"$@\" 3<\"$ORDERS\" 4>\"$ANSWERS\"").arg("sh").args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--remote-debugging-pipe",
        ]);
        command
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .env("HOME", &home)
            .env("ORDERS", &orders)
            .env("ANSWERS", &answers);
        let process = namespace.spawn(command)?;
        // In the order in which the shell opens them: each waits for its other end.
        let mut browser = Self {
            process,
            orders: OpenOptions::new().write(true).open(orders)?,
            answers: File::open(answers)?,
            pending: Vec::new(),
            last: 0,
            session: String::new(),
        };
        let target = browser.order("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.order("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"].as_str().context("no session")?.to_owned();
        browser.order("Page.enable", json!({}))?;
        Ok(browser)
    }

    /// As on a screen of that size.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn resize(&mut self, width: u32, height: u32, phone: bool) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone });
        self.order("Emulation.setDeviceMetricsOverride", size).map(drop)
    }

    /// As for somebody who prefers that, such as `prefers-color-scheme` `dark`.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn prefer(&mut self, feature: &str, value: &str) -> Result<()> {
        let features = json!({ "features": [{ "name": feature, "value": value }] });
        self.order("Emulation.setEmulatedMedia", features).map(drop)
    }

    /// Goes to that page.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn go(&mut self, url: &str) -> Result<()> {
        let went = self.order("Page.navigate", json!({ "url": url }))?;
        ensure!(went["errorText"].is_null(), "{url}: {}", went["errorText"]);
        Ok(())
    }

    /// What a script comes to.
    ///
    /// # Errors
    /// If it throws.
    pub fn evaluate(&mut self, script: &str) -> Result<Value> {
        let asked = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let answer = self.order("Runtime.evaluate", asked)?;
        ensure!(answer["exceptionDetails"].is_null(), "{script}: {:#}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until a script comes to `true`.
    ///
    /// # Errors
    /// If it does not within `patience`; with the page's text.
    pub fn wait_for(&mut self, script: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.evaluate(script)? != true {
            if Instant::now() >= deadline {
                let text = self.evaluate("document.body.innerText")?;
                bail!("not so after {patience:?}: {script}\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Presses a key.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn press(&mut self, key: &str) -> Result<()> {
        for kind in ["keyDown", "keyUp"] {
            let code = if key == "Tab" { 9 } else { 13 };
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            self.order("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// The whole page as a picture (PNG).
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn picture(&mut self, path: &Path) -> Result<()> {
        let picture = self.order("Page.captureScreenshot", json!({ "captureBeyondViewport": true }))?;
        let text = picture["data"].as_str().context("no picture")?;
        Ok(std::fs::write(path, from_base64(text)?)?)
    }

    fn order(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let mut order = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_empty() {
            order["sessionId"] = self.session.clone().into();
        }
        let mut text = order.to_string().into_bytes();
        text.push(0);
        self.orders.write_all(&text)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.next(deadline).with_context(|| format!("{method}\n{}", self.process.log()))?;
            // Others are events.
            if answer["id"] == self.last {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].clone());
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == 0) {
                let message: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(serde_json::from_slice(&message[..end])?);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waiting = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut waiting, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
            ensure!(ready > 0, "the browser does not answer");
            let mut chunk = [0; 65_536];
            let read = self.answers.read(&mut chunk)?;
            ensure!(read > 0, "the browser has ended");
            self.pending.extend_from_slice(&chunk[..read]);
        }
    }
}

/// RFC 4648, section 4.
fn from_base64(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| {
        Ok(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{byte} is no digit"),
        })
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0u32;
        for (i, &byte) in group.iter().enumerate() {
            bits |= u32::from(digit(byte)?) << (18 - 6 * i);
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_rfc_4648_writes_it() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(from_base64(text).unwrap(), bytes.as_bytes());
        }
        assert!(from_base64("Z?==").is_err());
    }
}
