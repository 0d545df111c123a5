//! What Stripe needs.
//!
//! The key is the account's secret key, or a restricted one that may write Checkout Sessions and refunds and read the
//! balance: <https://docs.stripe.com/keys>. Each webhook endpoint has a secret of its own, and while it is rolled two are
//! in force: <https://docs.stripe.com/webhooks#roll-endpoint-secrets>.

use std::fmt;

use secrecy::SecretString;

use super::gateways::Section;
use crate::platform::hmac::SharedSecret;

/// What keys begin with, and whether they move real money.
const KEYS: [(&str, bool); 4] = [("sk_live_", true), ("rk_live_", true), ("sk_test_", false), ("rk_test_", false)];
/// What the secret of a webhook endpoint begins with; it is a part of the secret.
const WEBHOOK_SECRET: &str = "whsec_";

/// Stripe's settings, read and checked.
pub struct Stripe {
    /// Shown with every request.
    pub secret_key: SecretString,
    /// Whether the key moves real money.
    pub is_live: bool,
    /// What events are signed with: any of these.
    pub webhook_secrets: Vec<SharedSecret>,
    /// Where it is, without a trailing slash.
    pub base_url: String,
}

impl fmt::Debug for Stripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stripe")
            .field("base_url", &self.base_url)
            .field("is_live", &self.is_live)
            .finish_non_exhaustive()
    }
}

impl Stripe {
    /// Reads the section `payments.stripe`.
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let key = section.file("secret_key_file", secret_key);
        let secrets = section.files("webhook_secret_files", |_, bytes| webhook_secret(bytes));
        let base_url = section.text("base_url");
        let ((secret_key, is_live), webhook_secrets, base_url) = (key?, secrets?, base_url?);
        // Answers are not signed, and the key itself goes over the wire.
        if is_live && !base_url.starts_with("https://") {
            section.refuse("base_url", "it must begin with https:// for a key that moves real money");
            return None;
        }
        Some(Self { secret_key, is_live, webhook_secrets, base_url })
    }
}

/// The key, and whether it moves real money.
fn secret_key(bytes: &[u8]) -> Result<(SecretString, bool), String> {
    let key = line(bytes)?;
    let (_, is_live) = KEYS.into_iter().find(|(start, _)| key.starts_with(start)).ok_or("it holds no secret key")?;
    Ok((SecretString::from(key), is_live))
}

fn webhook_secret(bytes: &[u8]) -> Result<SharedSecret, String> {
    let secret = line(bytes)?;
    // Without its beginning it would still sign, and fit nothing.
    if secret.starts_with(WEBHOOK_SECRET) {
        Ok(SharedSecret::new(secret.as_bytes()))
    } else {
        Err("it holds no webhook secret".to_owned())
    }
}

/// The only line of a file.
fn line(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
    let is_one = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_one { Ok(text) } else { Err("it is not one line of printable text".to_owned()) }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_key_says_whether_its_money_is_real() {
        let (key, is_live) = secret_key(b"sk_live_1\n").unwrap();
        assert_eq!((key.expose_secret(), is_live), ("sk_live_1", true));
        assert!(!secret_key(b"rk_test_1").unwrap().1);
        for bad in [&b""[..], b"\n", b"pk_live_1", b"sk_live_1\nsk_live_2", b"sk_live_\xff", b"whsec_1"] {
            assert!(secret_key(bad).is_err(), "{bad:?}");
        }
        assert!(webhook_secret(b"whsec_1\n").is_ok() && webhook_secret(b"1").is_err());
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_and_no_secret_is_shown() {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(files.path().join(name), text).unwrap();
            files.path().join(name).display().to_string()
        };
        let read = |values: &[(&str, String)]| {
            let mut builder =
                config::Config::builder().set_override("payments.stripe.base_url", "http://127.0.0.1:1").unwrap();
            for (name, value) in values {
                builder = builder.set_override(format!("payments.stripe.{name}"), value.clone()).unwrap();
            }
            let (raw, mut faults) = (builder.build().unwrap(), Vec::new());
            let section = Section::if_on(&raw, "payments.stripe", &mut faults);
            let read = section.and_then(Stripe::read);
            assert!(!format!("{read:?}{faults:?}").contains("hush"), "{read:?} {faults:?}");
            (read.map(|stripe| stripe.webhook_secrets.len()), faults.join("\n"))
        };
        let (test, live) = (file("test", "sk_test_hush\n"), file("live", "sk_live_hush"));
        let secrets = format!("{}, {}", file("one", "whsec_hush1\n"), file("two", "whsec_hush2"));
        let told = |values: &[(&str, String)], fault: &str| {
            let (read, faults) = read(values);
            assert!(read.is_none() && faults.contains(fault), "no {fault:?} in {faults:?}");
        };
        assert_eq!(read(&[]), (None, String::new()));
        let good = [("secret_key_file", test), ("webhook_secret_files", secrets.clone())];
        assert_eq!(read(&good), (Some(2), String::new()));
        told(&good[..1], "ONRUSH_PAYMENTS__STRIPE__WEBHOOK_SECRET_FILES is not set");
        told(&good[1..], "ONRUSH_PAYMENTS__STRIPE__SECRET_KEY_FILE is not set");
        let wrong =
            [("secret_key_file", file("public", "pk_live_hush")), ("webhook_secret_files", file("bad", "hush"))];
        told(&wrong, "it holds no secret key");
        told(&wrong, "it holds no webhook secret");
        let open = [("secret_key_file", live), ("webhook_secret_files", secrets)];
        told(&open, "ONRUSH_PAYMENTS__STRIPE__BASE_URL");
    }
}
