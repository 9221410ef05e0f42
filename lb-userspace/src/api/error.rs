//! What can go wrong, for programs and for people.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Api;
use crate::config::{Diagnostics, Report};

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApiError {
    /// Version of the API.
    pub api: Api,
    /// Stable code, such as `LB0503`: one of [`ErrorCode`], unless the other side is newer.
    pub code: String,
    /// What is wrong, in a sentence without its full stop.
    pub message: String,
    /// What it is about, such as `checkout/v41/10.0.1.11:8443`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Mistakes in a configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Report>,
}

macro_rules! codes {
    ($( $status:literal $name:ident = $code:literal, $title:literal; )+) => {
        /// Every kind of refusal and failure. The codes are stable: scripts and people refer to them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $( #[doc = $title] $name, )+
        }

        impl ErrorCode {
            /// Every code there is, in order.
            pub const ALL: &[Self] = &[$( Self::$name, )+];

            /// As it is printed.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$name => $code, )+ }
            }

            /// The HTTP status it is sent with (RFC 9110, 15).
            pub const fn status(self) -> u16 {
                match self { $( Self::$name => $status, )+ }
            }

            /// What it is about, in a few words.
            pub const fn title(self) -> &'static str {
                match self { $( Self::$name => $title, )+ }
            }
        }
    };
}

codes! {
    400 BadRequest = "LB0501", "a request that cannot be read";
    404 NoSuchRoute = "LB0502", "a path that the API does not have";
    404 NoService = "LB0503", "a service that does not exist";
    404 NoPool = "LB0504", "a pool that does not exist";
    404 NoBackend = "LB0505", "a backend that does not exist";
    405 WrongMethod = "LB0506", "a method that the path does not take";
    409 RevisionConflict = "LB0507", "a revision that is not the one expected";
    409 NoCanary = "LB0508", "a service without a canary pool";
    413 TooLarge = "LB0509", "a request that is too large";
    422 InvalidConfig = "LB0510", "a configuration with mistakes";
    422 InvalidValue = "LB0511", "a value that cannot be taken";
    422 NeedsRestart = "LB0512", "a change that a running agent cannot make";
    500 Dataplane = "LB0513", "the kernel refused a change";
    500 Internal = "LB0514", "a mistake of the agent itself";
    503 Starting = "LB0515", "an agent that is not ready yet";
    503 Stopping = "LB0516", "an agent that is about to end";
    503 TooManyFollowers = "LB0517", "too many clients that follow events";
    507 Journal = "LB0518", "a journal that cannot be written";
    404 NoRevision = "LB0519", "a revision that a service does not have";
    404 NoRollout = "LB0520", "a service without a rollout";
    409 RolloutUnderWay = "LB0521", "something that a rollout under way decides";
    409 RolloutOrder = "LB0522", "an order that makes no sense at this point of a rollout";
    403 ReadOnly = "LB0523", "a change that is asked of the socket for reading";
    409 TraceUnderWay = "LB0529", "a trace while another one is under way";
}

impl ErrorCode {
    /// The code that is printed so.
    pub fn of(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ApiError {
    /// Of a kind; the message says what is wrong in a sentence without its full stop.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            api: Api::V1,
            code: code.as_str().to_owned(),
            message: message.into(),
            subject: None,
            remedy: None,
            diagnostics: Vec::new(),
        }
    }

