//! Frames that go far, made from any bytes. `cargo fuzz run rewrite` from the repository's root; a crash becomes a named case in
//! `host::fuzz`.
#![no_main]

use lb_common::host::{Tables, fuzz};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TABLES: Tables = fuzz::tables();
}

fuzz_target!(|data: &[u8]| TABLES.with(|tables| {
    fuzz::rewrite(tables, data);
}));
