//! What this is: version, commit, layout of the pinned maps, and the oldest kernel that it runs on.

use std::sync::LazyLock;

use lb_common::abi::LAYOUT;

use crate::dataplane::OLDEST_KERNEL;

/// The commit that it was built from; `LB_COMMIT` at build time says it where there is no repository.
pub const COMMIT: &str = env!("LB_COMMIT");

/// As `--version` prints it behind the program's name.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let (major, minor) = OLDEST_KERNEL;
        format!(
            "{} (commit {COMMIT}, layout {LAYOUT}, Linux {major}.{minor} or newer)",
            env!("CARGO_PKG_VERSION")
        )
    });
    &TEXT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_has_what_a_bug_report_needs() {
        let text = text();
        for part in [env!("CARGO_PKG_VERSION"), COMMIT, &format!("layout {LAYOUT}"), "Linux 6.1 or newer"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!COMMIT.is_empty());
    }
}
