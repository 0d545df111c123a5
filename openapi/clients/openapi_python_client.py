"""openapi-python-client: a seckill, an order and a list, as a script would write them."""

from uuid import uuid4

from onrush_client import AuthenticatedClient, Client
from onrush_client.api.auth import log_in
from onrush_client.api.orders import create_order, list_orders
from onrush_client.api.payments import pay_order
from onrush_client.api.seckill import submit_seckill
from onrush_client.api.tasks import poll_task
from onrush_client.models import ErrorName, Gateway, LoginRequest, OrderRequest, OrderStatus, PayRequest, Problem
from onrush_client.types import Unset


def buy(base_url: str, activity: str, course: str) -> list[str | None]:
    login = log_in.sync(client=Client(base_url), body=LoginRequest(phone="13800000001", password="onrush-demo"))
    if login is None or isinstance(login, Problem):
        raise RuntimeError(login)
    api = AuthenticatedClient(base_url, login.access_token)

    submitted = submit_seckill.sync(activity, client=api)
    if submitted is None or isinstance(submitted, Problem):
        raise RuntimeError(submitted)
    polled = poll_task.sync(submitted.id, client=api, wait=20)
    if polled is None or isinstance(polled, Problem):
        raise RuntimeError(polled)
    won: str | Unset = polled.result.order_no if polled.result else Unset()
    if polled.result and polled.result.error == ErrorName.SOLD_OUT:
        raise RuntimeError("too late")

    order = create_order.sync(client=api, body=OrderRequest(course_ids=[course]), idempotency_key=str(uuid4()))
    if order is None or isinstance(order, Problem):
        raise RuntimeError(order)
    paying = pay_order.sync(order.order_no, client=api, body=PayRequest(gateway=Gateway.SANDBOX))
    page = None if paying is None or isinstance(paying, Problem) else paying.pay_url

    unpaid = list_orders.sync(client=api, status=OrderStatus.UNPAID)
    list_orders.sync(client=api, status=OrderStatus.UNPAYED)  # type: ignore[attr-defined]
    left = 0 if unpaid is None or isinstance(unpaid, Problem) else len(unpaid.items)
    return [str(won), str(order.paid_at), str(page), str(left)]
