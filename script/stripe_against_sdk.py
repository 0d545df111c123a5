"""Run by the test that script/stripe-against-sdk starts: the SDK's side of the comparison. What to compare is a JSON file."""

import json
import random
import sys
import time
import urllib.error
import urllib.request

import stripe

CASE = json.load(open(sys.argv[1], encoding="utf-8"))
SECRETS = CASE["secrets"]
DIFFERENCES = []


def check(same, what):
    if not same:
        DIFFERENCES.append(what)
        if len(DIFFERENCES) <= 20:
            print(f"different: {what}")


def notify(payload, header):
    """What the service answers to an event."""
    request = urllib.request.Request(CASE["notify_url"], payload, {"Content-Type": "application/json"})
    if header is not None:
        request.add_header("Stripe-Signature", header)
    try:
        return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        return error.code


def accepted_by_sdk(payload, header, secret):
    try:
        stripe.Webhook.construct_event(payload, header, secret, api_key="sk_test_none")
        return True
    except (stripe.SignatureVerificationError, ValueError):
        return False


def signed(payload, secret, at=None):
    return stripe.WebhookSignature.generate_signature_header(payload.decode(), secret, at)


def text():
    alphabet = "abc \"\\/{}\n\t0é课程🎓\u2028" if random.random() < 0.5 else "abcdef0123456789"
    return "".join(random.choice(alphabet) for _ in range(random.randrange(40)))


def event():
    """Of a kind that says nothing to the service: its answer is about the signature alone."""
    body = {"id": f"evt_{random.randrange(10**12)}", "object": "event", "type": f"customer.{random.choice('abc')}",
            "livemode": False, "data": {"object": {"id": "cus_1", "object": "customer", "name": text()}}}
    return json.dumps(body, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 2])).encode()


def headers(payload):
    """A header, whether it is good, and what it is."""
    now = int(time.time())
    secret, other = random.choice(SECRETS), "whsec_of_another"
    good, foreign = signed(payload, secret, now), signed(payload, other, now)
    digest = good.split("v1=")[1]
    at = random.randrange(len(digest))
    return random.choice([
        (good, True, "signed by the SDK"),
        (f"{foreign},v1={digest}", True, "two signatures, the second one ours"),
        (f"{good},v1={foreign.split('v1=')[1]}", True, "two signatures, the first one ours"),
        (f"{good},v0={'0' * 64}", True, "another scheme beside it"),
        (signed(payload, secret, now - 250), True, "some minutes old"),
        (signed(payload, secret, now - 400), False, "too old"),
        (foreign, False, "another secret"),
        (good.replace("v1=", "v0="), False, "another scheme"),
        (f"t={now - 1},v1={digest}", False, "another time"),
        (good.replace(digest, digest[:at] + ("0" if digest[at] != "0" else "1") + digest[at + 1:]), False, "a digit altered"),
        (f"v1={digest}", False, "no time"),
        (f"t={now}", False, "no signature"),
        ("", False, "empty"),
    ])


def compare_events(count):
    kinds = {}
    for _ in range(count):
        payload = event()
        header, good, what = headers(payload)
        if good and random.random() < 0.2:
            at = random.randrange(len(payload))
            payload, good, what = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1:], False, "a byte altered"
        kinds[what] = kinds.get(what, 0) + 1
        status = notify(payload, header)
        # The tolerance of the SDK and ours are the same; both look at the time of this machine.
        by_sdk = any(accepted_by_sdk(payload, header, secret) for secret in SECRETS)
        check(status in (200, 400), f"{what}: {status}")
        check((status == 200) == good, f"{what}: we answer {status} to {header!r}")
        check(by_sdk == good, f"{what}: the SDK's answer is {by_sdk} to {header!r}")
    return kinds


def compare_ours():
    """What our own code signed."""
    for ours in CASE["ours"]:
        payload = ours["payload"].encode()
        check(accepted_by_sdk(payload, ours["header"], ours["secret"]), f"our signature {ours['header']!r}")
        check(not accepted_by_sdk(payload + b" ", ours["header"], ours["secret"]), "our signature on another body")
        check(not accepted_by_sdk(payload, ours["header"], "whsec_of_another"), "our signature by another secret")
        read = json.loads(payload)
        made = stripe.Webhook.construct_event(payload, ours["header"], ours["secret"], api_key="sk_test_none")
        check(made.id == read["id"] and made.data.object.id == read["data"]["object"]["id"], "our event as an object")


