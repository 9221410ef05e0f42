//! What unit tests share.

use proptest::test_runner::Config;

/// So many cases; a handful under Miri, which is slow and has no file system to remember failures in.
pub fn cases(n: u32) -> Config {
    if cfg!(miri) {
        Config { cases: n.min(4), failure_persistence: None, ..Config::default() }
    } else {
        Config::with_cases(n)
    }
}
