//! The whole, with real servers and real connections.

mod churn;
mod discovery;
mod dns;
mod full_nat;
mod health;
mod interfaces;
mod lifecycle;
mod modes;
mod observe;
mod operator;
mod page;
mod passive;
mod paths;
mod policy;
mod protection;
mod quic;
mod refusals;
mod revisions;
mod rollout;
mod split;
mod survival;
mod trace;
mod vip_probes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let claims = [
        modes::claims(),
        interfaces::claims(),
        paths::claims(),
        split::claims(),
        survival::claims(),
        full_nat::claims(),
        dns::claims(),
        quic::claims(),
        churn::claims(),
        trace::claims(),
        health::claims(),
        vip_probes::claims(),
        lifecycle::claims(),
        discovery::claims(),
        observe::claims(),
        operator::claims(),
        page::claims(),
        passive::claims(),
        policy::claims(),
        protection::claims(),
        refusals::claims(),
        revisions::claims(),
        rollout::claims(),
    ];
    lb_tests::run(claims.into_iter().flatten().collect())
}
