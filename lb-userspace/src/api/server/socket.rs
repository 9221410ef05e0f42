//! The admin socket's file.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;

/// Its members may use the socket.
const GROUP: &str = "lb";

/// Why the admin socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "another agent serves {}; stop it first, or give this one a socket of its own (--socket or LB_SOCKET, --read-only-socket or \
         LB_READ_SOCKET)",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is there and is not a socket; move it away, or choose another place (--socket or LB_SOCKET)", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {doing} {} for the admin socket: {source}", path.display())]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket file that is ours. It is removed when this goes, unless somebody else's took its place.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    identity: (u64, u64),
    _lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Whoever finds it there finds that nobody answers.
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Who may use a socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    /// Its owner, and the group `lb` if the host has one. Its owner alone, if that one may not give it to the group.
    Admin,
    /// Whoever these permission bits let.
    Mode(u32),
}

pub(super) fn bind(path: &Path, access: Access) -> Result<(UnixListener, Held), BindError> {
    let refused = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| BindError::Refused { doing, path, source }
    };
    if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(refused("make the directory", directory))?;
    }
    let lock = lock(path)?;
    ensure_stale(path)?;

    // Made under another name and moved once it is ready: who finds it finds an agent that answers, with the rights that
    // it should have, and a stale one is replaced without a moment in which there is none.
    let fresh = sibling(path, &format!(".{}", std::process::id()));
    _ = fs::remove_file(&fresh);
    let listener = StdListener::bind(&fresh).map_err(refused("bind", &fresh))?;
    let ready = make_ready(&listener, &fresh, path, access);
    if ready.is_err() {
        _ = fs::remove_file(&fresh);
    }
    ready.map_err(refused("set up", path))?;
    let identity = identity(path).map_err(refused("look at", path))?;
    let listener = UnixListener::from_std(listener).map_err(refused("listen on", path))?;
    Ok((listener, Held { path: path.to_owned(), identity, _lock: lock }))
}

fn make_ready(listener: &StdListener, fresh: &Path, path: &Path, access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Mode(mode) => mode,
        Access::Admin => {
            let group = group_id(&fs::read_to_string("/etc/group").unwrap_or_default(), GROUP);
            admin_mode(group.map_or(Ok(()), |group| chown(fresh, None, Some(group))))?
        }
    };
    fs::set_permissions(fresh, Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    fs::rename(fresh, path)
}

/// The permission bits for administrators, by what came of giving the socket to their group. Only root and the group's members may:
/// somebody else who runs an agent, as tests do, is the only one who may use it.
fn admin_mode(given: io::Result<()>) -> io::Result<u32> {
    match given {
        Ok(()) => Ok(0o660),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(0o600),
        Err(error) => Err(error),
    }
}

/// Of two agents that start at once, both would find a socket stale. The lock goes with its holder, however that ends;
/// not at the same moment, though: a child that was just forked holds it until it has become another program.
fn lock(path: &Path) -> Result<File, BindError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let lock = sibling(path, ".lock");
    let refused = |source| BindError::Refused { doing: "lock", path: lock.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&lock).map_err(refused)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(refused(source)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                ensure_stale(path)?;
                thread::sleep(PATIENCE / 100);
            }
            Err(TryLockError::WouldBlock) => return Err(BindError::InUse { path: path.to_owned() }),
        }
    }
}

fn ensure_stale(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Refused { doing: "look at", path: path.to_owned(), source });
        }
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BindError::Refused { doing: "probe", path: path.to_owned(), source }),
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

/// The same path with something at its end.
fn sibling(path: &Path, end: &str) -> PathBuf {
    let mut sibling = path.as_os_str().to_owned();
    sibling.push(end);
    sibling.into()
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// The number of a group, from the text of group(5).
fn group_id(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_the_group_cannot_have_is_its_owners_alone() {
        assert_eq!(admin_mode(Ok(())).unwrap(), 0o660);
        assert_eq!(admin_mode(Err(io::ErrorKind::PermissionDenied.into())).unwrap(), 0o600);
        assert!(admin_mode(Err(io::ErrorKind::ReadOnlyFilesystem.into())).is_err());
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nlbx:x:7:\nlb:x:977:alice,bob\n";
        assert_eq!(group_id(text, "lb"), Some(977));
        assert_eq!(group_id(text, "alice"), None);
        assert_eq!(group_id("lb:x", "lb"), None);
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_agent_is_replaced_and_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/lbd.sock");
        let (listener, held) = bind(&path, Access::Admin).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
        assert!(matches!(bind(&path, Access::Admin), Err(BindError::InUse { .. })));
        drop(held);
        assert!(!path.exists());
        drop(listener);

        // Killed: nothing took the file away, and nobody listens.
        drop(StdListener::bind(&path).unwrap());
        let (_listener, _held) = bind(&path, Access::Admin).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_is_about_to_go_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lbd.sock");
        let held = lock(&path).unwrap();
        let release = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        bind(&path, Access::Admin).unwrap();
        release.join().unwrap();
        let _held = lock(&path).unwrap();
        assert!(matches!(bind(&path, Access::Admin), Err(BindError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_living_server_without_the_lock_is_seen_by_connecting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lbd.sock");
        let _other = StdListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, Access::Admin), Err(BindError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lbd.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, Access::Admin), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_is_named() {
        let error = bind(Path::new("/dev/null/lbd.sock"), Access::Admin).unwrap_err().to_string();
        assert!(error.starts_with("cannot make the directory /dev/null for the admin socket: "), "{error}");
    }
}
