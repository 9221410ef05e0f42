//! A page for every code: what it is, why, and what to do.
//!
//! Mistakes in a configuration explain themselves ([`config::Code`]); everything else stands in `docs/errors.md`, which is part
//! of the program.

use std::fmt::Write as _;

use crate::config;
use crate::events;

const DOCUMENT: &str = include_str!("../../docs/errors.md");

/// What is known of a code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Such as `LB0503`, or the name of an event.
    pub code: String,
    /// What it is about, in a few words.
    pub title: String,
    /// Why it happens and why it matters.
    pub cause: String,
    /// What to do.
    pub remedy: String,
    /// Commands that do it, or show more.
    pub commands: Vec<String>,
}

/// The page of a code; of an event, by its name.
pub fn page(code: &str) -> Option<Page> {
    let wanted = code.to_uppercase();
    of_document(&wanted).or_else(|| of_configuration(&wanted)).or_else(|| of_event(&code.to_lowercase()))
}

/// Every code that has a page.
pub fn all() -> Vec<String> {
    let documented = sections().map(|(code, ..)| code.to_owned());
    let configuration = config::Code::ALL.iter().map(|code| code.as_str().to_owned());
    let mut all: Vec<String> = documented.chain(configuration).collect();
    all.sort();
    all.dedup();
    all
}

fn of_configuration(wanted: &str) -> Option<Page> {
    let code = config::Code::ALL.iter().find(|code| code.as_str() == wanted)?;
    let remedy = match code.severity() {
        config::Severity::Error => "mend it at the place that is shown; nothing is changed before",
        config::Severity::Warning => "the file is taken as it stands; see whether it says what you mean",
    };
    Some(Page {
        code: wanted.to_owned(),
        title: code.title().to_owned(),
        cause: code.explanation().to_owned(),
        remedy: remedy.to_owned(),
        commands: vec!["lbctl validate /etc/lb/lb.toml".to_owned()],
    })
}

fn of_event(wanted: &str) -> Option<Page> {
    let (code, meaning) = events::CODES.iter().find(|(code, _)| *code == wanted)?;
    Some(Page {
        code: (*code).to_owned(),
        title: "an event".to_owned(),
        cause: (*meaning).to_owned(),
        remedy: "its message says more".to_owned(),
        commands: vec!["lbctl get events -o wide".to_owned()],
    })
}

fn of_document(wanted: &str) -> Option<Page> {
    let (code, title, body) = sections().find(|(code, ..)| *code == wanted)?;
    let (cause, what) = body.split_once("\nDo: ").unwrap_or((body, ""));
    let (commands, words): (Vec<&str>, Vec<&str>) = what.lines().partition(|line| line.starts_with("    "));
    let joined = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(Page {
        code: code.to_owned(),
        title: title.to_owned(),
        cause: joined(cause),
        remedy: joined(&words.join(" ")),
        commands: commands.into_iter().map(|line| line.trim().to_owned()).collect(),
    })
}

/// Code, title and body of each section.
fn sections() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    DOCUMENT.split("\n## ").skip(1).filter_map(|section| {
        let (heading, body) = section.split_once('\n')?;
        let (code, title) = heading.split_once(": ")?;
        Some((code, title, body))
    })
}

impl Page {
    /// For people, at most so wide.
    pub fn render(&self, width: usize) -> String {
        let mut text = format!("{}: {}\n\n{}\n", self.code, self.title, wrapped(&self.cause, width));
        _ = writeln!(text, "\n{}", wrapped(&format!("What to do: {}", self.remedy), width));
        for command in &self.commands {
            _ = writeln!(text, "  $ {command}");
        }
        text
    }
}

fn wrapped(text: &str, width: usize) -> String {
    let (mut lines, mut length) = (String::new(), 0);
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        if length > 0 && length + 1 + letters > width {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += letters;
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::api::ErrorCode;
    use crate::doctor;

    /// Every `LBnnnn` in double quotes in the sources below a directory, and where it was found. Tests may make codes up.
    fn codes_in(directory: &Path, found: &mut BTreeSet<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                codes_in(&path, found);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                for part in text.split("\"LB").skip(1) {
                    if let Some((digits, _)) = part.split_once('"')
                        && digits.len() == 4
                        && digits.bytes().all(|byte| byte.is_ascii_digit())
                    {
                        found.insert((format!("LB{digits}"), name.clone()));
                    }
                }
            }
        }
    }

    #[test]
    fn every_code_in_the_sources_has_its_page() {
        let mut found = BTreeSet::new();
        codes_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert!(found.len() > 100, "{found:?}");
        let without: Vec<_> = found.iter().filter(|(code, _)| page(code).is_none()).collect();
        assert!(without.is_empty(), "write a section of docs/errors.md for each of {without:?}");
        let known: BTreeSet<&str> = found.iter().map(|(code, _)| code.as_str()).collect();
        let stale: Vec<String> = all().into_iter().filter(|code| !known.contains(code.as_str())).collect();
        assert!(stale.is_empty(), "nothing says {stale:?} any more");
    }

    #[test]
    fn a_page_has_a_cause_and_a_remedy() {
        for code in all() {
            let page = page(&code).unwrap();
            assert!(!page.title.is_empty() && page.cause.len() > 10 && page.remedy.len() > 5, "{page:?}");
            assert!(page.commands.iter().all(|command| !command.is_empty()));
        }
    }

    #[test]
    fn pages_have_the_titles_that_the_code_has() {
        for code in ErrorCode::ALL {
            assert_eq!(page(code.as_str()).unwrap().title, code.title(), "{code}");
        }
        for rule in doctor::RULES {
            assert!(page(rule.code).is_some(), "{}", rule.code);
        }
    }

    #[test]
    fn pages_are_found_however_they_are_written() {
        assert_eq!(page("lb0503"), page("LB0503"));
        assert_eq!(page("backend_down").unwrap().cause, "A backend's checks fail.");
        assert_eq!(page("LB9999"), None);
    }

    #[test]
    fn a_page_is_as_wide_as_it_may_be_but_for_its_commands() {
        for width in [40, 80] {
            for code in all() {
                let text = page(&code).unwrap().render(width);
                for line in text.lines().skip(1).filter(|line| !line.starts_with("  $ ")) {
                    assert!(line.chars().count() <= width || !line.contains(' '), "{code}: {line}");
                }
            }
        }
    }

    #[test]
    fn lbctl_understands_the_commands_of_every_page() {
        for command in all().iter().flat_map(|code| page(code).unwrap().commands) {
            if let Some(arguments) =
                command.strip_prefix("lbctl ").or_else(|| command.strip_prefix("sudo lbctl "))
            {
                crate::cli::understands(arguments).unwrap_or_else(|why| panic!("{command}: {why}"));
            }
        }
    }
}
