//! A gateway that does not answer as it should: tried again where that is harmless, bounded, and then left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// What the gateway does with a request.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Closes the connection.
    Close,
    /// Says 500.
    Fail,
    /// Begins a body and closes the connection.
    Cut,
    /// Says nothing.
    Hang,
    /// Says too much.
    Flood,
    /// Says 429, and to come back in half a minute.
    Throttle,
    /// Says 429, and not when to come back.
    ThrottleAnyhow,
}

/// A gateway that behaves so; and how many requests it had.
async fn gateway(way: Behaviour) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = match way {
                    Behaviour::Close => Ok(()),
                    Behaviour::Fail => {
                        stream.write_all(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await
                    }
                    Behaviour::Cut => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await,
                    Behaviour::Hang => std::future::pending().await,
                    Behaviour::Throttle => {
                        let head =
                            b"HTTP/1.1 429 Slow\r\nretry-after: 30\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                        stream.write_all(head).await
                    }
                    Behaviour::ThrottleAnyhow => {
                        stream.write_all(b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await
                    }
                    Behaviour::Flood => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n").await;
                        stream.write_all(&vec![b' '; 3_000_000]).await
                    }
                };
            });
        }
    });
    (format!("http://{address}"), count)
}

async fn pay(h: &Harness, who: &Person, no: &str) -> Answer {
    h.post(&format!("/orders/{no}/pay"), who, json!({"gateway": "sandbox"})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_is_tried_three_times_and_no_more() {
    for (way, tries) in [(Behaviour::Close, 3), (Behaviour::Fail, 3), (Behaviour::Cut, 3), (Behaviour::Flood, 1)] {
        let (address, count) = gateway(way).await;
        let h = service_with(vec![("payments.sandbox_url", address)]).await;
        let alice = h.register().await;
        let no = order(&h, &alice, 500).await;
        pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
        assert_eq!(count.load(Ordering::SeqCst), tries);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_hangs_holds_a_request_no_longer_than_the_setting_says() {
    let (address, count) = gateway(Behaviour::Hang).await;
    let settings = vec![("payments.sandbox_url", address), ("payments.gateway_timeout_ms", "300".to_owned())];
    let h = service_with(settings).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!(count.load(Ordering::SeqCst), 1, "no time is left for another try");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_answer_is_left_alone_and_then_asked_once() {
    let (address, count) = gateway(Behaviour::Fail).await;
    let settings = vec![("payments.sandbox_url", address), ("payments.gateway_failures_max", "3".to_owned())];
    let h = service_with(settings).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let requests = async || {
        let before = count.load(Ordering::SeqCst);
        pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
        count.load(Ordering::SeqCst) - before
    };
    assert_eq!([requests().await, requests().await, requests().await], [3, 3, 3]);
    assert_eq!([requests().await, requests().await], [0, 0]);
    h.advance(Duration::from_millis(h.app.config.payments.gateway_pause_ms));
    assert_eq!([requests().await, requests().await], [3, 0]);
    // Another process has seen nothing of it.
    let other = h.another().await;
    pay(&other, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!(count.load(Ordering::SeqCst), 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_wants_fewer_calls_is_obeyed_and_not_taken_for_dead() {
    let (address, count) = gateway(Behaviour::Throttle).await;
    // Half a minute is longer than a call may take.
    let settings = vec![
        ("payments.sandbox_url", address),
        ("payments.gateway_failures_max", "1".to_owned()),
        ("payments.gateway_timeout_ms", "10000".to_owned()),
    ];
    let h = service_with(settings).await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let refused = pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!((count.load(Ordering::SeqCst), refused.header("retry-after")), (1, Some("30")));
    // Calls of another kind go through at once: it lives.
    h.post(&format!("/orders/{no}/cancel"), &alice, json!({})).await.problem(503, "gateway_unavailable");
    assert_eq!(count.load(Ordering::SeqCst), 2);
    h.advance(Duration::from_secs(10));
    let refused = pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!((count.load(Ordering::SeqCst), refused.header("retry-after")), (2, Some("20")), "not before its time");
    h.advance(Duration::from_secs(20));
    pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
    assert_eq!(count.load(Ordering::SeqCst), 3, "its time has come");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_call_too_many_holds_up_nobody_else() {
    let (address, count) = gateway(Behaviour::ThrottleAnyhow).await;
    let settings = vec![("payments.sandbox_url", address), ("payments.gateway_failures_max", "1".to_owned())];
    let h = service_with(settings).await;
    let alice = h.register().await;
    for asked in 1..4 {
        let no = order(&h, &alice, 500).await;
        pay(&h, &alice, &no).await.problem(503, "gateway_unavailable");
        assert_eq!(count.load(Ordering::SeqCst), asked);
    }
}
