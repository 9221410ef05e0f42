//! What a backend says about itself: HAProxy's agent-check.
//!
//! A connection to the agent's port is answered by one line of words: `up`, `down` (or `fail`, `stopped`), `ready`,
//! `drain`, `maint`, `75%`, in any order, separated by blanks or commas. What follows `#` is for people. Words that are
//! not known here (HAProxy's `maxconn:30`) are passed over, and what a line does not mention stays as it was.

use std::{fmt, str::FromStr};

/// What stands, by all the lines so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Advice {
    /// The weight, in percent of what it would be otherwise.
    pub percent: u16,
    /// Whether it wants new flows.
    pub wish: Wish,
    /// Whether it says that it is down, whatever the health check finds.
    pub down: bool,
}

/// Whether a backend wants new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// Yes.
    Ready,
    /// No: it wants to finish what it has.
    Drain,
    /// No: it is being worked on.
    Maint,
}

/// One line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    percent: Option<u16>,
    wish: Option<Wish>,
    down: Option<bool>,
}

impl Advice {
    /// What holds of a backend that never said anything.
    pub const NONE: Self = Self { percent: 100, wish: Wish::Ready, down: false };

    /// After another line.
    #[must_use]
    pub fn after(self, words: Words) -> Self {
        Self {
            percent: words.percent.unwrap_or(self.percent),
            wish: words.wish.unwrap_or(self.wish),
            down: words.down.unwrap_or(self.down),
        }
    }

    /// If it lets the backend have new flows.
    pub fn takes_new(self) -> bool {
        self.percent > 0 && self.wish == Wish::Ready && !self.down
    }

    /// The weight that follows from a configured one: its share, rounded to the nearest, but 0 only if one of the two is.
    #[must_use]
    pub fn scale(self, weight: u16) -> u16 {
        let scaled = (u32::from(weight) * u32::from(self.percent) + 50) / 100;
        let least = u32::from(weight > 0 && self.percent > 0);
        u16::try_from(scaled.max(least)).unwrap_or(u16::MAX)
    }
}

impl Default for Advice {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for Advice {
    /// As a line that says the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wish = match self.wish {
            Wish::Ready => "ready",
            Wish::Drain => "drain",
            Wish::Maint => "maint",
        };
        write!(f, "{} {wish} {}%", if self.down { "down" } else { "up" }, self.percent)
    }
}

impl FromStr for Words {
    type Err = NoWords;

    fn from_str(line: &str) -> Result<Self, NoWords> {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = Self::default();
        for word in line.split([' ', '\t', ',', '\r']) {
            match word.to_ascii_lowercase().as_str() {
                "up" => words.down = Some(false),
                "down" | "fail" | "failed" | "stopped" => words.down = Some(true),
                "ready" => words.wish = Some(Wish::Ready),
                "drain" => words.wish = Some(Wish::Drain),
                "maint" => words.wish = Some(Wish::Maint),
                other => words.percent = percent(other).or(words.percent),
            }
        }
        if words == Self::default() { Err(NoWords) } else { Ok(words) }
    }
}

fn percent(word: &str) -> Option<u16> {
    let digits = word.strip_suffix('%')?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// A line without a single word that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoWords;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn advice(lines: &[&str]) -> Advice {
        lines.iter().fold(Advice::NONE, |advice, line| advice.after(line.parse().expect("words")))
    }

    #[test]
    fn a_line_changes_what_it_mentions_and_nothing_else() {
        for (lines, stands) in [
            (&["up"][..], "up ready 100%"),
            (&["75%"], "up ready 75%"),
            (&["75%", "drain", "down"], "down drain 75%"),
            (&["maint", "up 50%"], "up maint 50%"),
            (&["drain", "ready", "0%"], "up ready 0%"),
            (&["DOWN,\t30%\r"], "down ready 30%"),
            (&["fail # the disk is full, 10%"], "down ready 100%"),
            (&["stopped", "ready up 100% maxconn:30"], "up ready 100%"),
            (&["200%"], "up ready 200%"),
        ] {
            assert_eq!(advice(lines).to_string(), stands, "{lines:?}");
        }
    }

    #[test]
    fn a_line_without_a_known_word_is_none() {
        for line in ["", "   ", "# up", "HTTP/1.1 400 Bad Request", "75", "%", "-5%", "+5%", "99999%", "upp"]
        {
            assert_eq!(line.parse::<Words>(), Err(NoWords), "{line:?}");
        }
    }

    #[test]
    fn a_weight_is_zero_only_if_somebody_says_zero() {
        let of = |percent, weight| Advice { percent, ..Advice::NONE }.scale(weight);
        assert_eq!((of(75, 100), of(50, 3), of(1, 1), of(33, 100)), (75, 2, 1, 33));
        assert_eq!((of(0, 100), of(100, 0), of(200, u16::MAX)), (0, 0, u16::MAX));
    }

    proptest! {
        #[test]
        fn what_stands_can_be_said_again(percent: u16, wish in 0..3usize, down: bool) {
            let wish = [Wish::Ready, Wish::Drain, Wish::Maint][wish];
            let advice = Advice { percent, wish, down };
            prop_assert_eq!(Advice::NONE.after(advice.to_string().parse().unwrap()), advice);
            prop_assert_eq!(advice.takes_new(), advice.scale(1) > 0 && wish == Wish::Ready && !down);
        }

        #[test]
        fn any_line_is_words_or_none(line: String) {
            if let Ok(words) = line.parse::<Words>() {
                prop_assert_ne!(words, Words::default());
            }
        }
    }
}
