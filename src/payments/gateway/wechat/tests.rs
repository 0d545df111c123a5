//! The protocol without HTTP: signatures, sealed content, bills.

mod fuzz;

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::notification::Fault;
use super::sign::WechatUnsigned;
use super::{beijing, bill, cut, notification, sign};
use crate::config::{ApiV3Key, PlatformKey, WechatPay, merchant_of};
use crate::payments::model::{Message, PaymentId, RefundAnswer, RefundId, Said};
use crate::platform::clock::At;
use crate::platform::money::Money;
use crate::platform::rsa::PrivateKey;

const KEY: [u8; 32] = *b"0123456789abcdef0123456789ABCDEF";
const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_0112345678902024";
const SERIAL: &str = "5157F09EFDC096DE15EBE81A47057A7200000001";
static NOW: LazyLock<At> = LazyLock::new(|| At::from_ms(1_763_700_000_000));

/// Our key, and WeChat Pay's before and after a rotation.
static KEYS: LazyLock<[PrivateKey; 3]> = LazyLock::new(|| {
    [(); 3].map(|()| {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        PrivateKey::from_text(BASE64_STANDARD.encode(der.as_ref()).as_bytes()).unwrap()
    })
});

static SETTINGS: LazyLock<WechatPay> = LazyLock::new(|| WechatPay {
    mchid: "1900000109".to_owned(),
    appid: "wxd678efh567hg6787".to_owned(),
    merchant: merchant_of("1900000109", "wxd678efh567hg6787"),
    serial_no: "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB".to_owned(),
    private_key: KEYS[0].clone(),
    api_v3_key: ApiV3Key(KEY),
    platform_keys: vec![platform_key(PUBLIC_KEY_ID, 1), platform_key(SERIAL, 2)],
    base_url: "https://api.example.com".to_owned(),
});

fn platform_key(id: &str, key: usize) -> PlatformKey {
    PlatformKey { id: id.to_owned(), key: KEYS[key].public_key().unwrap() }
}

