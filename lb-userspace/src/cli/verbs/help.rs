//! `lbctl help`

use clap::Args;

use super::Outcome;
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::screen::Format;
use crate::{cli, codes, events};

/// Explains a code (LB0503, backend_down) or a verb.
#[derive(Debug, Args)]
pub(in crate::cli) struct Help {
    /// A code as it was printed, the name of an event, or a verb.
    #[arg(value_name = "CODE|VERB")]
    about: Vec<String>,
}

/// Where nothing says how wide the output is.
const USUAL_WIDTH: usize = 100;

impl Help {
    pub fn run(self, context: &mut Context<'_>) -> Outcome {
        let screen = &mut context.screen;
        let [first, rest @ ..] = self.about.as_slice() else {
            screen.say(&cli::command().render_help().ansi().to_string())?;
            return Ok(Exit::Done);
        };
        if rest.is_empty()
            && let Some(page) = codes::page(first)
        {
            if screen.format == Format::Json {
                let codes::Page { code, title, cause, remedy, commands } = page;
                screen.json(&serde_json::json!({
                    "api": "v1", "code": code, "title": title, "cause": cause, "remedy": remedy, "commands": commands
                }))?;
            } else {
                let text = page.render(screen.width().unwrap_or(USUAL_WIDTH));
                screen.say(&text)?;
            }
            return Ok(Exit::Done);
        }
        let mut command = cli::brief();
        // Built, a subcommand knows what it is called in full.
        command.build();
        let mut at = Some(&mut command);
        for word in &self.about {
            at = at.and_then(|command| command.find_subcommand_mut(word));
        }
        let Some(at) = at else {
            return Err(Failure::of(
                "LB0613",
                format!("there is no code and no verb `{}`", self.about.join(" ")),
            )
            .remedy(nearest(first))
            .exit(Exit::Usage));
        };
        screen.say(&at.render_long_help().ansi().to_string())?;
        Ok(Exit::Done)
    }
}

fn nearest(written: &str) -> String {
    let verbs: Vec<String> =
        cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let events = events::CODES.iter().map(|(code, _)| (*code).to_owned());
    // A code with another digit is another code.
    let all = verbs.into_iter().chain(events);
    let wanted = written.to_lowercase();
    let near = all.min_by_key(|name| strsim::osa_distance(&name.to_lowercase(), &wanted));
    match near {
        Some(near) if strsim::osa_distance(&near.to_lowercase(), &wanted) <= 2 => {
            format!("did you mean `{near}`?")
        }
        _ => "codes look like LB0503; `lbctl help` lists the verbs".to_owned(),
    }
}
