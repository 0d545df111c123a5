"""Run by script/wechat-against-sdk: the comparison itself."""

import base64
import datetime
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from wechatpayv3 import WeChatPay, WeChatPayType
from wechatpayv3.utils import build_authorization, rsa_sign

MCHID, APPID, SERIAL_NO = "1900000109", "wxd678efh567hg6787", "408B07E79B8269FEC3D5D3E6AB8ED163A6A380DB"
API_V3_KEY = "an-apiv3-key-of-the-tests-has-32"
PUBLIC_KEY_ID, SERIAL = "PUB_KEY_ID_0119000001092024112100000000000001", "5157F09EFDC096DE15EBE81A47057A7200000001"
SCHEME = "WECHATPAY2-SHA256-RSA2048"
START_S = 120
DIFFERENCES = []


def differs(what):
    DIFFERENCES.append(what)
    if len(DIFFERENCES) <= 20:
        print(what)


def pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption()).decode()


def public_pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM,
                                         serialization.PublicFormat.SubjectPublicKeyInfo).decode()


class Keys:
    def __init__(self, directory):
        self.merchant, self.public, self.certified, self.foreign = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(4))
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Tenpay.com sign")])
        now = datetime.datetime.now(datetime.timezone.utc)
        self.certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.certified.public_key())
            .serial_number(int(SERIAL, 16)).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
            .sign(self.foreign, hashes.SHA256()))
        self.files = {
            "key": pem(self.merchant), "apiv3": API_V3_KEY, "public": public_pem(self.public),
            "certificate": self.certificate.public_bytes(serialization.Encoding.PEM).decode(),
        }
        for file, text in self.files.items():
            with open(os.path.join(directory, file), "w", encoding="utf-8") as out:
                out.write(text)
            self.files[file] = os.path.join(directory, file)

    def sdk(self):
        """As a merchant would make it. It knows both of the platform's keys, and has nobody to ask for more."""
        sdk = WeChatPay(WeChatPayType.NATIVE, MCHID, pem(self.merchant), SERIAL_NO, APPID, API_V3_KEY,
                        public_key=public_pem(self.public), public_key_id=PUBLIC_KEY_ID)
        sdk._core._certificates.append(self.certificate)
        sdk._core._update_certificates = lambda: None
        return sdk

    def signed(self, body, key=None, serial=PUBLIC_KEY_ID):
        timestamp, nonce = str(int(time.time())), uuid.uuid4().hex
        key = key or (self.public if serial == PUBLIC_KEY_ID else self.certified)
        return {"Wechatpay-Timestamp": timestamp, "Wechatpay-Nonce": nonce, "Wechatpay-Serial": serial,
                "Wechatpay-Signature": rsa_sign(key, f"{timestamp}\n{nonce}\n{body}\n"),
                "Wechatpay-Signature-Type": SCHEME}


class Gateway(BaseHTTPRequestHandler):
    """Answers as WeChat Pay does, and holds each request against the SDK's own signature of the same."""

    keys = sdk = None
    trades, seen = {}, set()

    def log_message(self, *_):
        pass

    def act(self, body):
        no = self.path.split("?")[0].removesuffix("/close").rsplit("/", 1)[-1]
        if self.path.startswith("/v3/pay/transactions/out-trade-no/"):
            if self.command == "POST":
                self.trades[no]["trade_state"] = "CLOSED"
                return 204, None
            return 200, self.trades[no]
        asked = json.loads(body)
        self.trades[asked["out_trade_no"]] = {
            "mchid": MCHID, "appid": APPID, "out_trade_no": asked["out_trade_no"], "trade_state": "NOTPAY",
            "amount": {"total": asked["amount"]["total"], "currency": "CNY"}}
        return 200, {"code_url": "weixin://wxpay/bizpayurl?pr=abc", "prepay_id": "wx" + asked["out_trade_no"],
                     "h5_url": "https://wx.tenpay.com/x"}

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        given = dict(re.findall(r'(\w+)="([^"]*)"', self.headers["Authorization"]))
        with mock.patch("wechatpayv3.utils.time.time", return_value=int(given["timestamp"])):
            own = build_authorization(self.path, self.command, MCHID, SERIAL_NO, self.keys.merchant, data=body,
                                      nonce_str=given["nonce_str"])
        if given != dict(re.findall(r'(\w+)="([^"]*)"', own)) or not self.headers["Authorization"].startswith(SCHEME + " "):
            differs(f"{self.command} {self.path}: ours {self.headers['Authorization']}, theirs {own}")
        self.seen.add(re.sub("[0-9a-f]{32}", "…", f"{self.command} {self.path}"))
        status, answer = self.act(body)
        text = "" if answer is None else json.dumps(answer, ensure_ascii=random.random() < 0.5)
        headers = self.keys.signed(text, serial=random.choice([PUBLIC_KEY_ID, SERIAL]))
        if not self.sdk._core._verify_signature(headers, text):
            differs(f"the SDK does not take our fake's answer to {self.path}")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = handle_any


