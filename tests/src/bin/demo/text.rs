//! Lines of text in colours, which know how wide they are.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

/// A line.
#[derive(Clone, Debug, Default)]
pub struct Line(Vec<(Style, String)>);

/// Of the stable version.
pub const STABLE: Style = AnsiColor::Cyan.on_default();
/// Of the canary.
pub const CANARY: Style = AnsiColor::Yellow.on_default();
/// Of what is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Of what is not.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Of what catches the eye.
pub const STRONG: Style = Style::new().bold();
/// Of what does not.
pub const DIM: Style = Style::new().dimmed();

impl Line {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Text that is good news.
    #[must_use]
    pub fn good(text: impl Into<String>) -> Self {
        Self::new().styled(GOOD, text)
    }

    /// Goes on plainly.
    #[must_use]
    pub fn plain(self, text: impl Into<String>) -> Self {
        self.styled(Style::new(), text)
    }

    /// Goes on strongly.
    #[must_use]
    pub fn strong(self, text: impl Into<String>) -> Self {
        self.styled(STRONG, text)
    }

    /// Goes on quietly.
    #[must_use]
    pub fn dim(self, text: impl Into<String>) -> Self {
        self.styled(DIM, text)
    }

    /// Goes on in a style.
    #[must_use]
    pub fn styled(mut self, style: Style, text: impl Into<String>) -> Self {
        match self.0.last_mut() {
            Some((last, before)) if *last == style => before.push_str(&text.into()),
            _ => self.0.push((style, text.into())),
        }
        self
    }

    /// Goes on with another line.
    #[must_use]
    pub fn append(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// How wide it is, in characters.
    #[must_use]
    pub fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// Filled up with spaces to so many characters.
    #[must_use]
    pub fn padded(self, width: usize) -> Self {
        let missing = width.saturating_sub(self.width());
        self.plain(" ".repeat(missing))
    }

    /// As it is written, in colours or not, cut off after so many characters.
    #[must_use]
    pub fn render(&self, colours: bool, width: Option<usize>) -> String {
        let mut room = width.unwrap_or(usize::MAX);
        let mut all = String::new();
        for (style, text) in &self.0 {
            let shown: String = text.chars().take(room).collect();
            room -= shown.chars().count();
            let _ = match colours && !style.is_plain() {
                true => write!(all, "{}{shown}{}", style.render(), style.render_reset()),
                false => write!(all, "{shown}"),
            };
        }
        all
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Self::new().plain(text)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::new().plain(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_room_and_end_where_the_text_does() {
        let line = Line::from("ab ").styled(BAD, "cdef").plain("g");
        assert_eq!(line.width(), 8);
        assert_eq!(line.render(false, None), "ab cdefg");
        let cut = line.render(true, Some(5));
        assert_eq!(cut, format!("ab {}cd{}", BAD.render(), BAD.render_reset()));
    }

    #[test]
    fn padding_fills_up_and_never_cuts() {
        assert_eq!(Line::from("ab").padded(4).render(false, None), "ab  ");
        assert_eq!(Line::from("abcde").padded(4).render(false, None), "abcde");
    }
}
