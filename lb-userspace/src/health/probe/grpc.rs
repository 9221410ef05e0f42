//! `grpc`: `grpc.health.v1.Health/Check` answers SERVING.
//!
//! One call of one method with one field is written and read here byte by byte, on the HTTP/2 of h2, whose connection lives
//! in the probe's own future: tonic would bring a code generator and a channel that reconnects, and both tonic and hyper a
//! task of its own for each connection, which outlives a probe that was given up.
//!
//! A GOAWAY without an error says that the connection will end, not that the server is unwell: the call that is under way
//! still gets its answer.

use std::{net::SocketAddr, pin::pin, time::Duration};

use h2::{RecvStream, client};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue, TE, USER_AGENT},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};

use super::{
    To,
    failure::{Failure, Miss, ServingStatus},
    socket, tls,
};
use crate::health::check::GrpcCheck;

/// An answer may be this long, in bytes. Those that are known have seven.
const MAX_ANSWER: usize = 4096;

pub(super) async fn probe(to: &To, check: &GrpcCheck, deadline: Instant) -> Result<(), Miss> {
    let stream = socket::connect(to, deadline).await?;
    let request = request(to.address, check, deadline.saturating_duration_since(Instant::now()));
    let message = check.request.clone();
    let answer = match &check.tls {
        None => timeout_at(deadline, call(stream, request, message)).await,
        Some(tls) => {
            let stream = tls::handshake(stream, tls, to.address.ip(), deadline).await?;
            timeout_at(deadline, call(stream, request, message)).await
        }
    };
    match answer.map_err(|_| Failure::Timeout)?? {
        ServingStatus::SERVING => Ok(()),
        other => Err(Failure::NotServing(other).into()),
    }
}

fn request(address: SocketAddr, check: &GrpcCheck, left: Duration) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = check.uri(&address.to_string()).expect("an address is a valid authority");
    let timeout = format!("{}m", left.as_millis().clamp(1, 99_999_999));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("lb-health/", env!("CARGO_PKG_VERSION"))));
    headers.insert("grpc-timeout", HeaderValue::from_str(&timeout).expect("digits are a valid header"));
    request
}

async fn call(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<()>,
    message: Bytes,
) -> Result<ServingStatus, Failure> {
    let (sender, connection) = client::handshake(stream).await.map_err(|error| why(&error))?;
    let answer = async {
        let mut sender = sender.ready().await.map_err(|error| why(&error))?;
        let sent = sender.send_request(request, false);
        let (response, mut body) = sent.map_err(|error| why(&error))?;
        body.send_data(message, true).map_err(|error| why(&error))?;
        read(response.await.map_err(|error| why(&error))?).await
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        status = &mut answer => status,
        // It may have ended after its last words; and if not, it knows better why than the call.
        ended = connection => match (answer.await, ended) {
            (Err(_), Err(error)) => Err(why(&error)),
            // A call whose connection ended in good order meets a broken pipe, in h2's words.
            (Err(Failure::Reset), Ok(())) => Err(Failure::Closed),
            (status, Ok(()) | Err(_)) => status,
        },
    }
}

async fn read(response: Response<RecvStream>) -> Result<ServingStatus, Failure> {
    if response.status() != StatusCode::OK {
        return Err(Failure::BadStatus(response.status().as_u16()));
    }
    let (head, mut body) = response.into_parts();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| why(&error))?;
        if message.len() + data.len() > MAX_ANSWER {
            return Err(Failure::Protocol);
        }
        message.extend(data);
    }
    let trailers = body.trailers().await.map_err(|error| why(&error))?;
    // A call that fails at once has its trailers in place of headers.
    match grpc_status(trailers.as_ref().unwrap_or(&head.headers)) {
        Some(0) => serving(&message).ok_or(Failure::Protocol),
        Some(code) => Err(Failure::GrpcStatus(code)),
        None => Err(Failure::Protocol),
    }
}

fn grpc_status(trailers: &HeaderMap) -> Option<u32> {
    trailers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// `HealthCheckResponse { ServingStatus status = 1; }` in a message of gRPC. Fields of later versions are passed over.
fn serving(framed: &[u8]) -> Option<ServingStatus> {
    const STATUS: u64 = 1 << 3;
    let (&[flag, a, b, c, d], mut message) = framed.split_first_chunk::<5>()?;
    // Nobody offered to understand a compressed one.
    if flag != 0 || usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()? != message.len() {
        return None;
    }
    let mut status = ServingStatus(0);
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag == STATUS {
                    status = ServingStatus(value);
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// Takes a number off the front: seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn why(error: &h2::Error) -> Failure {
    match error.get_io() {
        Some(io) => socket::why_broken(io),
        None if error.is_remote() => Failure::Closed,
        None => Failure::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(message: &[u8]) -> Option<u64> {
        let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
        framed.extend(message);
        serving(&framed).map(|status| status.0)
    }

    #[test]
    fn the_status_is_field_one_wherever_it_stands() {
        assert_eq!(answer(&[]), Some(0), "a field that has its default is not there");
        assert_eq!(answer(&[0x08, 1]), Some(1));
        assert_eq!(answer(&[0x08, 2, 0x08, 1]), Some(1), "the last one counts");
        let later =
            [0x12, 2, b'o', b'k', 0x19, 0, 0, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0x30, 7, 0x08, 0x83, 0x01];
        assert_eq!(answer(&later), Some(131), "with fields of every type around it");
    }

    #[test]
    fn what_is_no_message_is_no_status() {
        for message in [&[0x08][..], &[0x08, 0x80], &[0x12, 9, 1], &[0x0b], &[0x08, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(answer(message), None, "{message:x?}");
        }
        for framed in [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 3, 8, 1]] {
            assert_eq!(serving(framed), None, "{framed:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_status_or_none(message in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&message);
        }
    }
}
