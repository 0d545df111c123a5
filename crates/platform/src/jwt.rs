//! Access tokens: JSON Web Tokens of one kind (`typ: at+jwt`, RFC 9068), each signed with a key that its `kid` names.
//!
//! One key signs; further keys may only verify, so that a key can be replaced while tokens of the one before are still
//! about. A key goes with one algorithm, and the token's `alg` never chooses: a token of another algorithm (`none` too),
//! of another type, of a key that is not ours, or with a header it calls critical (`crit`), is not ours.

use anyhow::{Context, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The type of an access token (RFC 9068).
const TYPE: &str = "at+jwt";
/// The type in tokens of the version before, which named no key.
const OLD_TYPE: &str = "JWT";

/// What signs tokens, and verifies them.
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

/// What only verifies: the key before the present one, or the one to come.
#[derive(Debug)]
pub enum VerifyingKey {
    /// HS256 with a shared secret.
    Secret(Vec<u8>),
    /// RS256 or EdDSA, by the public key of a PEM file.
    Pem(Vec<u8>),
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// Past its time.
    Expired,
    /// Not a token at all.
    Malformed,
    /// Made to look like a token of ours, and not signed with a key of ours.
    Forged,
}

/// A token whose signature holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified<T> {
    /// What it says. Its times are the caller's to compare with their clock.
    pub claims: T,
    /// Whether its header says that it is an access token. One of the version before does not.
    pub is_typed: bool,
}

/// A key that a token may be signed with.
#[derive(Clone)]
struct Known {
    kid: String,
    algorithm: Algorithm,
    key: DecodingKey,
    /// The header of our tokens under this key, as they carry it: most tokens are recognised by it without being read.
    head: String,
}

/// Signs and verifies access tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    encoding: EncodingKey,
    header: Header,
    /// The first one signs, too.
    known: Vec<Known>,
}

impl Tokens {
    /// From the keys of the settings.
    pub fn new(keys: &TokenKeys) -> anyhow::Result<Self> {
        let (encoding, known) = match keys {
            TokenKeys::Secret(secret) => (EncodingKey::from_secret(secret), Known::secret(secret)?),
            TokenKeys::Pem(private, public) => {
                let known = Known::public(public)?;
                let read = match known.algorithm {
                    Algorithm::EdDSA => EncodingKey::from_ed_pem(private),
                    _ => EncodingKey::from_rsa_pem(private),
                };
                (read.context("the private key file does not hold the key of the public one")?, known)
            }
        };
        let tokens = Self { encoding, header: header_of(known.algorithm, &known.kid), known: vec![known] };
        // Keys that do not belong together would refuse every token later on: say so now.
        let probe = tokens.sign(&serde_json::json!({}))?;
        ensure!(tokens.verify::<Value>(&probe).is_ok(), "the private and the public key are not a pair");
        Ok(tokens)
    }

    /// Takes tokens of another key, too. The key that signs may be among those that are given: it is there once.
    pub fn also_verify(mut self, key: &VerifyingKey) -> anyhow::Result<Self> {
        let known = match key {
            VerifyingKey::Secret(secret) => Known::secret(secret)?,
            VerifyingKey::Pem(public) => Known::public(public)?,
        };
        if self.known.iter().all(|other| other.kid != known.kid) {
            self.known.push(known);
        }
        Ok(self)
    }

    /// The names of the keys whose tokens are taken, the one that signs first. They are no secrets.
    pub fn key_ids(&self) -> Vec<&str> {
        self.known.iter().map(|known| known.kid.as_str()).collect()
    }

