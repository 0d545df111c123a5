//! What must be secret: the keys of access tokens, and the sandbox's secret; and what nobody would take for one.

use std::path::Path;

use anyhow::Context;
use secrecy::ExposeSecret;

use super::Auth;
use super::names::variable_of;
use crate::platform::jwt::{TokenKeys, Tokens, VerifyingKey};

/// Bytes of a secret that tokens are signed with, at least.
const JWT_SECRET_MIN: usize = 32;
/// Bytes of the sandbox's secret, at least.
const SANDBOX_SECRET_MIN: usize = 16;
/// Different bytes of a secret, at least. Of 16 random hex digits fewer come once in a few thousand times, of 32 never.
const DIFFERENT_MIN: usize = 8;
/// Of neighbouring bytes this part may follow each other as in an alphabet: by chance a fifteenth does.
const SEQUENCE_MAX: f64 = 0.5;
/// What people write where a secret should come.
const PLACEHOLDERS: [&str; 16] = [
    "changeme",
    "changethis",
    "changeit",
    "replaceme",
    "replacethis",
    "placeholder",
    "yoursecret",
    "yourjwtsecret",
    "yoursupersecret",
    "supersecret",
    "mysecret",
    "insertsecret",
    "putyour",
    "secrethere",
    "notasecret",
    "passwordpassword",
];

impl Auth {
    /// The key that signs access tokens, read from its files where files are named.
    pub fn token_keys(&self) -> anyhow::Result<TokenKeys> {
        match (&self.jwt_private_key_file, &self.jwt_public_key_file) {
            (Some(private), Some(public)) => Ok(TokenKeys::Pem(key_file(private)?, key_file(public)?)),
            _ => Ok(TokenKeys::Secret(self.jwt_secret.expose_secret().as_bytes().to_vec())),
        }
    }

    /// What signs access tokens with these keys, and verifies those of further ones, too.
    pub fn tokens(&self, keys: &TokenKeys) -> anyhow::Result<Tokens> {
        let mut tokens = Tokens::new(keys)?;
        for secret in listed(self.jwt_verify_secrets.expose_secret()) {
            tokens = tokens.also_verify(&VerifyingKey::Secret(secret.as_bytes().to_vec()))?;
        }
        for path in listed(&self.jwt_verify_key_files) {
            let pem = key_file(Path::new(path))?;
            tokens = tokens.also_verify(&VerifyingKey::Pem(pem)).with_context(|| format!("reading {path}"))?;
        }
        Ok(tokens)
    }
}

fn key_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading the key file {}", path.display()))
}

/// The entries of a list with commas between them.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// Every fault of the secrets. None of them has a secret in it.
pub(super) fn faults(raw: &config::Config) -> Vec<String> {
    let text = |name: &str| raw.get_string(name).unwrap_or_default();
    let is_there = |name: &str| !text(name).is_empty();
    let mut faults = Vec::new();
    match (is_there("auth.jwt_private_key_file"), is_there("auth.jwt_public_key_file")) {
        (true, true) => faults.extend(pair(&text("auth.jwt_private_key_file"), &text("auth.jwt_public_key_file"))),
        (false, false) => faults.extend(jwt_secret(&text("auth.jwt_secret"))),
        _ => faults.push(
            "ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE and ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE go together: the PEM files of one \
             pair, such as /etc/onrush/private.pem and /etc/onrush/public.pem"
                .to_owned(),
        ),
    }
    for (place, secret) in (1..).zip(listed(&text("auth.jwt_verify_secrets"))) {
        if let Some(why) = weakness(secret, JWT_SECRET_MIN) {
            faults.push(format!("ONRUSH_AUTH__JWT_VERIFY_SECRETS has a weak secret at place {place}: {why}"));
        }
    }
    faults.extend(listed(&text("auth.jwt_verify_key_files")).filter_map(verifying_key));
    if raw.get_bool("payments.sandbox").unwrap_or(false) {
        let secret = text("payments.sandbox_secret");
        if secret.len() < SANDBOX_SECRET_MIN {
            faults.push(
                "ONRUSH_PAYMENTS__SANDBOX_SECRET must be at least 16 bytes while the sandbox is on, such as `openssl \
                 rand -hex 16` makes"
                    .to_owned(),
            );
        } else if let Some(why) = weakness(&secret, SANDBOX_SECRET_MIN) {
            faults.push(format!("ONRUSH_PAYMENTS__SANDBOX_SECRET is weak: {why}"));
        }
    }
    faults
}

fn jwt_secret(secret: &str) -> Option<String> {
    if secret.len() < JWT_SECRET_MIN {
        let fault = if secret.is_empty() { "is not set; it must be" } else { "must be" };
        return Some(format!(
            "ONRUSH_AUTH__JWT_SECRET {fault} at least 32 bytes, such as `openssl rand -base64 48` makes (or name key \
             files: ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE and ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE)"
        ));
    }
    let why = weakness(secret, JWT_SECRET_MIN)?;
    Some(format!(
        "ONRUSH_AUTH__JWT_SECRET is weak: {why}. Whoever guesses it is everybody; `openssl rand -base64 48` makes one"
    ))
}

