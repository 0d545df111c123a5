//! `Stripe-Signature: t=…,v1=…[,v1=…]`: HMAC-SHA256, in hex, over `t.rawbody` with the whole secret (`whsec_…`) of the
//! endpoint. <https://docs.stripe.com/webhooks#verify-manually>
//!
//! While a secret is being rolled there are two of them, and an event carries a `v1` for each: any that fits any of ours
//! is enough. Other schemes (`v0`) are for tests and are worth nothing. The time counts both ways, by our own clock.

use crate::platform::clock::At;
use crate::platform::hmac::{SharedSecret, Unsigned};

/// Signatures of one event that are looked at: Stripe sends one for each secret that is in force.
const SIGNATURES_MAX: usize = 16;

/// Checks `body` against its header. A missing header is a failure, never an empty text.
pub(super) fn check(header: Option<&str>, body: &[u8], secrets: &[SharedSecret], now: At) -> Result<(), Unsigned> {
    let (timestamp, signatures) = parts(header.ok_or(Unsigned::NoSignature)?)?;
    let mut refused = Unsigned::NoSignature;
    for secret in secrets {
        for signature in &signatures {
            match secret.verify(Some(timestamp), Some(signature), body, now) {
                Ok(()) => return Ok(()),
                Err(Unsigned::NoSignature) => {}
                // With the right secret and at the wrong time: no other secret will fit.
                Err(Unsigned::Stale) => return Err(Unsigned::Stale),
                Err(other) => refused = other,
            }
        }
    }
    Err(refused)
}

