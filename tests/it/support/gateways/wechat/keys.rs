//! Pairs of RSA keys, made once for all tests, and what is written with them.

use std::sync::LazyLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{API_V3_KEY, Keys};

/// Both halves of a pair.
#[derive(Clone)]
pub struct Pair(KeyPair);

static PAIRS: LazyLock<[Pair; 4]> =
    LazyLock::new(|| [(); 4].map(|()| Pair(KeyPair::generate(KeySize::Rsa2048).expect("a pair of keys"))));

pub(super) fn make() -> Keys {
    let [merchant, public, certified, unknown] = PAIRS.clone();
    Keys {
        merchant,
        platform: [
            ("PUB_KEY_ID_0119000001092024112100000000000001".to_owned(), public),
            ("5157F09EFDC096DE15EBE81A47057A7200000001".to_owned(), certified),
            ("PUB_KEY_ID_0119000001092024112100000000000002".to_owned(), unknown),
        ],
    }
}

impl Pair {
    /// SHA256withRSA, in base64.
    pub fn sign(&self, text: &[u8]) -> String {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).expect("a signature");
        BASE64_STANDARD.encode(signature)
    }

    pub fn signed(&self, text: &[u8], signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.0.public_key().as_ref());
        BASE64_STANDARD.decode(signature).is_ok_and(|signature| key.verify(text, &signature).is_ok())
    }

    pub fn private_pem(&self) -> String {
        let der: Pkcs8V1Der<'_> = self.0.as_der().expect("a key");
        pem("PRIVATE KEY", der.as_ref())
    }

    fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("a key");
        der.as_ref().to_vec()
    }

    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.spki())
    }

    /// A certificate of this serial number (RFC 5280), signed by nobody: whoever names its file vouches for it.
    pub fn certificate_pem(&self, serial: &str) -> String {
        let number: Vec<u8> = serial
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        // sha256WithRSAEncryption
        let algorithm = der(0x30, &[&[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b], &[0x05, 0]]);
        let common_name = der(0x30, &[&[0x06, 3, 0x55, 4, 3], &der(0x0c, &[b"Tenpay.com sign"])]);
        let name = der(0x30, &[&der(0x31, &[&common_name])]);
        let valid = der(0x30, &[&der(0x17, &[b"240101000000Z"]), &der(0x17, &[b"440101000000Z"])]);
        let version_3 = der(0xa0, &[&[0x02, 1, 2]]);
        let parts = [&version_3, &der(0x02, &[&number]), &algorithm, &name, &valid, &name, &self.spki()];
        let content = der(0x30, &parts.map(Vec::as_slice));
        pem("CERTIFICATE", &der(0x30, &[&content, &algorithm, &der(0x03, &[&[0; 257]])]))
    }
}

/// One value in DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let head = if length < 128 {
        vec![tag, u8::try_from(length).expect("short")]
    } else {
        let [high, low] = u16::try_from(length).expect("not that long").to_be_bytes();
        vec![tag, 0x82, high, low]
    };
    [head, content].concat()
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Content sealed with the APIv3 key.
pub(super) fn seal(content: &[u8], about: &str) -> Value {
    let mut bytes = [0; 6];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    let nonce: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, API_V3_KEY).expect("a key"));
    let unique = Nonce::try_assume_unique_for_key(nonce.as_bytes()).expect("a nonce");
    let mut text = content.to_vec();
    key.seal_in_place_append_tag(unique, Aad::from(about.as_bytes()), &mut text).expect("sealed");
    json!({
        "algorithm": "AEAD_AES_256_GCM", "ciphertext": BASE64_STANDARD.encode(text), "associated_data": about,
        "nonce": nonce, "original_type": "transaction",
    })
}
