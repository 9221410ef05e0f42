use proptest::prelude::*;

use super::*;
use crate::config;

fn rules(keys: &str) -> config::Breaker {
    let text = format!(
        "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
         [service.breaker]\n{keys}\n[[service.pool]]\nname = \"a\"\nbackend = [{{ address = \"10.0.0.1\" }}]\n"
    );
    let loaded = config::parse(&text, "test").unwrap_or_else(|found| panic!("{found}"));
    loaded.config.services[0].breaker.clone().expect("rules")
}

struct Bench {
    rules: config::Breaker,
    breaker: Breaker,
    now: Duration,
}

impl Bench {
    fn new(keys: &str) -> Self {
        Self { rules: rules(keys), breaker: Breaker::default(), now: Duration::from_secs(1000) }
    }

    /// So many that failed, so many that did not, a second later.
    fn after(&mut self, bad: u64, good: u64) -> Gate {
        self.now += Duration::from_secs(1);
        self.breaker.look(&self.rules, self.now, Sample { bad, good });
        self.breaker.gate()
    }
}

#[test]
fn half_of_the_connections_failing_opens_it_and_three_good_ones_close_it_again() {
    let mut bench = Bench::new("");
    assert_eq!(bench.after(0, 100), Gate::Closed);
    assert_eq!(bench.after(1, 3), Gate::Closed);
    let Gate::Open(until) = bench.after(300, 100) else { panic!("{:?}", bench.breaker) };
    assert_eq!(until, bench.now + Duration::from_secs(30));
    for _ in 0..29 {
        assert_eq!(bench.after(5, 0), Gate::Open(until), "what was under way says nothing new");
    }
    assert_eq!(bench.after(0, 0), Gate::HalfOpen(0));
    assert_eq!(bench.after(0, 2), Gate::HalfOpen(2));
    assert_eq!(bench.after(0, 1), Gate::Closed);
    assert_eq!(bench.after(0, 10), Gate::Closed, "the past is past");
}

#[test]
fn a_trial_that_fails_opens_it_again() {
    let mut bench = Bench::new("open = \"2s\"");
    assert!(matches!(bench.after(20, 0), Gate::Open(_)));
    bench.after(0, 0);
    assert_eq!(bench.after(0, 0), Gate::HalfOpen(0));
    assert_eq!(bench.after(0, 2), Gate::HalfOpen(2));
    assert!(matches!(bench.after(1, 5), Gate::Open(_)), "one of them failed");
}

#[test]
fn half_open_it_lets_so_many_through_and_others_when_nothing_is_heard_of_them() {
    let mut bench = Bench::new("open = \"2s\"\ntrials = 5");
    let trials = |bench: &mut Bench| bench.breaker.trials(&bench.rules, bench.now);
    bench.after(20, 0);
    assert_eq!(trials(&mut bench), None, "open");
    bench.after(0, 0);
    assert_eq!(bench.after(0, 0), Gate::HalfOpen(0));
    assert_eq!(trials(&mut bench), Some(5));
    assert_eq!(trials(&mut bench), None, "they are under way");
    assert_eq!(bench.after(0, 3), Gate::HalfOpen(3));
    assert_eq!(trials(&mut bench), None);
    bench.after(0, 0);
    assert_eq!(trials(&mut bench), Some(2), "two were never heard of");
    assert_eq!(bench.after(0, 2), Gate::Closed);
    assert_eq!(trials(&mut bench), None);
}

#[test]
fn between_the_marks_it_sheds_in_proportion() {
    let mut bench = Bench::new("half_life = \"1h\"");
    // 30 %: half way between 10 % and 50 %.
    assert_eq!(bench.after(300, 700), Gate::Shedding(4));
    assert_eq!(bench.after(0, 30), Gate::Shedding(4), "a trembling ratio moves nothing");
    assert_eq!(bench.after(0, 600), Gate::Shedding(6));
    assert_eq!(bench.after(0, 2000), Gate::Closed);
}

#[test]
fn few_connections_prove_nothing_and_old_ones_less_and_less() {
    let mut bench = Bench::new("min_volume = 10\nhalf_life = \"1s\"");
    assert_eq!(bench.after(9, 0), Gate::Closed);
    assert_eq!(bench.after(5, 0), Gate::Closed, "4.5 and 5");
    assert!(matches!(bench.after(6, 0), Gate::Open(_)), "4.75 and 6");
}

proptest! {
    #[test]
    fn it_opens_only_above_the_mark_and_is_open_for_its_time(
        steps in prop::collection::vec((0..50u64, 0..50u64), 1..200), high in 20..90u32, low in 0..20u32,
    ) {
        let mut bench = Bench::new(&format!("high = {high}\nlow = {low}\nopen = \"5s\"\nhalf_life = \"3s\""));
        let (mut bad_ever, mut opened) = (0u64, None);
        for (bad, good) in steps {
            let before = bench.breaker.gate();
            let gate = bench.after(bad, good);
            bad_ever += bad;
            match (before, gate) {
                (Gate::Open(until), Gate::Open(still)) => prop_assert!(still == until && bench.now < until),
                (Gate::Open(_), to) => {
                    prop_assert_eq!(to, Gate::HalfOpen(0));
                    prop_assert_eq!(bench.now - opened.unwrap(), Duration::from_secs(5));
                }
                (from, Gate::Open(_)) => {
                    prop_assert!(bad_ever > 0 && (bad > 0 || matches!(from, Gate::Closed | Gate::Shedding(_))));
                    opened = Some(bench.now);
                }
                (Gate::HalfOpen(_), to) => prop_assert!(matches!(to, Gate::HalfOpen(_) | Gate::Closed)),
                (_, Gate::HalfOpen(_)) => prop_assert!(false, "half open comes after open"),
                (_, Gate::Shedding(eighths)) => prop_assert!((1..8).contains(&eighths)),
                (_, Gate::Closed) => {}
            }
        }
    }

    #[test]
    fn without_failures_it_stays_closed(steps in prop::collection::vec(0..1000u64, 1..100)) {
        let mut bench = Bench::new("");
        for good in steps {
            prop_assert_eq!(bench.after(0, good), Gate::Closed);
        }
    }
}
