//! What must hold for a rollout.

use crate::api::Share;
use crate::config::keys::ServiceDraft;
use crate::config::read::{Field, Findings, Place, Table, escaped};
use crate::config::report::{Code, Diagnostic};
use crate::config::rollout::{GateWord, RolloutDraft, RolloutMetricDraft, RolloutStepDraft};
use crate::config::value::Number;
use crate::rollout::plan::Metric;

pub(super) fn check(service: &ServiceDraft, findings: &mut Findings) {
    let Some((Some(rollout), at)) = service.rollout.get() else { return };
    if service.pools().len() == 1 {
        let found = Diagnostic::new(Code::RolloutAlone, format!("{} has one pool", service.title()))
            .at(at, "there is nothing to roll out");
        findings.add(found.help("the next version is a second `[[service.pool]]`"));
    }
    two_ways(rollout, findings);
    chances(rollout, findings);
    preview(service, rollout, findings);
    let shares = rollout.shares.value.iter().flatten().flatten().map(|(at, share)| (*share, at));
    rising(shares, findings);
    if let Some((Some(shares), at)) = rollout.shares.get()
        && shares.is_empty()
    {
        let found =
            Diagnostic::new(Code::RolloutSteps, "this rollout has no step").at(at, "expected a share");
        findings.add(found.help("name the shares, 100 for everybody at once, or leave `shares` out"));
    }
    let steps = rollout.steps.value.as_deref().unwrap_or_default();
    rising(steps.iter().filter_map(|step| step.share.get()).map(|(share, at)| (*share, at)), findings);
    for step in steps {
        gate(step, findings);
    }
    let metrics = rollout.metrics.value.as_deref().unwrap_or_default();
    for (i, metric) in metrics.iter().enumerate() {
        bounds(metric, findings);
        query(metric, findings);
        let twin = metrics[..i].iter().find(
            |other| matches!((other.name.get(), metric.name.get()), (Some((a, _)), Some((b, _))) if a == b),
        );
        if let (Some(twin), Some((name, at))) = (twin, metric.name.get()) {
            let found = Diagnostic::new(Code::MetricIncomplete, format!("there are two metrics {name}"))
                .at(at, "their figures could not be told apart")
                .at(&twin.name.at, "the first one");
            findings.add(found);
        }
    }
    if metrics.is_empty() && rollout.prometheus.written {
        let found = Diagnostic::new(Code::NoEffect, "Prometheus is not asked for anything");
        let found = found.at(&rollout.prometheus.at, "there is no metric");
        findings.add(found.help("add a `[[service.rollout.metric]]`"));
    }
}

/// Packets to a preview are translated (`full-nat`), which leaves them in their family.
fn preview(service: &ServiceDraft, rollout: &RolloutDraft, findings: &mut Findings) {
    let Some((Some(preview), at)) = rollout.preview.get() else { return };
    let mut targets = service.backends().filter_map(|backend| backend.address.get());
    let Some((target, target_at)) = targets.find(|(target, _)| target.ip.is_ipv4() != preview.is_ipv4())
    else {
        return;
    };
    let found = Diagnostic::new(Code::PreviewTaken, "a preview is of the family of its backends")
        .at(at, format!("{} is of one family", preview.ip()))
        .at(target_at, format!("{} is of the other", target.ip));
    findings.add(found.help("give the preview an address of the backends' family"));
}

fn bounds(metric: &RolloutMetricDraft, findings: &mut Findings) {
    let bounds = [&metric.max, &metric.min, &metric.max_ratio, &metric.min_ratio];
    if bounds.iter().all(|bound| !bound.written) {
        let found = Diagnostic::new(Code::MetricIncomplete, "this metric has no bound")
            .at(metric.at(), "every figure would be a good one");
        findings.add(found.help("say `max`, `min`, `max_ratio` or `min_ratio`"));
    }
    for (most, least) in [(&metric.max, &metric.min), (&metric.max_ratio, &metric.min_ratio)] {
        let value = |field: &Field<Option<Number>>| field.value.flatten();
        if let (Some(max), Some(min)) = (value(most), value(least))
            && max.get() < min.get()
        {
            let found = Diagnostic::new(Code::MetricIncomplete, "no figure is good enough for this metric")
                .at(&most.at, "at most this")
                .at(&least.at, "and at least this");
            findings.add(found);
        }
    }
}