/// Why a secret would be guessed, if so.
fn weakness(secret: &str, min_bytes: usize) -> Option<String> {
    let bytes = secret.as_bytes();
    if bytes.len() < min_bytes {
        return Some(format!("it must be at least {min_bytes} bytes"));
    }
    let letters: String = secret.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    if let Some(word) = PLACEHOLDERS.iter().find(|word| letters.contains(**word)) {
        return Some(format!("it has the words of a placeholder ({word})"));
    }
    let mut different = bytes.to_vec();
    different.sort_unstable();
    different.dedup();
    if different.len() < DIFFERENT_MIN {
        return Some(format!("it has {} different characters alone", different.len()));
    }
    if (1..=bytes.len() / 2).any(|unit| bytes.iter().zip(bytes.iter().skip(unit)).all(|(a, b)| a == b)) {
        return Some("it repeats itself".to_owned());
    }
    let steps = bytes.iter().zip(bytes.iter().skip(1));
    let in_order = steps.filter(|(a, b)| a.abs_diff(**b) <= 1).count();
    if in_order as f64 > SEQUENCE_MAX * (bytes.len() - 1) as f64 {
        return Some("its characters follow each other as in an alphabet".to_owned());
    }
    None
}

/// What is wrong with the key files.
fn pair(private: &str, public: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut read = |variable: &str, path: &str| {
        std::fs::read(path)
            .map_err(|error| faults.push(format!("{variable} must be the path of a PEM file: {path}: {error}")))
            .ok()
    };
    let private = read("ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE", private);
    let public = read("ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE", public);
    if let Some((private, public)) = private.zip(public)
        && let Err(error) = Tokens::new(&TokenKeys::Pem(private, public))
    {
        faults.push(format!(
            "ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE and ONRUSH_AUTH__JWT_PUBLIC_KEY_FILE must be a pair of PEM files, RSA or \
             Ed25519, such as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` make: {error}"
        ));
    }
    faults
}

/// What is wrong with a public key that only verifies.
fn verifying_key(path: &str) -> Option<String> {
    let fault = |why: String| {
        let variable = variable_of("auth.jwt_verify_key_files");
        Some(format!("{variable} must be the paths of PEM files with public keys, comma separated: {path}: {why}"))
    };
    match std::fs::read(path) {
        Ok(pem) => {
            // Any key that signs will do: only the other one is looked at.
            let tokens = Tokens::new(&TokenKeys::Secret(vec![0; JWT_SECRET_MIN]));
            let read = tokens.and_then(|tokens| tokens.also_verify(&VerifyingKey::Pem(pem)));
            read.err().and_then(|error| fault(error.to_string()))
        }
        Err(error) => fault(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_would_be_guessed_is_weak() {
        for (bad, why) in [
            ("short", "at least 32"),
            ("0123456789abcdef0123456789abcdef", "repeats"),
            ("correct horse correct horse correct horse", "repeats"),
            ("abcdefghijklmnopqrstuvwxyz0123456789", "alphabet"),
            ("zyxwvutsrqponmlkjihgfedcba9876543210", "alphabet"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "different"),
            ("change-me-change-me-before-production-1", "placeholder"),
            ("CHANGE_ME_xK9mQ2vL8pR4tY7wN3bC6jH1dF5g", "placeholder"),
            ("please replace this with your own 0x1fq", "placeholder"),
            ("your-jwt-secret-goes-into-this-variable", "placeholder"),
        ] {
            let told = weakness(bad, JWT_SECRET_MIN).unwrap_or_else(|| panic!("{bad} is not weak"));
            assert!(told.contains(why), "{bad}: {told}");
        }
    }

    #[test]
    fn what_a_machine_made_is_a_secret() {
        for good in [
            "a-secret-of-the-tests-with-32-bytes-or-more",
            "9f2b7c1e5a8d4036b1c9e7f20a6d8354",
            "c0ffee5eed0b5e55ed5ec0de5a17ed1dea5b1a5eba11ad5",
            "mW3vQm1Fh0y3Yt8s6oXxq2mG1hB5nKJ0uV7ZpRk9cLdTaEiSgO4wNrYfUe+PzQ/x",
        ] {
            assert_eq!(weakness(good, JWT_SECRET_MIN), None, "{good}");
        }
        // As script/secrets and `openssl rand` make them.
        for round in 0..500 {
            let mut bytes = [0; 48];
            aws_lc_rs::rand::fill(&mut bytes).unwrap();
            let hex: String = hex::encode(&bytes[..32]);
            assert_eq!(weakness(&hex, JWT_SECRET_MIN), None, "{round}: {hex}");
            assert_eq!(weakness(&hex[..32], SANDBOX_SECRET_MIN), None, "{round}: {hex}");
        }
    }
}
