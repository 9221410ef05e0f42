use proptest::prelude::*;

use super::*;
use crate::config;

/// Rules as they would be configured.
fn rules(keys: &str) -> Outlier {
    let text = format!(
        "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
         [service.outlier]\n{keys}\n[[service.pool]]\nname = \"a\"\nbackend = [{{ address = \"10.0.0.1\" }}]\n"
    );
    let loaded = config::parse(&text, "test").unwrap_or_else(|found| panic!("{found}"));
    loaded.config.services[0].outlier.clone().expect("rules")
}

fn at(n: usize) -> SocketAddr {
    ([10, 0, (n >> 8) as u8, n as u8], 80).into()
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A pool and its clock.
struct Bench {
    rules: Outlier,
    population: Population,
    pool: Vec<Seen>,
    now: Duration,
}

impl Bench {
    fn new(keys: &str, backends: usize) -> Self {
        let counts = Counts { both_ways: true, ..Counts::default() };
        let pool = (0..backends).map(|n| Seen { address: at(n), serves: true, counts }).collect();
        let mut bench =
            Self { rules: rules(keys), population: Population::default(), pool, now: seconds(1000) };
        assert_eq!(bench.look(), []);
        bench
    }

    fn look(&mut self) -> Vec<(SocketAddr, Finding)> {
        self.population.look(&self.rules, self.now, &self.pool, || 99)
    }

    fn pass(&mut self, time: Duration) -> Vec<(SocketAddr, Finding)> {
        self.now += time;
        self.look()
    }

    /// Connections of a backend that end well.
    fn good(&mut self, n: usize, count: u64) {
        let counts = &mut self.pool[n].counts;
        counts.tried += count;
        counts.answered += count;
        counts.in_a_row = 0;
    }

    /// Connections of a backend that are refused.
    fn bad(&mut self, n: usize, count: u64) {
        let counts = &mut self.pool[n].counts;
        counts.tried += count;
        counts.refused += count;
        counts.in_a_row += count;
    }

    fn ejected(&self) -> Vec<usize> {
        let out = |seen: &Seen| self.population.ejection(seen.address).is_some();
        (0..self.pool.len()).filter(|&n| out(&self.pool[n])).collect()
    }
}

fn detectors(findings: &[(SocketAddr, Finding)]) -> Vec<(SocketAddr, Detector)> {
    let ejected = |(address, finding): &(SocketAddr, Finding)| match finding {
        Finding::Ejected(found, _) => Some((*address, found.detector)),
        _ => None,
    };
    findings.iter().filter_map(ejected).collect()
}

#[test]
fn failures_in_a_row_eject_at_once_and_a_success_ends_the_row() {
    let mut bench = Bench::new("consecutive_failures = 5", 4);
    bench.bad(0, 4);
    assert_eq!(bench.pass(Duration::from_millis(200)), []);
    bench.good(0, 1);
    bench.bad(0, 4);
    assert_eq!(bench.look(), []);
    bench.bad(0, 1);
    assert_eq!(detectors(&bench.look()), [(at(0), Detector::Consecutive)]);
    assert_eq!(bench.ejected(), [0]);
}

#[test]
fn a_ratio_is_judged_once_an_interval_and_only_of_enough_connections() {
    let mut bench = Bench::new("consecutive_failures = 0\nfailure_percent = 30\nmin_volume = 20", 4);
    bench.bad(0, 6);
    bench.good(0, 13);
    assert_eq!(bench.pass(seconds(9)), [], "the interval is not over");
    assert_eq!(bench.pass(seconds(1)), [], "19 connections");
    bench.bad(0, 6);
    bench.good(0, 14);
    assert_eq!(detectors(&bench.pass(seconds(10))), [(at(0), Detector::FailureRatio)]);
    bench.bad(1, 5);
    bench.good(1, 15);
    assert_eq!(bench.pass(seconds(10)), [], "a quarter");
}

#[test]
fn who_is_far_below_his_peers_is_an_outlier_and_who_is_as_bad_as_all_is_none() {
    let keys = "consecutive_failures = 0\nfailure_percent = 0\nmin_volume = 100\nmin_backends = 5";
    let mut bench = Bench::new(keys, 6);
    for n in 0..6 {
        bench.good(n, 800);
        bench.bad(n, 200);
    }
    assert_eq!(bench.pass(seconds(10)), []);
    for n in 0..6 {
        let bad = if n == 3 { 300 } else { 10 };
        bench.good(n, 1000 - bad);
        bench.bad(n, bad);
    }
    // The mean is 0.942, the deviation 0.108.
    assert_eq!(detectors(&bench.pass(seconds(10))), [(at(3), Detector::SuccessRate)]);

    let mut few = Bench::new(keys, 4);
    for n in 0..4 {
        few.good(n, 500);
        few.bad(n, if n == 0 { 500 } else { 0 });
    }
    assert_eq!(few.pass(seconds(10)), [], "four backends are too few to compare");
}

#[test]
fn each_relapse_doubles_the_time_and_good_behaviour_takes_it_back() {
    let mut bench =
        Bench::new("consecutive_failures = 1\nbase_ejection = \"30s\"\nmax_ejection = \"100s\"", 4);
    for expected in [30, 60, 100, 100] {
        bench.bad(0, 1);
        let found = bench.pass(Duration::from_millis(200));
        let [(_, Finding::Ejected(_, ejection))] = found[..] else { panic!("{found:?}") };
        assert_eq!(ejection.until, bench.now + seconds(expected));
        assert_eq!(bench.pass(seconds(expected - 1)), []);
        assert_eq!(
            bench.pass(seconds(1)),
            [(at(0), Finding::Returned)],
            "what it was ejected for is paid for"
        );
    }
    for _ in 0..4 {
        assert_eq!(bench.pass(seconds(30)), []);
    }
    bench.bad(0, 1);
    let found = bench.look();
    let [(_, Finding::Ejected(_, ejection))] = found[..] else { panic!("{found:?}") };
    assert_eq!((ejection.until, ejection.times), (bench.now + seconds(30), 1));
}

#[test]
fn the_limit_is_checked_before_one_more_is_ejected_and_the_worst_go_first() {
    let keys = "consecutive_failures = 0\nfailure_percent = 10\nmin_volume = 10\nmax_ejected_percent = 50";
    let mut bench = Bench::new(keys, 5);
    for (n, bad) in [(0, 20), (1, 60), (2, 40), (3, 80)] {
        bench.bad(n, bad);
        bench.good(n, 100 - bad);
    }
    let found = bench.pass(seconds(10));
    assert_eq!(detectors(&found).iter().map(|(address, _)| *address).collect::<Vec<_>>(), [at(3), at(1)]);
    assert_eq!(bench.ejected(), [1, 3], "two of five; three would be 60 %");
    let withheld = found.iter().filter(|(_, finding)| matches!(finding, Finding::Withheld(_)));
    assert_eq!(withheld.map(|(address, _)| *address).collect::<Vec<_>>(), [at(2), at(0)]);

    let mut alone = Bench::new("consecutive_failures = 1\nmax_ejected_percent = 99", 1);
    alone.bad(0, 10);
    assert!(matches!(alone.look()[..], [(_, Finding::Withheld(_))]), "the only backend stays");
}

#[test]
fn a_dry_run_talks_and_ejects_nobody() {
    let mut bench = Bench::new("consecutive_failures = 2\nenforce = 0", 4);
    bench.bad(0, 2);
    assert!(matches!(bench.look()[..], [(address, Finding::Spared(_))] if address == at(0)));
    bench.bad(0, 2);
    assert_eq!(bench.pass(seconds(29)), [], "not again and again");
    assert!(matches!(bench.pass(seconds(1))[..], [(_, Finding::Spared(_))]));
    assert!(bench.ejected().is_empty());
}

#[test]
fn an_ejection_of_an_earlier_agent_goes_on_and_counts() {
    let mut bench = Bench::new("consecutive_failures = 1\nmax_ejected_percent = 50", 2);
    bench.population = Population::default();
    bench.population.adopt(at(0), Ejection { until: bench.now + seconds(20), times: 3 });
    bench.bad(1, 1);
    assert_eq!(bench.look(), [], "the first look finds rows, and judges none that began before it");
    bench.bad(1, 1);
    assert!(matches!(bench.look()[..], [(_, Finding::Withheld(_))]), "one of two is out already");
    bench.good(1, 1);
    assert_eq!(bench.pass(seconds(20)), [(at(0), Finding::Returned)]);
    bench.bad(0, 1);
    let found = bench.pass(Duration::from_millis(1));
    let [(_, Finding::Ejected(_, ejection))] = found[..] else { panic!("{found:?}") };
    assert_eq!(ejection.times, 4);
}

#[test]
fn who_is_gone_is_forgotten() {
    let mut bench = Bench::new("consecutive_failures = 1", 4);
    bench.bad(0, 1);
    assert_eq!(detectors(&bench.look()).len(), 1);
    let gone = bench.pool.remove(0);
    bench.look();
    bench.pool.insert(0, gone);
    assert_eq!(bench.look(), []);
    assert!(bench.ejected().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Good(usize, u64),
    Bad(usize, u64),
    Serve(usize, bool),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12usize, 1..200u64).prop_map(|(n, count)| Step::Good(n, count)),
        (0..12usize, 1..200u64).prop_map(|(n, count)| Step::Bad(n, count)),
        (0..12usize, any::<bool>()).prop_map(|(n, serves)| Step::Serve(n, serves)),
        (1..30_000u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_no_more_are_ejected_than_may_be_and_all_come_back(
        backends in 1..12usize, percent in 0..=100u8, steps in prop::collection::vec(step(), 1..120),
    ) {
        let keys = format!(
            "consecutive_failures = 3\nmin_volume = 10\nmin_backends = 3\nmax_ejected_percent = {percent}\nmax_ejection = \"60s\""
        );
        let mut bench = Bench::new(&keys, backends);
        let mut since: HashMap<SocketAddr, Duration> = HashMap::new();
        for step in steps {
            let found = match step {
                Step::Good(n, count) => { bench.good(n % backends, count); bench.look() }
                Step::Bad(n, count) => { bench.bad(n % backends, count); bench.look() }
                // Whoever is ejected does not serve, and is none the less there.
                Step::Serve(n, serves) => { bench.pool[n % backends].serves = serves; continue }
                Step::Pass(millis) => bench.pass(Duration::from_millis(millis)),
            };
            for (address, finding) in found {
                match finding {
                    Finding::Ejected(_, ejection) => {
                        let seen = bench.pool.iter().find(|seen| seen.address == address).unwrap();
                        prop_assert!(seen.serves, "who serves nobody cannot be ejected");
                        prop_assert!(since.insert(address, bench.now).is_none(), "ejected twice");
                        prop_assert!(ejection.until <= bench.now + seconds(60));
                        let ejected = bench.ejected();
                        let all = (0..backends).filter(|n| bench.pool[*n].serves || ejected.contains(n)).count();
                        prop_assert!(ejected.len() * 100 <= all * usize::from(percent), "{ejected:?} of {all}");
                    }
                    Finding::Returned => { since.remove(&address); }
                    Finding::Spared(_) => prop_assert!(false, "nobody is spared"),
                    Finding::Withheld(_) => {}
                }
            }
            for begun in since.values() {
                prop_assert!(bench.now - *begun <= seconds(60), "kept out for too long");
            }
        }
        bench.pass(seconds(60));
        prop_assert!(bench.ejected().len() <= backends);
        bench.pool.iter_mut().for_each(|seen| seen.counts.in_a_row = 0);
        bench.pass(seconds(60));
        prop_assert_eq!(bench.ejected(), Vec::<usize>::new());
    }

    #[test]
    fn who_never_fails_is_never_ejected(steps in prop::collection::vec((0..6usize, 1..200u64, 1..20_000u64), 1..60)) {
        let mut bench = Bench::new("min_volume = 1\nmin_backends = 2\nmax_ejected_percent = 100\ndeviations = 0.1", 6);
        for (n, count, millis) in steps {
            bench.good(n, count);
            if n > 0 {
                bench.bad(n, count / 2);
            }
            for (address, finding) in bench.pass(Duration::from_millis(millis)) {
                prop_assert!(address != at(0), "{finding:?}");
            }
        }
    }
}
