//! Where the heads of an HTTP/1 connection begin and end, so that each can be looked at before it is parsed.
//!
//! hyper ends a line at a bare LF too, as RFC 9112 (2.2) lets it. A proxy in front that does not sees other requests in
//! the same bytes: that is how requests are smuggled past it. So a bare LF in a head is found here, in whatever pieces
//! the head comes, and behind requests that were sent ahead of their answers. Bodies are passed over, by the length that
//! hyper itself read in the head.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// What is known of a connection by those who serve its requests, and is asked by those who read and watch it.
#[derive(Debug)]
pub struct ConnectionState {
    /// The length of the body whose head was read last; one of the two below when there is none to tell.
    body: AtomicU64,
    begun: AtomicBool,
    streams: AtomicUsize,
    started: AtomicUsize,
}

const NOT_TOLD: u64 = u64::MAX;
const IN_CHUNKS: u64 = u64::MAX - 1;

impl Default for ConnectionState {
    fn default() -> Self {
        Self {
            body: AtomicU64::new(NOT_TOLD),
            begun: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
        }
    }
}

impl ConnectionState {
    /// A request begins, with a body of this length; of none that is known before its end it comes in chunks.
    pub fn begins(&self, body: Option<u64>) {
        self.body.store(body.unwrap_or(IN_CHUNKS), Ordering::Release);
        self.begun.store(true, Ordering::Release);
    }

    /// Whether a request has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// A stream of HTTP/2 is open until what is given back is dropped.
    pub fn stream(self: std::sync::Arc<Self>) -> OpenStream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        OpenStream(self)
    }

    /// Streams that are open, and how many there have been.
    pub fn streams(&self) -> (usize, usize) {
        (self.streams.load(Ordering::Relaxed), self.started.load(Ordering::Relaxed))
    }

    fn take_body(&self) -> Option<u64> {
        let told = self.body.swap(NOT_TOLD, Ordering::AcqRel);
        (told != NOT_TOLD).then_some(told)
    }
}

/// A stream of HTTP/2 that is open.
#[derive(Debug)]
pub struct OpenStream(std::sync::Arc<ConnectionState>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A line of a head ends with LF alone. So many bytes before it are good.
#[derive(Debug, PartialEq, Eq)]
pub struct BareLf(pub usize);

/// Follows the bytes of one connection.
#[derive(Debug)]
pub struct Heads(Next);

#[derive(Debug)]
enum Next {
    /// A head, or the empty lines before it.
    Head(Line),
    /// What a head that is whole says of its body: hyper is reading that now.
    Told,
    Body(u64),
    Chunks(Chunk),
    /// No more is looked at: hyper refuses what comes, or the connection speaks another protocol.
    Unseen,
}

/// How far a head is.
#[derive(Debug, Default)]
struct Line {
    /// The byte before.
    before: u8,
    /// Bytes of this line so far.
    length: usize,
    /// Whether a line of this head has ended: the empty lines before it are none of it.
    begun: bool,
}

/// How far a body in chunks is.
#[derive(Debug)]
enum Chunk {
    /// The digits of a size.
    Size(u64),
    /// What may stand behind them, up to the end of the line.
    Extension(u64),
    Data(u64),
    /// The lines behind the last chunk: bytes of this one so far.
    Trailers(usize),
}

impl Default for Heads {
    fn default() -> Self {
        Self(Next::Head(Line::default()))
    }
}

impl Heads {
    /// Takes the next bytes; how many of them may go on. Behind a head it is those up to its end, until `known` says how
    /// long its body is: what was left out is to be given again.
    pub fn take(&mut self, bytes: &[u8], known: &ConnectionState) -> Result<usize, BareLf> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.0 {
                Next::Unseen => return Ok(bytes.len()),
                Next::Told => match known.take_body() {
                    None => return Ok(at),
                    Some(IN_CHUNKS) => self.0 = Next::Chunks(Chunk::Size(0)),
                    Some(length) => self.0 = Next::Body(length),
                },
                Next::Body(0) => self.0 = Next::Head(Line::default()),
                Next::Body(left) => {
                    let taken = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    at += taken;
                }
                Next::Chunks(chunk) => match chunk.take(rest) {
                    Taken::Some(taken) => at += taken,
                    Taken::Last(taken) => {
                        at += taken;
                        self.0 = Next::Head(Line::default());
                    }
                    Taken::Wrong => self.0 = Next::Unseen,
                },
                Next::Head(line) => {
                    let (taken, is_whole) = line.take(rest).map_err(|BareLf(good)| BareLf(at + good))?;
                    at += taken;
                    if is_whole {
                        self.0 = Next::Told;
                    }
                }
            }
        }
        Ok(at)
    }
}

impl Line {
    /// Takes bytes up to the end of the line; how many, and whether the head is whole with them.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), BareLf> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.length += bytes.len();
            self.before = bytes.last().copied().unwrap_or(self.before);
            return Ok((bytes.len(), false));
        };
        let before = if end == 0 { self.before } else { bytes[end - 1] };
        let length = self.length + end;
        if length == 0 || before != b'\r' {
            return Err(BareLf(end));
        }
        // Nothing but the CR.
        let is_empty = length == 1;
        let is_whole = is_empty && self.begun;
        *self = Self { begun: self.begun || !is_empty, ..Self::default() };
        Ok((end + 1, is_whole))
    }
}

