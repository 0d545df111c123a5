// openapi-typescript and openapi-fetch: a seckill, an order and a list, as a front end would write them.
import createClient from "openapi-fetch";
import type { components, paths } from "./generated/openapi-typescript";

type Problem = components["schemas"]["Problem"];

export async function buy(baseUrl: string, activity: string, course: string): Promise<string> {
  const api = createClient<paths>({ baseUrl });
  const login = await api.POST("/api/v1/auth/login", { body: { phone: "13800000001", password: "onrush-demo" } });
  if (!login.data) throw refusal(login.error);
  const headers = { authorization: `Bearer ${login.data.access_token}` };

  const path = { id: activity };
  const submitted = await api.POST("/api/v1/seckill/activities/{id}/submissions", { headers, params: { path } });
  if (!submitted.data) throw refusal(submitted.error);
  const task = { path: { id: submitted.data.id }, query: { wait: 20 } };
  const polled = await api.GET("/api/v1/tasks/{id}", { headers, params: task });
  const won: string | undefined = polled.data?.result?.order_no;
  const why: components["schemas"]["ErrorName"] | undefined = polled.data?.result?.error;
  if (why === "sold_out") throw new Error("too late");

  const header = { "Idempotency-Key": crypto.randomUUID() };
  const order = await api.POST("/api/v1/orders", { headers, params: { header }, body: { course_ids: [course] } });
  if (!order.data) throw refusal(order.error);
  const paidAt: string | null = order.data.paid_at;
  const pay = { headers, params: { path: { no: order.data.order_no } }, body: { gateway: "sandbox" } } as const;
  const paying = await api.POST("/api/v1/orders/{no}/pay", pay);

  const unpaid = await api.GET("/api/v1/orders", { headers, params: { query: { status: "unpaid" } } });
  // @ts-expect-error No order is in a status of this name.
  await api.GET("/api/v1/orders", { headers, params: { query: { status: "unpayed" } } });
  const left: number = unpaid.data?.items.length ?? 0;
  return [won, paidAt, paying.data?.pay_url, left].join();
}

function refusal(problem: Problem | undefined): Error {
  if (problem?.error === "price_changed") return new Error(`it costs ${problem.payable_fen ?? 0} fen now`);
  // @ts-expect-error No refusal has this name.
  if (problem?.error === "price_chnaged") return new Error();
  return new Error(problem?.detail);
}
