// @hey-api/openapi-ts: a seckill, an order and a list, as a front end would write them.
import { client } from "./generated/hey-api/client.gen";
import { createOrder, listOrders, logIn, payOrder, pollTask, submitSeckill } from "./generated/hey-api";
import type { ErrorName } from "./generated/hey-api";

export async function buy(baseUrl: string, activity: string, course: string): Promise<string> {
  client.setConfig({ baseUrl });
  const login = await logIn({ body: { phone: "13800000001", password: "onrush-demo" }, throwOnError: true });
  client.setConfig({ baseUrl, auth: () => login.data.access_token });

  const submitted = await submitSeckill({ path: { id: activity }, throwOnError: true });
  const polled = await pollTask({ path: { id: submitted.data.id }, query: { wait: 20 }, throwOnError: true });
  const won: string | undefined = polled.data.result?.order_no;
  const why: ErrorName | undefined = polled.data.result?.error;
  if (why === "sold_out") throw new Error("too late");

  const headers = { "Idempotency-Key": crypto.randomUUID() };
  const order = await createOrder({ headers, body: { course_ids: [course] } });
  if (!order.data) throw new Error(order.error?.detail);
  const paidAt: string | null = order.data.paid_at;
  const paying = await payOrder({ path: { no: order.data.order_no }, body: { gateway: "sandbox" } });

  const unpaid = await listOrders({ query: { status: "unpaid" } });
  // @ts-expect-error No order is in a status of this name.
  await listOrders({ query: { status: "unpayed" } });
  const left: number = unpaid.data?.items.length ?? 0;
  return [won, paidAt, paying.data?.pay_url, left].join();
}
