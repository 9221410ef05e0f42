//! The API and `lbctl`, with an agent that is made up behind the real server.
//!
//! `UPDATE_EXPECT=1` writes what is expected anew; look at the difference before you commit it.

mod agent;
mod follow;
mod http;
mod lab;
mod offline;
mod openapi;
mod rollout;
mod terminal;
mod verbs;