class Service:
    """`onrush dev`, with WeChat Pay switched on."""

    def __init__(self, onrush, directory, keys, gateway):
        files = {name: keys.files[name] for name in keys.files}
        env = {
            "MCHID": MCHID, "APPID": APPID, "SERIAL_NO": SERIAL_NO, "PRIVATE_KEY_FILE": files["key"],
            "API_V3_KEY_FILE": files["apiv3"], "BASE_URL": gateway,
            "PLATFORM_KEYS": f"{PUBLIC_KEY_ID}={files['public']},{files['certificate']}",
        }
        env = {f"ONRUSH_PAYMENTS__WECHAT__{name}": value for name, value in env.items()}
        self.log = open(os.path.join(directory, "log"), "w+", encoding="utf-8")
        port = str(random.randrange(20000, 30000))
        self.process = subprocess.Popen(
            [onrush, "dev", "--dir", os.path.join(directory, "data"), "--port", port],
            env={**os.environ, **env, "ONRUSH_LOG__FILTER": "error"}, stdout=self.log, stderr=subprocess.STDOUT)
        self.http = requests.Session()
        self.http.trust_env = False
        self.base = self.started() + "/api/v1"
        login = self.call("/auth/login", {"phone": "13800000001", "password": "onrush-demo"})
        self.http.headers["Authorization"] = "Bearer " + login["access_token"]

    def started(self):
        for _ in range(START_S * 10):
            self.log.seek(0)
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read())
            if found:
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.log.seek(0)
        raise SystemExit("the service does not start:\n" + self.log.read())

    def call(self, path, body=None, **headers):
        answer = self.http.request("GET" if body is None else "POST", self.base + path, json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def notify(self, headers, body):
        return self.http.post(self.base + "/payments/wechat/notify", data=body.encode(),
                              headers={**headers, "Content-Type": "application/json"}).status_code

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)


def sealed(content, key=API_V3_KEY):
    nonce, about = uuid.uuid4().hex[:12], random.choice(["transaction", "", None, "退款"])
    text = AESGCM(key.encode()).encrypt(nonce.encode(), content.encode(), (about or "").encode())
    resource = {"algorithm": "AEAD_AES_256_GCM", "ciphertext": base64.b64encode(text).decode(), "nonce": nonce}
    if about is not None:
        resource["associated_data"] = about
    return resource


def envelope(content, **changes):
    body = {"id": str(uuid.uuid4()), "create_time": "2026-11-20T16:33:45+08:00", "event_type": "TRANSACTION.SUCCESS",
            "resource_type": "encrypt-resource", "summary": random.choice(["支付成功", "paid", ""]), **changes}
    body.setdefault("resource", sealed(json.dumps(content, ensure_ascii=random.random() < 0.5)))
    return json.dumps(body, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 1]))


def paid(no, total):
    return {"mchid": MCHID, "appid": APPID, "out_trade_no": no, "trade_state": "SUCCESS", "trade_type": "NATIVE",
            "transaction_id": f"42000{random.randrange(10**22):022d}", "attach": "课" * random.randrange(50),
            "payer": {"openid": "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"},
            "amount": {"total": total, "payer_total": total, "currency": "CNY", "payer_currency": "CNY"}}


def flipped(text, at=None):
    at = random.randrange(len(text)) if at is None else at
    return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1:]