fn query(metric: &RolloutMetricDraft, findings: &mut Findings) {
    let Some((query, at)) = metric.query.get() else { return };
    let known = || Metric::PLACEHOLDERS.join(", ");
    let rest = Metric::PLACEHOLDERS.iter().fold(query.clone(), |rest, known| rest.replace(known, ""));
    if let Some(from) = rest.find("{{") {
        let end = rest[from..].find("}}").map_or(rest.len(), |end| from + end + 2);
        let found = Diagnostic::new(
            Code::BadPlaceholder,
            format!("there is no placeholder {}", escaped(&rest[from..end])),
        );
        findings.add(found.at(at, "in this query").help(format!("there are {}", known())));
    }
    let relative = [&metric.max_ratio, &metric.min_ratio].into_iter().find(|bound| bound.written);
    if let Some(bound) = relative
        && !query.contains("{{pool}}")
    {
        let found = Diagnostic::new(Code::MetricIncomplete, "this metric would compare a pool with itself")
            .at(at, "the query does not name the pool")
            .at(&bound.at, "and is compared with the stable pool's");
        findings.add(found.help("put `{{pool}}` where the query says which version it is about"));
    }
}

fn two_ways(rollout: &RolloutDraft, findings: &mut Findings) {
    if rollout.shares.written && rollout.steps.value.as_ref().is_some_and(|steps| !steps.is_empty()) {
        let found = Diagnostic::new(Code::RolloutSteps, "the steps of the rollout are given twice")
            .at(&rollout.shares.at, "here in short")
            .at(&rollout.steps.at, "here in full");
        findings.add(found.help("leave one of them out"));
    }
}

/// What is never sure enough, or always, decides nothing.
fn chances(rollout: &RolloutDraft, findings: &mut Findings) {
    if let Some((chance, at)) = rollout.false_rollbacks.get()
        && [Share::ZERO, Share::ALL].contains(chance)
    {
        let found =
            Diagnostic::new(Code::OutOfRange, format!("{chance} is outside the range of false_rollbacks"))
                .at(at, "expected more than 0 and less than 100 percent");
        findings.add(found.help("to keep whatever is found, say analysis = \"shadow\" or \"off\""));
    }
    if let Some((ratio, at)) = rollout.tripwire.get()
        && *ratio == Share::ALL
    {
        let found = Diagnostic::new(Code::OutOfRange, format!("{ratio} is outside the range of tripwire"))
            .at(at, "expected less than 100 percent");
        findings.add(found.help("0 is no tripwire"));
    }
}

fn rising<'a>(shares: impl Iterator<Item = (Share, &'a Place)>, findings: &mut Findings) {
    let mut last: Option<(Share, &Place)> = None;
    for (share, at) in shares {
        if let Some((before, before_at)) = last
            && share <= before
        {
            let found = Diagnostic::new(Code::RolloutSteps, "a rollout does not go back from step to step")
                .at(at, format!("expected more than {before}"))
                .at(before_at, "the step before");
            findings.add(found);
        }
        last = Some((share, at));
    }
}

fn gate(step: &RolloutStepDraft, findings: &mut Findings) {
    let Some((&gate, gate_at)) = step.gate.get() else { return };
    for (word, key, field_written, field_at) in [
        (GateWord::Command, "command", step.command.written, &step.command.at),
        (GateWord::Http, "url", step.url.written, &step.url.at),
        (GateWord::File, "file", step.file.written, &step.file.at),
    ] {
        if gate == word && !field_written {
            let found =
                Diagnostic::new(Code::GateIncomplete, format!("a gate of type `{word}` needs a `{key}`"));
            findings.add(found.at(gate_at, format!("`{key}` is missing")));
        }
        if gate != word && field_written {
            let found = Diagnostic::new(Code::NoEffect, format!("`{key}` has no effect"))
                .at(field_at, format!("only a gate of type `{word}` asks it"));
            findings.add(found.help(format!("say gate = \"{word}\", or leave it out")));
        }
    }
    if gate == GateWord::Command && step.command.value.iter().flatten().any(Vec::is_empty) {
        let found = Diagnostic::new(Code::GateIncomplete, "a command has at least a program");
        findings.add(found.at(&step.command.at, "expected a program and its arguments"));
    }
    if gate == GateWord::None && (step.gate_timeout.written || step.on_gate_timeout.written) {
        let found = Diagnostic::new(Code::NoEffect, "nobody is asked, so nobody can be late");
        findings.add(found.at(step.at(), "this step has no gate"));
    }
}
