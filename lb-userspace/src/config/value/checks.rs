//! What health checks of types other than HTTP ask for, and what they expect.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::textual;
use crate::config::read::{Node, Scalar, Shape, escaped};
use crate::config::{Code, Invalid};

/// A program by its absolute path, and its arguments. There is no shell.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CommandLine {
    program: PathBuf,
    arguments: Vec<String>,
}

impl CommandLine {
    /// An absolute path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What follows it.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// # Errors
    /// A program that is not named by an absolute path; a zero character, which no argument can have.
    pub fn new(words: &[&str]) -> Result<Self, Invalid> {
        let refused = |text: &str, why: &str| {
            Err(Invalid::new(Code::BadCommand, format!("{} cannot be run", escaped(text)), why))
        };
        let Some((&program, arguments)) = words.split_first() else {
            return refused("", "expected a program, such as [\"/usr/local/bin/check\", \"--fast\"]");
        };
        if !program.starts_with('/') {
            return refused(program, "a program is named by its absolute path");
        }
        if let Some(word) = words.iter().find(|word| word.contains('\0')) {
            return refused(word, "a command cannot have a zero character in it");
        }
        Ok(Self {
            program: program.into(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        })
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.program.to_str().unwrap_or_default())
            .chain(self.arguments.iter().map(String::as_str))
    }
}

impl Scalar for CommandLine {
    type Value = Self;

    fn parse(node: &Node) -> Result<Self, Invalid> {
        let expected = "a list such as [\"/usr/local/bin/check\", \"--fast\"]";
        let wrong = |node: &Node| {
            let what = format!("{} where a command belongs", node.what());
            Invalid::new(Code::WrongType, what, format!("expected {expected}"))
        };
        let Shape::List(nodes) = &node.shape else {
            return Err(wrong(node));
        };
        let words = nodes.iter().map(|word| word.text("text")).collect::<Result<Vec<_>, _>>()?;
        Self::new(&words)
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 })
    }
}

impl Serialize for CommandLine {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.words())
    }
}

/// Bytes as text: `\xNN` is any byte, `\r`, `\n`, `\t`, `\0` and `\\` are what they usually are, and everything else stands
/// for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Payload(Box<[u8]>);

impl Payload {
    /// What the largest datagram carries over IPv4.
    const LONGEST: usize = 65_507;

    /// The bytes themselves, at least one.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'\\' => out.write_str("\\\\"),
            b' '..=b'~' => out.write_char(byte.into()),
            byte => write!(out, "\\x{byte:02x}"),
        })
    }
}

impl FromStr for Payload {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refused = |why: String| {
            Err(Invalid::new(Code::BadPayload, format!("{} cannot be sent or expected", escaped(text)), why))
        };
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((plain, escape)) = rest.split_once('\\') {
            bytes.extend(plain.as_bytes());
            let (byte, length) = match escape.as_bytes() {
                [b'x', high, low, ..] if let Some(byte) = hex(*high, *low) => (byte, 3),
                [b'r', ..] => (b'\r', 1),
                [b'n', ..] => (b'\n', 1),
                [b't', ..] => (b'\t', 1),
                [b'0', ..] => (0, 1),
                [b'\\', ..] => (b'\\', 1),
                _ => {
                    let known = r"after `\` comes `xNN`, `r`, `n`, `t`, `0` or `\`";
                    return refused(known.to_owned());
                }
            };
            bytes.push(byte);
            rest = &escape[length..];
        }
        bytes.extend(rest.as_bytes());
        match bytes.len() {
            0 => refused("expected at least one byte".to_owned()),
            n if n > Self::LONGEST => {
                refused(format!("it has {n} bytes, a datagram carries at most {}", Self::LONGEST))
            }
            _ => Ok(Self(bytes.into())),
        }
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

textual!(Payload, "text such as \"ping\" or '\\x01\\x00'", { "type": "string", "minLength": 1 });

/// A file, by its absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FilePath(PathBuf);

impl FilePath {
    /// As a path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(out)
    }
}

