//! `http` and `https`: the target answers a GET with an expected status (HTTP/1.1, RFC 9112), and a body that contains
//! what is expected. Redirects are not followed: a status of 301 is an answer like any other.

use std::{error::Error, io, net::SocketAddr, pin::pin};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};

use super::{
    To,
    failure::{Failure, Miss},
    socket, tls,
};
use crate::health::check::HttpCheck;

/// The head of an answer may be this long, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// After this many bytes of a body the rest is left unread, and nothing is expected in it.
const MAX_BODY: usize = 64 * 1024;

pub(super) async fn probe(to: &To, check: &HttpCheck, deadline: Instant) -> Result<(), Miss> {
    let stream = socket::connect(to, deadline).await?;
    let request = request(to.address, check);
    let body = check.expect_body.as_deref();
    let answer = match &check.tls {
        None => timeout_at(deadline, exchange(stream, request, body)).await,
        Some(tls) => {
            let stream = tls::handshake(stream, tls, to.address.ip(), deadline).await?;
            timeout_at(deadline, exchange(stream, request, body)).await
        }
    };
    let (status, is_expected) = answer.map_err(|_| Failure::Timeout)??;
    match check.expect.contains(status) {
        true if is_expected => Ok(()),
        true => Err(Failure::BadAnswer.into()),
        false => Err(Failure::BadStatus(status).into()),
    }
}

fn request(address: SocketAddr, check: &HttpCheck) -> Request<Empty<Bytes>> {
    let host = check.host.clone().unwrap_or_else(|| {
        HeaderValue::from_str(&address.to_string()).expect("an address is a valid header")
    });
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = check.path.clone().into();
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("lb-health/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Sends the request; the status of the answer and whether its body has `expected` in it, once it is all there, or as much
/// of it as anyone wants to read.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
    expected: Option<&str>,
) -> Result<(u16, bool), Failure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| why(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| why(&error))?;
        let status = response.status().as_u16();
        let is_expected = match expected {
            None => drain(response.into_body()).await.map(|()| true),
            Some(text) => has(response.into_body(), text.as_bytes()).await,
        };
        Ok((status, is_expected?))
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection may end before its last words are read. Errors reach `answer` too.
        _ = connection => answer.await,
    }
}

async fn drain(mut body: Incoming) -> Result<(), Failure> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.map_err(|error| why(&error))?.data_ref().map_or(0, Bytes::len);
        if read >= MAX_BODY {
            break;
        }
    }
    Ok(())
}

/// Reads until `text` was there.
async fn has(mut body: Incoming, text: &[u8]) -> Result<bool, Failure> {
    let mut read = Vec::new();
    while read.len() < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| why(&error))?;
        let data = frame.data_ref().map_or(&[][..], Bytes::as_ref);
        // It may have begun in the frame before.
        let unseen = read.len().saturating_sub(text.len());
        read.extend(&data[..data.len().min(MAX_BODY - read.len())]);
        if contains(&read[unseen..], text) {
            return Ok(true);
        }
    }
    Ok(text.is_empty())
}

/// If `part` is somewhere in `whole`.
pub(super) fn contains(whole: &[u8], part: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

fn why(error: &hyper::Error) -> Failure {
    if error.is_incomplete_message() || error.is_canceled() {
        return Failure::Closed;
    }
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(io) if !error.is_parse() => socket::why_broken(io),
        _ => Failure::Protocol,
    }
}
