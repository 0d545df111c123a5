//! Access tokens: JSON Web Tokens with one pinned algorithm. A token of any other (`none` too) is not ours.

use anyhow::{Context, ensure};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What signs and verifies.
pub enum TokenKeys {
    /// HS256 with a shared secret.
    Secret(Vec<u8>),
    /// RS256 or EdDSA, by what the PEM files hold: (private, public).
    Pem(Vec<u8>, Vec<u8>),
}

impl TokenKeys {
    /// What nobody else knows: other keys are derived from it.
    pub fn private(&self) -> &[u8] {
        match self {
            Self::Secret(secret) => secret,
            Self::Pem(private, _) => private,
        }
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// Past its time.
    Expired,
    /// Not a token of ours.
    Invalid,
}

/// Signs and verifies access tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    algorithm: Algorithm,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl Tokens {
    /// From the keys of the settings.
    pub fn new(keys: &TokenKeys) -> anyhow::Result<Self> {
        let (algorithm, encoding, decoding) = match keys {
            TokenKeys::Secret(secret) => {
                (Algorithm::HS256, EncodingKey::from_secret(secret), DecodingKey::from_secret(secret))
            }
            TokenKeys::Pem(private, public) => Self::pem(private, public)?,
        };
        let mut validation = Validation::new(algorithm);
        // The caller compares `exp` with its own clock; here only the signature, the algorithm and the shape count.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        validation.validate_aud = false;
        let tokens = Self { algorithm, encoding, decoding, validation };
        // Keys that do not belong together would refuse every token later on: say so now.
        let probe = tokens.sign(&serde_json::json!({}))?;
        ensure!(tokens.verify::<serde_json::Value>(&probe).is_ok(), "the private and the public key are not a pair");
        Ok(tokens)
    }

    fn pem(private: &[u8], public: &[u8]) -> anyhow::Result<(Algorithm, EncodingKey, DecodingKey)> {
        if let (Ok(encoding), Ok(decoding)) = (EncodingKey::from_ed_pem(private), DecodingKey::from_ed_pem(public)) {
            return Ok((Algorithm::EdDSA, encoding, decoding));
        }
        let encoding = EncodingKey::from_rsa_pem(private)
            .context("the private key file holds neither an Ed25519 nor an RSA key")?;
        let decoding = DecodingKey::from_rsa_pem(public).context("the public key file does not hold an RSA key")?;
        Ok((Algorithm::RS256, encoding, decoding))
    }

    /// Signs `claims`.
    pub fn sign<T: Serialize>(&self, claims: &T) -> anyhow::Result<String> {
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, &self.encoding).context("signing a token")
    }

    /// The claims of a token of ours. The caller checks `exp`.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<T, TokenFault> {
        jsonwebtoken::decode::<T>(token, &self.decoding, &self.validation)
            .map(|data| data.claims)
            .map_err(|_| TokenFault::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_altered_or_foreign_token_is_refused() {
        let tokens = Tokens::new(&TokenKeys::Secret(vec![7; 32])).unwrap();
        let token = tokens.sign(&json!({"sub": "a"})).unwrap();
        assert!(tokens.verify::<Value>(&token).is_ok());
        let other = Tokens::new(&TokenKeys::Secret(vec![8; 32])).unwrap();
        assert_eq!(other.verify::<Value>(&token), Err(TokenFault::Invalid));
        // {"alg":"none"}.{"sub":"a"}.
        assert!(tokens.verify::<Value>("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.").is_err());
        assert!(tokens.verify::<Value>("").is_err());
        assert!(tokens.verify::<Value>("a.b.c").is_err());
    }

    // Made for this test, as `openssl genpkey -algorithm ed25519` does.
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEILH3+qpfWrHmZuZO1mve/Z/Y853o7Y+cMN436F1Wn+7v
-----END PRIVATE KEY-----
";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAK59eF51xphXVINvyv/ZoZyfSxVEgyjVDKj1RUEl2QtY=
-----END PUBLIC KEY-----
";
    const ANOTHER_PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEALJYrc2zjJ/MrFmWLgdpD6Hrh3hPiE4NOpG95g7A6OH0=
-----END PUBLIC KEY-----
";

    #[test]
    fn a_public_key_is_no_secret_to_sign_with() {
        let tokens = Tokens::new(&TokenKeys::Pem(PRIVATE.to_vec(), PUBLIC.to_vec())).unwrap();
        let token = tokens.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(tokens.verify::<Value>(&token).unwrap()["sub"], "a");
        let forger = Tokens::new(&TokenKeys::Secret(PUBLIC.to_vec())).unwrap();
        let forged = forger.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(tokens.verify::<Value>(&forged), Err(TokenFault::Invalid));
    }

    #[test]
    fn keys_that_are_not_a_pair_are_refused() {
        assert!(Tokens::new(&TokenKeys::Pem(PRIVATE.to_vec(), ANOTHER_PUBLIC.to_vec())).is_err());
        assert!(Tokens::new(&TokenKeys::Pem(b"nonsense".to_vec(), PUBLIC.to_vec())).is_err());
    }
}
