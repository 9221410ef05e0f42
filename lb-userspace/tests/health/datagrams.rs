//! UDP.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_userspace::health::{Check, CheckKind, Failure, Miss, UdpCheck, probe};
use tokio::{net::UdpSocket, time::sleep};

use crate::support::timing;

fn udp(expect: Option<&[u8]>) -> Check {
    let check = UdpCheck { send: b"\x00ping".as_slice().into(), expect: expect.map(Into::into) };
    Check { kind: CheckKind::Udp(Arc::new(check)), timing: timing(400, 300, 1, 1) }
}

/// Answers a ping with these datagrams, 100 ms apart.
async fn serve(answers: &'static [&'static [u8]]) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback is there");
    let address = socket.local_addr().expect("it is bound");
    tokio::spawn(async move {
        let mut request = [0; 100];
        while let Ok((length, client)) = socket.recv_from(&mut request).await {
            assert_eq!(&request[..length], b"\x00ping");
            for answer in answers {
                sleep(Duration::from_millis(100)).await;
                socket.send_to(answer, client).await?;
            }
        }
        std::io::Result::Ok(())
    });
    address
}

#[tokio::test]
async fn the_first_answer_decides() {
    /// What is sent back, what is expected of it, and what that comes to.
    type Case<'a> = (&'a str, &'a [&'a [u8]], Option<&'a [u8]>, Result<(), Failure>);
    let cases: [Case<'_>; 6] = [
        ("any answer", &[b"what?"], None, Ok(())),
        ("an empty answer", &[b""], None, Ok(())),
        ("the right answer", &[b"a \xffpong!"], Some(b"\xffpong"), Ok(())),
        ("a wrong answer", &[b"a \xfepong!", b"\xffpong"], Some(b"\xffpong"), Err(Failure::BadAnswer)),
        ("half an answer", &[b"\xffpo", b"ng"], Some(b"\xffpong"), Err(Failure::BadAnswer)),
        ("silence", &[], None, Err(Failure::Timeout)),
    ];
    for (name, answers, expect, outcome) in cases {
        let result = probe(serve(answers).await, &udp(expect), None).await;
        assert_eq!(result.outcome, outcome.map_err(Miss::from), "{name}");
        assert!(result.duration < Duration::from_secs(5), "{name} took {:?}", result.duration);
    }
}

#[tokio::test]
async fn a_closed_port_is_told_by_icmp() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback is there");
    let address = socket.local_addr().expect("it is bound");
    drop(socket);
    let result = probe(address, &udp(None), None).await;
    assert_eq!(result.outcome, Err(Miss::Failed(Failure::ConnectRefused)));
}

#[tokio::test]
async fn an_answer_from_somewhere_else_is_none() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback is there");
    let address = socket.local_addr().expect("it is bound");
    tokio::spawn(async move {
        let (_, client) = socket.recv_from(&mut [0; 100]).await?;
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        other.send_to(b"me too", client).await
    });
    assert_eq!(probe(address, &udp(None), None).await.outcome, Err(Miss::Failed(Failure::Timeout)));
}
