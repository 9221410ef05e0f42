//! Lines of words.

use std::time::Duration;

use lb_userspace::health::{Check, CheckKind, Failure, Health, Miss, ProbeResult, Scheduler, Wish, probe};
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    sync::{mpsc, watch},
    time::sleep,
};

use crate::support::{deaf, listen, next, target, timing};

fn agent() -> Check {
    Check { kind: CheckKind::Agent, timing: timing(400, 300, 1, 3) }
}

/// Says these bytes to whoever connects, so many at a time, 50 ms apart, and then nothing, without closing.
fn say(listener: TcpListener, bytes: &'static [u8], at_a_time: usize) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                for part in bytes.chunks(at_a_time) {
                    stream.write_all(part).await?;
                    sleep(Duration::from_millis(50)).await;
                }
                sleep(Duration::from_secs(3600)).await;
                std::io::Result::Ok(())
            });
        }
    });
}

async fn asked(bytes: &'static [u8], at_a_time: usize) -> ProbeResult {
    let (listener, address) = listen().await;
    say(listener, bytes, at_a_time);
    probe(address, &agent(), None).await
}

#[tokio::test]
async fn a_line_is_words_whatever_it_came_in() {
    let words = |text: &str| text.parse().expect("words");
    assert_eq!(asked(b"up ready 75%\n", 100).await.words, words("up ready 75%"));
    assert_eq!(asked(b"drain\r\nup 10%\n", 100).await.words, words("drain"), "one line only");
    assert_eq!(asked(b"75%\n", 2).await.words, words("75%"));

    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"down").await
    });
    let result = probe(address, &agent(), None).await;
    assert_eq!(
        (result.outcome, result.words),
        (Ok(()), words("down")),
        "the end of the connection ends the line"
    );
}

#[tokio::test]
async fn what_is_no_line_of_words_says_nothing() {
    let cases: [(&str, ProbeResult, Failure); 4] = [
        ("another protocol", asked(b"SSH-2.0-OpenSSH_9.2\r\n", 100).await, Failure::Protocol),
        ("an endless line", asked(&[b'u'; 5000], 5000).await, Failure::Protocol),
        ("silence", asked(b"", 1).await, Failure::Timeout),
        ("a slow drip", asked(b"up ready 75%\n", 1).await, Failure::Timeout),
    ];
    for (name, result, failure) in cases {
        assert_eq!(result.outcome, Err(Miss::Failed(failure)), "{name}");
        assert_eq!(result.words, Default::default(), "{name}");
        assert!(result.duration < Duration::from_secs(5), "{name} took {:?}", result.duration);
    }
    let (listener, address) = listen().await;
    drop(listener);
    let refused = probe(address, &agent(), None).await;
    assert_eq!(refused.outcome, Err(Miss::Failed(Failure::ConnectRefused)));
    let (_listener, _waiting, deaf) = deaf().await;
    assert_eq!(probe(deaf, &agent(), None).await.outcome, Err(Miss::Failed(Failure::ConnectTimeout)));
}

#[tokio::test]
async fn what_an_agent_said_stands_until_it_says_something_else() {
    let (listener, address) = listen().await;
    let (line, lines) = watch::channel(Some("up 75%\n"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let line = lines.borrow().unwrap_or_default();
            drop(stream.write_all(line.as_bytes()).await);
        }
    });
    let (events, mut received) = mpsc::channel(16);
    let scheduler = Scheduler::new(events);
    let check = Check { timing: timing(50, 40, 1, 3), ..agent() };
    scheduler.update(vec![target(1, address, check)]);
    let event = next(&mut received).await;
    assert_eq!((event.state, event.advice.percent, event.advice.takes_new()), (Health::Up, 75, true));

    line.send_replace(Some("drain\n"));
    let event = next(&mut received).await;
    assert_eq!((event.advice.percent, event.advice.wish), (75, Wish::Drain));

    line.send_replace(None);
    let event = next(&mut received).await;
    assert_eq!((event.state, event.reason), (Health::Down, Some(Failure::Closed)));
    assert_eq!((event.advice.percent, event.advice.wish), (75, Wish::Drain), "silence takes nothing back");

    line.send_replace(Some("ready 100%\n"));
    assert_eq!(next(&mut received).await.advice.to_string(), "up ready 100%");
}
