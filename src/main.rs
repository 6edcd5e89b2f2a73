//! The binary: see [`sluicegate::cli`].

fn main() -> std::process::ExitCode {
    // Every later instant is after this one.
    sluicegate::common::clock::start();
    sluicegate::cli::main()
}
