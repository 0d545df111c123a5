//! What a person may see of a message's body: all of it but who paid, and what could be used again.
//!
//! The raw bytes are kept as they came. What is shown is taken apart, as JSON or as a form, and the values of sensitive
//! fields are replaced; a body that is neither is not shown.

use serde_json::Value;

/// Shown in place of a value.
const REDACTED: &str = "***";
/// Fields whose names have one of these in them: people, their accounts and addresses, and signatures and secrets.
const SENSITIVE: &[&str] = &[
    "openid",
    "open_id",
    "buyer",
    "payer",
    "email",
    "phone",
    "mobile",
    "address",
    "card",
    "account",
    "bank",
    "logon",
    "customer",
    "sign",
    "secret",
    "ciphertext",
    "nonce",
    "token",
    "client_ip",
];
/// Fields of exactly these names.
const SENSITIVE_NAMES: &[&str] = &["name", "ip", "last4", "fingerprint", "associated_data"];

fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SENSITIVE_NAMES.contains(&name.as_str()) || SENSITIVE.iter().any(|part| name.contains(part))
}

/// The body with its sensitive values replaced, as JSON.
pub(super) fn redacted(body: &[u8]) -> Value {
    if let Ok(mut value) = serde_json::from_slice::<Value>(body)
        && (value.is_object() || value.is_array())
    {
        redact(&mut value);
        return value;
    }
    match serde_urlencoded::from_bytes::<Vec<(String, String)>>(body) {
        Ok(pairs) if body.contains(&b'=') && pairs.iter().all(|(name, _)| is_name(name)) => {
            let shown = pairs.into_iter().map(|(name, value)| {
                let value = if is_sensitive(&name) { REDACTED.to_owned() } else { value };
                (name, Value::String(value))
            });
            Value::Object(shown.collect())
        }
        _ => Value::Null,
    }
}

/// Whether a form's field is called so: anything else is no form.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.[]".contains(&b))
}

/// Replaces what is below a sensitive field, whatever it is. (What was read has a bound on its depth.)
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Null => {}
                    _ if is_sensitive(name) => *value = REDACTED.into(),
                    _ => redact(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_paid_is_not_shown_and_what_was_paid_is() {
        let alipay =
            b"out_trade_no=1&total_amount=88.88&buyer_logon_id=abc%40x.com&buyer_id=2088&sign=a%2Bb&sign_type=RSA2";
        let shown = redacted(alipay);
        assert_eq!((&shown["total_amount"], &shown["out_trade_no"]), (&json!("88.88"), &json!("1")));
        assert_eq!([&shown["buyer_logon_id"], &shown["buyer_id"], &shown["sign"]], [REDACTED; 3]);
        let wechat = json!({"amount": {"total": 1}, "payer": {"openid": "o1"}, "resource": {"ciphertext": "x", "algorithm": "a"}});
        let shown = redacted(wechat.to_string().as_bytes());
        let expected =
            json!({"amount": {"total": 1}, "payer": REDACTED, "resource": {"ciphertext": REDACTED, "algorithm": "a"}});
        assert_eq!(shown, expected);
        let stripe = json!({"data": {"object": [{"customer_details": {"email": "a@b", "name": "A"}, "customer_email": null,
            "amount_total": 5}]}});
        let shown = redacted(stripe.to_string().as_bytes());
        assert_eq!(
            shown["data"]["object"][0],
            json!({"customer_details": REDACTED, "customer_email": null, "amount_total": 5})
        );
    }

    #[test]
    fn what_is_neither_json_nor_a_form_is_not_shown() {
        for body in [&b""[..], b"\xff\xfe", b"hello there", b"5", b"\"text\""] {
            assert_eq!(redacted(body), Value::Null, "{body:?}");
        }
    }
}
