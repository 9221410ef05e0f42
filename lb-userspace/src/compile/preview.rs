//! The preview of a rollout: a service of its own, whose one pool is the new one.
//!
//! It has its own address, index, table and backend ids, so that nothing of it meets the flows of the service itself. In `nat` a
//! backend's address says which VIP its replies get, and that is the service's; so a preview is always of mode `full-nat`,
//! whatever the service is: replies come back to the balancer itself, and tell by their port whose they are.

use crate::config::{Mode, Percent, Service};
use crate::state::Intent;

/// What a service's preview is now, as a service, and what holds of it; `None`: there is none.
///
/// It keeps the service's name: health, weights and states of its backends are the same.
#[must_use]
pub fn preview(service: &Service, intent: &Intent) -> Option<(Service, Intent)> {
    let rollout = intent.under_way()?;
    let at = rollout.plan.preview?;
    let pool = service.pools.iter().find(|pool| pool.name == rollout.to)?;
    let preview = Service {
        vip: at.ip(),
        port: at.port(),
        mode: Mode::FullNat,
        gue_port: None,
        // It is the service's to say, and only in this mode that it can.
        toa: service.toa && service.mode == Mode::FullNat,
        // Whoever looks at a preview wants to see what is wrong with it.
        panic_threshold: Percent::NEVER,
        spill_to_canary: false,
        slow_start: None,
        outlier: None,
        breaker: None,
        retry: None,
        limits: None,
        steering: None,
        rollout: None,
        pools: vec![pool.clone()],
        ..service.clone()
    };
    let intent = Intent {
        stable: rollout.to.clone(),
        canary: None,
        split: 0.0,
        salt: 0,
        rollout: None,
        backends: intent.backends.clone(),
    };
    Some((preview, intent))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::{self, Rollout};
    use crate::rollout::engine::{self, Order};

    #[test]
    fn a_preview_is_there_while_its_rollout_is_under_way() {
        let text = concat!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n",
            "[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 443\n",
            "[[service.pool]]\nname = \"v1\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\n",
            "[[service.pool]]\nname = \"v2\"\n[[service.pool.backend]]\naddress = \"10.0.0.2:80\"\n",
        );
        let service = config::parse(text, "lb.toml").expect("a configuration").config.services.remove(0);
        let mut intent = Intent::of(&service).expect("it has pools");
        assert!(preview(&service, &intent).is_none(), "there is no rollout");
        let configured = Rollout {
            preview: Some("203.0.113.77:8443".parse().expect("an endpoint")),
            ..Rollout::default()
        };
        let to = service.pools[1].name.clone();
        let rollout = engine::Rollout::begin(to.clone(), configured.plan(None, None), Timestamp::UNIX_EPOCH);
        intent.rollout = Some(rollout.clone());
        let (previewed, held) = preview(&service, &intent).expect("a preview");
        assert_eq!((previewed.vip.to_string(), previewed.port), ("203.0.113.77".to_owned(), 8443));
        assert_eq!(previewed.pools, [service.pools[1].clone()]);
        assert_eq!((held.stable, held.canary, previewed.mode), (to, None, Mode::FullNat));
        assert_eq!(previewed.name, service.name, "whose health counts");

        let aborted = engine::obey(&rollout, Order::Abort, Timestamp::UNIX_EPOCH).expect("it is under way");
        intent.rollout = Some(aborted);
        assert!(preview(&service, &intent).is_none(), "it is over");
    }
}
