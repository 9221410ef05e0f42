//! The agent's API: HTTP/1.1 with JSON under `/v1/`, on a Unix socket.
//!
//! ```text
//! lbctl, curl ── client ── socket ── server ── Control (the agent)
//!                       types, error
//! ```
//!
//! [`types`] is what goes over the wire, and is stable; [`server`] checks requests and knows who sends them; behind
//! [`Control`] is the agent, which knows nothing of HTTP. Every request of a change carries its [`Call`]: who, and when it
//! arrived.
//!
//! | | |
//! |---|---|
//! | `GET /v1/status[?after=S&limit=N]` | [`Status`], with a page of the services |
//! | `GET /v1/services[?service=S]`, `[?after=S&limit=N]` | [`Services`], a page of them |
//! | `GET /v1/services/{s}/history` | [`History`] |
//! | `GET /v1/services/{s}/diff?from=A&to=B` | [`Diff`] |
//! | `GET /v1/backends[?service=S]`, `[?after=S&limit=N]` | [`Backends`], a page of them |
//! | `GET /v1/flows[?service=S&limit=N]` | [`Flows`] |
//! | `GET /v1/events[?after=SEQ&service=S&follow=true]` | [`Event`]s, one JSON object a line |
//! | `POST /v1/validate` | [`Validate`] -> [`Validated`] |
//! | `POST /v1/apply` | [`Apply`] -> [`Applied`] |
//! | `POST /v1/explain` | [`Explain`] -> [`Explanation`] |
//! | `POST /v1/detach` | [`Detached`] |
//! | `PUT /v1/services/{s}/split` | [`SetSplit`] -> [`Applied`] |
//! | `PUT /v1/services/{s}/pools/{p}/backends/{b}/weight` | [`SetWeight`] -> [`Applied`] |
//! | `PUT …/state`, `PUT …/health` | [`SetState`], [`SetHealth`] -> [`Applied`] |
//! | `POST /v1/services/{s}/rollback` | [`Rollback`] -> [`RolledBack`] |
//! | `POST /v1/services/{s}/undo` | [`Undo`] -> [`Applied`] |
//!
//! | `GET /v1/faults`, `POST /v1/services/{s}/faults`, `POST /v1/faults/clear` | [`AddFault`], [`ClearFaults`] -> [`Faults`] |
//! | `GET /v1/openapi.json` | all of this as OpenAPI 3.1 (`deploy/openapi.json`) |
//!
//! A second socket, if one is asked for, answers GET only ([`Server::bind_read_only`]).
//!
//! Whatever fails is answered with an [`ApiError`] and the status of its [`ErrorCode`].

pub mod client;
mod control;
mod error;
pub mod server;
pub mod types;

pub use client::{Client, ClientError, EventStream, Lines};
pub use control::{Answer, Call, Control};
pub use error::{ApiError, ErrorCode};
pub use server::{BindError, Server};
pub use types::*;
