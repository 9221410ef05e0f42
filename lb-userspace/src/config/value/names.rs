//! Names.

use std::fmt;
use std::str::FromStr;

use super::textual;
use crate::config::read::escaped;
use crate::config::{Code, Invalid};

macro_rules! name {
    ($(#[doc = $doc:literal])+ $name:ident, $what:literal) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                checked(text, $what).map(|()| Self(text.into()))
            }
        }

        textual!($name, $what, {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
            "maxLength": 63,
        });
    };
}

name! {
    /// The name of a service.
    ///
    /// At most 63 letters, digits, `.`, `_` and `-`, the first one a letter or a digit, so that it can stand in
    /// `SERVICE/POOL/BACKEND`, in a label and in a path of the API as it is.
    ServiceName, "the name of a service"
}

name! {
    /// The name of a pool, unique in its service; of the same form as [`ServiceName`].
    PoolName, "the name of a pool"
}

fn checked(text: &str, what: &str) -> Result<(), Invalid> {
    let refused =
        |why: String| Err(Invalid::new(Code::BadName, format!("{} cannot be {what}", escaped(text)), why));
    let Some(first) = text.chars().next() else {
        return refused("it is empty".to_owned());
    };
    if !first.is_ascii_alphanumeric() {
        return refused("it begins with a letter or a digit".to_owned());
    }
    if let Some(other) = text.chars().find(|&c| !(c.is_ascii_alphanumeric() || "._-".contains(c))) {
        return refused(format!("{} is not a letter, a digit, `.`, `_` or `-`", escaped(&other.to_string())));
    }
    if text.len() > 63 {
        return refused(format!("it has {} characters, at most 63 are allowed", text.len()));
    }
    Ok(())
}

/// The name of a network interface, as Linux allows it (`dev_valid_name`): at most 15 bytes, without blanks, `/` and `:`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        /// `IFNAMSIZ` less the terminating zero.
        const LONGEST: usize = 15;
        let refused = |why: String| {
            let what = format!("{} cannot be the name of an interface", escaped(text));
            Err(Invalid::new(Code::BadInterface, what, why))
        };
        if matches!(text, "" | "." | "..") {
            return refused("expected a name such as `eth0`".to_owned());
        }
        if text.len() > LONGEST {
            return refused(format!("it has {} bytes, Linux allows {LONGEST}", text.len()));
        }
        let wrong = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
        if let Some(c) = text.chars().find(|&c| wrong(c)) {
            return refused(format!("{} cannot be in it", escaped(&c.to_string())));
        }
        Ok(Self(text.into()))
    }
}

textual!(InterfaceName, "the name of an interface", {
    "type": "string",
    "pattern": "^[^\\s/:]+$",
    "maxLength": 15,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_can_stand_in_a_path() {
        for good in ["checkout", "v41", "0", "a.b_c-d", &"x".repeat(63)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".", "a/b", "a b", "größe", &"x".repeat(64)] {
            assert_eq!(bad.parse::<PoolName>().unwrap_err().code, Code::BadName, "{bad}");
        }
    }

    #[test]
    fn interfaces_have_at_most_fifteen_bytes() {
        for good in ["eth0", "enp1s0f0np0.4094", "br-äöü"] {
            assert_eq!(good.parse::<InterfaceName>().is_ok(), good.len() <= 15, "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "eth0:1"] {
            assert_eq!(bad.parse::<InterfaceName>().unwrap_err().code, Code::BadInterface, "{bad}");
        }
    }
}