def compare_requests():
    """The same requests under the same keys are the same, and are answered the same."""
    client = stripe.StripeClient(CASE["key"], base_addresses={"api": CASE["api_base"]}, max_network_retries=0)
    create, refund = CASE["create"], CASE["refund"]
    number = {"payment_no": create["payment_no"]}
    made = client.v1.checkout.sessions.create({
        "mode": "payment",
        "client_reference_id": create["payment_no"],
        "metadata": number,
        "payment_intent_data": {"metadata": number},
        "line_items": [{"quantity": 1, "price_data": {
            "currency": "cny", "unit_amount": create["amount"], "product_data": {"name": create["name"]}}}],
        "adaptive_pricing": {"enabled": False},
        "success_url": create["back"],
        "cancel_url": create["back"],
        "expires_at": create["expires_at"],
    }, {"idempotency_key": create["payment_no"]})
    check(made.id == create["session"], f"the SDK's session is {made.id}, ours {create['session']}")
    made = client.v1.refunds.create({
        "payment_intent": refund["payment_intent"], "amount": refund["amount"],
        "metadata": {"payment_no": refund["payment_no"], "refund_no": refund["refund_no"]},
    }, {"idempotency_key": refund["refund_no"]})
    check(made.id == refund["id"], f"the SDK's refund is {made.id}, ours {refund['id']}")
    session = client.v1.checkout.sessions.retrieve(create["session"], {"expand": ["payment_intent"]})
    check(session.payment_intent.id == refund["payment_intent"], "the session's payment intent")
    listed = client.v1.refunds.list({"payment_intent": refund["payment_intent"], "limit": 100})
    check([one.id for one in listed.data] == [refund["id"]], "the payment's refunds")
    bill = CASE["bill"]
    lines = client.v1.balance_transactions.list({
        "created": {"gte": bill["from"], "lt": bill["to"]}, "limit": 100, "expand": ["data.source"]})
    check(sorted(line.type for line in lines.data) == ["charge", "charge", "refund"], "the lines of the balance")
    check(client.v1.checkout.sessions.expire(CASE["open_session"]).status == "expired", "the session that is expired")

    def raised(kind, ask):
        try:
            ask()
        except kind:
            return True
        return False
    # That the fake refuses as the real one does.
    other = stripe.StripeClient("sk_test_other", base_addresses={"api": CASE["api_base"]}, max_network_retries=0)
    check(raised(stripe.AuthenticationError, lambda: other.v1.refunds.list({})), "another key")
    again = {"payment_intent": refund["payment_intent"], "amount": 1, "metadata": {"payment_no": "1", "refund_no": "2"}}
    under = {"idempotency_key": refund["refund_no"]}
    check(raised(stripe.IdempotencyError, lambda: client.v1.refunds.create(again, under)), "a key used for another request")
    check(raised(stripe.InvalidRequestError, lambda: client.v1.refunds.create({"color": "red"}, {"idempotency_key": "k"})),
          "an unknown parameter")
    check(raised(stripe.InvalidRequestError, lambda: client.v1.checkout.sessions.expire(create["session"])),
          "a session that is not open")


def main():
    seed = CASE["seed"] or str(random.SystemRandom().randrange(10**9))
    random.seed(seed)
    compare_ours()
    compare_requests()
    # An event that the SDK signed pays the order.
    paid = CASE["paid_event"].encode()
    check(notify(paid, signed(paid, SECRETS[1])) == 200, "a payment's event")
    kinds = compare_events(CASE["events"])
    print(f"seed {seed}: {sum(kinds.values())} events compared, {len(CASE['ours'])} of our signatures, the requests of every "
          f"operation, {len(DIFFERENCES)} differences")
    # A comparison that compares nothing proves nothing.
    return 1 if DIFFERENCES or len(kinds) < min(14, CASE["events"] // 20) else 0


if __name__ == "__main__":
    sys.exit(main())
