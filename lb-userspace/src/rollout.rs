//! Rollouts: a pool takes over step by step, is watched meanwhile, and goes back by itself if it is bad.
//!
//! `plan` says what is to be done and `engine` what comes next. `analysis` makes a verdict of what the kernel has counted, and
//! `evidence` says how sure that is. `prometheus` asks for what else there is to know, and `metric` judges that.

pub mod analysis;
pub mod engine;
pub mod evidence;
pub mod gate;
pub mod metric;
pub mod plan;
pub mod prometheus;
