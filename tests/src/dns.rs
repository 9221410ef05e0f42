//! A name server: it says what a test tells it to say.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::Namespace;

/// What it says of one kind of records of one name.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These, for so many seconds.
    Records(Vec<RData>, u32),
    /// There is no such name.
    NoSuchName,
    /// It does not know (SERVFAIL).
    Failure,
    /// Nothing.
    Silence,
}

/// A name server over UDP. It ends with this value.
#[derive(Debug)]
pub struct NameServer {
    zone: Arc<Zone>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Zone {
    replies: Mutex<HashMap<(Name, RecordType), Reply>>,
    over: AtomicBool,
}

impl NameServer {
    /// Starts one in a namespace. Of every name it says that there is no such one, until it is told otherwise.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let socket = namespace.run(|| UdpSocket::bind(address));
        let socket = socket.with_context(|| format!("no name server at {address}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let zone = Arc::new(Zone::default());
        let served = Arc::clone(&zone);
        let thread = thread::spawn(move || {
            let mut packet = [0; 1500];
            while !served.over.load(Ordering::Relaxed) {
                // A timeout is time to look whether it is over; what is no question has no answer.
                let Ok((len, client)) = socket.recv_from(&mut packet) else { continue };
                if let Some(answer) = served.answer(&packet[..len]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self { zone, thread: Some(thread) })
    }

    /// From now on it says this.
    ///
    /// # Errors
    /// If that is no name.
    pub fn say(&self, name: &str, kind: RecordType, reply: Reply) -> Result<()> {
        let name = Name::from_str(name)?;
        self.zone.replies.lock().unwrap_or_else(PoisonError::into_inner).insert((name, kind), reply);
        Ok(())
    }
}

impl Zone {
    fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        let query = question.queries.first()?.clone();
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        let name = query.name().clone();
        match replies.get(&(name.clone(), query.query_type())) {
            Some(Reply::Records(records, ttl)) => {
                answer.add_answers(
                    records.iter().map(|data| Record::from_rdata(name.clone(), *ttl, data.clone())),
                );
            }
            // It has records of another kind.
            None if replies.keys().any(|(known, _)| *known == name) => {}
            None | Some(Reply::NoSuchName) => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(Reply::Failure) => answer.metadata.response_code = ResponseCode::ServFail,
            Some(Reply::Silence) => return None,
        }
        answer.add_query(query);
        answer.to_vec().ok()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.zone.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed.
            let _ = thread.join();
        }
    }
}