def some_notify(keys):
    """A notify for a payment that is not there, and perhaps not as it should be."""
    content = paid(uuid.uuid4().hex, random.randrange(1, 10**9))
    serial = random.choice([PUBLIC_KEY_ID, SERIAL])
    kind = random.choice(["good"] * 8 + ["body", "space", "time", "nonce", "serial", "signature", "probe", "foreign", "own",
                                         "other key", "sealed otherwise", "no signature", "lower case"])
    body = envelope(content, **({"resource": sealed(json.dumps(content), "f" * 32)} if kind == "sealed otherwise" else {}))
    key = {"foreign": keys.foreign, "own": keys.merchant}.get(kind)
    headers = keys.signed(body, key, serial)
    if kind == "body":
        body = flipped(body)
    elif kind == "space":
        body += random.choice([" ", "\n"])
    elif kind == "time":
        headers["Wechatpay-Timestamp"] = str(int(headers["Wechatpay-Timestamp"]) - 1)
    elif kind == "nonce":
        headers["Wechatpay-Nonce"] = flipped(headers["Wechatpay-Nonce"])
    elif kind == "serial":
        headers["Wechatpay-Serial"] = uuid.uuid4().hex + "00000001"
    elif kind == "other key":
        headers["Wechatpay-Serial"] = SERIAL if serial == PUBLIC_KEY_ID else PUBLIC_KEY_ID
    elif kind == "signature":
        raw = bytearray(base64.b64decode(headers["Wechatpay-Signature"]))
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        headers["Wechatpay-Signature"] = base64.b64encode(bytes(raw)).decode()
    elif kind == "probe":
        headers["Wechatpay-Signature"] = "WECHATPAY/SIGNTEST/" + headers["Wechatpay-Signature"]
    elif kind == "no signature":
        del headers["Wechatpay-Signature"]
    elif kind == "lower case":
        headers["Wechatpay-Serial"] = serial if serial == PUBLIC_KEY_ID else serial.lower()
    return kind, headers, body


def taken_by(sdk, headers, body):
    try:
        return bool(sdk.callback(dict(headers), body))
    except Exception:  # It raises whatever it meets.
        return False


def compare_notifies(service, keys, sdk, count):
    kinds = {}
    for _ in range(count):
        kind, headers, body = some_notify(keys)
        theirs = taken_by(sdk, headers, body)
        status = service.notify(headers, body)
        # There is no such payment: what is verified and opened is answered so.
        ours = {404: True, 400: False}.get(status)
        if ours is not theirs:
            differs(f"{kind}: the SDK {'takes' if theirs else 'refuses'} it, we answer {status}: {headers} {body}")
        kinds.setdefault(kind, [0, 0])[theirs] += 1
    return kinds


def pay_for_real(service, keys, sdk):
    """Every way to pay, a notify that pays, a question, a close."""
    for course in (1, 2, 3):
        order = service.call("/orders", {"course_ids": [f"{course:032x}"]}, **{"Idempotency-Key": f"sdk-{course}"})["order_no"]
        body = {"gateway": "wechat", "channel": ["native", "jsapi", "h5"][course - 1]}
        if course == 2:
            body["openid"] = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"
        begun = service.call(f"/orders/{order}/pay", body)
        payment = begun["payment_no"]
        if course == 2:
            given = begun["jsapi"]
            own = sdk.sign([given["appId"], given["timeStamp"], given["nonceStr"], given["package"]])
            if given["paySign"] != own or given["signType"] != "RSA":
                differs(f"JSAPI: ours {given}, theirs {own}")
        asked = service.call(f"/payments/wechat/return?payment_no={payment}")
        if asked["status"] != "unpaid":
            differs(f"an unpaid order is {asked}")
        if course == 3:
            service.call(f"/orders/{order}/cancel", {})
            if Gateway.trades[payment]["trade_state"] != "CLOSED":
                differs("a cancelled order's trade is open")
            continue
        notify = envelope(paid(payment, Gateway.trades[payment]["amount"]["total"]))
        status = service.notify(keys.signed(notify, serial=random.choice([PUBLIC_KEY_ID, SERIAL])), notify)
        order = service.call(f"/orders/{order}")
        if status != 204 or order["status"] != "paid":
            differs(f"a good notify is answered {status}, and the order is {order['status']}")


def main():
    onrush, count = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    seed = sys.argv[3] if len(sys.argv) > 3 else str(random.SystemRandom().randrange(10**9))
    random.seed(seed)
    with tempfile.TemporaryDirectory() as directory:
        Gateway.keys = keys = Keys(directory)
        Gateway.sdk = sdk = keys.sdk()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service = Service(onrush, directory, keys, f"http://127.0.0.1:{server.server_port}")
        try:
            pay_for_real(service, keys, sdk)
            kinds = compare_notifies(service, keys, sdk, count)
        finally:
            service.stop()
    took, refused = sum(kind[1] for kind in kinds.values()), sum(kind[0] for kind in kinds.values())
    print(f"seed {seed}: {len(Gateway.seen)} kinds of requests signed alike, {took} notifies taken and {refused} refused "
          f"by the SDK ({len(kinds)} kinds), {len(DIFFERENCES)} differences")
    # A comparison that compares nothing proves nothing.
    return 1 if DIFFERENCES or len(Gateway.seen) < 5 or min(took, refused) < count // 4 else 0


if __name__ == "__main__":
    sys.exit(main())
