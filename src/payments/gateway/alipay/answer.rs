//! Alipay's answers: `{"alipay_trade_query_response":{…},"sign":"…"}`, signed over the text of the first member exactly as it
//! stands in the answer (<https://opendocs.alipay.com/common/02mse7>, "同步返回验签").
//!
//! That text is taken out of the raw answer, never written anew from what was read of it. And what is read is the text
//! whose signature held: Alipay's own SDKs take a signature also when it is over the text with `\/` written as `/`, which
//! another text could be made of by whoever has one answer.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::signature::is_signed;
use crate::platform::money::Money;
use crate::platform::rsa::PublicKey;

/// The call was carried out. What became of the money is in the answer's other members.
const SUCCESS: &str = "10000";
/// Alipay or the part of it that was asked is not there now; ask again.
const UNAVAILABLE: &str = "20000";
/// The call was understood and declined for the reason in `sub_code`.
const DECLINED: &str = "40004";
/// Reasons that are Alipay's own troubles: ask again.
const TROUBLES: &[&str] =
    &["ACQ.SYSTEM_ERROR", "SYSTEM_ERROR", "isp.unknow-error", "aop.unknow-error", "isp.unknown-error"];
/// Where an answer is that the gateway itself gave, before it knew who asks. It is not always signed.
const GATEWAY_ERROR: &str = "error_response";

/// Why an answer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unbelievable {
    /// It is not of the shape that answers have.
    #[error("its answer cannot be read: {0}")]
    Shape(String),
    /// It is signed by nobody whose key we have, or not at all; and what it says, for a person.
    #[error("its answer is not signed: {0}")]
    Unsigned(String),
}

/// An answer whose signature held.
#[derive(Debug)]
pub(super) struct AlipayAnswer {
    head: Head,
    text: String,
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was carried out.
    Done,
    /// It was declined, and why: `ACQ.TRADE_NOT_EXIST` and the like.
    Declined(String),
    /// Not now: ask again.
    Unavailable(String),
    /// It can never succeed as it is: a fault of the settings or of ours.
    Refused(String),
}

/// What every answer has.
#[derive(Debug, Deserialize)]
struct Head {
    code: String,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    sub_code: String,
    #[serde(default)]
    sub_msg: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.16} {:.64} {:.64} {:.200}", self.code, self.msg, self.sub_code, self.sub_msg)
    }
}

impl AlipayAnswer {
    /// Finds the answer to a call of `method` in what came, and checks its signature.
    pub fn verified(body: &[u8], method: &str, keys: &[PublicKey]) -> Result<Self, Unbelievable> {
        let shape = |error: &dyn fmt::Display| Unbelievable::Shape(error.to_string());
        let body = std::str::from_utf8(body).map_err(|error| shape(&error))?;
        let members: Members<'_> = serde_json::from_str(body).map_err(|error| shape(&error))?;
        let named = format!("{}_response", method.replace('.', "_"));
        let text = match (members.get(&named), members.get(GATEWAY_ERROR)) {
            (Some(text), None) | (None, Some(text)) => text,
            _ => return Err(shape(&format_args!("it has no member {named}, or two"))),
        };
        let signature: Option<String> = members.get("sign").and_then(|raw| serde_json::from_str(raw).ok());
        let signed = signature.and_then(|signature| signed_form(text, &signature, keys));
        let Some(text) = signed else {
            let said =
                serde_json::from_str::<Head>(text).map_or_else(|error| error.to_string(), |head| head.to_string());
            return Err(Unbelievable::Unsigned(said));
        };
        let head = serde_json::from_str(&text).map_err(|error| shape(&error))?;
        Ok(Self { head, text: text.into_owned() })
    }

    /// How the call ended.
    pub fn ended(&self) -> Ended {
        let Head { code, sub_code, .. } = &self.head;
        let trouble = TROUBLES.contains(&sub_code.as_str());
        match code.as_str() {
            SUCCESS => Ended::Done,
            UNAVAILABLE => Ended::Unavailable(self.head.to_string()),
            _ if trouble => Ended::Unavailable(self.head.to_string()),
            DECLINED => Ended::Declined(sub_code.clone()),
            _ => Ended::Refused(self.head.to_string()),
        }
    }

    /// What it says beside how it ended.
    pub fn data<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(&self.text)
    }

    /// The text that was signed, to be kept.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// In words, for a person.
    pub fn in_words(&self) -> String {
        self.head.to_string()
    }
}

