export default {
  onrush: { input: "openapi.json", output: { target: "generated/orval.ts", client: "fetch", mode: "single" } },
};
