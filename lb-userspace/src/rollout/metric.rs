//! A figure of Prometheus against its bounds: pure, like everything that decides.
//!
//! A measurement is one of four things, and none of them is taken for another: *good*, *bad*, *inconclusive* (there are
//! figures, and they cannot be compared) and *no data* (there is none: Prometheus is away, the answer is empty or NaN). So many
//! bad ones in a row make a bad canary; what lies between them, inconclusive or missing, neither counts nor forgives.

use super::engine::Verdict;
use super::plan::{Bounds, Metric, OnNoData};

/// A figure, or why there is none. Never NaN.
pub type Reading = Result<f64, String>;

/// The figures of both pools at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The canary's.
    pub canary: Reading,
    /// The stable pool's; `None` where nobody asked for it.
    pub stable: Option<Reading>,
}

/// What a measurement says.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Within its bounds.
    Good,
    /// Beyond; which one, and by how much.
    Bad(String),
    /// There are figures, and they cannot be compared.
    Inconclusive(String),
    /// There is no figure.
    NoData(String),
}

/// The memory of one metric.
#[derive(Clone, Debug)]
pub struct Judge {
    metric: Metric,
    bad_in_a_row: u32,
    last: Option<(Measurement, Finding)>,
    /// Measured since the step began.
    measured: bool,
}

impl Judge {
    /// Nothing measured yet.
    #[must_use]
    pub const fn new(metric: Metric) -> Self {
        Self { metric, bad_in_a_row: 0, last: None, measured: false }
    }

    /// What it judges.
    #[must_use]
    pub const fn metric(&self) -> &Metric {
        &self.metric
    }

    /// The last measurement.
    #[must_use]
    pub fn last(&self) -> Option<&Measurement> {
        self.last.as_ref().map(|(measurement, _)| measurement)
    }

    /// Another step begins: it needs a measurement of its own.
    pub const fn next_step(&mut self) {
        self.measured = false;
    }

    /// Takes in a measurement.
    pub fn take(&mut self, measurement: Measurement) {
        let finding = find(&self.metric.bounds, &measurement);
        match finding {
            Finding::Good => self.bad_in_a_row = 0,
            Finding::Bad(_) => self.bad_in_a_row += 1,
            Finding::Inconclusive(_) | Finding::NoData(_) => {}
        }
        self.last = Some((measurement, finding));
        self.measured = true;
    }

    /// What is to be thought of the canary, by this figure alone; whether that counts is the plan's to say.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let Metric { name, failure_limit, on_no_data, .. } = &self.metric;
        let Some((_, finding)) = self.last.as_ref().filter(|_| self.measured) else {
            // Somebody is asked; an answer, or the lack of one, is certain to come.
            return Verdict::NoData {
                why: format!("{name}: not measured in this step yet"),
                then: OnNoData::Hold,
            };
        };
        let counted = || format!("{} of {failure_limit} bad in a row", self.bad_in_a_row);
        match finding {
            Finding::Bad(why) if self.bad_in_a_row >= *failure_limit => {
                Verdict::Worse(format!("{name}: {why}"))
            }
            Finding::Bad(why) => Verdict::Unsure(format!("{name}: {why} ({})", counted())),
            Finding::Inconclusive(why) => Verdict::Unsure(format!("{name}: {why}")),
            Finding::NoData(why) => Verdict::NoData { why: format!("{name}: {why}"), then: *on_no_data },
            Finding::Good => Verdict::Fine,
        }
    }
}

