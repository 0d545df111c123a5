//! RSA signatures between two companies, each with a pair of keys: SHA256withRSA (RSASSA-PKCS1-v1_5 with SHA-256, RFC 8017
//! §8.2), which Alipay calls RSA2 and WeChat Pay `SHA256-RSA2048`.
//!
//! Keys come from files as the gateways and OpenSSL write them: PEM (PKCS#8, PKCS#1, SubjectPublicKeyInfo), or the bare
//! base64 of the same DER, which is what Alipay's own tools give out. A key of less than 2048 bits is refused when it is
//! read, not at its first signature.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, PublicEncryptingKey};
use aws_lc_rs::signature::{KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::{PemObject, SectionKind};

/// Why a text holds no key that we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Neither PEM nor base64.
    #[error("is neither PEM nor the base64 of a key")]
    NotText,
    /// PEM in which there is no such key.
    #[error("has no such key: a private one is needed to sign, a public one to verify")]
    OtherKey,
    /// The key cannot be read, or is not RSA, or has less than 2048 bits or more than 8192.
    #[error("holds no RSA key of 2048 to 8192 bits")]
    NotRsa,
}

/// The key could not sign: the machine has no memory left, or its random numbers fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private key could not sign")]
pub struct CannotSign;

/// Our half of a pair: it signs.
#[derive(Clone)]
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// From the text of a key file: PEM in PKCS#8 or PKCS#1, or the bare base64 of either.
    pub fn from_text(text: &[u8]) -> Result<Self, BadKey> {
        let of_kind = |kind| matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey);
        let der = der_in(text, of_kind)?;
        // What is inside decides: the tools of some gateways write PKCS#8 under the label of PKCS#1.
        let pair = KeyPair::from_pkcs8(&der).or_else(|_| KeyPair::from_der(&der)).map_err(|_| BadKey::NotRsa)?;
        Ok(Self(pair))
    }

    /// The signature of `message`, as long as the key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CannotSign> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).map_err(|_| CannotSign)?;
        Ok(signature)
    }

    /// The other half of the pair.
    pub fn public_key(&self) -> Result<PublicKey, BadKey> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(|_| BadKey::NotRsa)?;
        PublicKey::from_spki_der(der.as_ref())
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// The public half of somebody's pair: it verifies what they signed.
#[derive(Debug, Clone)]
pub struct PublicKey(ParsedPublicKey);

impl PublicKey {
    /// From the text of a key file: PEM (SubjectPublicKeyInfo), or the bare base64 of it.
    pub fn from_text(text: &[u8]) -> Result<Self, BadKey> {
        Self::from_spki_der(&der_in(text, |kind| matches!(kind, SectionKind::PublicKey))?)
    }

    /// From the DER of a SubjectPublicKeyInfo, as certificates hold one.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, BadKey> {
        // `ParsedPublicKey` looks at the size only when it verifies, this one now.
        PublicEncryptingKey::from_der(der).map_err(|_| BadKey::NotRsa)?;
        let key = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).map_err(|_| BadKey::NotRsa)?;
        Ok(Self(key))
    }

    /// Whether `signature` is this key's for exactly this message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify_sig(message, signature).is_ok()
    }
}

/// The DER of the first key of this kind in PEM, or of the text as bare base64 (perhaps over several lines).
fn der_in(text: &[u8], of_kind: fn(SectionKind) -> bool) -> Result<Vec<u8>, BadKey> {
    if text.windows(DASHES.len()).any(|part| part == DASHES) {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, der) = section.map_err(|_| BadKey::NotText)?;
            if of_kind(kind) {
                return Ok(der);
            }
        }
        return Err(BadKey::OtherKey);
    }
    let bare: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    match BASE64_STANDARD.decode(bare) {
        Ok(der) if !der.is_empty() => Ok(der),
        _ => Err(BadKey::NotText),
    }
}

