//! Tickets: who holds one may do one thing, in the name of the user it was given to, until its time is over. For those
//! who can send no `Authorization`, such as a browser's `EventSource`. Checking one costs neither MySQL nor Redis.
//!
//! It is not an access token and cannot be made into one: it is signed by a key of its own, which is derived from the
//! one of the tokens, and the signature covers what it is for.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::clock::At;
use super::jwt::{TokenFault, TokenKeys};

/// What the key of tickets is derived with.
const PURPOSE: &[u8] = b"onrush tickets, version 1";
/// A user, the second until which it holds, and the signature.
const USER: usize = 16;
const UNTIL: usize = 8;
const SIGNATURE: usize = 32;
const LENGTH: usize = USER + UNTIL + SIGNATURE;

/// The length of every ticket's text.
pub const TEXT_LENGTH: usize = 75;
const _: () = assert!(TEXT_LENGTH == (LENGTH * 4).div_ceil(3));

/// Gives and checks tickets.
#[derive(Debug)]
pub struct Tickets(hmac::Key);

impl Tickets {
    /// By a key that is derived from the tokens' own.
    pub fn new(keys: &TokenKeys) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, keys.private());
        Self(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, PURPOSE).as_ref()))
    }

    /// A ticket to do something (`act`) with one thing (`what`), for `user`, until the second of `until`: text that fits a
    /// query string.
    pub fn give(&self, act: &'static str, what: &str, user: Uuid, until: At) -> String {
        let mut bytes = [0; LENGTH];
        bytes[..USER].copy_from_slice(user.as_bytes());
        bytes[USER..USER + UNTIL].copy_from_slice(&until.ms().div_euclid(1000).to_be_bytes());
        let signature = self.sign(&bytes[..USER + UNTIL], act, what);
        bytes[USER + UNTIL..].copy_from_slice(signature.as_ref());
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Whose ticket to do this with `what` it is, and until when.
    pub fn check(&self, act: &'static str, what: &str, ticket: &str, now: At) -> Result<(Uuid, At), TokenFault> {
        // What is longer is not even read, and what is read has room.
        let mut bytes = [0; LENGTH + 4];
        if ticket.len() != TEXT_LENGTH || BASE64_URL_SAFE_NO_PAD.decode_slice(ticket, &mut bytes) != Ok(LENGTH) {
            return Err(TokenFault::Forged);
        }
        let (signed, signature) = bytes[..LENGTH].split_at(USER + UNTIL);
        // In constant time.
        aws_lc_rs::constant_time::verify_slices_are_equal(self.sign(signed, act, what).as_ref(), signature)
            .map_err(|_| TokenFault::Forged)?;
        let (user, until) = signed.split_at(USER);
        let user = Uuid::from_slice(user).map_err(|_| TokenFault::Forged)?;
        let until = until.try_into().map(i64::from_be_bytes).map_err(|_| TokenFault::Forged)?;
        let until = At::from_ms(until.saturating_mul(1000));
        if now >= until { Err(TokenFault::Expired) } else { Ok((user, until)) }
    }

    fn sign(&self, signed: &[u8], act: &str, what: &str) -> hmac::Tag {
        let mut signing = hmac::Context::with_key(&self.0);
        // What comes first is of one length and an act has no line break, so no other parts make the same text.
        for part in [signed, act.as_bytes(), b"\n", what.as_bytes()] {
            signing.update(part);
        }
        signing.sign()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn tickets(secret: u8) -> Tickets {
        Tickets::new(&TokenKeys::Secret(vec![secret; 32]))
    }

    #[test]
    fn a_ticket_holds_for_its_thing_and_its_time_alone() {
        let (now, user) = (At::from_ms(1_700_000_000_000), Uuid::now_v7());
        let until = now.plus(Duration::from_secs(60));
        let ticket = tickets(1).give("see", "a", user, until);
        assert_eq!(ticket.len(), TEXT_LENGTH);
        assert_eq!(tickets(1).check("see", "a", &ticket, now), Ok((user, until)));
        assert_eq!(tickets(1).check("see", "b", &ticket, now), Err(TokenFault::Forged));
        assert_eq!(tickets(1).check("end", "a", &ticket, now), Err(TokenFault::Forged));
        assert_eq!(tickets(2).check("see", "a", &ticket, now), Err(TokenFault::Forged));
        assert_eq!(tickets(1).check("see", "a", &ticket, until), Err(TokenFault::Expired));
    }

    proptest! {
        #[test]
        fn an_altered_ticket_is_none(at in 0..TEXT_LENGTH, to in "[A-Za-z0-9_-]", other in "\\PC{0,90}") {
            let now = At::from_ms(1_700_000_000_000);
            let ticket = tickets(1).give("see", "a", Uuid::from_u128(7), now.plus(Duration::from_secs(60)));
            let mut altered = ticket.clone();
            altered.replace_range(at..=at, &to);
            prop_assert!(altered == ticket || tickets(1).check("see", "a", &altered, now) == Err(TokenFault::Forged));
            prop_assert_eq!(tickets(1).check("see", "a", &other, now), Err(TokenFault::Forged));
        }
    }
}