/// The only time and the signatures of the only scheme that counts.
fn parts(header: &str) -> Result<(&str, Vec<&str>), Unsigned> {
    let (mut timestamp, mut signatures) = (None, Vec::new());
    for (scheme, value) in header.split(',').filter_map(|part| part.split_once('=')) {
        match scheme {
            "t" if timestamp.replace(value).is_some() => return Err(Unsigned::NoTimestamp),
            "v1" => signatures.push(value),
            _ => {}
        }
    }
    if signatures.len() > SIGNATURES_MAX {
        return Err(Unsigned::NoSignature);
    }
    Ok((timestamp.ok_or(Unsigned::NoTimestamp)?, signatures))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::platform::hmac::WINDOW;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn now() -> At {
        At::from_ms(1_700_000_000_000)
    }

    fn secret(text: &str) -> SharedSecret {
        SharedSecret::new(text.as_bytes())
    }

    fn signed(secret: &SharedSecret, at: At) -> String {
        let (timestamp, signature) = secret.sign(BODY, at);
        format!("t={timestamp},v1={signature}")
    }

    /// Made with `printf '1700000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_test`.
    const BY_OPENSSL: &str = "t=1700000000,v1=c89214b5b5da833daed6f0b8c5bb6bd58cea9022bd80ccc78230f3942d632925";

    #[test]
    fn the_whole_secret_signs_the_time_and_the_raw_body() {
        assert_eq!(check(Some(BY_OPENSSL), BODY, &[secret("whsec_test")], now()), Ok(()));
        assert_eq!(check(Some(BY_OPENSSL), BODY, &[secret("test")], now()), Err(Unsigned::Altered));
        assert_eq!(
            check(Some(BY_OPENSSL), br#"{"id": "evt_1"}"#, &[secret("whsec_test")], now()),
            Err(Unsigned::Altered)
        );
    }

    #[test]
    fn any_signature_that_fits_any_secret_is_enough() {
        let (old, new, other) = (secret("whsec_old"), secret("whsec_new"), secret("whsec_other"));
        let (by_old, by_new) = (signed(&old, now()), signed(&new, now()));
        let both = format!("{by_old},{}", by_new.split_once(',').unwrap().1);
        let ours = [secret("whsec_old"), secret("whsec_new")];
        for header in [&by_old, &by_new, &both] {
            assert_eq!(check(Some(header), BODY, &ours, now()), Ok(()), "{header}");
        }
        assert_eq!(check(Some(&both), BODY, &[secret("whsec_new")], now()), Ok(()));
        assert_eq!(check(Some(&both), BODY, &[other], now()), Err(Unsigned::Altered));
        assert_eq!(check(Some(&by_new), BODY, &[], now()), Err(Unsigned::NoSignature));
    }

    #[test]
    fn a_missing_or_malformed_header_is_a_failure() {
        let ours = [secret("whsec_test")];
        let good = signed(&ours[0], now());
        let (t, v1) = good.split_once(',').unwrap();
        let check = |header: Option<&str>| check(header, BODY, &ours, now());
        assert_eq!(check(Some(&format!("{v1},v0=00,{t},new=1"))), Ok(()), "in any order, among other schemes");
        assert_eq!(check(None), Err(Unsigned::NoSignature));
        for (bad, why) in [
            (String::new(), Unsigned::NoTimestamp),
            (v1.to_owned(), Unsigned::NoTimestamp),
            (t.to_owned(), Unsigned::NoSignature),
            (format!("{t},{}", v1.replace("v1", "v0")), Unsigned::NoSignature),
            (format!("{t},v1="), Unsigned::Altered),
            (format!("{t},v1=zz"), Unsigned::NoSignature),
            (format!("{t},{}", &v1[..v1.len() - 1]), Unsigned::NoSignature),
            (format!("t=,{v1}"), Unsigned::NoTimestamp),
            (format!("t=soon,{v1}"), Unsigned::NoTimestamp),
            (format!("{t},{t},{v1}"), Unsigned::NoTimestamp),
            (format!("{t}{}", format!(",{v1}").repeat(SIGNATURES_MAX + 1)), Unsigned::NoSignature),
        ] {
            assert_eq!(check(Some(&bad)), Err(why), "{bad}");
        }
    }

    #[test]
    fn an_event_is_worth_nothing_after_the_window() {
        let ours = [secret("whsec_other"), secret("whsec_test")];
        let header = signed(&ours[1], now());
        let at = |now: At| check(Some(&header), BODY, &ours, now);
        let beyond = WINDOW + Duration::from_secs(1);
        assert_eq!((at(now().plus(WINDOW)), at(now().minus(WINDOW))), (Ok(()), Ok(())));
        assert_eq!(at(now().plus(beyond)), Err(Unsigned::Stale));
        assert_eq!(at(now().minus(beyond)), Err(Unsigned::Stale));
    }

    proptest! {
        /// Whatever comes, nothing panics and nothing but our signature is accepted.
        #[test]
        fn no_header_is_accepted_that_nobody_signed(
            header in prop_oneof![
                ".{0,200}",
                "t=[0-9+-]{0,12}(,v[01]=[0-9a-f]{60,68}){0,20}",
                "(t=1700000000|v1=[0-9a-f]{64}|,|=){0,8}",
            ],
            body in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            prop_assert!(check(Some(&header), &body, &[secret("whsec_test")], now()).is_err());
        }

        /// One byte of a signed event, or of its header, altered: refused.
        #[test]
        fn one_altered_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..=127) {
            let ours = [secret("whsec_test")];
            let header = signed(&ours[0], now());
            let mut altered = [header.as_bytes(), BODY].concat();
            let at = at.index(altered.len());
            altered[at] ^= flip;
            let (head, body) = altered.split_at(header.len());
            let head = std::str::from_utf8(head);
            // The case of a hexadecimal digit is no part of what it says.
            let same = head.is_ok_and(|head| head.eq_ignore_ascii_case(&header) && head.starts_with("t=") && head.contains(",v1="));
            let accepted = head.is_ok_and(|head| check(Some(head), body, &ours, now()).is_ok());
            prop_assert_eq!(accepted, same && body == BODY);
        }
    }
}
