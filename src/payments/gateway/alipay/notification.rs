//! Alipay's notifies: a form that it posts, signed with RSA2 (<https://opendocs.alipay.com/open/270/105902>).
//!
//! There is no window of time: the same message may come again days later, and has the same `notify_id`. What makes a
//! recorded one worthless is that it was handled before.

use super::signature::{AlipayUnsigned, Params, verify};
use crate::config::alipay_merchant;
use crate::payments::model::{Message, RefundAnswer, Said};
use crate::platform::money::{CURRENCY, Money};
use crate::platform::rsa::PublicKey;

/// Parameters of a notify; Alipay sends about thirty.
const PARAMS_MAX: usize = 200;
/// Longest `notify_id` and number of a trade that we keep: as long as Alipay says they may be.
const NOTIFY_ID_LENGTH: usize = 128;
pub(super) const TRADE_NO_LENGTH: usize = 64;

/// Why a notify is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadNotify {
    /// It is no form, or one with a name twice.
    #[error("it is no form in which each name is there once")]
    Form,
    /// It is not signed as it should be.
    #[error(transparent)]
    Unsigned(#[from] AlipayUnsigned),
    /// Alipay signed it, and it lacks this, or this is not as it should be.
    #[error("it is signed and its {0} cannot be read")]
    Unreadable(&'static str),
}

/// Checks a notify, and only then reads it.
pub(super) fn read(body: &[u8], keys: &[PublicKey]) -> Result<Message, BadNotify> {
    message(&verify(form(body)?, keys)?)
}

/// The posted parameters. A name that is there twice would be signed with one value and read with another.
fn form(body: &[u8]) -> Result<Params, BadNotify> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_bytes(body).map_err(|_| BadNotify::Form)?;
    let count = pairs.len();
    let params: Params = pairs.into_iter().collect();
    if count > PARAMS_MAX || params.len() < count { Err(BadNotify::Form) } else { Ok(params) }
}

/// What a notify says whose signature held.
fn message(params: &Params) -> Result<Message, BadNotify> {
    let text = |name: &'static str| params.get(name).map(String::as_str).ok_or(BadNotify::Unreadable(name));
    let short = |name: &'static str, length: usize| {
        text(name).ok().filter(|text| is_short(text, length)).ok_or(BadNotify::Unreadable(name))
    };
    let amount = |name: &'static str| Money::from_yuan(text(name)?).ok_or(BadNotify::Unreadable(name));
    // The signature is over text in this charset, so it is no other: but then nothing that we read is what it seems.
    if params.get("charset").is_some_and(|charset| !charset.eq_ignore_ascii_case("utf-8")) {
        return Err(BadNotify::Unreadable("charset"));
    }
    let said = match text("trade_status")? {
        _ if is_refund(params)? => refunded(params),
        "TRADE_SUCCESS" | "TRADE_FINISHED" => Said::Paid {
            amount: amount("total_amount")?,
            currency: params.get("trans_currency").map_or(CURRENCY, String::as_str).to_owned(),
            trade_no: short("trade_no", TRADE_NO_LENGTH)?.to_owned(),
        },
        // WAIT_BUYER_PAY, TRADE_CLOSED, and what may come to be: no money.
        _ => Said::NotPaid,
    };
    Ok(Message {
        notify_id: short("notify_id", NOTIFY_ID_LENGTH)?.to_owned(),
        merchant: alipay_merchant(text("app_id")?, text("seller_id")?),
        payment: text("out_trade_no")?.parse().ok(),
        said,
    })
}

