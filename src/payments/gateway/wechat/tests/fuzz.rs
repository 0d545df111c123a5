//! Bytes from outside that nobody has chosen: none makes a panic, none is accepted without a signature.

use proptest::prelude::*;

use super::*;

/// JSON that looks like what they send, and much that does not.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        prop_oneof![Just("SUCCESS"), Just("REFUND.SUCCESS"), Just("TRANSACTION.SUCCESS"), Just("AEAD_AES_256_GCM")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let name = prop_oneof![
            Just("id"),
            Just("event_type"),
            Just("resource"),
            Just("algorithm"),
            Just("ciphertext"),
            Just("nonce"),
            Just("associated_data"),
            Just("mchid"),
            Just("appid"),
            Just("out_trade_no"),
            Just("trade_state"),
            Just("transaction_id"),
            Just("amount"),
            Just("total"),
            Just("currency"),
            Just("out_refund_no"),
            Just("refund_status"),
            Just("refund"),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name, inner), 0..10).prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn one_altered_byte_is_noticed(mut body in proptest::collection::vec(any::<u8>(), 1..200), at: prop::sample::Index, flip in 1u8..) {
        let headers = signed(PUBLIC_KEY_ID, 1, &body, *NOW);
        prop_assert_eq!(verify(&headers, &body, *NOW), Ok(()));
        let at = at.index(body.len());
        body[at] ^= flip;
        prop_assert_eq!(verify(&headers, &body, *NOW), Err(WechatUnsigned::Altered));
    }

    /// Headers and body of any bytes: neither a panic nor a yes.
    #[test]
    fn no_bytes_are_accepted_without_a_signature(
        body in proptest::collection::vec(any::<u8>(), 0..400),
        values in proptest::collection::vec(proptest::collection::vec(prop_oneof![32u8..127, any::<u8>()], 0..80), 4),
        known in any::<bool>(), present in any::<bool>(),
    ) {
        let mut headers = HeaderMap::new();
        let names = ["wechatpay-timestamp", "wechatpay-nonce", "wechatpay-serial", "wechatpay-signature"];
        for (name, value) in names.into_iter().zip(&values) {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if known {
            headers.insert("wechatpay-serial", HeaderValue::from_static(PUBLIC_KEY_ID));
        }
        if present {
            headers.insert("wechatpay-timestamp", HeaderValue::from_static("1763700000"));
        }
        let verdict = notification::read(&SETTINGS, &headers, &body, *NOW);
        prop_assert!(matches!(verdict, Err(Fault::Unsigned(_))), "{verdict:?}");
    }

    /// A real notify with any of its parts replaced by another's.
    #[test]
    fn a_real_notify_that_is_mixed_with_another_is_refused(part in 0usize..5, earlier in 1u64..300) {
        let (one, other) = (PaymentId::new(), PaymentId::new());
        let bodies = [one, other].map(|payment| envelope("TRANSACTION.SUCCESS", &trade(payment), None));
        let mut headers = signed(PUBLIC_KEY_ID, 1, &bodies[0], *NOW);
        let foreign = signed(SERIAL, 2, &bodies[1], NOW.minus(Duration::from_secs(earlier)));
        let names = ["wechatpay-timestamp", "wechatpay-serial", "wechatpay-signature"];
        let body = match part {
            3 => &bodies[1],
            4 => { headers.insert("wechatpay-nonce", HeaderValue::from_static("another")); &bodies[0] }
            part => { headers.insert(names[part], foreign[names[part]].clone()); &bodies[0] }
        };
        prop_assert!(matches!(notification::read(&SETTINGS, &headers, body, *NOW), Err(Fault::Unsigned(WechatUnsigned::Altered))));
    }

    /// What is signed and sealed as it should be may still be nonsense.
    #[test]
    fn signed_nonsense_is_read_without_a_panic(outer in anything(), inner in anything(), event in prop_oneof![Just("TRANSACTION.SUCCESS"), Just("REFUND.CLOSED")]) {
        let _ = read(&serde_json::to_vec(&outer).unwrap());
        let _ = read(&envelope(event, &inner, None));
    }

    #[test]
    fn no_bytes_make_reading_a_bill_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        lines in proptest::collection::vec("[`,0-9A-Z.\\-: ]{0,60}", 0..6),
        at: prop::sample::Index, byte in any::<u8>(),
    ) {
        let _ = bill::parse(&bytes, "1900000109");
        let _ = bill::parse(file(&lines.iter().map(String::as_str).collect::<Vec<_>>()).as_bytes(), "1900000109");
        let mut whole = file(&[PAID, BACK]).into_bytes();
        let at = at.index(whole.len());
        whole[at] = byte;
        let _ = bill::parse(&whole, "1900000109");
    }
}