/// The headers of a message that WeChat Pay signed with one of its keys.
fn signed(serial: &str, key: usize, body: &[u8], at: At) -> HeaderMap {
    let (timestamp, nonce) = (at.timestamp().as_second().to_string(), "fdasflkja484w");
    let text = [timestamp.as_bytes(), b"\n", nonce.as_bytes(), b"\n", body, b"\n"].concat();
    let signature = BASE64_STANDARD.encode(KEYS[key].sign(&text).unwrap());
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("wechatpay-timestamp", &*timestamp),
        ("wechatpay-nonce", nonce),
        ("wechatpay-serial", serial),
        ("wechatpay-signature", &signature),
        ("wechatpay-signature-type", "WECHATPAY2-SHA256-RSA2048"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn verify(headers: &HeaderMap, body: &[u8], now: At) -> Result<(), WechatUnsigned> {
    sign::verify(&SETTINGS, headers, body, now)
}

/// Content sealed as WeChat Pay seals it.
fn sealed(content: &[u8], about: Option<&str>) -> Value {
    let nonce = "0123456789ab";
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
    let mut text = content.to_vec();
    let unique = Nonce::try_assume_unique_for_key(nonce.as_bytes()).unwrap();
    key.seal_in_place_append_tag(unique, Aad::from(about.unwrap_or_default().as_bytes()), &mut text).unwrap();
    let mut sealed =
        json!({ "algorithm": "AEAD_AES_256_GCM", "ciphertext": BASE64_STANDARD.encode(text), "nonce": nonce });
    if let Some(about) = about {
        sealed["associated_data"] = about.into();
    }
    sealed
}

fn envelope(event: &str, content: &Value, about: Option<&str>) -> Vec<u8> {
    let resource = sealed(&serde_json::to_vec(content).unwrap(), about);
    let envelope = json!({
        "id": "EV-2018022511223320873", "create_time": "2015-05-20T13:29:35+08:00", "event_type": event,
        "resource_type": "encrypt-resource", "summary": "支付成功", "resource": resource,
    });
    serde_json::to_vec(&envelope).unwrap()
}

fn read(body: &[u8]) -> Result<Message, Fault> {
    notification::read(&SETTINGS, &signed(PUBLIC_KEY_ID, 1, body, *NOW), body, *NOW)
}

fn trade(payment: PaymentId) -> Value {
    json!({
        "mchid": "1900000109", "appid": "wxd678efh567hg6787", "out_trade_no": payment, "trade_state": "SUCCESS",
        "transaction_id": "1217752501201407033233368018", "trade_type": "NATIVE", "success_time": "2018-06-08T10:34:56+08:00",
        "payer": { "openid": "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o" },
        "amount": { "total": 1999, "payer_total": 1899, "currency": "CNY", "payer_currency": "CNY" },
    })
}

#[test]
fn a_request_is_signed_over_method_path_time_nonce_and_body() {
    let path = "/v3/pay/transactions/out-trade-no/1?mchid=1900000109";
    for (method, path, body) in
        [("GET", path, &b""[..]), ("POST", "/v3/pay/transactions/native", "{\"a\":\"课\"}".as_bytes())]
    {
        let header = sign::authorization(&SETTINGS, method, path, body, *NOW).unwrap();
        let values = header.strip_prefix("WECHATPAY2-SHA256-RSA2048 ").unwrap();
        let value = |name: &str| {
            let start = format!("{name}=\"");
            values.split(',').find_map(|part| part.strip_prefix(&start)?.strip_suffix('"')).unwrap().to_owned()
        };
        assert_eq!((value("mchid"), value("serial_no")), (SETTINGS.mchid.clone(), SETTINGS.serial_no.clone()));
        let (timestamp, nonce) = (value("timestamp"), value("nonce_str"));
        assert_eq!((&*timestamp, nonce.len()), ("1763700000", 32));
        let text = [format!("{method}\n{path}\n{timestamp}\n{nonce}\n").as_bytes(), body, b"\n"].concat();
        let signature = BASE64_STANDARD.decode(value("signature")).unwrap();
        assert!(KEYS[0].public_key().unwrap().verifies(&text, &signature));
    }
}

#[test]
fn two_requests_never_share_a_nonce() {
    let header = || sign::authorization(&SETTINGS, "GET", "/", b"", *NOW).unwrap();
    assert_ne!(header(), header());
}

#[test]
fn what_the_buyers_wechat_is_handed_is_signed_over_four_lines() {
    let handed = sign::hand_over(&SETTINGS, "wx201410272009395522657a690389285100", *NOW).unwrap();
    assert_eq!(handed.package, "prepay_id=wx201410272009395522657a690389285100");
    let text = format!("{}\n{}\n{}\n{}\n", SETTINGS.appid, handed.timestamp, handed.nonce, handed.package);
    let signature = BASE64_STANDARD.decode(handed.signature).unwrap();
    assert!(KEYS[0].public_key().unwrap().verifies(text.as_bytes(), &signature));
}

#[test]
fn a_header_that_is_missing_or_there_twice_or_empty_is_a_failure() {
    let good = signed(PUBLIC_KEY_ID, 1, b"{}", *NOW);
    assert_eq!(verify(&good, b"{}", *NOW), Ok(()));
    for name in ["wechatpay-timestamp", "wechatpay-nonce", "wechatpay-serial", "wechatpay-signature"] {
        let mut without = good.clone();
        without.remove(name);
        assert_eq!(verify(&without, b"{}", *NOW), Err(WechatUnsigned::Header(name)));
        let mut twice = good.clone();
        twice.append(name, good[name].clone());
        assert_eq!(verify(&twice, b"{}", *NOW), Err(WechatUnsigned::Header(name)));
        let mut empty = good.clone();
        empty.insert(name, HeaderValue::from_static(""));
        assert_eq!(verify(&empty, b"{}", *NOW), Err(WechatUnsigned::Header(name)));
    }
    let mut untold = good.clone();
    untold.remove("wechatpay-signature-type");
    assert_eq!(verify(&untold, b"{}", *NOW), Ok(()));
    untold.insert("wechatpay-signature-type", HeaderValue::from_static("WECHATPAY2-SM2-WITH-SM3"));
    assert_eq!(verify(&untold, b"{}", *NOW), Err(WechatUnsigned::Scheme));
}

#[test]
fn the_serial_picks_the_key_and_both_keys_of_a_rotation_hold() {
    let body = b"{}";
    assert_eq!(verify(&signed(PUBLIC_KEY_ID, 1, body, *NOW), body, *NOW), Ok(()));
    assert_eq!(verify(&signed(SERIAL, 2, body, *NOW), body, *NOW), Ok(()));
    assert_eq!(verify(&signed(&SERIAL.to_lowercase(), 2, body, *NOW), body, *NOW), Ok(()));
    // Signed with a key that we hold, under the other's name.
    assert_eq!(verify(&signed(SERIAL, 1, body, *NOW), body, *NOW), Err(WechatUnsigned::Altered));
    assert_eq!(verify(&signed(PUBLIC_KEY_ID, 0, body, *NOW), body, *NOW), Err(WechatUnsigned::Altered));
    for unknown in
        ["PUB_KEY_ID_0112345678902025", "5157F09EFDC096DE15EBE81A47057A7200000002", "pub_key_id_0112345678902024"]
    {
        let verdict = verify(&signed(unknown, 1, body, *NOW), body, *NOW);
        assert_eq!(verdict, Err(WechatUnsigned::UnknownSerial(unknown.to_owned())));
    }
}

#[test]
fn a_recorded_message_is_worth_nothing_after_the_window() {
    let headers = signed(PUBLIC_KEY_ID, 1, b"{}", *NOW);
    let (edge, beyond) = (Duration::from_secs(300), Duration::from_secs(301));
    assert_eq!(verify(&headers, b"{}", NOW.plus(edge)), Ok(()));
    assert_eq!(verify(&headers, b"{}", NOW.minus(edge)), Ok(()));
    assert_eq!(verify(&headers, b"{}", NOW.plus(beyond)), Err(WechatUnsigned::Stale));
    assert_eq!(verify(&headers, b"{}", NOW.minus(beyond)), Err(WechatUnsigned::Stale));
}

#[test]
fn a_probe_fails() {
    let mut headers = signed(PUBLIC_KEY_ID, 1, b"{}", *NOW);
    let probe = format!("WECHATPAY/SIGNTEST/{}", headers["wechatpay-signature"].to_str().unwrap());
    headers.insert("wechatpay-signature", HeaderValue::from_str(&probe).unwrap());
    assert_eq!(verify(&headers, b"{}", *NOW), Err(WechatUnsigned::Probe));
}

#[test]
fn a_payment_is_told_in_our_words() {
    let payment = PaymentId::new();
    for about in [Some("transaction"), Some(""), None] {
        let message = read(&envelope("TRANSACTION.SUCCESS", &trade(payment), about)).unwrap();
        assert_eq!(message.notify_id, "EV-2018022511223320873");
        assert_eq!((message.merchant, message.payment), (SETTINGS.merchant.clone(), Some(payment)));
        let (amount, currency) = (Money::fen(1999), "CNY".to_owned());
        let trade_no = "1217752501201407033233368018".to_owned();
        assert_eq!(message.said, Said::Paid { amount, currency, trade_no });
    }
    for (state, paid) in [("REFUND", true), ("NOTPAY", false), ("CLOSED", false), ("PAYERROR", false)] {
        let mut told = trade(payment);
        told["trade_state"] = state.into();
        let said = read(&envelope("TRANSACTION.SUCCESS", &told, None)).unwrap().said;
        assert_eq!(matches!(said, Said::Paid { .. }), paid, "{state}");
    }
}

#[test]
fn a_message_for_another_merchant_or_application_says_so() {
    for (member, value) in [("mchid", "1900000108"), ("appid", "wx0000000000000000")] {
        let mut theirs = trade(PaymentId::new());
        theirs[member] = value.into();
        assert_ne!(read(&envelope("TRANSACTION.SUCCESS", &theirs, None)).unwrap().merchant, SETTINGS.merchant);
    }
}

#[test]
fn a_paid_trade_without_what_must_be_compared_is_unreadable() {
    for member in ["amount", "transaction_id", "mchid", "appid", "out_trade_no", "trade_state"] {
        let mut told = trade(PaymentId::new());
        told.as_object_mut().unwrap().remove(member);
        let fault = read(&envelope("TRANSACTION.SUCCESS", &told, None)).unwrap_err();
        assert!(matches!(fault, Fault::Unreadable(_)), "{member}: {fault}");
    }
    let mut told = trade(PaymentId::new());
    told["trade_state"] = "SOMETHING".into();
    assert!(read(&envelope("TRANSACTION.SUCCESS", &told, None)).is_err());
    told["trade_state"] = "SUCCESS".into();
    told["amount"]["total"] = 19.99.into();
    assert!(read(&envelope("TRANSACTION.SUCCESS", &told, None)).is_err());
    assert!(read(&envelope("COUPON.USE", &trade(PaymentId::new()), None)).is_err());
}

#[test]
fn a_refund_is_told_in_our_words() {
    let (payment, refund) = (PaymentId::new(), RefundId::new());
    for (event, state, confirmed) in [
        ("REFUND.SUCCESS", "SUCCESS", true),
        ("REFUND.ABNORMAL", "ABNORMAL", false),
        ("REFUND.CLOSED", "CLOSED", false),
    ] {
        let told = json!({
            "mchid": "1900000109", "out_trade_no": payment, "transaction_id": "1217752501201407033233368018",
            "out_refund_no": refund, "refund_id": "50200207182018070300011301001", "refund_status": state,
            "user_received_account": "支付用户零钱",
            "amount": { "total": 1999, "refund": 500, "payer_total": 1999, "payer_refund": 500 },
        });
        let message = read(&envelope(event, &told, Some("refund"))).unwrap();
        assert_eq!((message.merchant, message.payment), (SETTINGS.merchant.clone(), Some(payment)));
        let Said::Refunded { refund: Some(told), answer } = message.said else { panic!("{:?}", message.said) };
        assert_eq!(told, refund);
        assert_eq!(answer == RefundAnswer::Confirmed, confirmed, "{answer:?}");
        assert_eq!(matches!(answer, RefundAnswer::Refused(_)), !confirmed, "{answer:?}");
    }
}

#[test]
fn sealed_content_opens_with_its_own_key_and_words_only() {
    let body = envelope("TRANSACTION.SUCCESS", &trade(PaymentId::new()), Some("transaction"));
    let mut envelope: Value = serde_json::from_slice(&body).unwrap();
    for (member, value) in [
        ("associated_data", json!("refund")),
        ("nonce", json!("0123456789ac")),
        ("nonce", json!("short")),
        ("ciphertext", json!("AAAA")),
        ("ciphertext", json!("no base64")),
    ] {
        let kept = std::mem::replace(&mut envelope["resource"][member], value);
        let fault = read(&serde_json::to_vec(&envelope).unwrap()).unwrap_err();
        assert!(matches!(fault, Fault::Sealed), "{member}: {fault}");
        envelope["resource"][member] = kept;
    }
    envelope["resource"]["algorithm"] = "AEAD_SM4_GCM".into();
    assert!(matches!(read(&serde_json::to_vec(&envelope).unwrap()), Err(Fault::Unreadable(_))));
    let other = WechatPay { api_v3_key: ApiV3Key([7; 32]), ..SETTINGS.clone() };
    let headers = signed(PUBLIC_KEY_ID, 1, &body, *NOW);
    assert!(matches!(notification::read(&other, &headers, &body, *NOW), Err(Fault::Sealed)));
}

#[test]
fn a_description_is_cut_between_characters() {
    assert_eq!(cut("课程", 127), "课程");
    assert_eq!(cut(&"课".repeat(60), 127), "课".repeat(42));
}

#[test]
fn times_are_those_of_beijing() {
    assert_eq!(beijing(At::from_ms(1_763_667_000_999)), "2025-11-21T03:30:00+08:00");
}

const TITLES: &str = "交易时间,公众账号ID,商户号,特约商户号,设备号,微信订单号,商户订单号,用户标识,交易类型,交易状态,付款银行,货币种类,应结订单金额,代金券金额,微信退款单号,商户退款单号,退款金额,充值券退款金额,退款类型,退款状态,商品名称,商户数据包,手续费,费率,订单金额,申请退款金额,费率备注";
const PAID: &str = "`2026-11-20 17:07:11,`wxd678efh567hg6787,`1900000109,`0,`,`4200000925202101284997714292,`P1,`oX,`NATIVE,`SUCCESS,`OTHERS,`CNY,`18.99,`1.00,`0,`0,`0.00,`0.00,`,`,`Rust, 从头学起,`,`0.12000,`0.60%,`19.99,`0.00,`";
const BACK: &str = "`2026-11-20 18:00:00,`wxd678efh567hg6787,`1900000109,`0,`,`4200000925202101284997714292,`P1,`oX,`NATIVE,`REFUND,`OTHERS,`CNY,`0.00,`0.00,`503,`R1,`4.50,`0.50,`ORIGINAL,`SUCCESS,`Rust,`,`-0.03000,`0.60%,`0.00,`5.00,`";

fn file(lines: &[&str]) -> String {
    let totals = format!("`{},`18.99,`4.50,`0.50,`0.09000,`19.99,`5.00", lines.len());
    let titles = "总交易单数,应结订单总金额,退款总金额,充值券退款总金额,手续费总金额,订单总金额,申请退款总金额";
    format!("\u{feff}{TITLES}\r\n{}\r\n{titles}\r\n{totals}\r\n", lines.join("\r\n"))
}

#[test]
fn a_bill_is_read_line_by_line_as_it_was_asked_for() {
    let bill = bill::parse(file(&[PAID, BACK]).as_bytes(), "1900000109").unwrap();
    let [paid, back] = [&bill.payments, &bill.refunds].map(|lines| &lines[..]);
    assert_eq!((paid.len(), back.len()), (1, 1));
    assert_eq!((&*paid[0].number, &*paid[0].merchant_no, paid[0].amount), ("P1", "P1", Money::fen(1999)));
    assert_eq!((&*back[0].number, &*back[0].merchant_no, back[0].amount), ("R1", "P1", Money::fen(500)));
    assert_eq!(paid[0].at.to_string(), "2026-11-20T09:07:11.000Z");
    let none = bill::parse(file(&[]).as_bytes(), "1900000109").unwrap();
    assert!(none.payments.is_empty() && none.refunds.is_empty());
    let failed = bill::parse(file(&[PAID, &BACK.replace("`SUCCESS", "`FAIL")]).as_bytes(), "1900000109").unwrap();
    assert_eq!((failed.payments.len(), failed.refunds.len()), (1, 0));
}

#[test]
fn a_bill_that_is_cut_or_anothers_or_altered_is_no_bill() {
    let whole = file(&[PAID, BACK]);
    let bad = [
        String::new(),
        whole.replace("商户订单号", "商户单号"),
        whole.replace("`2,`18.99", "`3,`18.99"),
        whole[..whole.find("总交易单数").unwrap()].to_owned(),
        whole.replace("`19.99,`0.00", "`19.999,`0.00"),
        whole.replace("`19.99,`0.00", "`-19.99,`0.00"),
        whole.replace("`19.99,`0.00", "`1999999999999999999,`0.00"),
        whole.replace("`NATIVE,`SUCCESS", "`NATIVE,`SOMETHING"),
        whole.replace("2026-11-20 17", "2026-13-20 17"),
        whole.replace(",`0.60%,`19.99", ",`19.99"),
    ];
    for (at, text) in bad.iter().enumerate() {
        assert!(bill::parse(text.as_bytes(), "1900000109").is_err(), "{at}");
    }
    assert!(bill::parse(whole.as_bytes(), "1900000108").is_err());
    // `printf abc | sha1sum`
    let digest = "a9993e364706816aba3e25717850c26c9cd0d89d";
    assert!(bill::check(b"abc", "SHA1", digest).is_ok() && bill::check(b"abc", "SHA1", &digest.to_uppercase()).is_ok());
    assert!(bill::check(b"abd", "SHA1", digest).is_err() && bill::check(b"abc", "SHA256", digest).is_err());
}
