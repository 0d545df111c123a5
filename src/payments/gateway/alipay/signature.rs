//! Alipay's RSA2: which text of a set of parameters is signed, and the signature over it.
//!
//! The parameters sorted by name, `name=value` joined by `&`, not URL-encoded, SHA256withRSA, in base64. A request signs
//! everything but `sign`; of a notify `sign_type` is left out as well
//! (<https://opendocs.alipay.com/common/02mse7> and <https://opendocs.alipay.com/common/057k53>).

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::platform::rsa::{CannotSign, PrivateKey, PublicKey};

/// Parameters, each with one value. Sorted by their names' bytes, as Alipay sorts them.
pub(super) type Params = BTreeMap<String, String>;

/// The text of these parameters that is signed.
fn signed_text(params: &Params) -> String {
    let pairs: Vec<String> = params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Signs the parameters of a request, and adds the signature to them.
pub(super) fn sign(mut params: Params, key: &PrivateKey) -> Result<Params, CannotSign> {
    let signature = key.sign(signed_text(&params).as_bytes())?;
    params.insert("sign".to_owned(), BASE64_STANDARD.encode(signature));
    Ok(params)
}

/// Whether one of the keys signed exactly this text. Several are held while Alipay's key is changed.
pub(super) fn is_signed(text: &[u8], signature: &str, keys: &[PublicKey]) -> bool {
    BASE64_STANDARD.decode(signature).is_ok_and(|signature| keys.iter().any(|key| key.verifies(text, &signature)))
}

/// Why a set of parameters is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AlipayUnsigned {
    /// There is no signature.
    #[error("the signature is missing")]
    NoSignature,
    /// The signature is nobody's whose key we have.
    #[error("the signature does not fit the message")]
    Altered,
    /// The signed text could be cut into other parameters than these.
    #[error("its parameters could be read in two ways")]
    Ambiguous,
}

/// Takes the signature out of the parameters of a notify and checks it. That it is RSA2 is fixed here: the posted
/// `sign_type` is not signed, so it is not believed.
pub(super) fn verify(mut params: Params, keys: &[PublicKey]) -> Result<Params, AlipayUnsigned> {
    let signature = params.remove("sign").ok_or(AlipayUnsigned::NoSignature)?;
    params.remove("sign_type");
    // `a=1&b=2` may be two parameters, or one whose value is `1&b=2`: the signature is the same. Alipay sends the first
    // kind; whoever has one of its messages could make the second of it, and so hide parameters.
    if params.iter().any(|(name, value)| name.contains(['&', '=']) || hides_a_parameter(value)) {
        return Err(AlipayUnsigned::Ambiguous);
    }
    if !is_signed(signed_text(&params).as_bytes(), &signature, keys) {
        return Err(AlipayUnsigned::Altered);
    }
    Ok(params)
}

/// Whether a part of the value looks like a parameter of its own (`&name=`). An ampersand in a text alone does not.
fn hides_a_parameter(value: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    value.split('&').skip(1).any(|part| part.split_once('=').is_some_and(|(name, _)| is_name(name)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// A pair for the tests of the gateway: making one takes a while.
    pub(in super::super) static PAIR: LazyLock<PrivateKey> = LazyLock::new(new_pair);

    pub(in super::super) fn new_pair() -> PrivateKey {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        PrivateKey::from_text(BASE64_STANDARD.encode(der.as_ref()).as_bytes()).unwrap()
    }

    fn params(pairs: &[(&str, &str)]) -> Params {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_signed_text_is_sorted_and_not_encoded() {
        let text = signed_text(&params(&[("b", "课程 A+B=%"), ("a_2", "2"), ("a1", ""), ("B", "x")]));
        assert_eq!(text, "B=x&a1=&a_2=2&b=课程 A+B=%");
    }

    #[test]
    fn any_of_several_keys_verifies() {
        let keys = [new_pair().public_key().unwrap(), PAIR.public_key().unwrap()];
        let signed = sign(params(&[("a", "1")]), &PAIR).unwrap();
        assert_eq!(verify(signed.clone(), &keys), Ok(params(&[("a", "1")])));
        assert_eq!(verify(signed.clone(), &keys[..1]), Err(AlipayUnsigned::Altered));
        assert_eq!(verify(signed.clone(), &[]), Err(AlipayUnsigned::Altered));
        assert_eq!(verify(params(&[("a", "1")]), &keys), Err(AlipayUnsigned::NoSignature));
        for bad in ["", "=", "no base64", &signed["sign"][4..]] {
            assert_eq!(verify(params(&[("a", "1"), ("sign", bad)]), &keys), Err(AlipayUnsigned::Altered), "{bad}");
        }
    }

    #[test]
    fn the_posted_kind_of_signature_decides_nothing() {
        let keys = [PAIR.public_key().unwrap()];
        let mut signed = sign(params(&[("a", "1")]), &PAIR).unwrap();
        for kind in ["RSA", "none", "RSA2", ""] {
            signed.insert("sign_type".to_owned(), kind.to_owned());
            assert_eq!(verify(signed.clone(), &keys), Ok(params(&[("a", "1")])), "{kind}");
        }
    }

    #[test]
    fn a_message_cannot_be_cut_into_other_parameters() {
        let keys = [PAIR.public_key().unwrap()];
        let signed = sign(params(&[("a", "1"), ("b", "2"), ("c", "3")]), &PAIR).unwrap();
        for other in [&[("a", "1&b=2"), ("c", "3")][..], &[("a", "1"), ("b", "2&c=3")], &[("a", "1&b=2&c=3")]] {
            let mut other = params(other);
            other.insert("sign".to_owned(), signed["sign"].clone());
            assert_eq!(verify(other, &keys), Err(AlipayUnsigned::Ambiguous));
        }
        let mut other = params(&[("a=1&b", "2"), ("c", "3")]);
        other.insert("sign".to_owned(), signed["sign"].clone());
        assert_eq!(verify(other, &keys), Err(AlipayUnsigned::Ambiguous));
        // Texts of people may have both signs.
        for text in ["A&B", "1+1=2", "a=1", "A & B = C", "&=", "课&程=1"] {
            let message = params(&[("subject", text), ("z", "1")]);
            assert_eq!(verify(sign(message.clone(), &PAIR).unwrap(), &keys), Ok(message), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_signed_is_verified_and_nothing_else(
            pairs in proptest::collection::btree_map("[a-z_]{1,8}", "[^&]{0,20}", 1..8),
            at: prop::sample::Index,
            other in "[^&]{0,20}",
        ) {
            let keys = [PAIR.public_key().unwrap()];
            prop_assume!(!pairs.contains_key("sign") && !pairs.contains_key("sign_type"));
            let mut signed = sign(pairs.clone(), &PAIR).unwrap();
            prop_assert_eq!(verify(signed.clone(), &keys), Ok(pairs.clone()));
            let name = pairs.keys().nth(at.index(pairs.len())).unwrap();
            prop_assume!(pairs[name] != other);
            signed.insert(name.clone(), other);
            prop_assert_eq!(verify(signed, &keys), Err(AlipayUnsigned::Altered));
        }
    }
}
