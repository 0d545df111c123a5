//! What a connection may do before and between requests: raw bytes over TCP, as somebody sends them who is no HTTP client.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Harness, Options};

async fn harness(settings: &[(&'static str, &str)]) -> Harness {
    let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Harness::with(Options { settings, ..Options::default() }).await
}

async fn connect(h: &Harness) -> TcpStream {
    TcpStream::connect(h.base.trim_start_matches("http://")).await.expect("a connection")
}

/// All that comes on a connection until the service closes it; a test that waits for that in vain fails.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(90), stream.read_to_end(&mut said)).await;
    let said = String::from_utf8_lossy(&said).into_owned();
    // What was sent and not read makes the end a reset.
    drop(closed.unwrap_or_else(|_| panic!("the connection stays open after {said:?}")));
    said
}

/// What is answered to these bytes, up to the end of the connection.
async fn said(h: &Harness, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = connect(h).await;
    // It may be closed before it has taken all.
    let _ = stream.write_all(bytes.as_ref()).await;
    until_closed(&mut stream).await
}

const CLOSE: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_nothing_is_closed_however_little_it_says() {
    let h = Harness::new().await;
    let kept = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let next = format!("{kept}P");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // With its settings, but no request.
    let settings = [preface.as_bytes(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let openings: [(&[u8], &str); 8] = [
        (b"", ""),
        (b"P", ""),
        (b"PRI * HT", ""),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-never: ", ""),
        (b"\r\n", ""),
        (&settings, "\0"),
        (kept.as_bytes(), "HTTP/1.1 200"),
        (next.as_bytes(), "HTTP/1.1 200"),
    ];
    let silent = (0..300).map(|_| said(&h, "P"));
    let others = openings.iter().map(|(opening, _)| said(&h, opening));
    let served = async {
        for _ in 0..20 {
            h.get("/healthz", ()).await.expect(200);
        }
    };
    let (silent, others, ()) = tokio::join!(join_all(silent), join_all(others), served);
    assert!(silent.iter().all(String::is_empty));
    for ((opening, start), said) in openings.iter().zip(others) {
        assert!(said.starts_with(start), "{:?}: {said}", String::from_utf8_lossy(opening));
        assert!(!start.is_empty() || said.is_empty(), "{:?}: {said}", String::from_utf8_lossy(opening));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_given_up() {
    let h = Harness::new().await;
    let mut stream = connect(&h).await;
    // Far more in answers than the system keeps for a connection.
    let ask = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    stream.write_all(ask.as_bytes()).await.unwrap();
    let is_closed = async || match stream.try_write(b"G") {
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        Ok(_) => false,
    };
    h.eventually(is_closed).await;
    h.get("/healthz", ()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_names_its_host_once() {
    let h = Harness::new().await;
    let get = |hosts: &str| format!("GET /api/v1/courses HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
    for bad in ["", "host: a\r\nhost: b\r\n", "host: a\r\nHost: a\r\n", "host: a b\r\n", "host: a/b\r\n"] {
        let said = said(&h, get(bad)).await;
        assert!(said.starts_with("HTTP/1.1 400") && said.contains("\"error\":\"host_invalid\""), "{bad:?}: {said}");
    }
    for good in ["host: shop.example:8080\r\n", "HOST: [::1]\r\n", "host:\r\n"] {
        let said = said(&h, get(good)).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{good:?}: {said}");
    }
    // HTTP/1.0 knew none.
    let old = said(&h, "GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_a_head_that_ends_with_lf_alone_is_refused_wherever_it_comes() {
    let h = Harness::new().await;
    let body = "{\n\"phone\": \"13800000001\",\n\n\"password\": \"a long password\"}\n\n";
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let with_length = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let (first, second) = body.split_at(20);
    let in_chunks = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x};x=\"y\"\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let bad = [
        "GET /healthz HTTP/1.1\nhost: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: x\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\n",
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx-a: 1\nx-b: 2\r\n\r\n",
        "\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    let good = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    for (before, answer) in
        [("", ""), (good, "HTTP/1.1 200"), (&with_length, "HTTP/1.1 401"), (&in_chunks, "HTTP/1.1 401")]
    {
        for bad in bad {
            let said = said(&h, format!("{before}{bad}{CLOSE}")).await;
            let refused = said.strip_prefix(answer).unwrap_or_else(|| panic!("{bad:?} behind {before:?}: {said}"));
            let last = &refused[refused.find("HTTP/1.1 ").unwrap_or_default()..];
            assert!(
                last.starts_with("HTTP/1.1 400") && last.ends_with("\r\n\r\n"),
                "{bad:?} behind {before:?}: {said}"
            );
        }
        // Bodies have what they like, and requests may be sent ahead of their answers.
        let all = said(&h, format!("\r\n{before}{before}{CLOSE}")).await;
        let answered = all.matches("HTTP/1.1 ").count();
        assert_eq!(answered, if before.is_empty() { 1 } else { 3 }, "{all}");
        assert!(all.contains("\r\n\r\nok"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_64_kib_at_most() {
    let h = Harness::new().await;
    let get = |bytes: usize| {
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-long: {}\r\n\r\n", "x".repeat(bytes))
    };
    let fits = said(&h, get(65_000)).await;
    assert!(fits.starts_with("HTTP/1.1 200"), "{fits}");
    let many =
        format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{}\r\n", format!("x-y: {}\r\n", "y".repeat(1000)).repeat(70));
    for larger in [get(66_000), get(400_000), many] {
        let said = said(&h, larger).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_told_so_and_room_is_made_by_those_that_end() {
    let h = harness(&[("http.max_connections", "16")]).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = connect(&h).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        open.push(stream);
    }
    let mut refused = connect(&h).await;
    let full = until_closed(&mut refused).await;
    assert!(full.starts_with("HTTP/1.1 503") && full.contains("retry-after: 1\r\n"), "{full}");
    open.truncate(10);
    h.eventually(async || said(&h, CLOSE).await.starts_with("HTTP/1.1 200")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_too() {
    let h = Harness::new().await;
    let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let login = json!({"phone": "13900000001", "password": "a long password"});
    let url = |path: &str| format!("{}/api/v1{path}", h.base);
    assert_eq!(http.post(url("/auth/register")).json(&login).send().await.unwrap().status(), 201);
    let answers = join_all((0..50).map(|_| http.get(url("/courses")).send())).await;
    for answer in answers {
        let answer = answer.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 200));
    }
}
