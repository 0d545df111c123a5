//! Messages between two companies that share a secret: HMAC-SHA256, in hex, over `timestamp.rawbody`.
//!
//! The signature covers the raw bytes, so it is checked before anything is parsed, and the time, so a message that
//! somebody recorded is worth nothing after [`WINDOW`].

use std::time::Duration;

use aws_lc_rs::hmac;

use super::clock::At;

/// A message whose time is further away than this, in either direction, is refused.
pub const WINDOW: Duration = Duration::from_secs(300);

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// The time is missing or not a whole number of seconds since 1970.
    #[error("the timestamp is missing or not a number")]
    NoTimestamp,
    /// The time is outside the window.
    #[error("the timestamp is too far away")]
    Stale,
    /// The signature is missing or not hexadecimal.
    #[error("the signature is missing or not hexadecimal")]
    NoSignature,
    /// The signature is not this message's.
    #[error("the signature does not fit the message")]
    Altered,
}

/// A secret that messages are signed with.
pub struct SharedSecret(hmac::Key);

impl SharedSecret {
    /// From the secret's bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Signs `body` as sent at `now`: (timestamp, signature) as their headers carry them.
    pub fn sign(&self, body: &[u8], now: At) -> (String, String) {
        let timestamp = now.timestamp().as_second().to_string();
        let signature = hex::encode(hmac::sign(&self.0, &signed_bytes(&timestamp, body)).as_ref());
        (timestamp, signature)
    }

    /// Checks `body` against its headers. A missing header is a failure, never an empty text.
    pub fn verify(
        &self,
        timestamp: Option<&str>,
        signature: Option<&str>,
        body: &[u8],
        now: At,
    ) -> Result<(), Unsigned> {
        let timestamp = timestamp.ok_or(Unsigned::NoTimestamp)?;
        let seconds: i64 = timestamp.parse().map_err(|_| Unsigned::NoTimestamp)?;
        let signature = signature.and_then(|text| hex::decode(text).ok()).ok_or(Unsigned::NoSignature)?;
        // aws-lc-rs compares in constant time.
        hmac::verify(&self.0, &signed_bytes(timestamp, body), &signature).map_err(|_| Unsigned::Altered)?;
        if now.timestamp().as_second().abs_diff(seconds) > WINDOW.as_secs() {
            return Err(Unsigned::Stale);
        }
        Ok(())
    }
}

fn signed_bytes(timestamp: &str, body: &[u8]) -> Vec<u8> {
    [timestamp.as_bytes(), b".", body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> SharedSecret {
        SharedSecret::new(b"0123456789abcdef")
    }

    /// Made with `printf '1700000000.{}' | openssl dgst -sha256 -hmac 0123456789abcdef`.
    #[test]
    fn the_signature_is_plain_hmac_sha256() {
        let (timestamp, signature) = secret().sign(b"{}", At::from_ms(1_700_000_000_000));
        assert_eq!(timestamp, "1700000000");
        assert_eq!(signature, "e4f8e2ecae2295b2ddb2f0b5584c8275e226c0ebe9b3b819e70156bb67122e3e");
    }

    #[test]
    fn a_missing_or_malformed_header_is_a_failure() {
        let now = At::from_ms(1_700_000_000_000);
        let (timestamp, signature) = secret().sign(b"{}", now);
        let verify = |t: Option<&str>, s: Option<&str>| secret().verify(t, s, b"{}", now);
        assert_eq!(verify(Some(&timestamp), Some(&signature)), Ok(()));
        assert_eq!(verify(None, Some(&signature)), Err(Unsigned::NoTimestamp));
        assert_eq!(verify(Some(""), Some(&signature)), Err(Unsigned::NoTimestamp));
        assert_eq!(verify(Some(&timestamp), None), Err(Unsigned::NoSignature));
        assert_eq!(verify(Some(&timestamp), Some("")), Err(Unsigned::Altered));
        assert_eq!(verify(Some(&timestamp), Some("zz")), Err(Unsigned::NoSignature));
        assert_eq!(verify(Some(&timestamp), Some(&signature[1..])), Err(Unsigned::NoSignature));
        assert_eq!(verify(Some(&timestamp), Some(&signature[2..])), Err(Unsigned::Altered));
    }

    #[test]
    fn a_recorded_message_is_worth_nothing_after_the_window() {
        let sent = At::from_ms(1_700_000_000_000);
        let (timestamp, signature) = secret().sign(b"{}", sent);
        let verify = |now: At| secret().verify(Some(&timestamp), Some(&signature), b"{}", now);
        assert_eq!(verify(sent.plus(WINDOW)), Ok(()));
        assert_eq!(verify(sent.minus(WINDOW)), Ok(()));
        assert_eq!(verify(sent.plus(WINDOW + Duration::from_secs(1))), Err(Unsigned::Stale));
        assert_eq!(verify(sent.minus(WINDOW + Duration::from_secs(1))), Err(Unsigned::Stale));
    }

    proptest! {
        #[test]
        fn one_altered_byte_is_noticed(mut body in proptest::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, flip in 1u8..) {
            let now = At::from_ms(1_700_000_000_000);
            let (timestamp, signature) = secret().sign(&body, now);
            let at = at.index(body.len());
            body[at] ^= flip;
            prop_assert_eq!(secret().verify(Some(&timestamp), Some(&signature), &body, now), Err(Unsigned::Altered));
        }
    }
}
