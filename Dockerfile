# A static binary on an empty base: no shell, no package, no libc to update. docs/container.md says how it is
# run, what static glibc means, and how the runtime stage is built without any registry.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# `--target` keeps the flags away from build scripts and procedural macros, which cannot be static.
RUN target="$(uname -m)-unknown-linux-gnu" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" \
 && mkdir -p /out && cp "target/$target/release/sluicegate" /etc/ssl/certs/ca-certificates.crt /out/

# --- runtime ---------------------------------------------------------------------------------------------
FROM scratch
COPY --from=build /out/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/sluicegate /usr/bin/
# Writes nothing: run it with a read-only root. Ports below 1024 need NET_BIND_SERVICE, or use higher ones.
USER 65532:65532
EXPOSE 8080 9180
# There is no shell: the binary asks its own admin listener.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/usr/bin/sluicegate", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/sluicegate"]
CMD ["--config", "/etc/sluicegate/config.yaml"]
