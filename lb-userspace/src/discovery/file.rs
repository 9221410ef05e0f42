//! Backends as a file lists them. The directory is watched rather than the file: an atomic rename puts another file in its
//! place, and a ConfigMap of Kubernetes another directory behind a symbolic link.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::sleep;

use super::MAX_LIST;
use crate::config::{Backend, read_backends};

/// Where it cannot be watched, it is looked at so often.
const PAUSE: Duration = Duration::from_secs(5);
/// Room for a crowd of events; more wait in the kernel.
const ROOM: usize = 4096;

pub(super) struct File {
    path: PathBuf,
    port: u16,
    watch: Option<EventStream<Vec<u8>>>,
}

impl File {
    pub const fn new(path: PathBuf, port: u16) -> Self {
        Self { path, port, watch: None }
    }

    pub async fn ask(&mut self) -> Result<Vec<Backend>, String> {
        // First watched, then read: nothing changes unseen in between.
        self.watch = watch(&self.path)
            .inspect_err(|error| tracing::debug!(path = %self.path.display(), "cannot be watched: {error}"))
            .ok();
        let (path, port) = (self.path.clone(), self.port);
        let read = tokio::task::spawn_blocking(move || read(&path, port)).await;
        read.unwrap_or_else(|error| Err(format!("{} was not read: {error}", self.path.display())))
    }

    pub async fn until_news(&mut self) {
        match &mut self.watch {
            None => sleep(PAUSE).await,
            Some(watch) => {
                if !matches!(watch.next().await, Some(Ok(_))) {
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Watches what may put another file there: the directory of the path, and the one that its links lead to.
fn watch(path: &Path) -> std::io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    let target = path.canonicalize().ok();
    for directory in [Some(path), target.as_deref()].into_iter().flatten().filter_map(Path::parent) {
        inotify.watches().add(directory, mask)?;
    }
    inotify.into_event_stream(vec![0; ROOM])
}

fn read(path: &Path, port: u16) -> Result<Vec<Backend>, String> {
    let name = path.display().to_string();
    let failed = |error| format!("{name} cannot be read: {error}");
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_LIST as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() > MAX_LIST {
        return Err(format!("{name} has more than {MAX_LIST} bytes"));
    }
    read_backends(&text, &name, port)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    async fn addresses(file: &mut File) -> Result<Vec<String>, String> {
        let backends = timeout(Duration::from_secs(10), file.ask()).await.expect("in time")?;
        Ok(backends.iter().map(|backend| backend.address.to_string()).collect())
    }

    async fn news(file: &mut File) {
        timeout(Duration::from_secs(3), file.until_news()).await.expect("the change is seen");
    }

    #[tokio::test]
    async fn another_directory_behind_a_link_is_seen() {
        let home = tempfile::tempdir().expect("a directory");
        let list = |address: &str| format!("{{\"backends\": [{{\"address\": \"{address}\"}}]}}");
        for (version, address) in [("v1", "10.0.0.1"), ("v2", "10.0.0.2")] {
            fs::create_dir(home.path().join(version)).expect("made");
            fs::write(home.path().join(version).join("list.json"), list(address)).expect("written");
        }
        symlink("v1", home.path().join("data")).expect("linked");
        symlink("data/list.json", home.path().join("list.json")).expect("linked");
        let mut file = File::new(home.path().join("list.json"), 80);
        assert_eq!(addresses(&mut file).await, Ok(vec!["10.0.0.1:80".to_owned()]));

        symlink("v2", home.path().join("next")).expect("linked");
        fs::rename(home.path().join("next"), home.path().join("data")).expect("renamed");
        news(&mut file).await;
        assert_eq!(addresses(&mut file).await, Ok(vec!["10.0.0.2:80".to_owned()]));

        fs::write(home.path().join("v2/list.json"), list("10.0.0.3")).expect("written");
        news(&mut file).await;
        assert_eq!(addresses(&mut file).await, Ok(vec!["10.0.0.3:80".to_owned()]));
    }

    #[tokio::test]
    async fn a_file_that_goes_or_is_too_large_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("list.toml");
        fs::write(&path, "backends = []").expect("written");
        let mut file = File::new(path.clone(), 80);
        assert_eq!(addresses(&mut file).await, Ok(vec![]));
        fs::remove_file(&path).expect("removed");
        news(&mut file).await;
        let told = addresses(&mut file).await.expect_err("it is gone");
        assert!(told.contains("list.toml cannot be read: No such file"), "{told}");
        fs::write(&path, " ".repeat(MAX_LIST + 1)).expect("written");
        news(&mut file).await;
        let told = addresses(&mut file).await.expect_err("too large");
        assert!(told.ends_with("has more than 8388608 bytes"), "{told}");
    }
}