/// What was taken of a body in chunks.
enum Taken {
    Some(usize),
    /// So much, and that was the body's end.
    Last(usize),
    /// It is none; hyper, which is as strict, refuses it.
    Wrong,
}

impl Chunk {
    fn take(&mut self, bytes: &[u8]) -> Taken {
        let byte = bytes[0];
        match self {
            Self::Size(size) => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) => match size.checked_mul(16).and_then(|size| size.checked_add(digit.into())) {
                    Some(more) => *size = more,
                    None => return Taken::Wrong,
                },
                (None, b'\n') => return Taken::Wrong,
                (None, _) => *self = Self::Extension(*size),
            },
            Self::Extension(size) => {
                let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Taken::Some(bytes.len()) };
                // With the line's end behind the data.
                *self = if *size == 0 { Self::Trailers(0) } else { Self::Data(size.saturating_add(2)) };
                return Taken::Some(end + 1);
            }
            Self::Data(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Size(0);
                }
                return Taken::Some(taken);
            }
            Self::Trailers(length) => match byte {
                b'\n' if *length == 1 => return Taken::Last(1),
                b'\n' => *length = 0,
                _ => *length += 1,
            },
        }
        Taken::Some(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Reads `bytes` in pieces of this size, as hyper would: it tells the bodies' lengths when a head is whole.
    fn read(bytes: &str, piece: usize, bodies: &[Option<u64>]) -> Result<usize, usize> {
        let (mut heads, known, mut bodies) = (Heads::default(), ConnectionState::default(), bodies.iter());
        let (mut held, mut passed) = (Vec::new(), 0);
        for piece in bytes.as_bytes().chunks(piece) {
            held.extend_from_slice(piece);
            loop {
                let taken = heads.take(&held, &known).map_err(|BareLf(good)| passed + good)?;
                held.drain(..taken);
                passed += taken;
                if taken > 0
                    && matches!(heads.0, Next::Told)
                    && let Some(body) = bodies.next()
                {
                    known.begins(*body);
                } else if taken == 0 || held.is_empty() {
                    break;
                }
            }
        }
        Ok(passed)
    }

    #[test]
    fn a_head_goes_on_by_itself_until_the_length_of_its_body_is_known() {
        let (mut heads, known) = (Heads::default(), ConnectionState::default());
        let two = format!("{GET}{GET}");
        assert_eq!(heads.take(two.as_bytes(), &known), Ok(GET.len()));
        assert_eq!(heads.take(GET.as_bytes(), &known), Ok(0));
        known.begins(Some(0));
        assert_eq!(heads.take(GET.as_bytes(), &known), Ok(GET.len()));
    }

    #[test]
    fn a_bare_lf_is_found_in_every_line_of_a_head_whatever_came_before_it() {
        let heads = [
            "GET / HTTP/1.1\nhost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: x\n\r\n",
            "GET / HTTP/1.1\r\nhost: x\r\n\n",
            "\nGET",
        ];
        let body = "a\nb\n\n";
        let fixed = (format!("POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n{body}"), Some(5));
        let chunks = "5;x=\"\r\"\r\na\nb\n\n\r\n10\r\n0123456789abcdef\r\n0\r\ntrailer: 1\r\n\r\n";
        let chunked = (format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"), None);
        for (before, length) in
            [(String::new(), Some(0)), ("\r\n".to_owned(), Some(0)), (GET.to_owned(), Some(0)), fixed, chunked]
        {
            for head in heads {
                for piece in [1, 2, 3, 7, 1000] {
                    let bytes = format!("{before}{head}");
                    let bad = before.len()
                        + head
                            .match_indices('\n')
                            .map(|(at, _)| at)
                            .find(|at| *at == 0 || head.as_bytes()[at - 1] != b'\r')
                            .unwrap();
                    // Nothing stands before a head that has empty lines before it only.
                    let told: &[_] = if before.trim().is_empty() { &[] } else { &[length] };
                    assert_eq!(read(&bytes, piece, told), Err(bad), "{bytes:?} in pieces of {piece}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn good_requests_pass_whole_in_whatever_pieces(
            piece in 1usize..60,
            requests in proptest::collection::vec((0usize..40, any::<bool>()), 1..6),
        ) {
            let (mut bytes, mut bodies) = (String::new(), Vec::new());
            for (length, in_chunks) in requests {
                let body = "\n".repeat(length);
                if in_chunks {
                    bytes += "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
                    for part in body.as_bytes().chunks(7) {
                        bytes += &format!("{:x}\r\n{}\r\n", part.len(), "\n".repeat(part.len()));
                    }
                    bytes += "0\r\n\r\n";
                    bodies.push(None);
                } else {
                    bytes += &format!("POST / HTTP/1.1\r\ncontent-length: {length}\r\n\r\n{body}");
                    bodies.push(Some(length as u64));
                }
            }
            prop_assert_eq!(read(&bytes, piece, &bodies), Ok(bytes.len()));
        }

        #[test]
        fn no_bytes_make_following_them_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), body in any::<Option<u64>>()) {
            let (mut heads, known) = (Heads::default(), ConnectionState::default());
            let mut rest = &bytes[..];
            while let Ok(taken) = heads.take(rest, &known) {
                if rest.is_empty() || (taken == 0 && known.has_begun()) {
                    break;
                }
                rest = &rest[taken..];
                known.begins(body);
            }
        }
    }
}
