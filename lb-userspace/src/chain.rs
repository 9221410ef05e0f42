//! An error with what is behind it, in one line.

/// What an error and its causes say, each once: some errors name their cause themselves.
#[must_use]
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use anyhow::Context as _;

    use super::*;
    use crate::state::Journal;

    #[test]
    fn a_cause_that_was_named_is_not_named_again() {
        let read = Journal::survey(Path::new("/nonexistent")).context("no names");
        assert_eq!(
            chain(&read.unwrap_err()),
            "no names: cannot read the journal /nonexistent/journal.jsonl: No such file or directory (os error 2)"
        );
        let other = Err::<(), _>(io::Error::other("broken")).context("no map").context("no data path");
        assert_eq!(chain(&other.unwrap_err()), "no data path: no map: broken");
    }
}
