//! The clock that the kernel program reads, too.

/// Monotonic nanoseconds, as `bpf_ktime_get_coarse_ns` gives them.
#[must_use]
pub fn nanoseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Now, in the ticks of the tables.
#[must_use]
pub fn ticks() -> u32 {
    lb_common::abi::ticks(nanoseconds())
}

/// A duration in ticks, and at least one.
#[must_use]
pub fn in_ticks(duration: std::time::Duration) -> u32 {
    lb_common::abi::ticks(duration.as_nanos() as u64).max(1)
}

/// Now, as people write it (RFC 3339).
#[must_use]
pub fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}
