//! What the fake Stripe knows: sessions, refunds, lines of its balance, and the answers it gave under each key.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use uuid::Uuid;

/// Parameters by their names, such as `line_items[0][quantity]`.
pub type Form = BTreeMap<String, String>;

/// How long the real one keeps an answer at least.
const KEPT_S: i64 = 24 * 3600;

pub struct Books {
    pub sessions: Vec<Value>,
    /// The intents of sessions that somebody paid, or tried to, by their ids.
    pub intents: HashMap<String, Value>,
    pub charges: Vec<Value>,
    pub refunds: Vec<Value>,
    pub disputes: Vec<Value>,
    /// Newest first, as they are listed.
    pub balance: Vec<Value>,
    pub kept: HashMap<String, Kept>,
    pub pays_at_expiry: bool,
    pub refund_status: &'static str,
    /// Refunds are refused, by this code.
    pub refuses_refunds: Option<&'static str>,
    numbers: u64,
}

/// An answer that is given again to the same request.
pub struct Kept {
    pub request: (String, Form),
    pub answer: (u16, Value),
    pub at: i64,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            sessions: Vec::new(),
            intents: HashMap::new(),
            charges: Vec::new(),
            refunds: Vec::new(),
            disputes: Vec::new(),
            balance: Vec::new(),
            kept: HashMap::new(),
            pays_at_expiry: false,
            refund_status: "succeeded",
            refuses_refunds: None,
            numbers: 0,
        }
    }
}

impl Books {
    /// A new id, such as `cs_test_…`.
    pub fn id(&mut self, prefix: &str) -> String {
        self.numbers += 1;
        format!("{prefix}_{}{:04}", Uuid::now_v7().as_simple(), self.numbers)
    }

    pub fn forget_old(&mut self, now: i64) {
        self.kept.retain(|_, kept| kept.at + KEPT_S > now);
    }

    #[track_caller]
    pub fn session(&mut self, id: &str) -> &mut Value {
        self.sessions.iter_mut().find(|session| session["id"] == id).expect("a session")
    }

    pub fn pay(&mut self, session: &str, now: i64) -> Value {
        let intent = self.take_intent(session, "succeeded");
        let object = self.session(session);
        object["status"] = "complete".into();
        object["payment_status"] = "paid".into();
        let object = object.clone();
        self.charge(&intent, &object, now);
        self.event("checkout.session.completed", object, now)
    }

    pub fn pay_slowly(&mut self, session: &str, now: i64) -> Value {
        self.take_intent(session, "processing");
        let object = self.session(session);
        object["status"] = "complete".into();
        let object = object.clone();
        self.event("checkout.session.completed", object, now)
    }

    pub fn bank_says(&mut self, session: &str, yes: bool, now: i64) -> Value {
        let intent = self.session(session)["payment_intent"].as_str().expect("an intent").to_owned();
        let status = if yes { "succeeded" } else { "requires_payment_method" };
        self.intents.get_mut(&intent).expect("an intent")["status"] = status.into();
        let object = self.session(session);
        if !yes {
            let object = object.clone();
            return self.event("checkout.session.async_payment_failed", object, now);
        }
        object["payment_status"] = "paid".into();
        let object = object.clone();
        self.charge(&intent, &object, now);
        self.event("checkout.session.async_payment_succeeded", object, now)
    }

    pub fn expire(&mut self, session: &str, now: i64) -> Value {
        let object = self.session(session);
        object["status"] = "expired".into();
        object["url"] = Value::Null;
        let object = object.clone();
        self.event("checkout.session.expired", object, now)
    }

    pub fn refund_becomes(&mut self, refund: &str, status: &str, now: i64) -> Value {
        let object = self.refunds.iter_mut().find(|known| known["id"] == refund).expect("a refund");
        object["status"] = status.into();
        let failed = status == "failed";
        object["failure_reason"] = if failed { "expired_or_canceled_card".into() } else { Value::Null };
        let object = object.clone();
        if failed {
            self.take_back(&object, now);
        }
        self.event(if failed { "refund.failed" } else { "refund.updated" }, object, now)
    }

    pub fn refund_by_hand(&mut self, session: &str, amount: i64, now: i64) -> Value {
        let intent = self.session(session)["payment_intent"].clone();
        let at = self.charges.iter().position(|charge| charge["payment_intent"] == intent).expect("a charge");
        self.give_back(at, amount, json!({}), now);
        let charge = self.charges[at].clone();
        self.event("charge.refunded", charge, now)
    }