    /// With what it is about.
    #[must_use]
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// There is no service of that name among those known.
    pub fn no_service<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(ErrorCode::NoService, format!("there is no service `{name}`")).about(name).remedy(instead(
            name,
            known,
            "the services are",
            "apply a configuration that has one",
        ))
    }

    /// There is no pool of that name among those of the service.
    pub fn no_pool<'a>(service: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(ErrorCode::NoPool, format!("service `{service}` has no pool `{name}`"))
            .about(format!("{service}/{name}"))
            .remedy(instead(name, known, "its pools are", "apply a configuration that has one"))
    }

    /// There is no backend of that name among those of the pool (or of the service, where no pool was named).
    pub fn no_backend<'a>(owner: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(ErrorCode::NoBackend, format!("`{owner}` has no backend `{name}`"))
            .about(format!("{owner}/{name}"))
            .remedy(instead(name, known, "its backends are", "apply a configuration that has one"))
    }

    /// The configuration has mistakes.
    pub fn invalid(name: &str, found: &Diagnostics) -> Self {
        let mistakes = match found.errors() {
            1 => "1 mistake".to_owned(),
            n => format!("{n} mistakes"),
        };
        Self {
            diagnostics: found.reports(),
            ..Self::new(ErrorCode::InvalidConfig, format!("{name} cannot be used: {mistakes}"))
        }
        .about(name)
        .remedy("nothing was changed; mend the mistakes and apply it again")
    }

    /// Its kind, if this program knows it.
    pub fn kind(&self) -> Option<ErrorCode> {
        ErrorCode::of(&self.code)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

impl std::error::Error for ApiError {}

/// What could have been meant: the nearest names, else all of them if they are few.
fn instead<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, all: &str, none: &str) -> String {
    const FEW: usize = 8;
    let known: Vec<&str> = known.into_iter().collect();
    let near = nearest(name, &known);
    if !near.is_empty() {
        return format!("did you mean {}?", listed(&near, "or"));
    }
    match known.len() {
        0 => format!("there are none; {none}"),
        n if n <= FEW => format!("{all} {}", listed(&known, "and")),
        n => format!("{all} {} and {} more", listed(&known[..FEW], ","), n - FEW),
    }
}

/// At most three names that are nearly as it was written, the nearest first.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Vec<&'a str> {
    let written = name.to_lowercase();
    let far = (written.chars().count() / 3).max(1);
    let mut near: Vec<(usize, &str)> = known
        .iter()
        .map(|known| (strsim::osa_distance(&written, &known.to_lowercase()), *known))
        .filter(|&(edits, _)| edits <= far)
        .collect();
    near.sort_unstable();
    near.into_iter().map(|(_, known)| known).take(3).collect()
}

/// `` `a`, `b` and `c` ``.
fn listed(names: &[&str], last: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((end, rest)) if !rest.is_empty() && last != "," => {
            format!("{} {last} {end}", rest.join(", "))
        }
        _ => quoted.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_read_back() {
        let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::of(code.as_str()), Some(code));
            assert!((400..600).contains(&code.status()), "{code}");
        }
        assert_eq!(ErrorCode::of("LB9999"), None);
    }

    #[test]
    fn a_mistyped_name_is_told_its_nearest_ones() {
        let remedy =
            |name: &str, known: &[&str]| ApiError::no_service(name, known.iter().copied()).remedy.unwrap();
        assert_eq!(remedy("chekout", &["checkout", "dns"]), "did you mean `checkout`?");
        assert_eq!(remedy("webc", &["weba", "webb", "dns"]), "did you mean `weba` or `webb`?");
        assert_eq!(remedy("mail", &["checkout", "dns"]), "the services are `checkout` and `dns`");
        assert_eq!(remedy("mail", &["dns"]), "the services are `dns`");
        assert_eq!(remedy("x", &[]), "there are none; apply a configuration that has one");
        let many: Vec<String> = (100..110).map(|n| format!("service-{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(remedy("mail", &many).ends_with("`service-106`, `service-107` and 2 more"));
    }

    #[test]
    fn an_error_survives_json_and_leaves_out_what_it_has_not() {
        let error = ApiError::new(ErrorCode::Starting, "the agent is not ready yet");
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "api": "v1", "code": "LB0515", "message": "the agent is not ready yet"
            })
        );
        assert_eq!(serde_json::from_value::<ApiError>(json).unwrap(), error);
    }
}
