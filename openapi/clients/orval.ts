// orval: a seckill, an order and a list, as a front end would write them.
import { createOrder, listOrders, logIn, payOrder, pollTask, submitSeckill } from "./generated/orval";
import type { ErrorName } from "./generated/orval";

export async function buy(activity: string, course: string): Promise<string> {
  const login = await logIn({ phone: "13800000001", password: "onrush-demo" });
  if (login.status !== 200) throw new Error(login.data.detail);
  const headers = { authorization: `Bearer ${login.data.access_token}` };

  const submitted = await submitSeckill(activity, { headers });
  if (submitted.status !== 202) throw new Error(submitted.data.error);
  const polled = await pollTask(submitted.data.id, { wait: 20 }, { headers });
  if (polled.status !== 200) throw new Error(polled.data.detail);
  const won: string | undefined = polled.data.result?.order_no;
  const why: ErrorName | undefined = polled.data.result?.error;
  if (why === "sold_out") throw new Error("too late");

  const keyed = { headers: { ...headers, "idempotency-key": crypto.randomUUID() } };
  const order = await createOrder({ course_ids: [course] }, keyed);
  if (order.status !== 201) throw new Error(order.data.detail);
  const paidAt: string | null = order.data.paid_at;
  const paying = await payOrder(order.data.order_no, { gateway: "sandbox" }, { headers });
  const page = paying.status === 200 ? paying.data.pay_url : undefined;

  const unpaid = await listOrders({ status: "unpaid" }, { headers });
  // @ts-expect-error No order is in a status of this name.
  await listOrders({ status: "unpayed" }, { headers });
  const left: number = unpaid.status === 200 ? unpaid.data.items.length : 0;
  return [won, paidAt, page, left].join();
}
