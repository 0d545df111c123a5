# One binary on a base without a shell: small, and run by a user who owns nothing.

# Slim, but with a C compiler: aws-lc (TLS, signatures) and mimalloc are C.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
COPY crates crates
COPY src src
# The words of `onrush config --example`.
COPY docs/OPERATIONS.md docs/
# Cargo tells by time stamps what has changed, and COPY keeps those of the files: what another clone's build left in the
# cache may look newer than they are, and would be shipped in their place. So the roots of all crates are made new.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    touch src/lib.rs src/main.rs crates/*/src/lib.rs && cargo build --locked --profile dist --bin onrush && cp target/dist/onrush /onrush

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /onrush /usr/local/bin/onrush
ENV ONRUSH_HTTP__LISTEN=0.0.0.0:8080 ONRUSH_LOG__FORMAT=json
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=8s --start-period=30s CMD ["/usr/local/bin/onrush", "ready"]
ENTRYPOINT ["/usr/local/bin/onrush"]
CMD ["serve"]
