//! Takes secrets out of texts of any kind: TOML, JSON, logs, command lines.
//!
//! It errs on the side of taking out too much. What it cannot know is what a secret looks like that has no name: whoever
//! passes an archive on is told to look through it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

/// What stands in a secret's place.
pub const REDACTED: &str = "REDACTED";

/// Takes secrets out, those that it was shown and those that look like some.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    known: BTreeSet<String>,
}

/// Each with the group that is kept; what is matched behind it goes.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // A name that says so, and its value: TOML, JSON, environment, queries. `send` is what a health check says.
        r#"(?i)((?:\b|_)["']?[\w.-]*(?:seed|secret|token|passw(?:or)?d|passphrase|api[_-]?key|private[_-]?key|credential)[\w.-]*["']?\s*[:=]\s*)(?:"[^"\n]*"|'[^'\n]*'|[^\s,}\]&"']+)"#,
        // The key of connection ids.
        r#"((?:\b|")key"?\s*[:=]\s*)["'][0-9A-Fa-f]{32}["']"#,
        r#"((?:\b|")send"?\s*[:=]\s*)(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"#,
        // The same as two words of a command.
        r#"(?i)(["']?--?[\w-]*(?:secret|token|passw(?:or)?d|passphrase|api-?key|private-?key|credential)[\w-]*["']?\s*,?\s+)(?:"[^"\n]*"|'[^'\n]*'|[^\s,\]]+)"#,
        // The user in a URL (RFC 3986, 3.2.1).
        r#"([a-zA-Z][\w+.-]*://)[^/\s@"']+@"#,
        // HTTP headers, however they are written down.
        r#"(?i)(\b(?:proxy-)?authorization["']?\s*[:=]\s*)["']?[^"'\r\n]+["']?"#,
        r#"(?i)(\b(?:set-)?cookie["']?\s*[:=]\s*)["']?[^"'\r\n]+["']?"#,
        r"(?i)(\bbearer\s+)[\w.~+/=-]+",
        // PEM (RFC 7468).
        r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?-----END [A-Z ]*PRIVATE KEY-----",
    ]
    .into_iter()
    .map(|pattern| Regex::new(pattern).expect("a constant that a test compiles"))
    .collect()
});

static SEED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"hash_seed"?\s*[:=]\s*["']([0-9A-Fa-f]{32})["']"#).expect("a constant that a test compiles")
});

impl Redactor {
    /// Looks for hash seeds in a text, and takes them out of every text from now on.
    pub fn learn(&mut self, text: &str) {
        self.known.extend(SEED.captures_iter(text).map(|found| found[1].to_owned()));
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for known in &self.known {
            text = text.replace(known, REDACTED);
        }
        for pattern in PATTERNS.iter() {
            let shown = |found: &regex::Captures<'_>| match found[0].ends_with('@') {
                true => format!("{}{REDACTED}@", &found[1]),
                false => format!("{}\"{REDACTED}\"", &found[1]),
            };
            if pattern.is_match(&text) {
                text = pattern.replace_all(&text, shown).into_owned();
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_whatever_they_are_written_in() {
        let redactor = Redactor::default();
        for text in [
            r#"hash_seed = "hunter2""#,
            r#"{"hash_seed":"hunter2","flows":7}"#,
            "LB_API_TOKEN=hunter2 lbd",
            r#"url = "https://ops:hunter2@registry.example/pools""#,
            r#"url = "https://registry.example/pools?token=hunter2&zone=a""#,
            r#"command = ["/bin/check", "--password", "hunter2"]"#,
            "check --api-key hunter2 --verbose",
            "Authorization: Basic hunter2",
            r#""authorization": "Bearer hunter2""#,
            "sent bearer hunter2.hunter2-x",
            "Cookie: session=hunter2; other=hunter2",
            r#"send = "AUTH \"hunter2\"\r\n""#,
            r"send = 'AUTH hunter2\r\n'",
            "client_secret: hunter2",
            "-----BEGIN RSA PRIVATE KEY-----\nhunter2\nhunter2\n-----END RSA PRIVATE KEY-----",
        ] {
            let shown = redactor.text(text);
            assert!(!shown.contains("hunter2") && shown.contains(REDACTED), "{text} became {shown}");
        }
        for text in
            [r#"key = "8f95f09245765f80256934e50c66207f""#, r#"{"key":"8f95f09245765f80256934e50c66207f"}"#]
        {
            assert!(!redactor.text(text).contains("8f95"), "the key of connection ids: {text}");
        }
        assert_eq!(
            redactor.text(r#"url = "https://ops:hunter2@registry.example/pools""#),
            r#"url = "https://REDACTED@registry.example/pools""#
        );
        assert!(redactor.text("x?token=hunter2&zone=a").contains("&zone=a"));
    }

    #[test]
    fn what_is_no_secret_stays() {
        let redactor = Redactor::default();
        for text in [
            "interfaces = [\"eth0\"]\nflows = 1048576\n",
            r#"{"split_key":"source-ip","backend_key":"5-tuple"}"#,
            "path = \"/healthz\"",
            "198.51.100.7:40000 -> 203.0.113.10:443",
            "url = \"https://registry.example/pools\"",
            "user@host: no URL",
            "key = \"q\"",
        ] {
            assert_eq!(redactor.text(text), text);
        }
    }

    #[test]
    fn a_seed_that_was_seen_goes_wherever_it_is() {
        const SEED: &str = "00112233445566778899aabbccddeeff";
        let mut redactor = Redactor::default();
        assert!(redactor.text(SEED).contains(SEED));
        redactor.learn(&format!("{{\"hash_seed\": \"{SEED}\"}}"));
        assert_eq!(redactor.text(&format!("the hash uses {SEED} now")), "the hash uses REDACTED now");
    }
}