    /// Signs `claims`.
    pub fn sign<T: Serialize>(&self, claims: &T) -> anyhow::Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.encoding).context("signing a token")
    }

    /// The claims of a token of ours.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<Verified<T>, TokenFault> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (head, claims) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
        let is_typed = match self.known.iter().find(|known| known.head == head) {
            Some(known) if known.holds(signed, signature) => true,
            Some(_) => return Err(TokenFault::Forged),
            None => self.verify_by_header(head, signed, signature)?,
        };
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenFault::Malformed)?;
        // Signed with our key, and not what we sign.
        let claims = serde_json::from_slice(&claims).map_err(|_| TokenFault::Forged)?;
        Ok(Verified { claims, is_typed })
    }

    /// Finds the key that a header names and holds the signature against it; whether the header has our type. Only a
    /// header of the version before has neither our type nor a key's name: it may be of any key of its algorithm.
    fn verify_by_header(&self, head: &str, signed: &str, signature: &str) -> Result<bool, TokenFault> {
        let header = URL_SAFE_NO_PAD.decode(head).map_err(|_| TokenFault::Malformed)?;
        let header: Map<String, Value> = serde_json::from_slice(&header).map_err(|_| TokenFault::Malformed)?;
        // We understand none of what a header may call critical (RFC 7515, section 4.1.11).
        if header.contains_key("crit") {
            return Err(TokenFault::Forged);
        }
        let text = |name: &str| header.get(name).map(|value| value.as_str().unwrap_or_default());
        let kid = match (text("typ"), text("kid")) {
            (Some(TYPE), Some(kid)) => Some(kid),
            (None | Some(OLD_TYPE), None) => None,
            _ => return Err(TokenFault::Forged),
        };
        let mut candidates = self
            .known
            .iter()
            .filter(|known| text("alg") == Some(name_of(known.algorithm)) && kid.is_none_or(|kid| kid == known.kid));
        if candidates.any(|known| known.holds(signed, signature)) { Ok(kid.is_some()) } else { Err(TokenFault::Forged) }
    }
}

impl Known {
    fn secret(secret: &[u8]) -> anyhow::Result<Self> {
        Self::new(Algorithm::HS256, DecodingKey::from_secret(secret))
    }

    fn public(pem: &[u8]) -> anyhow::Result<Self> {
        if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            return Self::new(Algorithm::EdDSA, key);
        }
        let key = DecodingKey::from_rsa_pem(pem)
            .context("the public key file holds neither an Ed25519 nor an RSA public key")?;
        Self::new(Algorithm::RS256, key)
    }

    fn new(algorithm: Algorithm, key: DecodingKey) -> anyhow::Result<Self> {
        let kid = kid_of(key.try_get_as_bytes().context("reading a key")?);
        let header = serde_json::to_vec(&header_of(algorithm, &kid)).context("writing a token's header")?;
        Ok(Self { kid, algorithm, key, head: URL_SAFE_NO_PAD.encode(header) })
    }

    fn holds(&self, signed: &str, signature: &str) -> bool {
        let verified = jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &self.key, self.algorithm);
        verified.unwrap_or(false)
    }
}

fn header_of(algorithm: Algorithm, kid: &str) -> Header {
    Header { typ: Some(TYPE.to_owned()), kid: Some(kid.to_owned()), ..Header::new(algorithm) }
}

/// The algorithms that a key can go with, as a header names them.
fn name_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::RS256 => "RS256",
        Algorithm::EdDSA => "EdDSA",
        // No key here goes with another one.
        _ => "none of ours",
    }
}

