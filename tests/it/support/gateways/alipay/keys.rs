//! RSA keys, made for the test, written as Alipay's tools and OpenSSL write them.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{self, KeyPair as _};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// A private key and its public one.
pub struct Pair(KeyPair);

impl Pair {
    pub fn new() -> Self {
        Self(KeyPair::generate(KeySize::Rsa2048).expect("a pair"))
    }

    pub fn private_pem(&self) -> String {
        let der: Pkcs8V1Der<'_> = self.0.as_der().expect("its DER");
        pem("PRIVATE KEY", der.as_ref())
    }

    fn public_der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("its DER");
        der.as_ref().to_vec()
    }

    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &self.public_der())
    }

    /// One line of base64, as Alipay's console shows a key.
    pub fn public_bare(&self) -> String {
        BASE64_STANDARD.encode(self.public_der())
    }

    /// SHA256withRSA, in base64.
    pub fn sign(&self, text: &str) -> String {
        let mut signature = vec![0; self.0.public_modulus_len()];
        let random = SystemRandom::new();
        self.0.sign(&signature::RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature).expect("a signature");
        BASE64_STANDARD.encode(signature)
    }

    pub fn verifies(&self, text: &str, signature: &str) -> bool {
        let key = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, self.public_der());
        BASE64_STANDARD.decode(signature).is_ok_and(|signature| key.verify(text.as_bytes(), &signature).is_ok())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = (0..base64.len()).step_by(64).map(|at| &base64[at..(at + 64).min(base64.len())]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