/// Whether text may be kept as an id of at most this length.
pub(super) fn is_short(text: &str, length: usize) -> bool {
    (1..=length).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether it tells of a refund. It has the status of a paid trade while a part of the money is left, else of a closed
/// one, and comes to the same place as all others.
fn is_refund(params: &Params) -> Result<bool, BadNotify> {
    let fee = params.get("refund_fee").map(|fee| Money::from_yuan(fee).ok_or(BadNotify::Unreadable("refund_fee")));
    Ok(params.contains_key("gmt_refund") || fee.transpose()?.is_some_and(|fee| fee != Money::ZERO))
}

/// A refund that succeeded: Alipay tells of no other. `out_biz_no` is the number under which it was asked for, ours or
/// somebody's at Alipay's own desk.
fn refunded(params: &Params) -> Said {
    let refund = params.get("out_biz_no").and_then(|number| number.parse().ok());
    Said::Refunded { refund, answer: RefundAnswer::Confirmed }
}

#[cfg(test)]
mod tests {
    use super::super::signature::sign;
    use super::super::signature::tests::{PAIR, new_pair};
    use super::*;
    use crate::payments::model::{PaymentId, RefundId};
    use proptest::prelude::*;

    fn keys() -> [PublicKey; 1] {
        [PAIR.public_key().unwrap()]
    }

    /// A notify as Alipay sends it (the example of its document, shortened), of a payment of ours.
    fn paid(id: PaymentId) -> Params {
        [
            ("gmt_create", "2026-11-20 21:00:00"),
            ("charset", "utf-8"),
            ("subject", "课程 A+B & C%=100%"),
            ("buyer_id", "2088102122524333"),
            ("fund_bill_list", r#"[{"amount":"12.30","fundChannel":"ALIPAYACCOUNT"}]"#),
            ("notify_id", "2026112000222210011009811000001600"),
            ("notify_type", "trade_status_sync"),
            ("trade_status", "TRADE_SUCCESS"),
            ("app_id", "2021000000000001"),
            ("seller_id", "2088000000000001"),
            ("total_amount", "12.30"),
            ("trade_no", "2026112022001424331431234567"),
            ("version", "1.0"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain([("out_trade_no".to_owned(), id.to_string())])
        .collect()
    }

    fn with(mut params: Params, pairs: &[(&str, &str)]) -> Params {
        for (name, value) in pairs {
            params.insert((*name).to_owned(), (*value).to_owned());
        }
        params
    }

    /// As Alipay posts it.
    fn posted(params: &Params) -> String {
        let signed = with(sign(params.clone(), &PAIR).unwrap(), &[("sign_type", "RSA2")]);
        serde_urlencoded::to_string(&signed).unwrap()
    }

    fn read_signed(params: &Params) -> Result<Message, BadNotify> {
        read(posted(params).as_bytes(), &keys())
    }

    #[test]
    fn a_notify_of_a_payment_is_read_whole() {
        let id = PaymentId::new();
        for status in ["TRADE_SUCCESS", "TRADE_FINISHED"] {
            let message = read_signed(&with(paid(id), &[("trade_status", status)])).unwrap();
            assert_eq!(message.notify_id, "2026112000222210011009811000001600");
            assert_eq!(message.merchant, "2021000000000001/2088000000000001");
            assert_eq!(message.payment, Some(id));
            let trade_no = "2026112022001424331431234567".to_owned();
            let (amount, currency) = (Money::fen(1230), "CNY".to_owned());
            assert_eq!(message.said, Said::Paid { amount, currency, trade_no });
        }
        let abroad = read_signed(&with(paid(id), &[("trans_currency", "USD")])).unwrap();
        assert!(matches!(abroad.said, Said::Paid { currency, .. } if currency == "USD"));
    }

    #[test]
    fn what_brings_no_money_is_not_taken_for_money() {
        let id = PaymentId::new();
        for status in ["WAIT_BUYER_PAY", "TRADE_CLOSED", "TRADE_PENDING", "success", ""] {
            let message = read_signed(&with(paid(id), &[("trade_status", status)])).unwrap();
            assert_eq!(message.said, Said::NotPaid, "{status}");
        }
    }

    #[test]
    fn a_refund_has_the_status_of_a_paid_trade_and_is_none() {
        let (id, refund) = (PaymentId::new(), RefundId::new());
        let confirmed = |refund| Said::Refunded { refund, answer: RefundAnswer::Confirmed };
        let number = refund.to_string();
        let of_ours =
            [("refund_fee", "2.30"), ("gmt_refund", "2026-11-20 22:00:00.123"), ("out_biz_no", number.as_str())];
        for status in ["TRADE_SUCCESS", "TRADE_CLOSED", "TRADE_FINISHED"] {
            let message = read_signed(&with(with(paid(id), &of_ours), &[("trade_status", status)])).unwrap();
            assert_eq!(message.said, confirmed(Some(refund)), "{status}");
        }
        for one in [&of_ours[..1], &of_ours[1..2]] {
            assert_eq!(read_signed(&with(paid(id), one)).unwrap().said, confirmed(None));
        }
        let by_hand = with(with(paid(id), &of_ours), &[("out_biz_no", "HZ01RF001")]);
        assert_eq!(read_signed(&by_hand).unwrap().said, confirmed(None));
        // Nothing went back.
        assert!(matches!(read_signed(&with(paid(id), &[("refund_fee", "0.00")])).unwrap().said, Said::Paid { .. }));
    }

    #[test]
    fn a_notify_without_the_signature_of_alipay_is_not_read() {
        let body = posted(&paid(PaymentId::new()));
        let refused = |body: &str| read(body.as_bytes(), &keys()).unwrap_err();
        let altered = BadNotify::Unsigned(AlipayUnsigned::Altered);
        assert_eq!(refused(&body.replace("12.30", "12.31")), altered);
        assert_eq!(refused(&body.replace("TRADE_SUCCESS", "TRADE_FINISHED")), altered);
        assert_eq!(refused(&format!("{body}&more=1")), altered);
        assert_eq!(refused(&body.replace("version=1.0", "")), altered);
        assert_eq!(read(body.as_bytes(), &[new_pair().public_key().unwrap()]).unwrap_err(), altered);
        assert_eq!(refused(&body.replace("&sign=", "&gisn=")), BadNotify::Unsigned(AlipayUnsigned::NoSignature));
        let (before, after) = body.split_once("&sign=").unwrap();
        let unsigned = format!("{before}&sign=&{}", after.split_once('&').unwrap().1);
        assert_eq!(refused(&unsigned), altered);
        assert_eq!(refused(""), BadNotify::Unsigned(AlipayUnsigned::NoSignature));
        for twice in ["total_amount=99.99&", "sign=x&", "trade_status=TRADE_CLOSED&"] {
            assert_eq!(refused(&format!("{twice}{body}")), BadNotify::Form, "{twice}");
            assert_eq!(refused(&format!("{body}&{}", twice.trim_end_matches('&'))), BadNotify::Form, "{twice}");
        }
        let many: String = (0..=PARAMS_MAX).map(|i| format!("p{i}=1&")).collect();
        assert_eq!(refused(&format!("{many}{body}")), BadNotify::Form);
    }

    #[test]
    fn what_is_signed_and_cannot_be_read_is_refused_and_named() {
        let id = PaymentId::new();
        let long = "n".repeat(NOTIFY_ID_LENGTH + 1);
        for (name, bad) in [
            ("total_amount", "12.300"),
            ("total_amount", "1e1"),
            ("total_amount", ""),
            ("notify_id", ""),
            ("notify_id", long.as_str()),
            ("notify_id", "空"),
            ("trade_no", "a b"),
            ("charset", "GBK"),
            ("refund_fee", "x"),
        ] {
            assert_eq!(read_signed(&with(paid(id), &[(name, bad)])).unwrap_err(), BadNotify::Unreadable(name), "{bad}");
        }
        for name in ["total_amount", "notify_id", "trade_no", "app_id", "seller_id", "out_trade_no", "trade_status"] {
            let mut without = paid(id);
            without.remove(name);
            assert_eq!(read_signed(&without).unwrap_err(), BadNotify::Unreadable(name));
        }
        let mut without = paid(id);
        without.remove("charset");
        assert!(read_signed(&without).is_ok());
        assert_eq!(read_signed(&with(paid(id), &[("out_trade_no", "somebody's")])).unwrap().payment, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_notify_panic_or_are_accepted(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(read(&body, &keys()).is_err());
        }

        /// Forms with the names of a notify, a signature among them, and any values.
        #[test]
        fn no_form_is_accepted_without_a_signature_of_alipay(
            values in proptest::collection::vec("[ -~]{0,40}|[a-zA-Z0-9+/]{342}==", 6..6 + 1),
            repeat in 0..6usize,
        ) {
            let names = ["out_trade_no", "trade_status", "total_amount", "notify_id", "sign", "sign_type"];
            let mut pairs: Vec<(&str, &String)> = names.into_iter().zip(&values).collect();
            pairs.push(pairs[repeat]);
            for count in [names.len(), pairs.len()] {
                let body = serde_urlencoded::to_string(&pairs[..count]).unwrap();
                prop_assert!(read(body.as_bytes(), &keys()).is_err());
            }
        }

        #[test]
        fn a_notify_altered_by_one_byte_says_the_same_or_is_refused(at: prop::sample::Index, flip in 1u8..) {
            let params = paid(PaymentId::from_uuid(uuid::Uuid::from_u128(1)));
            let body = posted(&params);
            let mut altered = body.clone().into_bytes();
            let byte = at.index(altered.len());
            altered[byte] ^= flip;
            // `%2b` for `%2B`, or another name or value of `sign_type`: what is read is what was signed.
            if let Ok(message) = read(&altered, &keys()) {
                prop_assert_eq!(format!("{message:?}"), format!("{:?}", read(body.as_bytes(), &keys()).unwrap()));
            }
        }
    }
}
