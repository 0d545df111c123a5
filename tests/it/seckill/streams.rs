//! Event streams as a browser's `EventSource` asks for them: without a header of ours, again and again until 204.

use super::*;
use crate::support::client::{Answer, send};

/// What a browser does with the address.
struct EventSource<'h> {
    h: &'h Harness,
    url: String,
    last_event: Option<String>,
    /// The data of its events, oldest first.
    heard: Vec<Value>,
}

impl<'h> EventSource<'h> {
    fn new(h: &'h Harness, url: &str) -> Self {
        Self { h, url: url.to_owned(), last_event: None, heard: Vec::new() }
    }

    /// One connection, to its end.
    async fn connect(&mut self) -> Answer {
        let request =
            self.h.http.get(&self.url).header("accept", "text/event-stream").header("origin", "https://shop.example");
        let request = match &self.last_event {
            Some(id) => request.header("last-event-id", id),
            None => request,
        };
        let answer = send(request).await;
        for line in answer.text().lines() {
            if let Some(id) = line.strip_prefix("id: ") {
                self.last_event = Some(id.to_owned());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                self.heard.push(serde_json::from_str(data).unwrap());
            }
        }
        answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_hears_the_end_and_then_stops() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    let submitted = sale.submit(&h, &buyer).await.expect(202);
    let mut source = EventSource::new(&h, &submitted.text_of("events_url"));
    let (first, ()) = tokio::join!(source.connect(), async { h.start_workers() });
    assert_eq!((first.status, first.header("content-type")), (200, Some("text/event-stream")));
    let end = source.heard.last().unwrap().clone();
    assert_eq!(end["code"], 100);
    assert_eq!(source.last_event.as_deref(), Some("ended"));
    let again = source.connect().await;
    assert_eq!((again.status, again.bytes.len()), (204, 0));
    // A page that is opened later hears the end once more, and then stops too.
    let mut late = EventSource::new(&h, &submitted.text_of("events_url"));
    assert_eq!((late.connect().await.status, late.heard.last()), (200, Some(&end)));
    assert_eq!(late.connect().await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_heard_of_no_end_hears_it_when_it_comes_again() {
    let h = Harness::new().await;
    let (sale, buyer) = (Sale::open(&h, 1).await, h.register().await);
    let url = sale.submit(&h, &buyer).await.expect(202).text_of("events_url");
    h.start_workers();
    assert_eq!(sale.take_part(&h, &buyer).await["code"], 100);
    let mut source = EventSource { last_event: Some("waiting".to_owned()), ..EventSource::new(&h, &url) };
    assert_eq!(source.connect().await.status, 200);
    assert_eq!(source.heard.last().unwrap()["code"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_its_own_stream_and_its_own_time() {
    let h = Harness::new().await;
    let (sale, buyer, other) = (Sale::open(&h, 3).await, h.register().await, h.register().await);
    let mine = sale.submit(&h, &buyer).await.expect(202);
    let theirs = sale.submit(&h, &other).await.expect(202);
    let url = mine.text_of("events_url");
    let (address, ticket) = url.split_once("?ticket=").unwrap();
    let ask = async |url: String| EventSource::new(&h, &url).connect().await;
    // Not for another task, not altered, not for another route, and no access token.
    let their_address = theirs.text_of("events_url").split_once('?').unwrap().0.to_owned();
    ask(format!("{their_address}?ticket={ticket}")).await.problem(401, "token_invalid");
    let altered = format!("{}{}", if ticket.starts_with('A') { 'B' } else { 'A' }, &ticket[1..]);
    ask(format!("{address}?ticket={altered}")).await.problem(401, "token_invalid");
    ask(format!("{address}?ticket=")).await.problem(401, "token_invalid");
    ask(address.to_owned()).await.problem(401, "unauthenticated");
    let poll = format!("/tasks/{}", mine.text_of("id"));
    h.get(&format!("{poll}?ticket={ticket}"), ()).await.problem(401, "unauthenticated");
    h.get(&poll, ticket).await.problem(401, "token_invalid");
    h.get("/me", ticket).await.problem(401, "token_invalid");
    // Whoever sends a token is asked for that alone.
    let both = h.http.get(&url).bearer_auth("nonsense");
    send(both).await.problem(401, "token_invalid");
    // The stream ends with its ticket, without an end of the task; and then it is over.
    let mut open = open_stream(&h, &url).await;
    h.advance(Duration::from_secs(600));
    let rest = rest_of(&mut open).await;
    assert!(!rest.contains("data: "), "{rest}");
    ask(url).await.problem(401, "token_expired");
    // So does one that an access token opened.
    let mut open = h.request(Method::GET, &format!("{poll}/events"), &buyer).send().await.unwrap();
    first_event(&mut open).await;
    h.advance(Duration::from_secs(900));
    let rest = rest_of(&mut open).await;
    assert!(!rest.contains("data: "), "{rest}");
}

/// A stream that has brought its first event, and with it has a place.
async fn open_stream(h: &Harness, url: &str) -> reqwest::Response {
    let mut open = h.http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    first_event(&mut open).await;
    open
}

async fn first_event(open: &mut reqwest::Response) {
    assert_eq!(open.status(), 200);
    let first = open.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains(r#""code":102"#), "{first:?}");
}

async fn rest_of(open: &mut reqwest::Response) -> String {
    let mut rest = Vec::new();
    while let Some(chunk) = open.chunk().await.unwrap() {
        rest.extend(chunk);
    }
    String::from_utf8(rest).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_streams_and_long_polls_and_others_theirs() {
    let settings = vec![("http.max_waiting_per_account", "2".to_owned())];
    let h = Harness::with(Options { settings, ..Options::default() }).await;
    let (sale, buyer, other) = (Sale::open(&h, 2).await, h.register().await, h.register().await);
    let mine = sale.submit(&h, &buyer).await.expect(202);
    let theirs = sale.submit(&h, &other).await.expect(202);
    let poll = format!("/tasks/{}", mine.text_of("id"));
    let (long, url) = (format!("{poll}?wait=30"), mine.text_of("events_url"));
    let mut open = [open_stream(&h, &url).await, open_stream(&h, &url).await];
    let refused = h.get(&long, &buyer).await.problem(429, "too_many_attempts");
    assert_eq!((refused.header("retry-after"), refused["code"].as_i64()), (Some("1"), Some(102)));
    EventSource::new(&h, &url).connect().await.problem(429, "too_many_attempts");
    assert_eq!(h.get(&poll, &buyer).await.expect(200).body["code"], 102);
    drop(open_stream(&h, &theirs.text_of("events_url")).await);
    h.start_workers();
    for open in &mut open {
        assert!(rest_of(open).await.contains(r#""code":100"#));
    }
    // Their places are free again.
    assert_eq!(h.get(&long, &buyer).await.expect(200).body["code"], 100);
}