/// The form of the text that the signature is over: as it came, or as Alipay's SDKs try next.
fn signed_form<'a>(text: &'a str, signature: &str, keys: &[PublicKey]) -> Option<Cow<'a, str>> {
    if is_signed(text.as_bytes(), signature, keys) {
        return Some(Cow::Borrowed(text));
    }
    let other = text.contains("\\/").then(|| text.replace("\\/", "/"))?;
    is_signed(other.as_bytes(), signature, keys).then_some(Cow::Owned(other))
}

/// The members of an answer, each as the text that it is. One that is there twice would be read in two ways.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, raw)| raw.get())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsTheyStand;
        impl<'de> Visitor<'de> for AsTheyStand {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an answer of Alipay")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members: Self::Value = Vec::new();
                while let Some((name, raw)) = map.next_entry::<String, &'de RawValue>()? {
                    if members.len() == MEMBERS_MAX || members.iter().any(|(known, _)| *known == name) {
                        return Err(M::Error::custom("too many members, or one twice"));
                    }
                    members.push((name, raw));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(AsTheyStand).map(Members)
    }
}

/// Members of an answer that we look at; it has two or three.
const MEMBERS_MAX: usize = 8;

/// An amount of an answer, in yuan: text or a number, read from its digits.
pub(super) fn yuan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Money, D::Error> {
    let raw = <&RawValue>::deserialize(deserializer)?.get();
    let digits = raw.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(raw);
    Money::from_yuan(digits).ok_or_else(|| D::Error::custom("not an amount in yuan"))
}

#[cfg(test)]
mod tests {
    use super::super::signature::tests::{PAIR, new_pair};
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    const METHOD: &str = "alipay.trade.query";

    fn sign(text: &str) -> String {
        BASE64_STANDARD.encode(PAIR.sign(text.as_bytes()).unwrap())
    }

    fn keys() -> [PublicKey; 1] {
        [PAIR.public_key().unwrap()]
    }

    fn verified(body: &str) -> Result<AlipayAnswer, Unbelievable> {
        AlipayAnswer::verified(body.as_bytes(), METHOD, &keys())
    }

