//! gRPC, against a server that does what it is told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use h2::{Reason, server};
use hyper::{HeaderMap, Response, StatusCode, body::Bytes, header::HeaderValue};
use lb_userspace::health::{
    Alpn, Check, CheckKind, Failure, GrpcCheck, Miss, ServingStatus, Tls, Trust, probe,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::sleep,
};

use crate::{
    support::{deaf, listen, timing},
    tls::{Authority, tls},
};

const TIMEOUT: u64 = 500;

/// What a server does with a call.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Answers with this message and this status.
    Answers(&'static [u8], &'static str),
    /// Answers with trailers in place of headers.
    Refuses(&'static str),
    /// Answers with another status of HTTP.
    Fails(u16),
    /// Says that the connection will end, and then answers SERVING.
    GoesAwayAndServes,
    /// Ends the connection for this reason.
    GoesAway(Reason),
    /// Resets the stream for this reason.
    Resets(Reason),
    /// A byte of the answer every 50 ms.
    Drips,
    Nothing,
}

async fn run(does: Does, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), h2::Error> {
    let mut connection = server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let Ok((request, mut respond)) = call else { break };
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let trailers = |status| {
            HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from_static(status))])
        };
        let head = Response::builder().header("content-type", "application/grpc");
        match does {
            Does::Answers(message, status) => {
                let mut body = respond.send_response(head.body(()).expect("a head"), false)?;
                body.send_data(Bytes::from_static(message), false)?;
                body.send_trailers(trailers(status))?;
            }
            Does::Refuses(status) => {
                let head = head.header("grpc-status", status);
                respond.send_response(head.body(()).expect("a head"), true)?;
            }
            Does::Fails(status) => {
                let status = StatusCode::from_u16(status).expect("a status");
                respond.send_response(head.status(status).body(()).expect("a head"), true)?;
            }
            Does::GoesAwayAndServes => {
                connection.graceful_shutdown();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(100)).await;
                    let mut body = respond.send_response(head.body(()).expect("a head"), false)?;
                    body.send_data(Bytes::from_static(SERVING), false)?;
                    body.send_trailers(trailers("0"))
                });
            }
            Does::GoesAway(reason) => connection.abrupt_shutdown(reason),
            Does::Resets(reason) => respond.send_reset(reason),
            Does::Drips => {
                tokio::spawn(async move {
                    let mut body = respond.send_response(head.body(()).expect("a head"), false)?;
                    for _ in 0..100 {
                        body.send_data(Bytes::from_static(&[0]), false)?;
                        sleep(Duration::from_millis(50)).await;
                    }
                    body.send_trailers(trailers("0"))
                });
            }
            Does::Nothing => {
                tokio::spawn(async move {
                    sleep(Duration::from_secs(3600)).await;
                    drop(respond);
                });
            }
        }
    }
    // With what it has not read, an end at once would be a reset, which overtakes what was sent.
    sleep(Duration::from_secs(1)).await;
    Ok(())
}

const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 1];

async fn start(does: Does) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(run(does, stream));
        }
    });
    address
}

fn grpc(tls: Option<Tls>) -> Check {
    let check = GrpcCheck::new("shop", None).expect("no host");
    let check = match tls {
        Some(tls) => check.within(tls),
        None => check,
    };
    Check { kind: CheckKind::Grpc(Arc::new(check)), timing: timing(1000, TIMEOUT, 1, 1) }
}

#[tokio::test]
async fn only_serving_is_healthy() {
    let not_serving = |n| Err(Failure::NotServing(ServingStatus(n)));
    let cases: [(Does, Result<(), Failure>); 16] = [
        (Does::Answers(SERVING, "0"), Ok(())),
        (Does::Answers(&[0, 0, 0, 0, 0], "0"), not_serving(0)),
        (Does::Answers(&[0, 0, 0, 0, 2, 0x08, 2], "0"), not_serving(2)),
        (Does::Answers(&[0, 0, 0, 0, 2, 0x08, 3], "0"), not_serving(3)),
        (Does::Answers(&[], "5"), Err(Failure::GrpcStatus(5))),
        (Does::Answers(SERVING, "13"), Err(Failure::GrpcStatus(13))),
        (Does::Answers(&[0, 0, 0], "0"), Err(Failure::Protocol)),
        (Does::Answers(&[1, 0, 0, 0, 2, 0x08, 1], "0"), Err(Failure::Protocol)),
        (Does::Refuses("12"), Err(Failure::GrpcStatus(12))),
        (Does::Fails(503), Err(Failure::BadStatus(503))),
        (Does::GoesAwayAndServes, Ok(())),
        (Does::GoesAway(Reason::INTERNAL_ERROR), Err(Failure::Closed)),
        (Does::GoesAway(Reason::NO_ERROR), Err(Failure::Closed)),
        (Does::Resets(Reason::REFUSED_STREAM), Err(Failure::Closed)),
        (Does::Drips, Err(Failure::Timeout)),
        (Does::Nothing, Err(Failure::Timeout)),
    ];
    for (does, expected) in cases {
        let result = probe(start(does).await, &grpc(None), None).await;
        assert_eq!(result.outcome, expected.map_err(Miss::from), "{does:?}");
        assert!(
            result.duration < Duration::from_millis(TIMEOUT + 200),
            "{does:?} took {:?}",
            result.duration
        );
    }
}

#[tokio::test]
async fn what_is_no_grpc_fails() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await?;
        sleep(Duration::from_secs(1)).await;
        std::io::Result::Ok(())
    });
    let outcome = probe(address, &grpc(None), None).await.outcome;
    assert_eq!(outcome, Err(Miss::Failed(Failure::Protocol)));

    let (listener, address) = listen().await;
    drop(listener);
    let outcome = probe(address, &grpc(None), None).await.outcome;
    assert_eq!(outcome, Err(Miss::Failed(Failure::ConnectRefused)));

    let (_listener, _waiting, deaf) = deaf().await;
    let outcome = probe(deaf, &grpc(None), None).await.outcome;
    assert_eq!(outcome, Err(Miss::Failed(Failure::ConnectTimeout)));
}

#[tokio::test]
async fn it_works_within_tls() {
    let ours = Authority::new("ours");
    let acceptor = ours.acceptor(&["shop.example"], b"h2");
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    drop(run(Does::Answers(SERVING, "0"), stream).await);
                }
            });
        }
    });
    let check = |name| grpc(Some(tls(Trust::File(ours.file()), Some(name), Alpn::Http2)));
    assert_eq!(probe(address, &check("shop.example"), None).await.outcome, Ok(()));
    let other = probe(address, &check("mail.example"), None).await.outcome;
    assert!(matches!(&other, Err(Miss::Failed(Failure::Tls(_)))), "{other:?}");
}
