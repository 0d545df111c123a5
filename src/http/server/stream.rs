//! A connection's bytes: heads are looked at before they are parsed, and a client that takes nothing is given up.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::head::{BareLf, ConnectionState, Heads};

/// A client that is to take bytes takes [`ENOUGH_BYTES`] in this long, or all there are. One that does not is cut off.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Of a slow client this much is progress.
const ENOUGH_BYTES: usize = 16 * 1024;
/// What an HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What hyper surely refuses with 400, whatever part of a head it has read: no NUL may stand anywhere in one.
const REFUSED: &[u8] = b"\0\r\n\r\n";

/// Which protocol a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// One connection.
pub struct Guarded<S> {
    stream: S,
    known: Arc<ConnectionState>,
    /// Read from the stream, and not given on yet.
    held: Vec<u8>,
    /// None: nothing is looked at.
    heads: Option<Heads>,
    /// Nothing more is read: the client was refused.
    refused: bool,
    patience: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    /// Bytes that were taken since the stall began.
    taken: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    pub fn new(stream: S, known: Arc<ConnectionState>, patience: Duration) -> Self {
        let heads = Some(Heads::default());
        Self { stream, known, held: Vec::new(), heads, refused: false, patience, stall: None, taken: 0 }
    }

    /// Reads until it is plain which protocol the client speaks; what was read is read again by whoever serves it.
    pub async fn version(&mut self) -> io::Result<Version> {
        loop {
            if !PREFACE.starts_with(&self.held) {
                return Ok(Version::Http1);
            }
            if self.held.len() == PREFACE.len() {
                self.heads = None;
                return Ok(Version::Http2);
            }
            let mut more = [0; PREFACE.len()];
            let read = self.stream.read(&mut more[self.held.len()..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let from = self.held.len();
            self.held.extend_from_slice(&more[from..from + read]);
        }
    }

    /// Of these bytes so many go on; what follows a bare LF never does.
    fn look(&mut self, bytes: &[u8]) -> (usize, bool) {
        let Some(heads) = &mut self.heads else { return (bytes.len(), true) };
        match heads.take(bytes, &self.known) {
            Ok(taken) => (taken, true),
            Err(BareLf(good)) => (good, false),
        }
    }

    /// From now on hyper reads what it refuses, and nothing else.
    fn refuse(&mut self) {
        self.held = REFUSED.to_vec();
        self.heads = None;
        self.refused = true;
    }

    fn wrote(&mut self, count: usize, offered: usize) {
        self.taken += count;
        if count == offered || self.taken >= ENOUGH_BYTES {
            self.stall = None;
            self.taken = 0;
        }
    }

    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let patience = self.patience;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() && !this.refused {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let fresh = buf.filled().len() - before;
            let (good, goes_on) = this.look(&buf.filled()[before..]);
            if !goes_on {
                this.refuse();
            } else if good < fresh {
                this.held = buf.filled()[before + good..].to_vec();
            }
            buf.set_filled(before + good);
            // No byte would mean the end.
            if good > 0 || fresh == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        if this.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let held = std::mem::take(&mut this.held);
        let (good, goes_on) = this.look(&held[..held.len().min(buf.remaining())]);
        buf.put_slice(&held[..good]);
        if goes_on {
            this.held = held;
            this.held.drain(..good);
        } else {
            this.refuse();
            if good == 0 {
                let some = this.held.len().min(buf.remaining());
                buf.put_slice(&this.held[..some]);
                this.held.drain(..some);
                return Poll::Ready(Ok(()));
            }
        }
        // hyper takes something else for a head than we do: its bound on the time for a head ends that.
        if good == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(cx, bytes) else { return this.wait(cx) };
        Poll::Ready(written.inspect(|count| this.wrote(*count, bytes.len())))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write_vectored(cx, parts) else {
            return this.wait(cx);
        };
        Poll::Ready(written.inspect(|count| this.wrote(*count, parts.iter().map(|part| part.len()).sum())))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    /// Far longer than a test takes.
    const LONG: Duration = Duration::from_secs(600);

    /// What hyper would read of bytes that a client sends in these pieces.
    async fn read(pieces: &[&[u8]]) -> (Version, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(16);
        let known = Arc::new(ConnectionState::default());
        let mut guarded = Guarded::new(server, known.clone(), LONG);
        let sending = async {
            for piece in pieces {
                if client.write_all(piece).await.is_err() {
                    break;
                }
            }
            drop(client);
        };
        let reading = async {
            let version = guarded.version().await.unwrap();
            let (mut all, mut some) = (Vec::new(), [0; 7]);
            loop {
                let count = guarded.read(&mut some).await.unwrap();
                if count == 0 {
                    drop(guarded);
                    return (version, all);
                }
                all.extend_from_slice(&some[..count]);
                if all.ends_with(b"\r\n\r\n") {
                    known.begins(Some(0));
                }
            }
        };
        let ((), read) = tokio::join!(sending, reading);
        read
    }

    #[tokio::test]
    async fn requests_sent_ahead_of_their_answers_arrive_as_they_are() {
        let two: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(read(&[two]).await, (Version::Http1, two.to_vec()));
        assert_eq!(read(&[&two[..1], &two[1..30], &two[30..]]).await, (Version::Http1, two.to_vec()));
    }

    #[tokio::test]
    async fn what_comes_behind_a_bare_lf_is_not_read() {
        let good: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
        for (bad, kept) in [("GET /b HTTP/1.1\nhost: x\n\n", "GET /b HTTP/1.1"), ("\nGET / HTTP/1.1\r\n\r\n", "")] {
            let expected = [good, kept.as_bytes(), REFUSED].concat();
            assert_eq!(read(&[good, bad.as_bytes()]).await, (Version::Http1, expected));
        }
    }

    #[tokio::test]
    async fn the_protocol_is_known_by_its_first_bytes() {
        let h2 = [&PREFACE[..], b"\n\nframes\n"].concat();
        assert_eq!(read(&[&h2]).await, (Version::Http2, h2.clone()));
        assert_eq!(read(&[&h2[..1], &h2[1..20], &h2[20..]]).await, (Version::Http2, h2));
        let post: &[u8] = b"POST / HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(read(&[b"P", &post[1..]]).await, (Version::Http1, post.to_vec()));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_one_that_reads_is_served() {
        let answer = vec![b'x'; 200_000];
        let (mut reader, server) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(server, Arc::default(), LONG);
        let mut all = Vec::new();
        let served = async {
            guarded.write_all(&answer).await.unwrap();
            drop(guarded);
        };
        tokio::join!(served, async { reader.read_to_end(&mut all).await.unwrap() });
        assert_eq!(all.len(), answer.len());
        let (_idle, server) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(server, Arc::default(), SHORT);
        assert_eq!(guarded.write_all(&answer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