/// Eight bytes of a digest: the same key has the same name in every process. Nothing leads from it to a secret that
/// cannot be guessed.
fn kid_of(key: &[u8]) -> String {
    let mut named = b"onrush access token key:".to_vec();
    named.extend_from_slice(key);
    hex::encode(&digest(&SHA256, &named).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(byte: u8) -> Tokens {
        Tokens::new(&TokenKeys::Secret(vec![byte; 32])).unwrap()
    }

    fn claims(tokens: &Tokens, token: &str) -> Result<Value, TokenFault> {
        tokens.verify::<Value>(token).map(|verified| verified.claims)
    }

    /// A token with any header, signed well with HS256.
    fn crafted(header: &Value, byte: u8) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(&json!({"sub": "a"})));
        let key = EncodingKey::from_secret(&[byte; 32]);
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{signed}.{signature}")
    }

    #[test]
    fn an_altered_or_foreign_token_is_refused() {
        let tokens = secret(7);
        let token = tokens.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(tokens.verify(&token), Ok(Verified { claims: json!({"sub": "a"}), is_typed: true }));
        assert_eq!(claims(&secret(8), &token), Err(TokenFault::Forged));
        // {"alg":"none"}.{"sub":"a"}.
        assert_eq!(claims(&tokens, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."), Err(TokenFault::Forged));
        for nonsense in ["", "a", "a.b", "a.b.c", "..", "a.b.c.d"] {
            assert_eq!(claims(&tokens, nonsense), Err(TokenFault::Malformed), "{nonsense}");
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        for bad in [format!("{signed}."), format!("{signed}.{signature}."), format!("{signed}.A{signature}")] {
            assert!(claims(&tokens, &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_header_of_ours_counts_whatever_signed_it() {
        let tokens = secret(7);
        let kid = tokens.key_ids()[0].to_owned();
        let good = json!({"kid": kid, "alg": "HS256", "typ": "at+jwt"});
        assert!(tokens.verify::<Value>(&crafted(&good, 7)).unwrap().is_typed, "in another order of its members");
        for (member, value) in [
            ("typ", json!("JWT")),
            ("typ", json!("logout+jwt")),
            ("typ", json!(1)),
            ("kid", json!("another")),
            ("kid", json!(null)),
            ("alg", json!("HS384")),
            ("alg", json!("none")),
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("crit", json!(null)),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            assert_eq!(claims(&tokens, &crafted(&bad, 7)), Err(TokenFault::Forged), "{bad}");
        }
        for missing in ["typ", "kid", "alg"] {
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().remove(missing);
            assert_eq!(claims(&tokens, &crafted(&bad, 7)), Err(TokenFault::Forged), "{bad}");
        }
    }

    #[test]
    fn a_token_of_the_version_before_is_known_as_one() {
        let old = crafted(&json!({"typ": "JWT", "alg": "HS256"}), 7);
        assert!(!secret(7).verify::<Value>(&old).unwrap().is_typed);
        assert_eq!(claims(&secret(8), &old), Err(TokenFault::Forged));
        let both = secret(8).also_verify(&VerifyingKey::Secret(vec![7; 32])).unwrap();
        assert!(!both.verify::<Value>(&old).unwrap().is_typed);
    }

    #[test]
    fn tokens_of_a_key_are_taken_while_it_is_replaced() {
        let (old, new) = (secret(7), secret(8));
        let of_old = old.sign(&json!({"sub": "a"})).unwrap();
        let of_new = new.sign(&json!({"sub": "a"})).unwrap();
        let other = |byte: u8| VerifyingKey::Secret(vec![byte; 32]);
        // First every process learns the new key, then it signs, then the old one goes.
        let learnt = old.also_verify(&other(8)).unwrap();
        let signs = new.clone().also_verify(&other(7)).unwrap().also_verify(&other(7)).unwrap();
        for tokens in [&learnt, &signs] {
            assert!(claims(tokens, &of_old).is_ok() && claims(tokens, &of_new).is_ok());
        }
        assert_eq!(learnt.key_ids().len(), 2);
        assert_eq!(signs.key_ids().len(), 2, "a key that is named twice is there once");
        assert_ne!(signs.key_ids()[0], signs.key_ids()[1]);
        assert_eq!(claims(&new, &of_old), Err(TokenFault::Forged));
        // From a secret to a pair of keys, and back.
        let pair = Tokens::new(&TokenKeys::Pem(PRIVATE.to_vec(), PUBLIC.to_vec())).unwrap();
        let of_pair = pair.sign(&json!({"sub": "a"})).unwrap();
        assert!(claims(&pair.also_verify(&other(8)).unwrap(), &of_new).is_ok());
        let back = new.also_verify(&VerifyingKey::Pem(PUBLIC.to_vec())).unwrap();
        assert!(claims(&back, &of_pair).is_ok() && claims(&back, &of_new).is_ok());
        assert!(back.also_verify(&VerifyingKey::Pem(PRIVATE.to_vec())).is_err(), "a private key is no public one");
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
        assert_eq!(claims(&tokens, &token).unwrap()["sub"], "a");
        let forger = Tokens::new(&TokenKeys::Secret(PUBLIC.to_vec())).unwrap();
        let forged = forger.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(claims(&tokens, &forged), Err(TokenFault::Forged));
        // With the name of the key it wants to be taken for, and with the one algorithm it can sign.
        let head = json!({"typ": "at+jwt", "alg": "HS256", "kid": tokens.key_ids()[0]});
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode("{}"));
        let key = EncodingKey::from_secret(PUBLIC);
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
        assert_eq!(claims(&tokens, &format!("{signed}.{signature}")), Err(TokenFault::Forged));
    }

    #[test]
    fn keys_that_are_not_a_pair_are_refused() {
        assert!(Tokens::new(&TokenKeys::Pem(PRIVATE.to_vec(), ANOTHER_PUBLIC.to_vec())).is_err());
        assert!(Tokens::new(&TokenKeys::Pem(b"nonsense".to_vec(), PUBLIC.to_vec())).is_err());
        assert!(Tokens::new(&TokenKeys::Pem(PRIVATE.to_vec(), b"nonsense".to_vec())).is_err());
    }
}
