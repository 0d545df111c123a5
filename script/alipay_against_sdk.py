"""Run by script/alipay-against-sdk: the comparison itself."""

import base64
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from alipay import AliPay
from Cryptodome.PublicKey import RSA

APP_ID, SELLER_ID = "2021000000000001", "2088000000000001"
COURSES = [f"{number:032}" for number in (1, 2, 3)]
CHARACTERS = "abcXYZ 0189 +%=?#/\\\"'{}[]<>;:,.~!*()课程支付宝é😀\t\n"


class Differences:
    """What was compared, and what came out otherwise."""

    def __init__(self):
        self.compared, self.different = 0, 0

    def expect(self, what, holds, *more):
        self.compared += 1
        if not holds:
            self.different += 1
            if self.different <= 20:
                print(f"different: {what}", *more)


def pair():
    key = RSA.generate(2048)
    return key.export_key().decode(), key.publickey().export_key().decode()


def sdk(own_private, others_public):
    return AliPay(APP_ID, app_private_key_string=own_private, alipay_public_key_string=others_public, sign_type="RSA2")


def form(data):
    return dict(urllib.parse.parse_qsl(data, keep_blank_values=True, strict_parsing=True, encoding="utf-8", errors="strict"))


class Gateway:
    """An Alipay that signs and verifies with the SDK, as the other side of it."""

    def __init__(self, sdk, differences):
        self.sdk, self.differences = sdk, differences
        self.paid, self.altered, self.methods = set(), False, set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                answer = outer.answer(urllib.parse.urlsplit(self.path).query, body).encode()
                self.send_response(200)
                self.send_header("content-type", "text/html;charset=utf-8")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/gateway.do"

    def verifies(self, params):
        """A request: `sign_type` is signed as well, so the SDK's check of notifies does not fit."""
        params = dict(params)
        signature = params.pop("sign")
        text = "&".join(f"{name}={value}" for name, value in self.sdk._ordered_data(params))
        return self.sdk._verify(text, signature)

    def answer(self, query, body):
        params = form(query) | form(body)
        method = params["method"]
        self.methods.add(method)
        self.differences.expect(f"the signature of {method}", self.verifies(params), params)
        content = json.loads(params["biz_content"])
        number = content["out_trade_no"]
        members = {"code": "10000", "msg": "Success", "out_trade_no": number}
        if method == "alipay.trade.precreate":
            members |= {"qr_code": f"https://qr.alipay.com/{number}", "note": "课程 \"}{\\"}
        elif method == "alipay.trade.query" and number in self.paid:
            members |= {"trade_no": f"T{number}", "trade_status": "TRADE_SUCCESS", "total_amount": self.paid_yuan}
        elif method == "alipay.trade.query":
            members |= {"trade_no": f"T{number}", "trade_status": "WAIT_BUYER_PAY", "total_amount": "0.01"}
        # The text as the SDK itself finds it in an answer again.
        text = json.dumps(members, ensure_ascii=random.random() < 0.5, separators=random.choice([(",", ":"), (", ", ": ")]))
        sign = self.sdk._sign(text)
        if self.altered:
            text = text.replace("qr.alipay.com", "qr.alipay.org")
        return json.dumps({"sign": sign})[:-1] + f', "{method.replace(".", "_")}_response": {text}}}'


