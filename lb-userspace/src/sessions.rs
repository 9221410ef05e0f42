//! Sessions of `full-nat`: counts them, and sweeps out those that are over. The rule is [`lb_common::session::is_over`], which
//! the kernel program asks too when it needs a port.

use std::collections::HashMap;
use std::io;

use lb_common::abi::Settings;
use lb_common::session::{CLOSED_TICKS, Held, Session, SessionKey, is_over};
use lb_common::wire::IPPROTO_UDP;

use crate::clock;
use crate::dataplane::Maps;
use crate::dataplane::bpf::Hash;

/// What a sweep over the sessions found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Established ones that are left, by backend id.
    pub by_backend: HashMap<u16, u64>,
    /// How many these are.
    pub established: u64,
    /// How many were over.
    pub swept: u64,
}

/// Counts sessions, and takes those away that are over.
///
/// # Errors
///
/// If the kernel does not show them, or does not let them go.
pub fn sweep(maps: &Maps) -> io::Result<Sessions> {
    let mut found = Sessions::default();
    let (settings, now) = (maps.settings.read(0), clock::ticks());
    let mut doubtful = Vec::new();
    maps.sessions.for_each(|key, session| {
        if !session.has(Session::REPLY) {
            *found.by_backend.entry(session.backend).or_default() += 1;
            found.established += 1;
        }
        if may_be_over(&settings, key, session, now) {
            doubtful.push(*key);
        }
    })?;
    for key in doubtful {
        let Some(session) = end(&maps.sessions, &settings, &key, now)? else { continue };
        found.swept += 1;
        found.established = found.established.saturating_sub(1);
        if let Some(count) = found.by_backend.get_mut(&session.backend) {
            *count = count.saturating_sub(1);
        }
    }
    Ok(found)
}

/// Whether one direction alone leaves that open. (One of the two always does if a session is over.)
fn may_be_over(settings: &Settings, key: &SessionKey, session: &Session, now: u32) -> bool {
    let patience = if key.protocol == u32::from(IPPROTO_UDP) {
        settings.udp_idle
    } else if session.has(Session::FIN | Session::RESET) {
        CLOSED_TICKS
    } else {
        settings.tcp_idle
    };
    now.wrapping_sub(session.seen) as i32 > patience as i32
}

/// Takes both directions away, if the session is over; returns one of them.
fn end(
    sessions: &Hash<SessionKey, Session>,
    settings: &Settings,
    key: &SessionKey,
    now: u32,
) -> io::Result<Option<Session>> {
    // Gone with its other direction already.
    let Some(session) = sessions.get(key)? else { return Ok(None) };
    let other_key = key.back(&session);
    let other = sessions.get(&other_key)?.filter(|other| other.answers(key));
    let both = (&session, other.as_ref());
    if !is_over(settings, key.protocol, Held::Established, both, now, 0) {
        return Ok(None);
    }
    if let Some(other) = &other
        && !take(sessions, &other_key, other)?
    {
        return Ok(None);
    }
    if take(sessions, key, &session)? {
        return Ok(Some(session));
    }
    if let Some(other) = &other {
        sessions.insert(&other_key, other)?;
    }
    Ok(None)
}

/// Deletes an entry that is as it was `expected`. One that has changed since goes back at once.
fn take(sessions: &Hash<SessionKey, Session>, key: &SessionKey, expected: &Session) -> io::Result<bool> {
    // The time without an entry that has changed is as short as can be.
    if sessions.get(key)?.is_some_and(|found| found != *expected) {
        return Ok(false);
    }
    match sessions.take(key)? {
        Some(found) if found != *expected => sessions.insert(key, &found).map(|()| false),
        _ => Ok(true),
    }
}
