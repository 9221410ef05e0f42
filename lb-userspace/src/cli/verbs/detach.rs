//! `lbctl detach`

use clap::Args;

use super::Outcome;
use crate::api::ClientError;
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::Format;

/// Takes programs, maps and addresses off the host: nothing is balanced any more.
#[derive(Debug, Args)]
pub(in crate::cli) struct Detach {}

impl Detach {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let done = match context.client.detach().await {
            Ok(done) => done,
            Err(agent @ ClientError::Unreachable { .. }) => {
                let done = context.offline.detach(&context.places).map_err(|error| {
                    let pins = context.places.pin_dir.display();
                    Failure::of("LB0606", format!("{agent}; and without it: {}", crate::chain(&error)))
                        .remedy(format!(
                            "without the agent it takes root, and the maps under {pins} (--pin-dir or LB_PIN_DIR)"
                        ))
                        .exit(Exit::Unreachable)
                })?;
                if !done.removed.is_empty() {
                    context.screen.remark(&format!("{agent}; detached without it"))?;
                }
                done
            }
            Err(error @ ClientError::Silent { .. }) => {
                let failure = Failure::from(error);
                return Err(failure.remedy(
                    "it would come back with all of it: stop the agent first (`systemctl stop lbd`)",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        let screen = &mut context.screen;
        if screen.format == Format::Json {
            screen.json(&done)?;
        } else {
            for removed in summed_up(&done.removed, screen.format == Format::Wide) {
                screen.say(&format!("removed {removed}\n"))?;
            }
            if done.removed.is_empty() {
                screen.say("there was nothing to remove\n")?;
            }
            for left in &done.left {
                screen.remark(&format!("left behind: {left}"))?;
            }
        }
        Ok(if done.left.is_empty() { Exit::Done } else { Exit::Failed })
    }
}

/// Many pins of a directory are one line, unless everything is asked for.
fn summed_up(removed: &[String], everything: bool) -> Vec<String> {
    const MANY: usize = 4;
    let directory = |what: &str| {
        what.strip_prefix('/').and_then(|path| path.rsplit_once('/')).map(|(it, _)| it.to_owned())
    };
    let of = |it: &Option<String>| removed.iter().filter(|other| directory(other) == *it).count();
    let mut lines: Vec<String> = Vec::new();
    for what in removed {
        let it = directory(what);
        let count = of(&it);
        let line = match it {
            Some(directory) if count >= MANY && !everything => {
                format!("{count} programs, maps and links from /{directory} (-o wide names them)")
            }
            _ => what.clone(),
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_counted_and_everything_else_is_named() {
        let pins = ["lb", "lb_icmp", "SLOTS", "VIPS"].map(|pin| format!("/sys/fs/bpf/lb/v1/{pin}"));
        let all =
            [&pins[..], &["203.0.113.10 from eth0".to_owned(), "/sys/fs/bpf/lb/v1".to_owned()]].concat();
        assert_eq!(
            summed_up(&all, false),
            [
                "4 programs, maps and links from /sys/fs/bpf/lb/v1 (-o wide names them)",
                "203.0.113.10 from eth0",
                "/sys/fs/bpf/lb/v1"
            ]
        );
        assert_eq!(summed_up(&all, true), all);
        assert_eq!(summed_up(&all[3..], false), &all[3..]);
    }
}