class Service:
    """`onrush dev` with Alipay on."""

    def __init__(self, onrush, directory, settings):
        self.log = open(directory / "log", "w+")
        environment = os.environ | settings | {"ONRUSH_LOG__FILTER": "error", "NO_PROXY": "*"}
        command = [onrush, "dev", "--dir", str(directory / "data"), "--port", "18190", "--pay-deadline-s", "3600"]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(600):
            # Where it says it listens, which is another port when this one is taken.
            found = re.search(r"http://127\.0\.0\.1:(\d+)", Path(self.log.name).read_text())
            if found:
                break
            if self.process.poll() is not None:
                sys.exit("the service does not start:\n" + Path(self.log.name).read_text())
            time.sleep(0.1)
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        self.token = self.api("POST", "/auth/login", {"phone": "13800000001", "password": "onrush-demo"})[1]["access_token"]

    def ask(self, method, path, body, headers):
        self.connection.request(method, "/api/v1" + path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def api(self, method, path, body=None, key=None):
        headers = {"content-type": "application/json"}
        if hasattr(self, "token"):
            headers["authorization"] = f"Bearer {self.token}"
        if key:
            headers["idempotency-key"] = key
        status, answer = self.ask(method, path, json.dumps(body) if body is not None else None, headers)
        return status, json.loads(answer)

    def notify(self, body):
        headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
        status, answer = self.ask("POST", "/payments/alipay/notify", body, headers)
        return status, answer.decode()

    def order(self, course):
        status, order = self.api("POST", "/orders", {"course_ids": [course]}, key=f"sdk-{course}")
        assert status == 201, order
        return order["order_no"], order["payable_fen"]

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


def yuan(fen):
    return f"{fen // 100}.{fen % 100:02}"


def notify_of(number, fen, **more):
    return {
        "app_id": APP_ID, "seller_id": SELLER_ID, "charset": "utf-8", "version": "1.0", "out_trade_no": number,
        "trade_no": f"T{number}", "notify_id": f"n{random.getrandbits(64)}", "notify_type": "trade_status_sync",
        "trade_status": "TRADE_SUCCESS", "total_amount": yuan(fen), "subject": "课程 A+B & C",
        "fund_bill_list": '[{"amount":"1.00","fundChannel":"ALIPAYACCOUNT"}]',
    } | more


def posted(gateway, data):
    """A notify as Alipay posts it: `sign_type` is there and not signed."""
    return gateway.sign_data(dict(data)) + "&sign_type=RSA2"


def random_text(longest):
    return "".join(random.choice(CHARACTERS) for _ in range(random.randint(0, longest)))


def hides_a_parameter(value):
    """What we refuse whoever signed it: a text that could be cut into other parameters."""
    return re.search(r"&[A-Za-z0-9_]+=", value) is not None


def is_base64(text):
    """Strictly: the SDK's own decoder passes over signs that are none of base64, and over what follows its end."""
    try:
        return bool(base64.b64decode(text or "", validate=True))
    except ValueError:
        return False


def random_notify():
    more = {f"{random.choice('abyz')}_{random.randint(0, 99)}": random_text(60) for _ in range(random.randint(0, 12))}
    if random.random() < 0.1:
        more["body"] = f"{random_text(5)}&{random.choice(['x', '课', ' ', ''])}{random.choice(['=', ''])}{random_text(5)}"
    return notify_of("0" * 32, random.randint(1, 10**7), subject=random_text(80), **more)


def pages_and_codes(service, gateway, differences):
    """One order is paid by the page, one by the code; returns the numbers of their payments."""
    number, fen = service.order(COURSES[0])
    status, page = service.api("POST", f"/orders/{number}/pay", {"gateway": "alipay", "channel": "page"})
    assert status == 200, page
    params = form(urllib.parse.urlsplit(page["pay_url"]).query)
    differences.expect("the signature of a page's address", gateway.verifies(params), params)
    differences.expect("a page's amount", json.loads(params["biz_content"])["total_amount"] == yuan(fen), params)
    altered = params | {"biz_content": params["biz_content"].replace(yuan(fen), "0.01")}
    differences.expect("that an altered page is refused", not gateway.verifies(altered))

    told = service.notify(posted(gateway.sdk, notify_of(page["payment_no"], fen)))
    differences.expect("a notify of the SDK's", told == (200, "success"), told)
    status, order = service.api("GET", f"/orders/{number}")
    differences.expect("that it paid the order", order["status"] == "paid", order)

    number, fen = service.order(COURSES[1])
    gateway.altered = True
    status, _ = service.api("POST", f"/orders/{number}/pay", {"gateway": "alipay", "channel": "qr"})
    differences.expect("that an altered answer is refused", status == 503, status)
    gateway.altered = False
    status, code = service.api("POST", f"/orders/{number}/pay", {"gateway": "alipay", "channel": "qr"})
    differences.expect("an answer of the SDK's", status == 200 and code["qr"].endswith(code["payment_no"]), code)
    gateway.paid.add(code["payment_no"])
    gateway.paid_yuan = yuan(fen)
    status, order = service.ask("GET", f"/payments/alipay/return?out_trade_no={code['payment_no']}", None, {})
    differences.expect("what was asked", json.loads(order)["status"] == "paid", order)

    number, _ = service.order(COURSES[2])
    service.api("POST", f"/orders/{number}/pay", {"gateway": "alipay", "channel": "qr"})
    status, cancelled = service.api("POST", f"/orders/{number}/cancel", {})
    differences.expect("a trade's close", status == 200, cancelled)
    expected = {"alipay.trade.precreate", "alipay.trade.query", "alipay.trade.close"}
    differences.expect("the calls that were seen", gateway.methods == expected, gateway.methods)


def notifies(service, gateway, merchant, count, differences):
    """Random notifies, as signed and altered: both sides must say the same of each."""
    accepted = refused = ambiguous = 0
    for _ in range(count):
        data = random_notify()
        body = posted(gateway.sdk, data)
        if random.random() < 0.5:
            params = form(body)
            name = random.choice(sorted(set(params) - {"sign_type"}))
            params[name] = random.choice([params[name] + "x", params[name][1:], random_text(8)])
            if random.random() < 0.2:
                del params[name]
            body = urllib.parse.urlencode(params)
        params = form(body)
        signature = params.pop("sign", None)
        holds = is_base64(signature) and merchant.verify(dict(params), signature)
        status, answer = service.notify(body)
        # Accepted and of a payment that is not there, or refused before anything was read of it.
        if holds and any(hides_a_parameter(value) for value in params.values()):
            ambiguous += 1
            differences.expect("a text of two readings", status == 400, status, answer)
        elif holds:
            accepted += 1
            differences.expect("a notify that the SDK accepts", (status, answer) == (404, "failure"), status, answer, body)
        else:
            refused += 1
            differences.expect("a notify that the SDK refuses", status == 400, status, answer, body)
    print(f"notifies: {accepted} accepted by both, {refused} refused by both, {ambiguous} of two readings refused by us alone")
    # A comparison that compares nothing proves nothing.
    differences.expect("that there were enough of each", min(accepted, refused) > count // 5)


def main():
    onrush, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    seed = sys.argv[3] if len(sys.argv) > 3 else str(random.SystemRandom().randrange(10**9))
    random.seed(seed)
    differences = Differences()
    (our_private, our_public), (their_private, their_public) = pair(), pair()
    gateway, merchant = Gateway(sdk(their_private, our_public), differences), sdk(our_private, their_public)
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        (directory / "ours.pem").write_text(our_private)
        (directory / "theirs.pem").write_text(their_public)
        service = Service(onrush, directory, {
            "ONRUSH_PAYMENTS__ALIPAY__APP_ID": APP_ID,
            "ONRUSH_PAYMENTS__ALIPAY__SELLER_ID": SELLER_ID,
            "ONRUSH_PAYMENTS__ALIPAY__PRIVATE_KEY_FILE": str(directory / "ours.pem"),
            "ONRUSH_PAYMENTS__ALIPAY__PUBLIC_KEY_FILES": str(directory / "theirs.pem"),
            "ONRUSH_PAYMENTS__ALIPAY__BASE_URL": gateway.url,
        })
        try:
            pages_and_codes(service, gateway, differences)
            notifies(service, gateway, merchant, count, differences)
        finally:
            code = service.stop()
    differences.expect("an orderly stop of the service", code == 0, code)
    print(f"seed {seed}: {differences.compared} comparisons, {differences.different} differences")
    return 1 if differences.different else 0


if __name__ == "__main__":
    sys.exit(main())
