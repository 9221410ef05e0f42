//! How it ends, and what is said about it.

use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::screen::{Format, Screen};
use crate::api::{Api, ApiError, ClientError, ErrorCode};

/// How the program ends. Pipelines rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// It was found degraded, or was rolled back.
    Degraded = 3,
    /// It was not so in time.
    TimedOut = 4,
    /// Somebody else changed it first.
    Conflict = 5,
    /// The agent cannot be reached.
    Unreachable = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb could not do its work.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    /// `None` if all was said already, or if nobody listens.
    error: Option<Box<ApiError>>,
}

impl Failure {
    /// A failure of the program itself, with one of its own codes (`LB06…`).
    pub fn of(code: &str, message: impl Into<String>) -> Self {
        let error = ApiError {
            api: Api::V1,
            code: code.to_owned(),
            message: message.into(),
            subject: None,
            remedy: None,
            diagnostics: Vec::new(),
        };
        Self { exit: Exit::Failed, error: Some(Box::new(error)) }
    }

    /// A file that cannot be read or written.
    pub fn file(doing: &str, path: &str, error: &io::Error) -> Self {
        Self::of("LB0604", format!("cannot {doing} {path}: {error}"))
            .remedy("check the path, and who may use it")
    }

    /// With what to do about it.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        if let Some(error) = &mut self.error {
            error.remedy = Some(remedy.into());
        }
        self
    }

    /// Ending in another way.
    pub fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// Of which everything was said already.
    pub const fn told(exit: Exit) -> Self {
        Self { exit, error: None }
    }

    /// What is wrong, in a sentence.
    #[cfg(test)]
    pub fn message(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.message)
    }

    /// Says what failed, why, and what to do next.
    pub fn tell(self, doing: &str, screen: &mut Screen) -> Exit {
        let Some(error) = self.error else {
            return self.exit;
        };
        let text = match screen.format {
            Format::Json => {
                let told = Told { error: &error, action: format!("cannot {doing}") };
                serde_json::to_string_pretty(&told).unwrap_or_default() + "\n"
            }
            Format::Table | Format::Wide => worded(&error, doing),
        };
        // There is nowhere else to complain.
        _ = screen.complain(&text);
        self.exit
    }
}

/// An error for programs, with what could not be done.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    error: &'a ApiError,
    action: String,
}

fn worded(error: &ApiError, doing: &str) -> String {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let bold = Style::new().bold();
    let ApiError { code, message, diagnostics, .. } = error;
    // Of several that the verb is about, which one.
    let whose = error.subject.iter().filter(|it| !doing.contains(*it) && !message.contains(*it));
    let whose: String = whose.map(|it| format!("{it}: ")).collect();
    let mut text = format!("{red}error[{code}]{red:#}{bold}: cannot {doing}{bold:#}: {whose}{message}\n");
    for found in diagnostics {
        let (at, label) = (&found.at, &found.at.label);
        text += &format!(
            "  {}:{}:{}: {}: {}; {label}\n",
            found.file, at.line, at.column, found.code, found.message
        );
    }
    if let Some(remedy) = &error.remedy {
        text += &format!("  {bold}help:{bold:#} {remedy}\n");
    }
    text
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match error.kind() {
            Some(ErrorCode::RevisionConflict | ErrorCode::RolloutUnderWay) => Exit::Conflict,
            _ => Exit::Failed,
        };
        Self { exit, error: Some(Box::new(error)) }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Refused(error) => error.into(),
            ClientError::Unreachable { source, .. } => {
                let remedy = match source.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "the socket is for root and the group `lb`: be one of them, or use sudo"
                    }
                    io::ErrorKind::NotFound => {
                        "is lbd running (`systemctl status lbd`)? if its socket is elsewhere, name it with --socket or LB_SOCKET"
                    }
                    _ => "lbd left its socket behind and is not running: start it (`systemctl start lbd`)",
                };
                Self::of("LB0601", message).remedy(remedy).exit(Exit::Unreachable)
            }
            ClientError::Silent { .. } => Self::of("LB0602", message)
                .remedy("it is there and hangs or is overloaded: look at its log (`journalctl -u lbd`)")
                .exit(Exit::Unreachable),
            ClientError::Broken { .. } => Self::of("LB0603", message).remedy(
                "it ended meanwhile, or is of another version: compare `lbd --version` and `lbctl --version`",
            ),
        }
    }
}

/// Of our own output. Whoever closed it wants no more.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::told(Exit::Done),
            _ => Self::of("LB0608", format!("the output cannot be written: {error}")),
        }
    }
}