    fn signed(text: &str) -> String {
        format!(r#"{{"alipay_trade_query_response":{text},"sign":"{}"}}"#, sign(text))
    }

    const PAID: &str =
        r#"{"code":"10000","msg":"Success","subject":"a \"}{\" \\","list":[{"x":"}]"}],"total_amount":"0.01"}"#;

    #[test]
    fn the_signature_is_over_the_text_as_it_stands() {
        #[derive(Deserialize)]
        struct Data {
            subject: String,
            #[serde(deserialize_with = "yuan")]
            total_amount: Money,
        }
        let body = signed(PAID);
        let answer = verified(&body).unwrap();
        assert_eq!(answer.ended(), Ended::Done);
        let data: Data = answer.data().unwrap();
        assert_eq!((data.subject.as_str(), data.total_amount), (r#"a "}{" \"#, Money::fen(1)));
        // The order of the members, spaces between them and unknown ones are the gateway's affair.
        let other = format!(
            "{{ \"sign\" : \"{}\", \"alipay_cert_sn\":\"x\",\n \"alipay_trade_query_response\" : {PAID} }}\n",
            sign(PAID)
        );
        assert_eq!(verified(&other).unwrap().text(), PAID);
        // Written in another way it is another text, though it says the same.
        for other in
            [PAID.replace(",\"list\"", ", \"list\""), PAID.replace("0.01", "0.010"), PAID.replace("Suc", "\\u0053uc")]
        {
            let altered = body.replace(PAID, &other);
            assert!(matches!(verified(&altered), Err(Unbelievable::Unsigned(_))), "{altered}");
        }
    }

    #[test]
    fn what_is_read_is_what_was_signed_also_where_a_slash_is_escaped() {
        #[derive(Deserialize)]
        struct Data {
            url: String,
        }
        let escaped = r#"{"code":"10000","url":"http:\/\/x\\/y"}"#;
        let plain = escaped.replace("\\/", "/");
        let url_of = |body: &str| verified(body).unwrap().data::<Data>().unwrap().url;
        assert_eq!(url_of(&signed(escaped)), r"http://x\/y");
        let over_plain = format!(r#"{{"alipay_trade_query_response":{escaped},"sign":"{}"}}"#, sign(&plain));
        assert_eq!(url_of(&over_plain), "http://x/y");
    }

    #[test]
    fn an_answer_that_is_not_signed_by_the_gateway_is_not_believed() {
        let body = signed(PAID);
        let stranger = [new_pair().public_key().unwrap()];
        assert!(matches!(AlipayAnswer::verified(body.as_bytes(), METHOD, &stranger), Err(Unbelievable::Unsigned(_))));
        assert!(matches!(AlipayAnswer::verified(body.as_bytes(), METHOD, &[]), Err(Unbelievable::Unsigned(_))));
        let unsigned =
            r#"{"error_response":{"code":"40002","msg":"Invalid Arguments","sub_code":"isv.invalid-app-id"}}"#;
        let Err(Unbelievable::Unsigned(said)) = verified(unsigned) else { panic!("{unsigned}") };
        assert!(said.contains("isv.invalid-app-id"), "{said}");
        for unsigned in [
            format!(r#"{{"alipay_trade_query_response":{PAID}}}"#),
            format!(r#"{{"alipay_trade_query_response":{PAID},"sign":null}}"#),
            format!(r#"{{"alipay_trade_query_response":{PAID},"sign":["{}"]}}"#, sign(PAID)),
        ] {
            assert!(matches!(verified(&unsigned), Err(Unbelievable::Unsigned(_))), "{unsigned}");
        }
    }

    #[test]
    fn an_answer_that_can_be_read_in_two_ways_is_refused() {
        let body = signed(PAID);
        let (sign, other) = (sign(PAID), r#"{"code":"10000","total_amount":"9"}"#);
        for twice in [
            format!(
                r#"{{"alipay_trade_query_response":{other},"alipay_trade_query_response":{PAID},"sign":"{sign}"}}"#
            ),
            format!(r#"{{"alipay_trade_query_response":{PAID},"error_response":{other},"sign":"{sign}"}}"#),
            format!(r#"{{"alipay_trade_close_response":{PAID},"sign":"{sign}"}}"#),
            format!("{body}{body}"),
            "[]".to_owned(),
            String::new(),
            body[..body.len() - 1].to_owned(),
        ] {
            assert!(matches!(verified(&twice), Err(Unbelievable::Shape(_))), "{twice}");
        }
    }

    #[test]
    fn a_call_that_failed_says_how() {
        let ended = |text: &str| verified(&signed(text)).unwrap().ended();
        assert_eq!(
            ended(
                r#"{"code":"40004","msg":"Business Failed","sub_code":"ACQ.TRADE_NOT_EXIST","sub_msg":"交易不存在"}"#
            ),
            Ended::Declined("ACQ.TRADE_NOT_EXIST".to_owned())
        );
        for again in
            [r#"{"code":"20000","sub_code":"isp.unknow-error"}"#, r#"{"code":"40004","sub_code":"ACQ.SYSTEM_ERROR"}"#]
        {
            assert!(matches!(ended(again), Ended::Unavailable(_)), "{again}");
        }
        assert!(matches!(
            ended(r#"{"code":"40006","sub_code":"isv.insufficient-isv-permissions"}"#),
            Ended::Refused(_)
        ));
    }

    #[test]
    fn an_amount_is_read_from_its_digits() {
        #[derive(Debug, Deserialize)]
        struct Data(#[serde(deserialize_with = "yuan")] Money);
        for (text, fen) in [("\"0.29\"", 29), ("0.29", 29), ("100", 10_000), ("\"100.2\"", 10_020)] {
            assert_eq!(serde_json::from_str::<Data>(text).unwrap().0, Money::fen(fen), "{text}");
        }
        for bad in ["1e2", "\"\"", "null", "\"0.291\"", "0.2900000001", "{}", "\"\\u0031\""] {
            assert!(serde_json::from_str::<Data>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_an_answer_panic_or_are_believed(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(AlipayAnswer::verified(&body, METHOD, &keys()).is_err());
        }

        #[test]
        fn an_answer_altered_by_one_byte_is_not_believed(at: prop::sample::Index, flip in 1u8..) {
            let body = signed(PAID);
            let mut altered = body.clone().into_bytes();
            let byte = at.index(altered.len());
            altered[byte] ^= flip;
            if let Ok(answer) = AlipayAnswer::verified(&altered, METHOD, &keys()) {
                // An unknown member's or a space's byte: what is read is what was signed.
                prop_assert_eq!(answer.text(), PAID);
            }
        }
    }
}
