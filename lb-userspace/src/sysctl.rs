//! Settings of the host's network that an agent changes, remembered until the data path is taken off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The interfaces whose setting was changed, one a line; all of them were 0 before.
const FILE: &str = "sysctl";

/// Has the host take packets of an interface whose source is one of its own addresses. Returns the setting's name if it was
/// not set before.
///
/// # Errors
///
/// If it cannot be remembered, or not be set.
pub fn accept_local(state_dir: &Path, interface: &str) -> io::Result<Option<String>> {
    let path = path(interface);
    if fs::read_to_string(&path)?.trim() == "1" {
        return Ok(None);
    }
    // Before it is set: whoever dies in between leaves nothing that nobody knows of.
    let mut changed = changed(state_dir)?;
    if !changed.iter().any(|known| known == interface) {
        changed.push(interface.to_owned());
        fs::write(state_dir.join(FILE), changed.join("\n") + "\n")?;
    }
    fs::write(&path, "1")?;
    Ok(Some(name(interface)))
}

/// Sets everything back. Returns the names of what was.
///
/// # Errors
///
/// If something cannot be set back, or forgotten.
pub fn restore(state_dir: &Path) -> io::Result<Vec<String>> {
    let changed = changed(state_dir)?;
    let mut restored = Vec::new();
    for interface in &changed {
        match fs::write(path(interface), "0") {
            Ok(()) => restored.push(name(interface)),
            // The interface is gone, and its settings with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !changed.is_empty() {
        fs::remove_file(state_dir.join(FILE))?;
    }
    Ok(restored)
}

/// The interfaces of [`FILE`].
fn changed(state_dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_to_string(state_dir.join(FILE)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The setting, as `sysctl` names it.
fn name(interface: &str) -> String {
    format!("net.ipv4.conf.{interface}.accept_local")
}

fn path(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("accept_local")
}
