//! The binary: see [`sluicegate::cli`].

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Every later instant is after this one.
    sluicegate::common::clock::start();
    sluicegate::cli::main()
}