/// What a measurement says by these bounds.
#[must_use]
pub fn find(bounds: &Bounds, measured: &Measurement) -> Finding {
    let canary = match &measured.canary {
        Ok(canary) => *canary,
        Err(why) => return Finding::NoData(why.clone()),
    };
    if let Some(max) = bounds.max.filter(|max| canary > *max) {
        return Finding::Bad(format!("{canary} is more than {max}"));
    }
    if let Some(min) = bounds.min.filter(|min| canary < *min) {
        return Finding::Bad(format!("{canary} is less than {min}"));
    }
    if !bounds.are_relative() {
        return Finding::Good;
    }
    let stable = match &measured.stable {
        Some(Ok(stable)) => *stable,
        Some(Err(why)) => return Finding::NoData(format!("of the stable pool: {why}")),
        None => return Finding::NoData("of the stable pool: nobody asked".to_owned()),
    };
    // (Also where both are zero, or infinite.)
    if canary == stable {
        return Finding::Good;
    }
    if stable <= 0.0 || stable.is_infinite() || canary < 0.0 {
        let words = format!("{canary} cannot be compared with {stable} of the stable pool");
        return Finding::Inconclusive(words);
    }
    if let Some(ratio) = bounds.max_ratio.filter(|ratio| canary > stable * ratio) {
        return Finding::Bad(format!("{canary} is more than {ratio} times the stable pool's {stable}"));
    }
    if let Some(ratio) = bounds.min_ratio.filter(|ratio| canary < stable * ratio) {
        return Finding::Bad(format!("{canary} is less than {ratio} times the stable pool's {stable}"));
    }
    Finding::Good
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn metric(bounds: Bounds) -> Metric {
        Metric {
            name: "errors".to_owned(),
            server: "http://127.0.0.1:9090".to_owned(),
            query: r#"errors{app="{{service}}",v="{{pool}}"}[{{window}}]"#.to_owned(),
            window: Duration::from_secs(90),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            bounds,
            failure_limit: 2,
            on_no_data: OnNoData::Pass,
            shadow: false,
        }
    }

    fn both(canary: f64, stable: f64) -> Measurement {
        Measurement { canary: Ok(canary), stable: Some(Ok(stable)) }
    }

    fn alone(canary: f64) -> Measurement {
        Measurement { canary: Ok(canary), stable: None }
    }

    fn nothing() -> Measurement {
        Measurement { canary: Err("no series".to_owned()), stable: None }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let metric = metric(Bounds::default());
        assert_eq!(metric.about("shop", "v2"), r#"errors{app="shop",v="v2"}[90s]"#);
        let short = Metric { window: Duration::from_millis(1_500), ..metric };
        assert!(short.about("shop", "v2").ends_with("[1500ms]"));
    }

    #[test]
    fn each_bound_has_to_hold() {
        let bounds = Bounds { max: Some(10.0), min: Some(1.0), ..Bounds::default() };
        assert_eq!(find(&bounds, &alone(10.0)), Finding::Good);
        assert_eq!(find(&bounds, &alone(10.5)), Finding::Bad("10.5 is more than 10".to_owned()));
        assert_eq!(find(&bounds, &alone(0.5)), Finding::Bad("0.5 is less than 1".to_owned()));
        assert!(matches!(find(&bounds, &alone(f64::INFINITY)), Finding::Bad(_)));
        let bounds = Bounds { max_ratio: Some(1.5), min_ratio: Some(0.5), ..Bounds::default() };
        assert_eq!(find(&bounds, &both(3.0, 2.0)), Finding::Good);
        assert!(matches!(find(&bounds, &both(3.1, 2.0)), Finding::Bad(_)));
        assert!(matches!(find(&bounds, &both(0.9, 2.0)), Finding::Bad(_)));
    }

    #[test]
    fn what_cannot_be_compared_is_neither_good_nor_bad() {
        let bounds = Bounds { max_ratio: Some(1.5), ..Bounds::default() };
        assert_eq!(find(&bounds, &both(0.0, 0.0)), Finding::Good, "nobody fails");
        for (canary, stable) in [(0.1, 0.0), (1.0, f64::INFINITY), (1.0, -1.0), (-1.0, 1.0)] {
            let found = find(&bounds, &both(canary, stable));
            assert!(matches!(found, Finding::Inconclusive(_)), "{canary} and {stable}: {found:?}");
        }
        let half = Measurement { canary: Ok(1.0), stable: Some(Err("NaN".to_owned())) };
        assert_eq!(find(&bounds, &half), Finding::NoData("of the stable pool: NaN".to_owned()));
        // What is beyond an absolute bound is so without anybody to compare with.
        let bounds = Bounds { max: Some(0.5), ..bounds };
        assert!(matches!(find(&bounds, &half), Finding::Bad(_)));
    }

    #[test]
    fn so_many_bad_ones_in_a_row_make_a_bad_canary() {
        let mut judge = Judge::new(metric(Bounds { max: Some(1.0), ..Bounds::default() }));
        assert!(matches!(judge.verdict(), Verdict::NoData { then: OnNoData::Hold, .. }));
        judge.take(alone(2.0));
        assert_eq!(
            judge.verdict(),
            Verdict::Unsure("errors: 2 is more than 1 (1 of 2 bad in a row)".to_owned())
        );
        judge.take(alone(0.0));
        assert_eq!(judge.verdict(), Verdict::Fine);
        judge.take(alone(2.0));
        // A gap is no excuse.
        judge.take(nothing());
        assert_eq!(
            judge.verdict(),
            Verdict::NoData { why: "errors: no series".to_owned(), then: OnNoData::Pass }
        );
        judge.take(alone(3.0));
        assert_eq!(judge.verdict(), Verdict::Worse("errors: 3 is more than 1".to_owned()));
    }

    #[test]
    fn each_step_is_measured_anew() {
        let mut judge = Judge::new(metric(Bounds { max: Some(1.0), ..Bounds::default() }));
        judge.take(alone(0.0));
        judge.next_step();
        let Verdict::NoData { why, then: OnNoData::Hold } = judge.verdict() else {
            panic!("{:?}", judge.verdict())
        };
        assert_eq!(why, "errors: not measured in this step yet");
    }
}