    /// Money of a charge goes back.
    pub fn give_back(&mut self, at: usize, amount: i64, metadata: Value, now: i64) -> Value {
        let charge = &mut self.charges[at];
        let returned = charge["amount_refunded"].as_i64().unwrap_or_default() + amount;
        charge["amount_refunded"] = returned.into();
        charge["refunded"] = (charge["amount"] == returned).into();
        let charge = charge.clone();
        let refund = json!({
            "id": self.id("re"), "object": "refund", "amount": amount, "charge": charge["id"], "created": now,
            "currency": charge["currency"], "failure_reason": null, "metadata": metadata,
            "payment_intent": charge["payment_intent"], "reason": null, "status": self.refund_status,
        });
        self.line("refund", -amount * 11 / 10, refund["id"].clone(), now);
        self.refunds.insert(0, refund.clone());
        if self.refund_status == "failed" {
            self.take_back(&refund, now);
        }
        refund
    }

    /// The money of a refund comes again, since the buyer's bank did not take it.
    fn take_back(&mut self, refund: &Value, now: i64) {
        let amount = refund["amount"].as_i64().unwrap_or_default() * 11 / 10;
        self.line("refund_failure", amount, refund["id"].clone(), now);
    }

    /// The buyer's bank takes a payment back; what it costs is in the same line.
    pub fn dispute(&mut self, charge: usize, amount: i64, now: i64) -> Value {
        let charge = &self.charges[charge];
        let (intent, charge, currency) =
            (charge["payment_intent"].clone(), charge["id"].clone(), charge["currency"].clone());
        let dispute = json!({
            "id": self.id("du"), "object": "dispute", "amount": amount, "charge": charge, "created": now,
            "currency": currency, "livemode": false, "metadata": {}, "payment_intent": intent,
            "reason": "fraudulent", "status": "needs_response",
        });
        self.line("adjustment", -amount * 11 / 10 - 1500, dispute["id"].clone(), now);
        self.disputes.push(dispute.clone());
        dispute
    }

    /// The bank gives the money of a dispute again: the shop was right.
    pub fn win(&mut self, dispute: &str, now: i64) -> Value {
        let object = self.disputes.iter_mut().find(|known| known["id"] == dispute).expect("a dispute");
        object["status"] = "won".into();
        let object = object.clone();
        let amount = object["amount"].as_i64().unwrap_or_default() * 11 / 10;
        self.line("adjustment", amount, object["id"].clone(), now);
        object
    }

    /// A charge of which no session of ours knows.
    pub fn foreign_charge(&mut self, amount: i64, metadata: Value, now: i64) -> Value {
        let session = json!({ "amount_total": amount, "currency": "cny", "intent_metadata": metadata });
        let intent = self.id("pi");
        self.charge(&intent, &session, now);
        self.charges.last().expect("a charge").clone()
    }

    pub fn event(&mut self, kind: &str, object: Value, now: i64) -> Value {
        json!({
            "id": self.id("evt"), "object": "event", "api_version": "2026-10-28.endive", "created": now,
            "data": {"object": object}, "livemode": false, "pending_webhooks": 1,
            "request": {"id": null, "idempotency_key": null}, "type": kind,
        })
    }

    /// The buyer has chosen how to pay: from here on the session has an intent.
    fn take_intent(&mut self, session: &str, status: &str) -> String {
        let id = self.id("pi");
        let object = self.session(session);
        assert_eq!(object["status"], "open", "nobody can pay any more");
        object["payment_intent"] = id.clone().into();
        object["url"] = Value::Null;
        let intent = json!({
            "id": id, "object": "payment_intent", "status": status, "livemode": false,
            "amount": object["amount_total"], "currency": object["currency"], "metadata": object["intent_metadata"],
        });
        self.intents.insert(id.clone(), intent);
        id
    }

    /// Money came in. The balance is kept in another currency: its lines' own amounts are nobody's price.
    fn charge(&mut self, intent: &str, session: &Value, now: i64) {
        let charge = json!({
            "id": self.id("ch"), "object": "charge", "amount": session["amount_total"], "amount_refunded": 0,
            "currency": session["currency"], "livemode": false, "metadata": session["intent_metadata"],
            "paid": true, "payment_intent": intent, "refunded": false, "status": "succeeded",
        });
        let amount = session["amount_total"].as_i64().unwrap_or_default() * 11 / 10;
        self.line("charge", amount, charge["id"].clone(), now);
        self.charges.push(charge);
    }

    pub fn line(&mut self, kind: &str, amount: i64, source: Value, now: i64) {
        let line = json!({
            "id": self.id("txn"), "object": "balance_transaction", "amount": amount, "created": now, "currency": "hkd",
            "fee": 0, "net": amount, "source": source, "status": "pending", "type": kind,
        });
        self.balance.insert(0, line);
    }
}