/// What PEM begins its first line with.
const DASHES: &[u8] = b"-----BEGIN ";

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::Pkcs8V1Der;
    use aws_lc_rs::rsa::KeySize;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// One pair for all tests: making one takes a while.
    static PAIR: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());

    fn pkcs8() -> Vec<u8> {
        let der: Pkcs8V1Der<'_> = PAIR.as_der().unwrap();
        der.as_ref().to_vec()
    }

    /// PKCS#8 of a key of 2048 bits is 26 bytes that say "RSA" before the PKCS#1 (RFC 5958, RFC 8017 A.1.2).
    fn pkcs1() -> Vec<u8> {
        pkcs8()[26..].to_vec()
    }

    fn spki() -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = PAIR.public_key().as_der().unwrap();
        der.as_ref().to_vec()
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let base64 = BASE64_STANDARD.encode(der);
        let lines: Vec<&str> =
            (0..base64.len()).step_by(64).map(|at| &base64[at..(at + 64).min(base64.len())]).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    #[test]
    fn a_key_is_read_in_every_form_that_gateways_and_openssl_write() {
        let bare = |der: Vec<u8>| BASE64_STANDARD.encode(der);
        let wrapped = bare(pkcs1()).replace('M', "M\r\n");
        let private = [
            pem("PRIVATE KEY", &pkcs8()),
            pem("RSA PRIVATE KEY", &pkcs1()),
            pem("RSA PRIVATE KEY", &pkcs8()),
            format!("subject=merchant\n{}", pem("PRIVATE KEY", &pkcs8()).replace('\n', "\r\n")),
            bare(pkcs8()),
            bare(pkcs1()),
            wrapped,
        ];
        let public = [pem("PUBLIC KEY", &spki()), bare(spki()), format!("{}\n", bare(spki()))];
        let public: Vec<PublicKey> = public.iter().map(|text| PublicKey::from_text(text.as_bytes()).unwrap()).collect();
        for text in private {
            let key = PrivateKey::from_text(text.as_bytes()).unwrap();
            let signature = key.sign(b"message").unwrap();
            assert!(public.iter().all(|public| public.verifies(b"message", &signature)), "{text}");
            assert!(key.public_key().unwrap().verifies(b"message", &signature));
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_reason() {
        let private = |text: &str| PrivateKey::from_text(text.as_bytes()).unwrap_err();
        let public = |text: &str| PublicKey::from_text(text.as_bytes()).unwrap_err();
        for nothing in ["", "\n", "no key", "==", "-----BEGIN PUBLIC KEY-----\nMIIB\n"] {
            assert_eq!((private(nothing), public(nothing)), (BadKey::NotText, BadKey::NotText), "{nothing:?}");
        }
        assert_eq!(private(&pem("PUBLIC KEY", &spki())), BadKey::OtherKey);
        assert_eq!(public(&pem("PRIVATE KEY", &pkcs8())), BadKey::OtherKey);
        assert_eq!(private(&BASE64_STANDARD.encode(spki())), BadKey::NotRsa);
        assert_eq!(public(&BASE64_STANDARD.encode(pkcs8())), BadKey::NotRsa);
        assert_eq!(public(SHORT), BadKey::NotRsa);
        assert!(!format!("{:?}", PrivateKey::from_text(pem("PRIVATE KEY", &pkcs8()).as_bytes())).contains("MII"));
    }

    /// 1024 bits, made by `openssl genrsa 1024 | openssl rsa -pubout`.
    const SHORT: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDds1/QeLOdc0ZfV0TSMprd4zDAyYrZXjp51ezl4HZfAShTJMBlMyWYiAj0UTRE\
        YF4oG01p/DpabGsOpnihWlBIInMbfV4J60y9PXc//gDBQhB3dlDmjR7UfxDeC7kqeeclYj6OKbZU1QgQA+u0JX2KjPl3Ud0QiQ1O\
        6kRLvWvSoQIDAQAB";

    /// Made by `printf 'a=1&b=2' | openssl dgst -sha256 -sign key.pem | base64` with the key whose public half is here.
    #[test]
    fn a_signature_of_openssl_is_verified() {
        let key = PublicKey::from_text(OPENSSL_KEY.as_bytes()).unwrap();
        let signature = BASE64_STANDARD.decode(OPENSSL_SIGNATURE).unwrap();
        assert!(key.verifies(b"a=1&b=2", &signature));
        assert!(!key.verifies(b"a=1&b=3", &signature));
        assert!(!key.verifies(b"a=1&b=2", &signature[1..]));
        assert!(!key.verifies(b"a=1&b=2", b""));
    }

    const OPENSSL_KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAoF/Du63prDmFmd61ZwhHwRFk5IYMfCKXjGdnpfs77e/EZUlF/Uce31JN\
        +PnFNHhWEwolVEU3WyNzHwTNdC1lJdfB0GK8E56EylsHFwZNeIDqTIptnzrPea1uNK222qJKEdKf1yRk6BtNfR8WvZp8Wpp6NU2v\
        qQVApJICFCcT77OYoa70NpV/o3Ym++vRQKgYsJduwpn/Ldvbh1ifqzmx0YyZy8b0r6HHpXgTALZ9UKNZT1XqXgKaYT932PMjynrA\
        ThDsXdeUfxhFWqvqs9q76PskFRWnDCDRFHg03lwefF0EBmu+JsSuDr31XoHO071BvItJEI6xKyP8Z2v8L133zQIDAQAB";
    const OPENSSL_SIGNATURE: &str = "Zayqr9kc9lRSXtO4ug24lLTBIES0VCLa/uW8H3/tG9J+uuHjohxnHk9w4oltXQ21OVjb2Uyyv4b9EeFoOMq3wVDoRfOweBWgWPWP\
        x0QSnTfJ5qljCPrKV0r6po2D82d1TNcMf4puBHUAzQD1wQw+2jMOXXMROXS+SLT/v0IO9HLKTDY63U01BNiboF1oDyJHVaCmerNT\
        HIkqoDgw+jM18vEkz+cksDBox2yQNZtt0MLYVsCkgPkANTSsD+qCLSXZBBud80k+5MaLQJwLTnGFAi1987tGHkgEnTkFfDw9A2Hz\
        DqJw1nq44/xHyyP9DD087vYd7UAM3KvOcBD8364r4g==";

    proptest! {
        #[test]
        fn one_altered_byte_is_noticed(mut body in proptest::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, flip in 1u8..) {
            let key = PrivateKey(PAIR.clone());
            let public = key.public_key().unwrap();
            let mut signature = key.sign(&body).unwrap();
            prop_assert!(public.verifies(&body, &signature));
            let byte = at.index(signature.len());
            signature[byte] ^= flip;
            prop_assert!(!public.verifies(&body, &signature));
            signature[byte] ^= flip;
            let byte = at.index(body.len());
            body[byte] ^= flip;
            prop_assert!(!public.verifies(&body, &signature));
        }

        #[test]
        fn no_text_makes_reading_a_key_panic(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(PrivateKey::from_text(&text).is_err());
            prop_assert!(PublicKey::from_text(&text).is_err());
        }
    }
}
