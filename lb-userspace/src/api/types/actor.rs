//! Who did it.

use std::fmt;
use std::fs;

/// A process on the socket, as the kernel names it (`SO_PEERCRED`, unix(7)): its credentials when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process; absent if it lives in a process namespace that the agent does not see into.
    pub pid: Option<i32>,
}

impl Actor {
    /// The user's name, `uid 1000` where passwd(5) has none. Reads a file: not for the way to a rollback's store.
    pub fn name(&self) -> String {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        user(&passwd, self.uid).map_or_else(|| format!("uid {}", self.uid), str::to_owned)
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "uid {}, pid {pid}", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// Of several names of one number, the first is the one that the system shows.
fn user(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let passwd = "broken\nroot:x:0:0::/root:/bin/sh\ntoor:x:0:0:::\n";
        assert_eq!(user(passwd, 0), Some("root"));
        assert_eq!(user(passwd, 1_000), None);
    }
}
