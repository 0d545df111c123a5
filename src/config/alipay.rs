//! Alipay's settings, with the keys in the files that they name.

use super::gateways::Section;
use crate::platform::rsa::{PrivateKey, PublicKey};

/// `ONRUSH_PAYMENTS__ALIPAY__*`: who we are at Alipay, and the keys on both sides.
#[derive(Debug)]
pub struct Alipay {
    /// The application's number (APPID).
    pub app_id: String,
    /// Our name in Alipay's messages ([`alipay_merchant`]).
    pub merchant: String,
    /// The application's key: signs what we send.
    pub private_key: PrivateKey,
    /// Alipay's keys: each verifies what it sends. Several while the key is changed.
    pub public_keys: Vec<PublicKey>,
    /// Where its gateway is.
    pub base_url: String,
}

/// Our name in Alipay's messages: they name the application and the account that is paid (PID, `2088…`).
pub fn alipay_merchant(app_id: &str, seller_id: &str) -> String {
    format!("{app_id}/{seller_id}")
}

impl Alipay {
    /// As the settings have it; `None` when it is switched off, or at a fault.
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let (app_id, seller_id) = (section.text("app_id"), section.text("seller_id"));
        let read = |text: &[u8]| PrivateKey::from_text(text).map_err(|why| format!("it {why}"));
        let private_key = section.file("private_key_file", read);
        let public_keys = section.files("public_key_files", |_, text| {
            let public = PublicKey::from_text(text).map_err(|why| format!("it {why}"))?;
            match &private_key {
                Some(private) if is_a_pair(private, &public) => {
                    Err("it is the application's own, not Alipay's".to_owned())
                }
                _ => Ok(public),
            }
        });
        let (app_id, base_url) = (app_id?, section.text("base_url")?);
        let merchant = alipay_merchant(&app_id, &seller_id?);
        Some(Self { app_id, merchant, private_key: private_key?, public_keys: public_keys?, base_url })
    }
}

/// Whether the two belong together: then the public key is ours and verifies nothing of Alipay's.
fn is_a_pair(private: &PrivateKey, public: &PublicKey) -> bool {
    private.sign(b"pair").is_ok_and(|signature| public.verifies(b"pair", &signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use std::path::Path;

    /// The files of a pair: (private, public).
    fn pair(dir: &Path, name: &str) -> (String, String) {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let (private, public): (Pkcs8V1Der<'_>, PublicKeyX509Der<'_>) =
            (pair.as_der().unwrap(), pair.public_key().as_der().unwrap());
        let write = |kind: &str, der: &[u8]| {
            let path = dir.join(format!("{name}-{kind}"));
            std::fs::write(&path, BASE64_STANDARD.encode(der)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        (write("private", private.as_ref()), write("public", public.as_ref()))
    }

    fn read(values: &[(&str, &str)]) -> (Option<Alipay>, Vec<String>) {
        let mut builder = config::Config::builder();
        builder = builder.set_override("payments.alipay.base_url", "https://openapi.alipay.com/gateway.do").unwrap();
        for (name, value) in values {
            builder = builder.set_override(format!("payments.alipay.{name}"), *value).unwrap();
        }
        let (raw, mut faults) = (builder.build().unwrap(), Vec::new());
        (Section::if_on(&raw, "payments.alipay", &mut faults).and_then(Alipay::read), faults)
    }

    #[test]
    fn it_is_off_until_anything_is_given_and_then_needs_all() {
        assert!(matches!(read(&[]), (None, faults) if faults.is_empty()));
        let (none, faults) = read(&[("app_id", "2021")]);
        assert!(none.is_none());
        for (name, fault) in ["SELLER_ID", "PRIVATE_KEY_FILE", "PUBLIC_KEY_FILES"].into_iter().zip(&faults) {
            assert!(fault.starts_with(&format!("ONRUSH_PAYMENTS__ALIPAY__{name} is not set")), "{faults:?}");
        }
        assert_eq!(faults.len(), 3, "{faults:?}");
    }

    #[test]
    fn every_key_is_read_and_every_fault_of_them_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, ours_public) = pair(dir.path(), "ours");
        let (theirs_private, theirs) = pair(dir.path(), "theirs");
        let (_, next) = pair(dir.path(), "next");
        let with = |private: &str, public: &str| {
            let ids = [("app_id", "2021"), ("seller_id", "2088")];
            read(&[&ids[..], &[("private_key_file", private), ("public_key_files", public)]].concat())
        };
        let (on, faults) = with(&ours, &format!("{theirs}, {next}"));
        let on = on.unwrap_or_else(|| panic!("{faults:?}"));
        assert_eq!((on.merchant.as_str(), on.public_keys.len()), ("2021/2088", 2));

        let missing = dir.path().join("missing").to_str().unwrap().to_owned();
        let (none, faults) = with(&theirs, &format!("{missing},{theirs_private},{theirs}"));
        assert!(none.is_none());
        assert_eq!(faults.len(), 3, "{faults:?}");
        // The mistake that is made most often.
        let (_, faults) = with(&ours, &ours_public);
        assert!(faults.len() == 1 && faults[0].ends_with("it is the application's own, not Alipay's"), "{faults:?}");
    }
}
