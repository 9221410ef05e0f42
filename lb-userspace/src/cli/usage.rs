//! Arguments that make no sense.

use std::ffi::OsString;

use clap::error::ErrorKind;

use super::failure::{Exit, Failure};
use super::screen::{Format, Screen};

/// Says what is wrong with the arguments, or prints the help that was asked for.
pub(super) fn tell(error: &clap::Error, arguments: &[OsString], screen: &mut Screen) -> Exit {
    if !error.use_stderr() {
        // Nothing is left to do if even that cannot be printed.
        _ = error.print();
        return Exit::Done;
    }
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|word| word.to_str()).collect();
    let (verb, known) = verb(&words);
    let text = error.render().to_string();
    if wants_json(&words) {
        screen.format = Format::Json;
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = Failure::of("LB0615", message).remedy(format!("`{verb} --help` says what it takes"));
        return failure.exit(Exit::Usage).tell("understand the arguments", screen);
    }
    let known = known.join(", ");
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    match error.kind() {
        ErrorKind::InvalidSubcommand if !known.is_empty() => {
            _ = screen.complain(&format!("{first}\n  [possible values: {known}]\n{rest}"));
        }
        // What clap lists has every alias in it.
        ErrorKind::MissingSubcommand if !known.is_empty() => {
            let rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
            _ = screen.complain(&format!(
                "error: `{verb}` needs one more word\n  [possible values: {known}]\n{rest}"
            ));
        }
        _ => _ = error.print(),
    }
    Exit::Usage
}

/// The verb that was meant, and what may follow it; of `lbctl` itself that is too much.
fn verb(words: &[&str]) -> (String, Vec<String>) {
    let root = super::command();
    let (mut at, mut path) = (&root, "lbctl".to_owned());
    for word in words {
        if let Some(next) = at.find_subcommand(word) {
            at = next;
            path = format!("{path} {}", next.get_name());
        }
    }
    let names = at.get_subcommands().map(|verb| verb.get_name().to_owned());
    let names = if path == "lbctl" { Vec::new() } else { names.collect() };
    (path, names)
}

fn wants_json(words: &[&str]) -> bool {
    words.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
        || words.iter().any(|word| ["-ojson", "-o=json", "--output=json"].contains(word))
}
