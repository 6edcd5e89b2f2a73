# The two that a newcomer needs: `make demo` and `make test`. They get what is missing by themselves.
# Works as root or not: what needs root and cannot have it is named, with the command to run.

CARGO ?= cargo

.PHONY: help demo build test lint fmt docs bench image packages-build packages-test packages-bench packages-image

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo    build and run: three invoice pods with the proxy in front of them
demo: build
	target/release/sluicegate demo

build: packages-build
	$(CARGO) build --release --locked

## make test    every test
test: packages-test
	$(CARGO) test --locked

## make lint    formatting and warnings, as CI looks at them
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@# The fuzz targets, so that they do not fall behind the code; named a library, so that no C++ compiler is needed.
	CUSTOM_LIBFUZZER_PATH=/none/libfuzzer.a $(CARGO) check --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

## make fmt     format the code
fmt:
	$(CARGO) fmt --all

## make docs    the crate's documentation, in target/doc
docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

## make bench   compare with the installed peers, in one run (about 20 minutes; ARGS=--quick for less)
bench: build packages-bench
	bench/compare $(ARGS)

## make image   a container image from a static binary, with buildah (docs/container.md)
image: packages-image
	deploy/image

# Commands and the Debian packages that have them, as command:package.
packages-build:
	@./deploy/packages cc:gcc cargo:cargo
packages-test:
	@./deploy/packages cc:gcc cargo:cargo redis-server:redis-server
packages-bench:
	@./deploy/packages nginx:nginx-light wrk:wrk openssl:openssl taskset:util-linux python3:python3
packages-image:
	@./deploy/packages buildah:buildah cargo:cargo
