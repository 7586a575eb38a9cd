# Larder's image: one static binary that runs as nobody in particular, and nothing else; no shell, no package manager.
#
#   docker build --tag larder .
#
# It builds from a clone on amd64 and arm64. `tests/k8s/image` makes the same image on a machine without an engine: it runs
# the same build command and reads the second stage of this file.

ARG RUST_VERSION=1.88
FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /larder
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies by themselves, in a layer that a change of the sources leaves alone: with a crate that is empty.
COPY Cargo.toml Cargo.lock ./
COPY proto proto
RUN mkdir -p src benches \
    && touch src/lib.rs benches/state.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin larder --target "$(uname -m)-unknown-linux-gnu"

# Cargo goes by the times of files, and those of the sources may be older than the empty crate's.
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin larder --target "$(uname -m)-unknown-linux-gnu" \
    && mkdir -p /image/data \
    && cp target/*-unknown-linux-gnu/release/larder /image/larder

FROM scratch
LABEL org.opencontainers.image.title="larder" \
      org.opencontainers.image.description="A replicated in-memory cache: acknowledged means on disk at a majority." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/larder /usr/local/bin/larder
# Empty. A volume mounted here takes its owner over, so that a plain `docker run --volume data:/var/lib/larder` can write.
COPY --from=build --chown=65532:65532 /image/data /var/lib/larder
ENV PATH="/usr/local/bin"
USER 65532:65532
EXPOSE 7400 7401 7402
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/larder", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/larder"]
