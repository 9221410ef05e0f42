//! Passive health: what the kernel sees of real connections takes a backend out.
//!
//! `counts -> population (outliers) | breaker -> compile`, all of it pure: time is an argument. `agent/outlier.rs` drives it.
//!
//! - An **outlier** fares worse than it should or than its peers do: so many failures in a row, too many in an interval, or a
//!   success rate far below the others' ([`Population`]). It is *ejected* for a time that doubles with each relapse.
//! - A **breaker** looks at nobody but its own backend, or its own pool, by a failure ratio that decays: between two marks it
//!   sheds a part of the new connections, above the upper one all of them, and after a while it lets a few try ([`Breaker`]).
//! - **Steering** gives more to those who answer sooner than their peers ([`Steering`]).
//!
//! A failure is a connection that was refused, not answered before its client asked again, or reset before a byte of the
//! backend came back; each connection fails once. In `nat` that is exact. In the `dsr` modes replies go past the balancer, and
//! SYNs that clients repeat are all there is: what is concluded from them is *inferred*, and called so wherever it is shown.

mod breaker;
mod counts;
mod population;
mod steering;

pub use breaker::{Breaker, Gate, Move};
pub use counts::{Counts, Sample};
pub use population::{Detector, Ejection, Finding, Found, Population, Seen};
pub use steering::{NEUTRAL, Steering, Timed};