impl FromStr for FilePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(Self(text.into()));
        }
        let what = format!("{} cannot be the path of a file", escaped(text));
        Err(Invalid::new(Code::BadFilePath, what, "expected an absolute path such as `/etc/lb/ca.pem`"))
    }
}

textual!(FilePath, "the path of a file", { "type": "string", "pattern": "^/" });

/// The name that a certificate is for: of a host, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsName(Box<str>);

impl TlsName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a certificate can be for that.
    pub fn is_name(text: &str) -> bool {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A name whose last label is a number would be taken for an address (RFC 6125, 6.4.2, and browsers).
        let last_is_number =
            || text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        text.parse::<IpAddr>().is_ok() || text.len() <= 253 && text.split('.').all(label) && !last_is_number()
    }
}

impl fmt::Display for TlsName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for TlsName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if Self::is_name(text) {
            return Ok(Self(text.into()));
        }
        let what = format!("no certificate can be for {}", escaped(text));
        Err(Invalid::new(Code::BadTlsName, what, "expected a name such as `shop.example`, or an address"))
    }
}

textual!(TlsName, "the name of a server", { "type": "string", "minLength": 1, "maxLength": 253 });

/// Text that is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Phrase(Box<str>);

impl Phrase {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Phrase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for Phrase {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        /// Far shorter than what of an answer is looked at.
        const LONGEST: usize = 1024;
        let refused = |why: String| {
            Err(Invalid::new(Code::BadPayload, format!("{} cannot be sent or expected", escaped(text)), why))
        };
        match text.len() {
            0 => refused("expected at least one character".to_owned()),
            n if n > LONGEST => refused(format!("it has {n} bytes, at most {LONGEST} are allowed")),
            _ => Ok(Self(text.into())),
        }
    }
}

textual!(Phrase, "text", { "type": "string", "minLength": 1, "maxLength": 1024 });

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_are_absolute() {
        let command = CommandLine::new(&["/bin/check", "a b", ""]).unwrap();
        assert_eq!(command.words().collect::<Vec<_>>(), ["/bin/check", "a b", ""]);
        for bad in [&[][..], &[""], &["check"], &["./check"], &["/bin/check", "a\0b"]] {
            assert_eq!(CommandLine::new(bad).unwrap_err().code, Code::BadCommand, "{bad:?}");
        }
    }

    #[test]
    fn payloads_can_hold_any_byte() {
        for (written, bytes) in [
            ("ping", &b"ping"[..]),
            (r"\x12\xFf\x00", &[0x12, 0xff, 0]),
            (r"a\r\n\t\0\\x", b"a\r\n\t\0\\x"),
            ("ü", "ü".as_bytes()),
        ] {
            assert_eq!(written.parse::<Payload>().unwrap().bytes(), bytes, "{written}");
        }
        for bad in ["", r"\", r"\x1", r"\xg0", r"\x+1", r"\u0041", &"a".repeat(65_508)] {
            assert_eq!(bad.parse::<Payload>().unwrap_err().code, Code::BadPayload, "{bad:.20}");
        }
    }

    #[test]
    fn names_of_servers_are_names_or_addresses() {
        for good in ["shop.example", "a", "_x.b-c", "10.0.0.1", "2001:db8::1", "xn--bcher-kva.example"] {
            assert!(good.parse::<TlsName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a..b",
            "-a",
            "a-",
            "shop.example:443",
            "*.example",
            "1.2.3",
            "bücher",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<TlsName>().unwrap_err().code, Code::BadTlsName, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn payloads_are_read_back_as_they_are_written(bytes in prop::collection::vec(any::<u8>(), 1..100)) {
            let payload = Payload(bytes.into());
            prop_assert_eq!(payload.to_string().parse::<Payload>().unwrap(), payload);
        }
    }
}
